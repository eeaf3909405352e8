"""DICOM series on disk, sound ones and ones with a single fault."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

from medsam_tune.cases.datalist import Case
from medsam_tune.cases.load import load_case
from medsam_tune.errors import DataError
from medsam_tune.formats.dicom.series import choose_series
from medsam_tune.formats.dicom.stack import read_series
from medsam_tune.formats.volume import Volume

SIZE = (14, 12)  # columns, rows
SPACING = (0.7, 0.9)  # between columns, between rows
STEP = 2.5
COUNT = 8

Change = Callable[[int, Dataset], object]


def stored(count: int = COUNT) -> np.ndarray:
    """(K, rows, columns) int16 before rescale: every voxel is told from every other."""
    columns, rows = SIZE
    return np.arange(count * rows * columns, dtype=np.int16).reshape(count, rows, columns) + 100


def write_series(
    folder: Path,
    change: Change | None = None,
    modality: str = "CT",
    count: int = COUNT,
    uid: str | None = None,
) -> Path:
    """A series of `count` images, written in an order that is not theirs in space.

    Args:
        folder: where to.
        change: called with each image's index in space and its data set, before it is written.
        modality: "CT" or "MR".
        count: number of images.
        uid: SeriesInstanceUID.
    """
    folder.mkdir(parents=True, exist_ok=True)
    uid, frame = uid or generate_uid(), generate_uid()
    pixels = stored(count)
    for k in np.random.default_rng(0).permutation(count):
        image = _image(folder / f"{(k * 5) % count:03d}-{k}.dcm", modality)
        image.SeriesInstanceUID, image.StudyInstanceUID = uid, f"{uid[:50]}.1"
        image.FrameOfReferenceUID = frame
        image.InstanceNumber = int(count - k)  # runs the other way
        image.ImagePositionPatient = [-3.0, 4.0, -50.0 + STEP * int(k)]
        image.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        image.PixelData = pixels[k].tobytes()
        if change is not None:
            change(int(k), image)
        image.save_as(image.filename, enforce_file_format=True)
    return folder


def read(place: Path, **options: bool) -> Volume:
    """The one series of a place."""
    return read_series(choose_series(place), **options)


def refusal(place: Path, label: Path | None = None, labels: dict[int, str] | None = None) -> str:
    """Why the case is refused; the message names it, and nothing of the patient."""
    with pytest.raises(DataError) as caught:
        load_case(Case(place, label, "p", name="c1"), labels or {1: "liver", 2: "spleen"})
    message = str(caught.value)
    assert message.startswith("case c1: ")
    assert "Doe" not in message
    assert "MRN123" not in message
    return message


def _image(path: Path, modality: str) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage if modality == "CT" else MRImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image = FileDataset(path, {}, file_meta=meta, preamble=b"\0" * 128)
    image.SOPClassUID = meta.MediaStorageSOPClassUID
    image.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    image.Modality = modality
    image.PatientID, image.PatientName = "MRN123", "Doe^Jane"
    image.SeriesDescription = "Doe Jane knee"
    image.SeriesNumber = 4
    image.Columns, image.Rows = SIZE
    image.PixelSpacing = [SPACING[1], SPACING[0]]
    image.SliceThickness = 9.0  # wrong, as it often is
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit = 16, 16, 15
    image.PixelRepresentation = 1
    if modality == "CT":
        image.RescaleSlope, image.RescaleIntercept = 1, -1000
    return image
