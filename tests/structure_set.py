"""DICOM RTSTRUCT files on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid

from tests.dicom_series import SPACING, STEP

Contours = Sequence[np.ndarray]  # (N, 3) LPS millimetres each


def placed(points: Sequence[Sequence[float]], k: int) -> np.ndarray:
    """Pixels (N, 2) of slice k of `write_series` as (N, 3) LPS millimetres."""
    x, y = np.asarray(points, dtype=float).T
    z = np.full(len(x), -50.0 + STEP * k)
    return np.stack([-3.0 + SPACING[0] * x, 4.0 + SPACING[1] * y, z], axis=1)


def box(left: float, top: float, right: float, bottom: float) -> list[list[float]]:
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


def write_structure_set(
    path: Path,
    series: Path,
    regions: Mapping[str, Contours],
    kinds: Mapping[str, str] | None = None,
    shape: str = "CLOSED_PLANAR",
    change: Callable[[Dataset], object] | None = None,
) -> Path:
    """An RTSTRUCT that was drawn on a series.

    Args:
        path: where to.
        series: folder of the images.
        regions: name of an ROI -> its contours; ROINumbers are 11, 12, ...
        kinds: name of an ROI -> RTROIInterpretedType; "ORGAN" where not given.
        shape: ContourGeometricType of all contours.
        change: called with the data set before it is written.
    """
    image = pydicom.dcmread(next(series.iterdir()))
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = RTStructureSetStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    content = FileDataset(path, {}, file_meta=meta, preamble=b"\0" * 128)
    content.SOPClassUID = meta.MediaStorageSOPClassUID
    content.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    content.Modality = "RTSTRUCT"
    content.PatientID, content.PatientName = image.PatientID, image.PatientName
    content.StudyInstanceUID, content.SeriesInstanceUID = image.StudyInstanceUID, generate_uid()
    content.StructureSetLabel = "Doe"
    referred = Dataset()
    referred.SeriesInstanceUID = image.SeriesInstanceUID
    study = Dataset()
    study.ReferencedSOPInstanceUID = image.StudyInstanceUID
    study.RTReferencedSeriesSequence = [referred]
    frame = Dataset()
    frame.FrameOfReferenceUID = image.FrameOfReferenceUID
    frame.RTReferencedStudySequence = [study]
    content.ReferencedFrameOfReferenceSequence = [frame]
    content.StructureSetROISequence = []
    content.ROIContourSequence = []
    content.RTROIObservationsSequence = []
    for number, (name, contours) in enumerate(regions.items(), start=11):
        roi, drawn, observed = Dataset(), Dataset(), Dataset()
        roi.ROINumber, roi.ROIName = number, name
        roi.ReferencedFrameOfReferenceUID = image.FrameOfReferenceUID
        drawn.ReferencedROINumber = observed.ReferencedROINumber = number
        observed.RTROIInterpretedType = (kinds or {}).get(name, "ORGAN")
        drawn.ContourSequence = []
        for points in contours:
            contour = Dataset()
            contour.ContourGeometricType = shape
            contour.NumberOfContourPoints = len(points)
            contour.ContourData = [f"{mm:.4f}" for mm in np.asarray(points).ravel()]
            drawn.ContourSequence.append(contour)
        content.StructureSetROISequence.append(roi)
        content.ROIContourSequence.append(drawn)
        content.RTROIObservationsSequence.append(observed)
    if change is not None:
        change(content)
    path.parent.mkdir(parents=True, exist_ok=True)
    content.save_as(path, enforce_file_format=True)
    return path
