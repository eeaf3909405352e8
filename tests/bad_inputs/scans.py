"""Faults of single scans and their labels, as files."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from itertools import permutations, product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor

from medsam_tune.cases.datalist import Case
from medsam_tune.inference.output import write_mask
from medsam_tune.inference.segmenter import Segmenter
from medsam_tune.sam.build import build_sam
from medsam_tune.slices.cut import cut_label, grid_of
from medsam_tune.slices.intensity import Percentiles
from medsam_tune.slices.rules import ScanRules
from medsam_tune.slices.store import SliceStore
from medsam_tune.training.samples import SliceDataset
from tests.bad_inputs.calls import Pair, load, monai, sam_mask, same_in_world
from tests.bad_inputs.table import BadInput
from tests.scans import LABELS, SHAPE, small_scan, write_nifti


def each(call: Callable[[Any], Any]) -> Callable[[list[Any]], list[Any]]:
    """For inputs that are several."""
    return lambda made: [call(one) for one in made]


def case(
    folder: Path,
    image: np.ndarray | None = None,
    label: np.ndarray | None = None,
    affine: np.ndarray | None = None,
    label_affine: np.ndarray | None = None,
    ending: str = ".nii.gz",
    name: str = "case_017",
) -> Case:
    """A sound case but for what is given."""
    usual_image, usual_label = small_scan()
    return Case(
        write_nifti(folder / f"{name}{ending}", usual_image if image is None else image, affine),
        write_nifti(
            folder / "labels" / f"{name}.nii.gz",
            usual_label if label is None else label,
            affine if label_affine is None else label_affine,
        ),
        "p",
    )


def cut(folder: Path, keep: Callable[[bytes], bytes], ending: str = ".nii.gz") -> Case:
    """A case whose image file is changed byte by byte."""
    made = case(folder, ending=ending)
    made.image.write_bytes(keep(made.image.read_bytes()))
    return made


def with_value(folder: Path, value: float) -> Case:
    image = small_scan()[0]
    image[1, 2, 3] = image[4, 5, 3] = value
    return case(folder, image)


def with_header(folder: Path, change: Callable[[nib.Nifti1Header], None]) -> Case:
    """A case whose image header is changed after it was written."""
    made = case(folder, ending=".nii")
    content = made.image.read_bytes()
    header = nib.Nifti1Header(content[:348])
    change(header)
    made.image.write_bytes(header.binaryblock + content[348:])
    return made


def no_forms(header: nib.Nifti1Header) -> None:
    header["qform_code"] = header["sform_code"] = 0


def other_qform(header: nib.Nifti1Header) -> None:
    header.set_sform(np.eye(4), 1)
    header.set_qform(np.diag([-2.0, 2.0, 2.0, 1.0]), 1)


def pixdim_rounded(header: nib.Nifti1Header) -> None:
    """As some converters leave it; MONAI then takes the qform, which says nothing here."""
    header["qform_code"], header["quatern_b"] = 0, 1
    header["pixdim"][1:4] = 2.0001, 3.0001, 4.0001


def singular(header: nib.Nifti1Header) -> None:
    header["qform_code"] = 0
    header["srow_y"] = 0


def oblique(folder: Path) -> Case:
    return case(folder, affine=OBLIQUE)


C, S = np.cos(np.radians(30)), np.sin(np.radians(30))


OBLIQUE = np.array([[1, 0, 0, 5.0], [0, C, -S, -7], [0, S, C, 9], [0, 0, 0, 1]]) @ np.diag(
    [2.0, 3.0, 4.0, 1.0]
)


def orientations(folder: Path) -> list[Case]:
    """One scan, stored in each of the 48 ways to lay its axes."""
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    made = []
    for number, (axes, flips) in enumerate(
        product(permutations(range(3)), product((1, -1), repeat=3))
    ):
        transform = np.array([axes, flips]).T
        back = affine @ nib.orientations.inv_ornt_aff(transform, SHAPE)
        image, label = (nib.apply_orientation(part, transform) for part in small_scan())
        made.append(case(folder / str(number), image, label, back))
    return made


def huge(folder: Path) -> Case:
    """A sparse file: its voxels take no room on the disk."""
    header = nib.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape((20000, 20000, 2000))
    header.set_sform(np.eye(4), 1)
    header["vox_offset"] = 352
    path = folder / "case_017.nii"
    with path.open("wb") as file:
        file.write(header.binaryblock + bytes(4))
        os.ftruncate(file.fileno(), 352 + 20000 * 20000 * 2000)
    return Case(path, None, "p")


def constant_slice(folder: Path) -> Case:
    image = small_scan()[0]
    image[..., 2] = 0
    return case(folder, image)


def half_values(folder: Path) -> Case:
    label = small_scan()[1].astype(np.float32)
    label[0, 0, 0] = 0.5
    return case(folder, label=label)


def label_seven(folder: Path) -> Case:
    label = small_scan()[1]
    label[0, 0, 0] = 7
    return case(folder, label=label)


def shifted_label(folder: Path) -> Case:
    shifted = np.diag([2.0, 3.0, 4.0, 1.0])
    shifted[0, 3] = 0.5
    return case(folder, label_affine=shifted)


def right_scan(affine: np.ndarray | None = None) -> Callable[[Pair], None]:
    """The small scan, at its place."""

    def check(pair: Pair) -> None:
        same_in_world(
            pair[0], small_scan()[0], np.diag([2.0, 3, 4, 1]) if affine is None else affine
        )

    return check


def right_oblique(pair: Pair) -> None:
    """Label and mask as well."""
    right_scan(OBLIQUE)(pair)
    assert pair[1] is not None
    same_in_world(pair[1], small_scan()[1], OBLIQUE)
    np.testing.assert_allclose(pair[1].affine, OBLIQUE, atol=1e-5)


def all_the_same(pairs: list[Pair]) -> None:
    for image, label in pairs:
        assert label is not None
        same_in_world(image, small_scan()[0], np.diag([2.0, 3, 4, 1]))
        same_in_world(label, small_scan()[1], np.diag([2.0, 3, 4, 1]))


def empty_label(pair: Pair) -> None:
    assert pair[1] is not None
    assert pair[1].shape == (1, *SHAPE)
    assert not pair[1].any()


def through_mask(case: Case) -> Pair:
    """Ours, the label written and read again as a mask is."""
    image, label = load(case)
    assert label is not None
    path = case.image.parent / "mask.nii.gz"
    grid = grid_of(image, ScanRules(Percentiles()))
    write_mask(cut_label(label, grid)[0], grid, path)
    mask = nib.load(path)
    return image, MetaTensor(torch.from_numpy(mask.get_fdata())[None], affine=mask.affine)


def segment(scan: Path, box: list[float]) -> np.ndarray:
    """Ours, by the embedded model at a small size."""
    segmenter = Segmenter(
        build_sam("nano", image_size=64), ScanRules(Percentiles()), LABELS, device="cpu"
    )
    return segmenter.segment(scan, {"objects": [{"label": 1, "box3d": box}]})[0].numpy()


def tiny(folder: Path, shape: tuple[int, int, int]) -> Case:
    values = np.random.default_rng(0).uniform(1, 200, shape).astype(np.float32)
    return Case(write_nifti(folder / "case_017.nii.gz", values), None, "p")


def segment_all(case: Case) -> np.ndarray:
    shape = nib.load(case.image).shape
    found = segment(case.image, [0, 0, 0, *shape])
    assert found.shape == shape
    return found


def train_and_segment(case: Case) -> tuple[list[int], np.ndarray]:
    """Slices that training takes, and the mask of a box through all slices."""
    store = SliceStore(case.image.parent / "store", ScanRules(Percentiles()), LABELS)
    dataset = SliceDataset(store.prepare([case], progress=False), LABELS, 64)
    return [k for _, k in dataset.index], segment(case.image, [1, 2, 1, 9, 9, 5])


def third_slice_left_out(found: tuple[list[int], np.ndarray]) -> None:
    slices, mask = found
    assert slices == [1, 3, 4]
    assert not mask[..., 2].any()


FILE = r"\S*case_017\.nii\.gz"


INPUTS: tuple[BadInput, ...] = (
    BadInput(
        1,
        "zero-bytes",
        "file of zero bytes",
        lambda folder: cut(folder, lambda _: b""),
        load,
        monai,
        rf"^case case_017: the file has zero bytes \({FILE}\)\. Copy it again\.$",
    ),
    BadInput(
        2,
        "truncated-gzip",
        "truncated .nii.gz",
        lambda folder: cut(folder, lambda content: content[:-400]),
        load,
        monai,
        rf"^case case_017: truncated or damaged gzip \({FILE}\); .*\. Copy the file again\.$",
    ),
    BadInput(
        3,
        "short-nii",
        "short .nii",
        lambda folder: cut(folder, lambda content: content[:1000], ".nii"),
        load,
        monai,
        r"^case case_017: cannot read \S*case_017\.nii: Expected \d+ bytes, got \d+ bytes.* copy "
        r"or export it again\.$",
    ),
    BadInput(
        4,
        "text",
        "text renamed .nii.gz",
        lambda folder: cut(folder, lambda _: b"hello"),
        load,
        monai,
        rf"^case case_017: cannot read {FILE}: .*not a gzip file.*\. Expected a whole NIfTI file",
    ),
    *(
        BadInput(
            6,
            name,
            f"{what} voxels",
            lambda folder, value=value: with_value(folder, value),
            load,
            monai,
            rf"^case case_017: 2 NaN or infinite voxels, the first at \(1, 2, 3\) \({FILE}\); "
            r".*mending::fill_nan=-1024",
        )
        for name, what, value in (("nan", "NaN", np.nan), ("inf", "infinite", np.inf))
    ),
    BadInput(
        7,
        "4d-volume",
        "4-D file",
        lambda folder: case(folder, np.stack([small_scan()[0]] * 3, -1)),
        load,
        monai,
        rf"^case case_017: image is 4-D, 3 volumes of \(10, 12, 6\) \({FILE}\); expected one 3-D "
        r"volume\. Choose it: mending::volume_index=0\.$",
    ),
    BadInput(
        8,
        "empty-dimension",
        "no voxel along an axis",
        lambda folder: case(folder, np.zeros((10, 12, 0), np.float32)),
        load,
        monai,
        rf"^case case_017: image of shape \(10, 12, 0\) has an empty dimension \({FILE}\)",
    ),
    BadInput(
        9,
        "no-orientation",
        "NIfTI with neither qform nor sform",
        lambda folder: replace(with_header(folder, no_forms), label=None),
        load,
        monai,
        handled="read, with a warning that the orientation is a guess (refused if `strict`)",
        check=lambda pair: None,
        warns=r"case case_017: neither qform nor sform is set \(\S*case_017\.nii\)",
    ),
    BadInput(
        10,
        "forms-differ",
        "NIfTI whose qform and sform differ",
        lambda folder: with_header(folder, other_qform),
        load,
        monai,
        r"^case case_017: qform \[\[-2\.0.* and sform \[\[1\.0.* differ \(\S*case_017\.nii\)",
    ),
    BadInput(
        10,
        "pixdim-rounded",
        "NIfTI with an sform only, and a pixdim that is not its spacing to the last digit",
        lambda folder: with_header(folder, pixdim_rounded),
        load,
        monai,
        handled="the sform is used",
        check=right_scan(),
    ),
    BadInput(
        11,
        "oblique",
        "oblique by 30 degrees",
        oblique,
        through_mask,
        monai,
        handled="each voxel at its place; the mask has the file's affine to 1e-5",
        check=right_oblique,
    ),
    BadInput(
        12,
        "orientations",
        "one scan stored in all 48 orientations",
        orientations,
        each(load),
        each(monai),
        handled="image and label lie at the same place in the world in all",
        check=all_the_same,
    ),
    BadInput(
        13,
        "singular-affine",
        "singular affine",
        lambda folder: with_header(folder, singular),
        load,
        monai,
        r"^case case_017: the affine .* is singular or not finite \(\S*case_017\.nii\)",
    ),
    *(
        BadInput(
            14,
            name,
            what,
            lambda folder, path=path: case(folder / path, name="scan ü 1"),
            load,
            monai,
            handled="read",
            check=right_scan(),
        )
        for name, what, path in (
            ("non-ascii", "name with spaces and umlauts", "Größe 5 – é"),
            ("long-path", "path of over 1000 characters", "/".join(["long" * 50] * 5)),
        )
    ),
    *(
        BadInput(
            15,
            name,
            f"slices of {what} pixels",
            lambda folder, shape=shape: tiny(folder, shape),
            segment_all,
            sam_mask(np.zeros((shape[1], shape[0], 3), np.uint8), box=np.array([0, 0, *shape[:2]])),
            handled="a mask of the scan's shape",
            check=lambda found: None,
        )
        for name, what, shape in (
            ("1x1", "1 x 1", (1, 1, 3)),
            ("1x2000", "1 x 2000", (2000, 1, 2)),
        )
    ),
    BadInput(
        16,
        "huge",
        "header that speaks of 800 GB",
        huge,
        load,
        "not run: it would ask for 3200 GB",
        r"^case case_017: \S*case_017\.nii: the header speaks of 20000 x 20000 x 2000 voxels, "
        r"12800\.0 GB of memory; \d+\.\d GB are free\.",
    ),
    BadInput(
        17,
        "constant-slice",
        "a slice of one value",
        constant_slice,
        train_and_segment,
        monai,
        handled="left out of training with a count; predicted as empty",
        check=third_slice_left_out,
        warns=r"1 slices of 1 cases hold one value in all pixels and are left out: case_017 \(1\)",
    ),
    BadInput(
        18,
        "shapes",
        "label of another shape than its image",
        lambda folder: case(folder, label=np.zeros((10, 12, 5), np.uint8)),
        load,
        monai,
        r"^case case_017: label shape \(10, 12, 5\) differs from image shape \(10, 12, 6\) "
        rf"\(\S*labels/case_017\.nii\.gz, {FILE}\); .*mending::resample_label=true\.$",
    ),
    BadInput(
        19,
        "affines",
        "label half a millimetre beside its image",
        shifted_label,
        load,
        monai,
        r"^case case_017: label affine \[\[.*0\.5\].* differs from image affine \[\[.*by "
        r"more than 0\.001 mm or 0\.001 in direction; .*mending::resample_label=true\.$",
    ),
    BadInput(
        20,
        "fractions",
        "label values of 0.5",
        half_values,
        load,
        monai,
        r"^case case_017: label has values that are not integers: 0\.5 \(.*nearest-neighbour",
    ),
    BadInput(
        21,
        "unexpected-label",
        "label value 7 where 1 and 2 are known",
        label_seven,
        load,
        monai,
        r"^case case_017: label has the values 7 \(\S*labels/\S*\); expected only 0, 1, 2\.",
    ),
    BadInput(
        22,
        "empty-mask",
        "empty label map",
        lambda folder: case(folder, label=np.zeros(SHAPE, np.uint8)),
        load,
        monai,
        handled="read; its slices give no training sample with a box",
        check=empty_label,
    ),
)
