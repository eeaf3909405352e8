"""DICOM SEG, by highdicom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medsam_tune.errors import DataError
from medsam_tune.formats.dicom.headers import import_highdicom, without_warnings
from medsam_tune.formats.dicom.multiframe import from_highdicom
from medsam_tune.formats.volume import Volume


def read_segmentation(path: Path) -> Volume:
    """Read the segments as one label map; its values are the segments' numbers.

    Raises:
        DataError: highdicom is not installed, segments overlap, or the file is damaged.
    """
    segments = _opened(path)
    try:
        with without_warnings():
            volume = segments.get_volume(combine_segments=True)
    except RuntimeError as error:
        raise DataError(
            f"{path}: its segments cannot be one label map ({error}); expected each voxel in one "
            "segment. Export each organ as a file of its own."
        ) from error
    return from_highdicom(volume)


def segment_names(path: Path) -> dict[int, str]:
    """Number -> SegmentLabel of each segment.

    Raises:
        DataError: highdicom is not installed, or the file is damaged.
    """
    segments = _opened(path)
    numbers = [int(n) for n in segments.segment_numbers if n]
    return {n: str(segments.get_segment_description(n).segment_label) for n in numbers}


def _opened(path: Path) -> Any:
    highdicom = import_highdicom(path, "a DICOM SEG")
    try:
        with without_warnings():
            return highdicom.seg.segread(path)
    except Exception as error:
        raise DataError(
            f"{path}: cannot read this DICOM SEG ({type(error).__name__}). Export it again."
        ) from error
