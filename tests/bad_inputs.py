"""Faulty and odd inputs as a table: what each is, what a user calls, and what must come of it.

`test_bad_inputs.py` tests the table; `benchmarks/bad_inputs.py` puts it, beside what the plain
stack makes of the same inputs, into bundles/sam_volume/docs/bad_inputs.md.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import permutations, product
from pathlib import Path
from typing import Any, cast

import nibabel as nib
import numpy as np
import pydicom
import torch
from monai.data import MetaTensor, load_decathlon_datalist
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import EnhancedMRImageStorage, ExplicitVRLittleEndian, HTJ2KLossless, generate_uid
from segment_anything import SamPredictor
from segment_anything.modeling import (
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)

from medsam_tune.data.datalist import Case, read_datalist
from medsam_tune.data.dicom import AIR
from medsam_tune.data.folders import find_cases
from medsam_tune.data.frames import ScanGrid, slices_from_volume
from medsam_tune.data.intensity import Percentiles
from medsam_tune.data.samples import SliceDataset
from medsam_tune.data.scans import load_case
from medsam_tune.data.slices import SliceStore
from medsam_tune.data.splits import few_shots
from medsam_tune.data.validate import LEAKING, SOUND, Report, check_place
from medsam_tune.inference import Segmenter, grid_of, volume_inferer, write_mask
from medsam_tune.prompt_files import read_prompts
from medsam_tune.sam.build import build_sam
from tests.data.conftest import LABELS, SHAPE, small_scan, write_nifti
from tests.data.dicom_series import COUNT, SIZE, SPACING, STEP, stored, write_series

NO_COUNTERPART = "no counterpart"
Pair = tuple[MetaTensor, MetaTensor | None]


@dataclass(frozen=True)
class BadInput:
    """One input.

    Attributes:
        row: of the table of faults; several inputs may belong to one.
        name: for the test's id.
        what: for the page.
        make: writes it into a folder; what it returns is given to `ours` and `plain`.
        ours: what a user of this package calls.
        plain: what a user of MONAI (prompts: of segment-anything) calls, or why there is nothing.
        refused: pattern of the refusal's message; empty where the input is handled.
        handled: how, for the page.
        check: asserts that the result is right; where it fits, of `plain`'s as well.
        warns: pattern of a warning that must be given.
        todo: what is not built yet; empty otherwise.
    """

    row: int
    name: str
    what: str
    make: Callable[[Path], Any]
    ours: Callable[[Any], Any]
    plain: Callable[[Any], Any] | str
    refused: str = ""
    handled: str = ""
    check: Callable[[Any], None] | None = None
    warns: str = ""
    todo: str = ""

    @property
    def id(self) -> str:
        """E.g. "row07-4d-volume"."""
        return f"row{self.row:02d}-{self.name}"


@dataclass(frozen=True)
class Outcome:
    """What a call came to: a result or an error, and the warnings on the way."""

    result: Any
    error: Exception | None
    warnings: tuple[str, ...]


def run(call: Callable[[Any], Any], made: Any) -> Outcome:
    """Call, and catch what comes of it."""
    result, error = None, None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = call(made)
        except Exception as raised:
            error = raised
    said = [w for w in caught if not issubclass(w.category, (DeprecationWarning, FutureWarning))]
    return Outcome(result, error, tuple(str(w.message) for w in said))


# What is called


def load(case: Case) -> Pair:
    """Ours."""
    return load_case(case, LABELS)


def monai(case: Case) -> Pair:
    """Plain MONAI with its default readers."""
    files = {"image": case.image, "label": case.label}
    item = {key: str(file) for key, file in files.items() if file is not None}
    keys = list(item)
    found = cast(dict, Compose([LoadImaged(keys), EnsureChannelFirstd(keys)])(item))
    return found["image"], found.get("label")


def each(call: Callable[[Any], Any]) -> Callable[[list[Any]], list[Any]]:
    """For inputs that are several."""
    return lambda made: [call(one) for one in made]


def monai_lists(path: Path) -> list[Pair]:
    """Every case of a datalist by plain MONAI."""
    subsets = [key for key in ("training", "test") if json.loads(path.read_text()).get(key)]
    entries = [e for key in subsets for e in load_decathlon_datalist(str(path), True, key)]
    return [monai(Case(Path(e["image"]), Path(e["label"]), "")) for e in entries]


def check(path: Path) -> Report:
    """`medsam-tune check`."""
    return check_place(path, progress=False)


GRID = ScanGrid(np.diag([-2.0, -3.0, 4.0, 1.0]), SHAPE)  # type: ignore[arg-type]


def prompts(content: dict[str, Any]) -> Any:
    """Ours, on an axial scan of the shape (10, 12, 6)."""
    return read_prompts(content, GRID, LABELS)


def predictor() -> SamPredictor:
    """A tiny stock SAM behind segment-anything's own interface, on one slice of the scan."""
    torch.manual_seed(0)
    sam = Sam(
        ImageEncoderViT(img_size=64, embed_dim=32, depth=1, num_heads=2, out_chans=32),
        PromptEncoder(32, (4, 4), (64, 64), 16),
        MaskDecoder(
            transformer_dim=32, transformer=TwoWayTransformer(1, 32, 2, 64), num_multimask_outputs=3
        ),
    ).eval()
    return SamPredictor(sam)


