"""Where scans and labels lie: units, guessed places, labels beside their image."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk
import torch
from monai.data import MetaTensor

from medsam_tune.cases.datalist import Case
from medsam_tune.cases.load import load_case
from medsam_tune.formats.mending import Mending
from medsam_tune.inference.output import write_mask
from medsam_tune.slices.cut import cut_label, grid_of
from medsam_tune.slices.intensity import Percentiles
from medsam_tune.slices.rules import ScanRules
from tests.bad_inputs.calls import Pair, load, monai, same_in_world
from tests.bad_inputs.table import BadInput
from tests.scans import LABELS, small_scan

MM = np.diag([2.0, 3.0, 4.0, 1.0])
MM[:3, 3] = 5, -7, 9


def resampled(case: Case) -> Pair:
    """Ours, as the message of a label beside its image advises."""
    return load_case(case, LABELS, Mending(resample_label=True))


def save(
    path: Path,
    array: np.ndarray,
    affine: np.ndarray,
    unit: str = "mm",
    change: Callable[[nib.Nifti1Image], None] = lambda image: None,
) -> Path:
    image = nib.Nifti1Image(array, affine)
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    image.header.set_xyzt_units(unit)
    change(image)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return path


def in_units(image_unit: str, label_unit: str) -> Callable[[Path], Case]:
    """Image and label of one place, their coordinates in units."""

    def make(folder: Path) -> Case:
        per = {"mm": 1.0, "micron": 1e3, "meter": 1e-3, "unknown": 1.0}
        paths = [
            save(folder / kind / "case_017.nii", array, np.diag([*[per[unit]] * 3, 1]) @ MM, unit)
            for kind, array, unit in zip(
                ("images", "labels"), small_scan(), (image_unit, label_unit), strict=True
            )
        ]
        return Case(paths[0], paths[1], "p")

    return make


def with_forms(
    unit: str, sform: float, pixdim: float, shift: float = 0.0
) -> Callable[[Path], Case]:
    """An image with an sform only, which has other numbers than pixdim."""

    def change(image: nib.Nifti1Image) -> None:
        affine = np.diag([*[sform] * 3, 1]) @ MM
        image.set_sform(affine, 1)
        image.header["qform_code"] = 0
        image.header["pixdim"][1:4] = pixdim * np.array([2, 3, 4]) + shift

    return lambda folder: Case(
        save(folder / "case_017.nii", small_scan()[0], MM, unit, change), None, "p"
    )


def in_millimetres(pair: Pair) -> None:
    for found, array in zip(pair, small_scan(), strict=True):
        if found is not None:
            same_in_world(found, array, MM)
            np.testing.assert_allclose(found.affine, MM, atol=1e-5)


def without_forms(path: Path) -> Path:
    """Set qform_code and sform_code of a .nii file to 0."""
    content = bytearray(path.read_bytes())
    content[252:256] = bytes(4)
    path.write_bytes(content)
    return path


def no_forms(label: str) -> Callable[[Path], Case]:
    """A scan without forms, and its label as another program saves it: in its own guess."""

    def make(folder: Path) -> Case:
        image, ids = small_scan()
        path = without_forms(save(folder / "case_017.nii", image, MM))
        own = sitk.ReadImage(str(path))
        mask = sitk.GetImageFromArray(ids.transpose(2, 1, 0))
        mask.CopyInformation(own)
        (folder / "labels").mkdir()
        sitk.WriteImage(mask, str(folder / "labels" / label))
        return Case(path, folder / "labels" / label, "p")

    return make


NRRD = (
    "NRRD0004\ntype: {type}\ndimension: 3\nsizes: 10 12 6\nendian: little\nencoding: raw\n{more}\n"
)


def write_nrrd(path: Path, array: np.ndarray, more: str) -> Path:
    """A file with just this header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = {"f": "float", "u": "uchar"}[array.dtype.kind]
    path.write_bytes(NRRD.format(type=kind, more=more).encode() + array.tobytes("F"))
    return path


def without_space(folder: Path) -> Case:
    image, ids = small_scan()
    return Case(
        write_nrrd(folder / "case_017.nrrd", image, "spacings: 2 3 4\n"),
        save(folder / "labels" / "case_017.nii", ids, np.diag([-2.0, 3, 4, 1])),
        "p",
    )


