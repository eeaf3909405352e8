"""DICOM SEG files on disk."""

from __future__ import annotations

from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
from pydicom.sr.codedict import codes

from tests.dicom_series import COUNT, SIZE

NAMES = {1: "liver", 2: "spleen"}


def masks() -> np.ndarray:
    """(K, rows, columns) uint8 with both segments, the first two slices empty."""
    label = np.zeros((COUNT, *SIZE[::-1]), np.uint8)
    label[2:6, 2:7, 1:5] = 1
    label[3:8, 8:11, 3:12] = 2
    return label


def write_seg(
    path: Path, series: Path, label: np.ndarray, kind: str = "BINARY", most: int = 255
) -> Path:
    """As a SEG that leaves out the slices where nothing is, as most do.

    Args:
        path: file to write.
        series: folder of the images.
        label: (K, rows, columns) ids, or with a last axis of both segments.
        kind: SegmentationType.
        most: MaximumFractionalValue, of a FRACTIONAL one.
    """
    images = sorted(
        (pydicom.dcmread(file) for file in series.iterdir()),
        key=lambda image: float(image.ImagePositionPatient[2]),
    )
    for image in images:
        image.StudyDate = image.StudyTime = image.AccessionNumber = image.StudyID = ""
        image.PatientBirthDate = image.PatientSex = image.ReferringPhysicianName = ""
    segments = [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=name,
            segmented_property_category=codes.SCT.Organ,
            segmented_property_type=codes.SCT.Liver,
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.MANUAL,
        )
        for number, name in NAMES.items()
    ]
    hd.seg.Segmentation(
        source_images=images,
        pixel_array=label,
        segmentation_type=kind,
        segment_descriptions=segments,
        series_instance_uid=hd.UID(),
        series_number=9,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="x",
        manufacturer_model_name="x",
        software_versions="x",
        device_serial_number="x",
        omit_empty_frames=True,
        max_fractional_value=most,
    ).save_as(path)
    return path