def sam_mask(image: np.ndarray | None = None, **prompt: Any) -> Callable[[Any], np.ndarray]:
    """The mask (H, W) that segment-anything gives for a prompt, as a call."""

    def call(_: Any) -> np.ndarray:
        sam = predictor()
        slice_ = small_scan()[0][..., 3].T.astype(np.uint8)[..., None].repeat(3, -1)
        sam.set_image(slice_ if image is None else image)
        return sam.predict(multimask_output=False, **prompt)[0][0]

    return call


def sam_box(*box: float) -> Callable[[Any], np.ndarray]:
    """For a box."""
    return sam_mask(box=np.array(box))


# What is made


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


def folder_of(folder: Path, count: int = 3) -> Path:
    """images/ and labels/ of cases c0, c1, ..."""
    for i in range(count):
        image, label = small_scan(i)
        write_nifti(folder / "images" / f"c{i}.nii.gz", image)
        write_nifti(folder / "labels" / f"c{i}.nii.gz", label)
    return folder


def without_partners(folder: Path) -> Path:
    folder_of(folder)
    (folder / "labels" / "c1.nii.gz").unlink()
    (folder / "images" / "c2.nii.gz").unlink()
    return folder


def datalist(folder: Path, patients: str = "abc", copy: int | None = None) -> Path:
    """c0 and c1 to train on, c2 to test; c`copy` holds the voxels of c0 under its own name."""
    folder_of(folder)
    if copy is not None:
        whole = nib.load(folder / "images" / "c0.nii.gz")
        again = nib.Nifti1Image(whole.get_fdata(), whole.affine)
        nib.save(again, folder / "images" / f"c{copy}.nii.gz")
    entries = [
        {"image": f"images/c{i}.nii.gz", "label": f"labels/c{i}.nii.gz", "patient": patient}
        for i, patient in enumerate(patients)
    ]
    labels = {"0": "background", **{str(k): v for k, v in LABELS.items()}}
    content = {"labels": labels, "modality": {"0": "MR"}}
    path = folder / "datalist.json"
    path.write_text(json.dumps({**content, "training": entries[:2], "test": entries[2:]}))
    return path


def without_files(folder: Path) -> Path:
    path = datalist(folder)
    (folder / "images" / "c1.nii.gz").unlink()
    (folder / "labels" / "c2.nii.gz").unlink()
    return path


# DICOM


def series(
    change: Callable[[int, Dataset], object] | None = None, **options: Any
) -> Callable[[Path], Case]:
    """A maker of one series in a folder of its own."""
    return lambda folder: Case(write_series(folder / "series", change, **options), None, "p")


def two_series(folder: Path) -> Case:
    write_series(folder / "series", uid="1.2.3.4", count=4)
    write_series(folder / "more", uid="1.2.3.5", count=4)
    for file in (folder / "more").iterdir():
        file.rename(folder / "series" / f"more-{file.name}")
    return Case(folder / "series", None, "p")


def a_slice_less(folder: Path) -> Case:
    made = series()(folder)
    next(made.image.glob("*-3.dcm")).unlink()
    return made


def at(k: int, image: Dataset, z: float, y: float = 4.0) -> None:
    image.ImagePositionPatient = [-3.0, y, z]


def localizer(k: int, image: Dataset) -> None:
    if k == 2:
        image.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]


