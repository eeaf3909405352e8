"""Faults and oddities of DICOM series."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import EnhancedMRImageStorage, ExplicitVRLittleEndian, HTJ2KLossless, generate_uid

from medsam_tune.cases.datalist import Case
from medsam_tune.formats.dicom.pixels import AIR
from tests.bad_inputs.calls import Pair, load, monai, same_in_world
from tests.bad_inputs.table import BadInput
from tests.dicom_series import COUNT, SIZE, SPACING, STEP, stored, write_series


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


SERIES_AFFINE = np.diag([-SPACING[0], -SPACING[1], STEP, 1.0])
SERIES_AFFINE[:3, 3] = [3.0, -4.0, -50.0]


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


INPUTS: tuple[BadInput, ...] = (
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
        r"mending::resample_uneven=true",
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
)
