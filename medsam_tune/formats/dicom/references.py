"""References of a DICOM SEG or RTSTRUCT: on which images it was drawn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai.data import MetaTensor

from medsam_tune.errors import DataError
from medsam_tune.formats.dicom.headers import read_header


@dataclass(frozen=True)
class References:
    """The images that a label object names.

    Attributes:
        series: SeriesInstanceUIDs; empty where it names none.
        frame: FrameOfReferenceUID, the coordinate system of its positions; empty where unknown.
    """

    series: tuple[str, ...]
    frame: str


def references(path: Path) -> References:
    """Read what a DICOM SEG or RTSTRUCT refers to.

    Args:
        path: file of the object.

    Raises:
        DataError: its header cannot be read.
    """
    tags = ("FrameOfReferenceUID", "ReferencedSeriesSequence", "ReferencedFrameOfReferenceSequence")
    header = read_header(path, tags)
    if header is None:
        return References((), "")
    named = [str(one.get("SeriesInstanceUID") or "") for one in _series(header)]
    frames = [str(header.get("FrameOfReferenceUID") or "")]
    frames += [
        str(one.get("FrameOfReferenceUID") or "")
        for one in header.get("ReferencedFrameOfReferenceSequence") or ()
    ]
    frames = [frame for frame in dict.fromkeys(frames) if frame]
    # A structure set may name several coordinate systems; which is meant is then not known here.
    return References(
        tuple(uid for uid in dict.fromkeys(named) if uid), frames[0] if len(frames) == 1 else ""
    )


def _series(header: Any) -> Iterator[Any]:
    yield from header.get("ReferencedSeriesSequence") or ()
    for frame in header.get("ReferencedFrameOfReferenceSequence") or ():
        for study in frame.get("RTReferencedStudySequence") or ():
            yield from study.get("RTReferencedSeriesSequence") or ()


def check_references(image: MetaTensor, path: Path) -> None:
    """Refuse a label object whose positions are in another coordinate system than the image's.

    A label is accepted if it or the image does not say, e.g. after conversion to NIfTI. A label of
    another series in the same frame of reference is accepted too: its positions mean the same.

    Args:
        image: result of `load_image`, whose meta has the series and its frame of reference.
        path: file of the DICOM SEG or RTSTRUCT.

    Raises:
        DataError: the image's place is a guess; another frame of reference, or another series
            where no frame is known.
    """
    if guess := image.meta.get("guess"):
        raise DataError(
            f"the image's place is a guess: {guess}, and the label's is not ({path}); the one "
            "cannot be laid on the other. Export the image again with its orientation, or take the "
            "DICOM series."
        )
    said = references(path)
    series, frame = (str(image.meta.get(key, "")) for key in ("series_uid", "frame_uid"))
    if frame and said.frame:
        if frame == said.frame:
            return
        raise DataError(
            f"the label's frame of reference is {said.frame}, the image's {frame} "
            f"({path}); positions in one mean nothing in the other. Choose the label that was "
            "drawn on this series."
        )
    if series and said.series and series not in said.series:
        raise DataError(
            f"the label was drawn on series {', '.join(said.series)}, the image is "
            f"{series} ({path}), and nothing says that they share a frame of reference. Choose "
            "the label that was drawn on this series."
        )