def smaller(k: int, image: Dataset) -> None:
    if k == 5:
        image.Columns = 7
        image.PixelData = image.PixelData[: len(image.PixelData) // 2]


def without(*tags: str, only: int | None = None) -> Callable[[int, Dataset], None]:
    def change(k: int, image: Dataset) -> None:
        if only in (None, k):
            for tag in tags:
                delattr(image, tag)

    return change


def monochrome1(_: int, image: Dataset) -> None:
    image.PhotometricInterpretation, image.PixelRepresentation = "MONOCHROME1", 0
    image.PixelData = (5000 - np.frombuffer(image.PixelData, "<i2")).astype("<u2").tobytes()


def padded(_: int, image: Dataset) -> None:
    pixels = np.frombuffer(image.PixelData, "<i2").copy()
    pixels[:5] = -2000
    image.PixelData = pixels.tobytes()
    image.add_new("PixelPaddingValue", "SS", -2000)


def colour(_: int, image: Dataset) -> None:
    image.SamplesPerPixel, image.PhotometricInterpretation = 3, "RGB"
    image.PlanarConfiguration = image.PixelRepresentation = 0
    image.BitsAllocated, image.BitsStored, image.HighBit = 8, 8, 7
    image.PixelData = bytes(SIZE[0] * SIZE[1] * 3)


def palette(_: int, image: Dataset) -> None:
    image.PhotometricInterpretation, image.PixelRepresentation = "PALETTE COLOR", 0
    for name in ("Red", "Green", "Blue"):
        setattr(image, f"{name}PaletteColorLookupTableDescriptor", [256, 0, 16])
        setattr(image, f"{name}PaletteColorLookupTableData", bytes(512))


def unknown_codec(_: int, image: Dataset) -> None:
    image.file_meta.TransferSyntaxUID = HTJ2KLossless
    image.PixelData = encapsulate([b"\xff\x4f\xff\x51" + bytes(60)])
    image["PixelData"].is_undefined_length = True


def truncated(folder: Path) -> Case:
    made = series()(folder)
    file = next(made.image.glob("*-3.dcm"))
    file.write_bytes(file.read_bytes()[:-100])
    return made


def structure_set(folder: Path) -> Case:
    made = series(lambda _, image: setattr(image, "Modality", "RTSTRUCT"), count=1)(folder)
    for file in made.image.iterdir():
        image = pydicom.dcmread(file)
        for tag in ("Rows", "Columns", "PixelData"):
            delattr(image, tag)
        image.save_as(file)
    for name in ("notes.txt", "more.txt"):
        (made.image / name).write_text("hello")
    return made


def texts(folder: Path) -> Case:
    (folder / "series").mkdir()
    (folder / "series" / "notes.txt").write_text("hello")
    return Case(folder / "series", None, "p")


def nothing(folder: Path) -> Case:
    (folder / "series").mkdir()
    return Case(folder / "series", None, "p")


def without_preamble(folder: Path) -> Case:
    """As some archives store them: the data set alone."""
    made = series()(folder)
    for file in made.image.iterdir():
        image = pydicom.dcmread(file)
        file.write_bytes(b"")
        image.preamble = None
        image.file_meta = FileMetaDataset()
        image.save_as(file, implicit_vr=True, little_endian=True, enforce_file_format=False)
    return made


def dicomdir(folder: Path) -> Case:
    """A DICOMDIR beside the images, as on a CD; here it is one of them, under that name."""
    made = series()(folder)
    (made.image / "DICOMDIR").write_bytes(next(made.image.glob("*.dcm")).read_bytes())
    return made


def enhanced(folder: Path) -> Case:
    """All slices in one enhanced multi-frame MR."""
    path = folder / "enhanced.dcm"
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = EnhancedMRImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image = FileDataset(path, {}, file_meta=meta, preamble=b"\0" * 128)
    image.SOPClassUID, image.SOPInstanceUID = EnhancedMRImageStorage, generate_uid()
    image.Modality, image.PatientID, image.PatientName = "MR", "MRN123", "Doe^Jane"
    image.SeriesInstanceUID, image.StudyInstanceUID = generate_uid(), generate_uid()
    image.FrameOfReferenceUID, image.InstanceNumber = generate_uid(), 1
    image.Columns, image.Rows = SIZE
    image.NumberOfFrames = COUNT
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit = 16, 16, 15
    image.PixelRepresentation = 0
    image.PixelData = stored().tobytes()
    shared, measures, plane = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [SPACING[1], SPACING[0]], 9.0
    plane.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
    image.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for k in range(COUNT):
        frame, place = Dataset(), Dataset()
        place.ImagePositionPatient = [-3.0, 4.0, -50.0 + STEP * k]
        frame.PlanePositionSequence = [place]
        frames.append(frame)
    image.PerFrameFunctionalGroupsSequence = frames
    image.save_as(path, enforce_file_format=True)
    return Case(path, None, "p")


# What must come of it

SERIES_AFFINE = np.diag([-SPACING[0], -SPACING[1], STEP, 1.0])
SERIES_AFFINE[:3, 3] = [3.0, -4.0, -50.0]


def same_in_world(found: MetaTensor, array: np.ndarray, affine: np.ndarray) -> None:
    """Each voxel of `array` lies where the (1, X, Y, Z) image has it, and has its value."""
    there = nib.affines.apply_affine(
        np.linalg.inv(np.asarray(found.affine, dtype=np.float64)) @ affine,
        np.stack(np.meshgrid(*map(np.arange, array.shape), indexing="ij"), -1),
    )
    indices = np.round(there).astype(int)
    assert np.abs(there - indices).max() < 1e-3
    assert sorted(found.shape[1:]) == sorted(array.shape)
    assert (indices >= 0).all()
    assert (indices < found.shape[1:]).all()
    values = np.asarray(found.as_tensor()[0])[tuple(np.moveaxis(indices, -1, 0))]
    np.testing.assert_allclose(values, array, atol=1e-3)


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


def right_series(offset: float = -1000.0) -> Callable[[Pair], None]:
    """The series of `write_series`, at its place and in HU."""

    def check(pair: Pair) -> None:
        same_in_world(pair[0], stored().transpose(2, 1, 0) + offset, SERIES_AFFINE)

    return check


def bright_is_high(pair: Pair) -> None:
    """As in the MONOCHROME2 twin, whose values grow along the columns."""
    values = np.asarray(pair[0][0])
    assert values[5, 5, 3] - values[0, 5, 3] == 5


def padding_is_air(pair: Pair) -> None:
    values = np.asarray(pair[0][0])
    assert (values[:5, 0] == AIR).all()
    assert values[5, 0, 0] == stored()[0, 0, 5] - 1000


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
    write_mask(slices_from_volume(label.as_tensor())[:, 0], grid_of(image), path)
    mask = nib.load(path)
    return image, MetaTensor(torch.from_numpy(mask.get_fdata())[None], affine=mask.affine)


def segment(scan: Path, box: list[float]) -> np.ndarray:
    """Ours, by the embedded model at a small size."""
    segmenter = Segmenter(build_sam("nano", image_size=64), Percentiles(), LABELS, device="cpu")
    return segmenter(scan, {"objects": [{"label": 1, "box3d": box}]})


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
    store = SliceStore(case.image.parent / "store", Percentiles(), LABELS)
    dataset = SliceDataset(store.prepare([case], progress=False), LABELS, 64)
    return [k for _, k in dataset.index], segment(case.image, [1, 2, 1, 9, 9, 5])


def third_slice_left_out(found: tuple[list[int], np.ndarray]) -> None:
    slices, mask = found
    assert slices == [1, 3, 4]
    assert not mask[..., 2].any()


def leak_is_said(report: Report) -> None:
    assert report.outcome == LEAKING
    assert report.leaks[0] == "c0 and c2 hold the same voxels, one in training, one in test"


def double_is_said(report: Report) -> None:
    assert report.outcome == SOUND
    assert "twice: c0 and c1 hold the same voxels" in report.lines()


def is_clipped(found: Any) -> None:
    assert found.boxes.tolist() == [[0, 3, 4, 12]]


def unprompted(_: Any) -> Any:
    """Ours: a model that wants prompts, without any."""
    sam = build_sam("nano", image_size=64)
    return volume_inferer(sam, LABELS)(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), sam, None)