def without_matrix(folder: Path) -> Case:
    image, ids = small_scan()
    path = folder / "case_017.mha"
    path.write_bytes(
        b"ObjectType = Image\nNDims = 3\nBinaryData = True\nElementSpacing = 2 3 4\n"
        b"DimSize = 10 12 6\nElementType = MET_FLOAT\nElementDataFile = LOCAL\n"
        + image.tobytes("F")
    )
    return Case(path, save(folder / "labels" / "case_017.nii", ids, MM), "p")


def shorter_label(folder: Path) -> Case:
    made = no_forms("case_017.nii.gz")(folder)
    label = save(folder / "labels" / "short.nii", small_scan()[1][..., :5], MM)
    return Case(made.image, label, "p")


def voxel_for_voxel(pair: Pair) -> None:
    """In the order of the files."""
    for found, array in zip(pair, small_scan(), strict=True):
        assert found is not None
        np.testing.assert_array_equal(found[0].numpy(), array)
    np.testing.assert_array_equal(pair[0].affine, pair[1].affine)


def mask_headers(case: Case) -> list[nib.Nifti1Header]:
    """Ours: headers of the scan, and of a mask that is written for it."""
    image, label = load(case)
    assert label is not None
    grid = grid_of(image, ScanRules(Percentiles()))
    mask = case.image.parent / "mask.nii.gz"
    write_mask(cut_label(label, grid)[0], grid, mask)
    ours = sitk.ReadImage(str(mask))
    theirs = sitk.ReadImage(str(case.image))
    assert ours.GetDirection() == theirs.GetDirection()  # as ITK guesses
    np.testing.assert_allclose(ours.GetOrigin(), theirs.GetOrigin(), atol=1e-5)
    np.testing.assert_allclose(nib.load(mask).affine, nib.load(case.image).affine, atol=1e-5)
    np.testing.assert_array_equal(nib.load(mask).get_fdata(), small_scan()[1])
    return [nib.load(path).header for path in (case.image, mask)]


def same_codes(headers: list[nib.Nifti1Header]) -> None:
    scan, mask = headers
    for field in ("qform_code", "sform_code"):
        assert scan[field] == mask[field]
    np.testing.assert_allclose(scan["pixdim"][1:4], mask["pixdim"][1:4])
    assert mask.get_xyzt_units()[0] == "mm"


def beside(steps: int) -> Callable[[Path], Case]:
    """A label that was drawn on an image which began so many voxels further left."""

    def make(folder: Path) -> Case:
        made = in_units("mm", "mm")(folder)
        assert made.label is not None
        affine = MM.copy()
        affine[0, 3] -= 2 * steps
        save(made.label, small_scan()[1], affine)
        return made

    return make


def thin_label(folder: Path) -> Case:
    """One slice of half a millimetre; the image's have four."""
    made = in_units("mm", "mm")(folder)
    assert made.label is not None
    fine = np.zeros((10, 12, 48), np.uint8)
    fine[2:8, 2:8, 22] = 1
    save(made.label, fine, MM @ np.diag([1, 1, 0.125, 1]))
    return made


def moving_label(folder: Path) -> Case:
    made = in_units("mm", "mm")(folder)
    assert made.label is not None
    save(made.label, np.stack([small_scan()[1]] * 3, -1), MM)
    return made


def with_ids(folder: Path, ids: tuple[int, int], dtype: type) -> Case:
    made = in_units("mm", "mm")(folder)
    assert made.label is not None
    label = np.array([0, *ids], dtype)[small_scan()[1]]
    image = sitk.GetImageFromArray(label.transpose(2, 1, 0))
    image.SetSpacing((2.0, 3.0, 4.0))
    image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    image.SetOrigin((-5.0, 7.0, 9.0))
    path = made.label.with_suffix(".nrrd")
    sitk.WriteImage(image, str(path))
    return Case(made.image, path, "p")


def written_again(ids: tuple[int, int]) -> Callable[[Case], tuple[Pair, MetaTensor]]:
    """Ours, and the label as a mask that was written and read again."""

    def call(case: Case) -> tuple[Pair, MetaTensor]:
        image, label = load_case(case, dict(zip(ids, "ab", strict=True)))
        assert label is not None
        grid = grid_of(image, ScanRules(Percentiles()))
        mask = case.image.parent / "mask.nii.gz"
        write_mask(cut_label(label, grid)[0], grid, mask)
        stored = np.asarray(nib.load(mask).dataobj)
        return (image, label), MetaTensor(torch.from_numpy(stored.astype(np.int64))[None])

    return call