def encode(image: torch.Tensor) -> torch.Tensor:
    return build_sam("nano", image_size=64).encode(image)


def object_of(**item: Any) -> Callable[[Path], dict[str, Any]]:
    """A prompt file's content with one object."""
    return lambda _: {"objects": [{"label": 1, **item}]}


BOX = [1, 2, 3, 5, 8, 5]
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
    BadInput(
        5,
        "missing-files",
        "datalist, two of whose files are missing",
        without_files,
        read_datalist,
        monai_lists,
        r"datalist\.json: 2 of 6 files are missing: \S*images/c1\.nii\.gz, \S*labels/c2\.nii\.gz\. "
        r"Copy them there or remove their entries\.$",
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
            r".*reading::fill_nan=-1024",
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
        r"volume\. Choose it: reading::volume_index=0\.$",
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
        rf"\(\S*labels/case_017\.nii\.gz, {FILE}\); .*reading::resample_label=true\.$",
    ),
    BadInput(
        19,
        "affines",
        "label half a millimetre beside its image",
        shifted_label,
        load,
        monai,
        r"^case case_017: label affine \[\[.*18\.5\].* differs from image affine \[\[.*18\.0\].*by "
        r"more than 0\.001 mm or 0\.001 in direction; .*reading::resample_label=true\.$",
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
    BadInput(
        23,
        "without-partner",
        "folder with a label missing, and one without image",
        without_partners,
        find_cases,
        NO_COUNTERPART,
        r"images without a label: c1\.nii\.gz; labels without an image: c2\.nii\.gz; expected one "
        r"label of the same name",
    ),
    BadInput(
        24,
        "two-series",
        "two series in one folder",
        two_series,
        load,
        monai,
        r"^case series: \S*series: 2 series: number 4, CT, 14 x 12, 4 images, 1\.2\.3\.4; .*Choose "
        r"by series_uid",
    ),
    BadInput(
        25,
        "missing-slice",
        "a slice of a series is missing",
        a_slice_less,
        load,
        monai,
        r"^case series: \S*-2\.dcm, \S*-4\.dcm: a gap of 5\.00 mm between neighbours, 2\.50 mm "
        r"elsewhere: 1 slices are missing\.",
    ),
    BadInput(
        26,
        "uneven",
        "uneven spacing of the slices",
        series(lambda k, image: at(k, image, k + 0.4 * k * k)),
        load,
        monai,
        r"mm between neighbours, \d\.\d\d mm elsewhere; expected even spacing\. .*"
        r"reading::resample_uneven=true",
    ),
    BadInput(
        27,
        "tilt",
        "gantry tilted by 15 degrees",
        series(lambda k, image: at(k, image, STEP * k, 4 + STEP * k * np.tan(np.radians(15)))),
        load,
        monai,
        r"the slices lean by 15\.0 degrees from their normal \(a tilted gantry\)",
    ),
    *(
        BadInput(
            28,
            name,
            what,
            series(change),
            load,
            monai,
            handled="ordered by position",
            check=right_series(),
        )
        for name, what, change in (
            (
                "shuffled-numbers",
                "InstanceNumber that is not the order in space",
                lambda k, image: setattr(image, "InstanceNumber", (k * 3) % COUNT),
            ),
            (
                "equal-numbers",
                "equal InstanceNumber in all slices",
                lambda _, image: setattr(image, "InstanceNumber", 1),
            ),
            ("no-numbers", "no InstanceNumber", without("InstanceNumber")),
        )
    ),
    BadInput(
        29,
        "two-phases",
        "two phases at the same positions",
        series(lambda k, image: at(k, image, STEP * (k // 2))),
        load,
        monai,
        r"8 images lie at 4 positions; expected one image at each\.",
    ),
    BadInput(
        30,
        "localizer",
        "an image of another orientation among the slices",
        series(localizer),
        load,
        monai,
        r"-2\.dcm: 14 x 12 pixels along \[\[0\.0, 1\.0, 0\.0\], \[0\.0, 0\.0, -1\.0\]\], but 7 of",
    ),
    BadInput(
        30,
        "size",
        "an image of another size among the slices",
        series(smaller),
        load,
        monai,
        r"-5\.dcm: 7 x 12 pixels along .*, but 7 of 8 images of its series are of another size",
    ),
    BadInput(
        31,
        "no-positions",
        "no ImagePositionPatient and ImageOrientationPatient",
        series(without("ImagePositionPatient", "ImageOrientationPatient")),
        load,
        monai,
        r"\.dcm: has no ImagePositionPatient or ImageOrientationPatient, so that its place among 8 "
        r"images is not known\.",
    ),
    BadInput(
        32,
        "monochrome1",
        "MONOCHROME1",
        series(monochrome1, modality="MR"),
        load,
        monai,
        handled="inverted, so that high values are bright; noted",
        check=bright_is_high,
    ),
    BadInput(
        33,
        "no-rescale",
        "CT without RescaleSlope and RescaleIntercept",
        series(without("RescaleSlope", "RescaleIntercept")),
        load,
        monai,
        r"\.dcm: is CT without RescaleSlope and RescaleIntercept, so that its values are not known "
        r"to be HU\.",
    ),
    BadInput(
        34,
        "mixed-rescale",
        "CT with a rescale on some slices only",
        series(without("RescaleSlope", "RescaleIntercept", only=3)),
        load,
        monai,
        r"-3\.dcm: has no RescaleSlope and RescaleIntercept, but 7 other images of its series have",
    ),
    BadInput(
        35,
        "padding",
        "PixelPaddingValue -2000 in CT",
        series(padded),
        load,
        monai,
        handled="padding becomes air, -1024 HU; noted",
        check=padding_is_air,
    ),
    *(
        BadInput(
            36,
            name,
            what,
            series(change),
            load,
            monai,
            rf"\.dcm: is a colour image \({kind}\); expected the grey values of a CT scan\.",
        )
        for name, what, change, kind in (
            ("rgb", "RGB images", colour, "RGB"),
            ("palette", "palette images", palette, "PALETTE COLOR"),
        )
    ),
    BadInput(
        37,
        "enhanced",
        "enhanced multi-frame MR",
        enhanced,
        load,
        monai,
        handled="each frame at its place",
        check=right_series(0.0),
    ),
    BadInput(
        38,
        "codec",
        "compression that no decoder here knows (HTJ2K)",
        series(unknown_codec),
        load,
        monai,
        r"\.dcm: its pixels cannot be read \(High-Throughput JPEG 2000.*\)\. .*convert it, e\.g\. "
        r"with",
    ),
    BadInput(
        39,
        "truncated-pixels",
        "truncated pixel data in one slice",
        truncated,
        load,
        monai,
        r"-3\.dcm: its pixels cannot be read \(.*A truncated file: copy it again\.",
    ),
    BadInput(
        40,
        "structure-set",
        "folder with a structure set and texts",
        structure_set,
        load,
        monai,
        r"^case series: no image DICOM in \S*series: 3 files, 1 RTSTRUCT, 2 not DICOM; expected",
    ),
    BadInput(
        40,
        "texts",
        "folder with a text file",
        texts,
        load,
        monai,
        r"^case series: no image DICOM in \S*series: 1 files, 1 not DICOM; expected the images",
    ),
    BadInput(
        40,
        "empty-folder",
        "empty folder",
        nothing,
        load,
        monai,
        r"^case series: no image DICOM in \S*series: 0 files, none; expected the images",
    ),
    BadInput(
        40,
        "no-preamble",
        "DICOM without preamble and file meta",
        without_preamble,
        load,
        monai,
        handled="read",
        check=right_series(),
    ),
    BadInput(
        41,
        "dicomdir",
        "DICOMDIR among the images",
        dicomdir,
        load,
        monai,
        handled="never opened; the images are read",
        check=right_series(),
    ),
    BadInput(
        42,
        "patient-in-both",
        "one patient in training and test",
        lambda folder: datalist(folder, "aba"),
        read_datalist,
        monai_lists,
        r"datalist\.json: patient a is in training and in test; expected each patient in one",
    ),
    BadInput(
        42,
        "voxels-in-both",
        "one scan in training and test, under two names",
        lambda folder: datalist(folder, copy=2),
        check,
        monai_lists,
        handled='check: "c0 and c2 hold the same voxels, one in training, one in test", exit 4',
        check=leak_is_said,
    ),
    BadInput(
        43,
        "twice",
        "one scan twice in a subset, under two names",
        lambda folder: datalist(folder, copy=1),
        check,
        monai_lists,
        handled='check: "twice: c0 and c1 hold the same voxels"',
        check=double_is_said,
    ),
    BadInput(
        44,
        "few-shot",
        "few-shot training with more cases than there are",
        datalist,
        lambda path: few_shots(read_datalist(path), 20),
        NO_COUNTERPART,
        r"^20 shots, but 2 training patients in datalist; expected at most as many\. Ask for fewer",
    ),
    BadInput(
        45,
        "outside",
        "box outside the scan",
        object_of(box3d=[1, 2, 6, 5, 8, 9]),
        prompts,
        sam_box(40, 40, 60, 60),
        r"object 0: box .* lies outside the scan of shape \(10, 12, 6\)\.",
    ),
    BadInput(
        45,
        "partly-outside",
        "box partly outside",
        object_of(box3d=[-5, 3, -2, 4, 99, 1]),
        prompts,
        sam_box(-5, 3, 4, 99),
        handled="clipped to the scan",
        check=is_clipped,
    ),
    *(
        BadInput(
            46,
            name,
            f"box, {what}",
            object_of(box3d=box),
            prompts,
            sam_box(*flat),
            rf"^prompts: object 0: {message}",
        )
        for name, what, box, flat, message in (
            ("reversed", "reversed", [5, 2, 3, 1, 8, 5], (5, 2, 1, 8), "box .* has no extent"),
            ("flat", "without extent", [1, 2, 3, 5, 8, 3], (1, 2, 5, 2), "box .* has no extent"),
            (
                "nan",
                "with NaN",
                [*BOX[:5], float("nan")],
                (1, 2, 5, float("nan")),
                "box3d is .*; expected 6 finite numbers",
            ),
            (
                "length",
                "five numbers",
                BOX[:5],
                (1, 2, 5),
                r"box3d is \[1, 2, 3, 5, 8\]; expected 6 finite numbers",
            ),
        )
    ),
    BadInput(
        47,
        "xywh",
        "box as corner and size, where that can be told",
        object_of(box3d=[6, 7, 3, 3, 4, 2]),
        prompts,
        sam_box(6, 7, 3, 4),
        r"^prompts: object 0: box .* has no extent; upper bounds are exclusive and above the lower",
    ),
    BadInput(
        48,
        "point",
        "point in a prompt file, which knows boxes only",
        object_of(slices={"3": {"point": [40, 40], "point_label": 7}}),
        prompts,
        sam_mask(point_coords=np.array([[40, 40]]), point_labels=np.array([7])),
        r"^prompts: object 0: slice 3: expected \{'box': \[i0, j0, i1, j1\]\}",
    ),
    BadInput(
        49,
        "no-prompt",
        "no prompt for a model that needs one",
        lambda folder: None,
        unprompted,
        sam_mask(),
        r"^the model segments what is prompted; give it a prompt file \(--prompts\)",
    ),
    BadInput(
        49,
        "no-objects",
        "prompt file without objects",
        lambda folder: {"objects": []},
        prompts,
        sam_mask(),
        r"^prompts: no objects; expected a list 'objects' with at least one box\.",
    ),
    BadInput(
        50,
        "integers",
        "integer image given to the model",
        lambda folder: torch.zeros(1, 3, 64, 64, dtype=torch.uint8),
        encode,
        NO_COUNTERPART,
        r"^image is torch\.uint8; expected float in \[0, 1\]\. Divide by 255\.",
    ),
    BadInput(
        50,
        "size",
        "image of another size than the model's",
        lambda folder: torch.zeros(1, 3, 10, 12),
        encode,
        NO_COUNTERPART,
        r"^image has shape \(1, 3, 10, 12\); expected \(B, C, 64, 64\)\.",
    ),
    BadInput(
        50,
        "hu",
        "float image in HU given to the model",
        lambda folder: None,
        lambda made: None,
        sam_mask(np.full((12, 10, 3), -900.0, np.float32), box=np.array([1, 2, 5, 8])),
        todo="the model does not look at the range; scans go through an intensity rule before it",
    ),
)


def of_row(*rows: int) -> Iterator[BadInput]:
    """The inputs of some rows."""
    return (one for one in INPUTS if one.row in rows)


def shortened(text: str, folder: Path) -> str:
    """A message in one line, its paths reduced to the files' names."""
    end = r"(?=[\s'\"(),:;]|\.\s|\.?$)"
    path = rf"{re.escape(str(folder.parent))}/(?:\S*/)?([^/\s'\"(),:;]*?){end}"
    name = re.sub(path, r"\1", " ".join(text.split()))
    return re.sub(rf"{re.escape(folder.name)}{end}", "folder", name)