def ids_are(ids: tuple[int, int]) -> Callable[[tuple[Pair, MetaTensor]], None]:
    def check(found: tuple[Pair, MetaTensor]) -> None:
        expected = np.array([0, *ids])[small_scan()[1]]
        for label in (found[0][1], found[1]):
            np.testing.assert_array_equal(label[0].numpy(), expected)

    return check


IDS = ((315, 40_000), (16_777_217, 2**31 - 1))

INPUTS: tuple[BadInput, ...] = (
    *(
        BadInput(
            75,
            f"{image}-and-{label}",
            f"NIfTI in {image}, its label in {label}" if label != image else f"NIfTI in {image}",
            in_units(image, label),
            load,
            monai,
            handled="read in millimetres, with a word",
            check=in_millimetres,
            warns=rf"^case case_017: coordinates in {image if image != 'mm' else label} are read "
            r"as voxels of 2 x 3 x 4 mm \(",
        )
        for image, label in (
            ("micron", "micron"),
            ("meter", "meter"),
            ("micron", "mm"),
            ("mm", "meter"),
        )
    ),
    BadInput(
        75,
        "unknown-unit",
        "NIfTI whose unit is not set",
        in_units("unknown", "mm"),
        load,
        monai,
        handled="read as millimetres",
        check=in_millimetres,
    ),
    BadInput(
        75,
        "sform-in-mm",
        "NIfTI in micron, its sform in millimetres",
        with_forms("micron", 1.0, 1e3),
        load,
        monai,
        handled="read in millimetres, with a word",
        check=in_millimetres,
        warns=r"the sform is in millimetres, not in micron \(",
    ),
    BadInput(
        75,
        "pixdim-in-mm",
        "NIfTI in micron, its pixdim in millimetres",
        with_forms("micron", 1e3, 1.0),
        load,
        monai,
        handled="read in millimetres, with a word",
        check=in_millimetres,
        warns=r"pixdim is in millimetres, not in micron \(",
    ),
    BadInput(
        75,
        "forms-in-two-units",
        "NIfTI in millimetres, its sform a thousand times its pixdim",
        with_forms("mm", 1e3, 1.0),
        load,
        monai,
        r"^case case_017: pixdim 2 x 3 x 4 is not the sform's spacing 2000 x 3000 x 4000 \(\S*\), "
        r"but is it in another unit; which is in mm is not known\. Correct the wrong one\.$",
    ),
    BadInput(
        75,
        "wrong-unit",
        "NIfTI of micrometres that says nothing of a unit",
        with_forms("unknown", 1e3, 1e3),
        load,
        monai,
        r"^case case_017: a side of 3\.6e\+04 mm, voxels of 2000 x 3000 x 4000 mm \(\S*\); expected"
        r" at most 10000 mm\. Correct the unit in the header",
    ),
    BadInput(
        75,
        "nrrd-in-micron",
        "NRRD in micrometres",
        lambda folder: Case(
            write_nrrd(
                folder / "case_017.nrrd",
                small_scan()[0],
                "space: right-anterior-superior\nspace origin: (5000,-7000,9000)\n"
                "space directions: (2000,0,0) (0,3000,0) (0,0,4000)\n"
                'space units: "um" "um" "um"\n',
            ),
            None,
            "p",
        ),
        load,
        monai,
        handled="read in millimetres, with a word",
        check=in_millimetres,
        warns=r"coordinates in um are read as voxels of 2 x 3 x 4 mm",
    ),
    *(
        BadInput(
            76,
            f"id-{ids[1]}",
            f"label ids {ids[0]} and {ids[1]}",
            lambda folder, ids=ids: with_ids(folder, ids, np.uint32),
            written_again(ids),
            monai,
            handled="kept in label and mask",
            check=ids_are(ids),
        )
        for ids in IDS
    ),
    *(
        BadInput(
            76,
            f"id-{name}",
            f"a label id of {ids[1]}",
            lambda folder, ids=ids, dtype=dtype: with_ids(folder, ids, dtype),
            load,
            monai,
            rf"^case case_017: label has the values {value} \(\S*case_017\.nrrd\); expected only",
        )
        for name, ids, dtype, value in (
            ("above-2-31", (1, 2**31), np.uint32, "2147483648"),
            ("below-0", (1, -2), np.int16, "-2"),
        )
    ),
    *(
        BadInput(
            78,
            f"no-forms-{name}",
            f"NIfTI without qform and sform, its label saved {name} by ITK" + said,
            no_forms(label),
            call,
            monai,
            handled="label and image voxel for voxel, with a word",
            check=voxel_for_voxel,
            warns=r"^case case_017: the image's place is a guess \(neither qform nor sform is set\)"
            r", so the label is laid on the image voxel for voxel \(",
        )
        for name, label, call, said in (
            ("as-NIfTI", "case_017.nii.gz", load, ""),
            ("as-NRRD", "case_017.nrrd", load, ""),
            ("resampled", "case_017.nii.gz", resampled, ", to be resampled"),
        )
    ),
    BadInput(
        78,
        "no-forms-mask",
        "mask for a NIfTI without qform and sform",
        no_forms("case_017.nii.gz"),
        mask_headers,
        "no counterpart",
        handled="the mask has no forms either, so every viewer makes the same guess of both",
        check=same_codes,
        warns="the orientation is a guess",
    ),
    BadInput(
        78,
        "codes-of-the-mask",
        "mask for a NIfTI in Talairach coordinates",
        lambda folder: Case(
            save(
                folder / "case_017.nii",
                small_scan()[0],
                MM,
                change=lambda image: (image.set_qform(MM, 1), image.set_sform(MM, 3))[0],
            ),
            save(folder / "labels" / "case_017.nii", small_scan()[1], MM),
            "p",
        ),
        mask_headers,
        "no counterpart",
        handled="the mask has the scan's qform_code and sform_code",
        check=same_codes,
    ),
    BadInput(
        78,
        "nrrd-without-space",
        "NRRD that names no space",
        without_space,
        resampled,
        monai,
        handled="label and image voxel for voxel, with a word",
        check=voxel_for_voxel,
        warns=r"space directions are not set \(\S*case_017\.nrrd\); the orientation is a guess",
    ),
    BadInput(
        78,
        "mha-without-matrix",
        "MetaImage without a matrix",
        without_matrix,
        load,
        monai,
        handled="label and image voxel for voxel, with a word",
        check=voxel_for_voxel,
        warns=r"TransformMatrix is not set \(\S*case_017\.mha\); the orientation is a guess",
    ),
    BadInput(
        78,
        "no-forms-shapes",
        "NIfTI without qform and sform, its label of another shape, to be resampled",
        shorter_label,
        resampled,
        monai,
        r"^case case_017: label shape \(10, 12, 5\) differs from image shape \(10, 12, 6\) "
        r"\(\S*short\.nii\), and the image's place is a guess: neither qform nor sform is set\. It",
    ),
    BadInput(
        78,
        "no-forms-strict",
        "label without qform and sform, where guesses are refused",
        lambda folder: Case(
            save(folder / "case_017.nii", small_scan()[0], MM),
            without_forms(save(folder / "labels" / "case_017.nii", small_scan()[1], MM)),
            "p",
        ),
        lambda case: load_case(case, LABELS, Mending(strict=True)),
        monai,
        r"^case case_017: neither qform nor sform is set \(\S*labels/case_017\.nii\); the orientat",
    ),
    BadInput(
        110,
        "half-outside",
        "label that reaches out of its image, to be resampled",
        beside(3),
        resampled,
        monai,
        r"^case case_017: 50\.0% of label 1 lie outside of the image \(\S*labels/case_017\.nii\); "
        r"expected at most 1%\. They may not come from the same scan\.",
    ),
    BadInput(
        110,
        "thin",
        "label thinner than its image's slices, to be resampled",
        thin_label,
        resampled,
        monai,
        r"^case case_017: label 1 resampled from 0\.108 to 0 ml, -100% \(\S*labels/case_017\.nii\);"
        r" expected at most 50%",
    ),
    BadInput(
        110,
        "one-step-beside",
        "label that was drawn on a larger image, to be resampled",
        beside(-1),
        resampled,
        monai,
        handled="resampled; nothing of it is lost",
        check=lambda pair: np.testing.assert_array_equal(
            pair[1][0, 1:].numpy(), small_scan()[1][:-1]
        ),
    ),
    BadInput(
        7,
        "4d-label",
        "4-D label of a 3-D image",
        moving_label,
        lambda case: load_case(case, LABELS, Mending(volume_index=1)),
        monai,
        r"^case case_017: label is 4-D, 3 volumes of \(10, 12, 6\), the image has 1 \(",
    ),
)
