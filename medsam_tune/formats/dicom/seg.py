"""DICOM SEG: label ids on planes, each where its frames lie, by highdicom.

The planes' places are ImagePositionPatient alone: frames without a segment are left out of most
files, and SliceThickness is no spacing. `seg_writing` writes such files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam_tune.errors import DataError
from medsam_tune.formats.dicom.geometry import (
    SAME_POSITION,
    affine_of,
    alike,
    in_order,
    normal_of,
    plane_of,
)
from medsam_tune.formats.dicom.headers import (
    Instance,
    import_highdicom,
    import_pydicom,
    instance_of,
    read_header,
    understood,
    without_warnings,
)
from medsam_tune.formats.dicom.multiframe import functional_group, placed_frames
from medsam_tune.formats.volume import Volume, check_memory

EVEN_TOLERANCE = 0.1
"""Largest accepted deviation of a plane from its place in an even, straight stack, millimetres."""


@dataclass(frozen=True)
class Planes:
    """Label ids of a segmentation, on the planes that it has.

    Attributes:
        path: the file.
        ids: (I, J, P) int32, columns, rows and planes; the numbers of the segments.
        places: (P,) where each plane lies, along their normal; all of them have a position,
            directions and spacing.
        between: SpacingBetweenSlices, millimetres, or None.
        notes: changes that were made while reading.
    """

    path: Path
    ids: NDArray[np.int32]
    places: tuple[Instance, ...]
    between: float | None
    notes: tuple[str, ...]

    @property
    def volume(self) -> Volume:
        """All planes in one even stack, as resampling needs it; planes that lack are 0.

        Raises:
            DataError: they are not even or straight, or one plane does not say how thick it is.
        """
        normal = normal_of(self.places[0])
        positions = np.stack([plane_of(one)[0] for one in self.places])
        along = (positions - positions[0]) @ normal
        gaps = np.diff(along)
        for step in (self.between, float(gaps.min()) if len(gaps) else None):
            if step is None or step < SAME_POSITION:
                continue
            where = np.round(along / step).astype(int)
            straight = positions[0] + (where * step)[:, None] * normal
            if np.abs(straight - positions).max() <= EVEN_TOLERANCE:
                array = np.zeros((*self.ids.shape[:2], where[-1] + 1), np.float32, order="F")
                array[..., where] = self.ids
                ends = np.stack([positions[0], positions[0] + where[-1] * step * normal])
                stack = np.linspace(ends[0], ends[1], where[-1] + 1)
                affine = affine_of(self.places[0], stack)
                if len(stack) == 1:
                    affine[:3, 2] *= step
                return Volume(array, affine, self.notes)
        raise DataError(
            f"{self.path}: its {len(self.places)} planes do not say how far apart slices are, so "
            "that it cannot be resampled. Export it on the grid of its image."
        )


def read_segmentation(path: Path) -> Planes:
    """Read the segments as one label map; its values are the segments' numbers.

    In a FRACTIONAL segmentation, a voxel is in the segment that has most of it, if that is half of
    MaximumFractionalValue or more; `notes` says so. A LABELMAP is read as it is.

    Raises:
        DataError: highdicom is not installed, segments overlap, frames have no place or do not lie
            on parallel planes, or the file is damaged.
    """
    highdicom = import_highdicom(path, "a DICOM SEG")
    with understood(path):
        content = import_pydicom().dcmread(path, force=True)
        one = instance_of(path, content)
        frames = placed_frames(one, content)
        between = functional_group(content, 0, "PixelMeasures").get("SpacingBetweenSlices")
    planes = _planes(path, frames)
    check_memory(path, (*one.size, len(planes)))
    ids = np.zeros((*one.size, len(planes)), np.int32, order="F")
    counts: Counter[str] = Counter()
    try:
        with without_warnings():
            segments = highdicom.seg.Segmentation.from_dataset(content, copy=False)
            for p, plane in enumerate(planes):
                _draw(ids[..., p], segments, plane, one, counts)
    except Exception as error:  # whatever highdicom and the decoders stumble on
        raise DataError(
            f"{path}: cannot read this DICOM SEG ({type(error).__name__}). Export it again."
        ) from error
    if counts["several"]:
        raise DataError(
            f"{path}: its segments cannot be one label map ({counts['several']} voxels are in "
            "several); expected each voxel in one segment. Export each organ as a file of its own."
        )
    notes: tuple[str, ...] = ()
    if counts["less"]:
        share = counts["less"] / counts["any"]
        notes = (
            "fractional segmentation: inside is where a segment has half of a voxel or more; "
            f"{share:.1%} of the voxels that it touches have less",
        )
    places = tuple(frames[plane[0]] for plane in planes)
    return Planes(path, ids, places, float(between) if between else None, notes)


def segment_names(path: Path) -> dict[int, str]:
    """Number -> SegmentLabel of each segment.

    Raises:
        DataError: the file is damaged.
    """
    header = read_header(path, ("SegmentSequence",))
    with understood(path):
        described = (header.get("SegmentSequence") or ()) if header is not None else ()
        names = {int(one.SegmentNumber): str(one.SegmentLabel) for one in described}
    names.pop(0, None)  # the background of a LABELMAP
    if not names:
        raise DataError(f"{path}: this DICOM SEG describes no segment. Export it again.")
    return names


def _planes(path: Path, frames: Sequence[Instance]) -> list[list[int]]:
    """Indices of the frames that share a plane, for each plane, along their normal."""
    if any(each is None for one in frames for each in (one.position, one.orientation, one.spacing)):
        raise DataError(
            f"{path}: a frame of this DICOM SEG has no ImagePositionPatient, orientation or "
            "PixelSpacing, so that its place is not known. Export it again with its geometry."
        )
    parallel, _ = alike(frames)
    planes: list[list[int]] = []
    together = True
    for index in in_order(frames):
        last = frames[planes[-1][0]] if planes else None
        step = np.zeros(3) if last is None else plane_of(frames[index])[0] - plane_of(last)[0]
        if last is None or step @ normal_of(last) >= SAME_POSITION:
            planes.append([])
        elif np.abs(step).max() >= SAME_POSITION:
            together = False
        planes[-1].append(index)
    if not (all(parallel) and together):
        raise DataError(
            f"{path}: the {len(frames)} frames of this DICOM SEG do not lie on parallel planes, "
            "one place on each; expected the slices of one scan. Export it again."
        )
    return planes


def _draw(
    ids: NDArray[np.int32], segments: Any, plane: Sequence[int], one: Instance, counts: Counter[str]
) -> None:
    """Write the frames of a plane into its (I, J) ids, in place.

    Args:
        ids: zeros.
        segments: the segmentation.
        plane: indices of the frames.
        one: what the file says of all frames.
        counts: voxels in "several" segments; of a FRACTIONAL segmentation, those that have "any" of
            it, and "less" than half.
    """
    kind = str(segments.SegmentationType)
    most = np.zeros(ids.shape)
    for index in plane:
        frame = segments.get_stored_frame(index + 1).T
        if kind == "LABELMAP":
            low, high = one.padding or (0.0, 0.0)
            inside = (frame != 0) & ((frame < low) | (frame > high))
            values = frame[inside].astype(np.int32)
        else:
            group = functional_group(segments, index, "SegmentIdentification")
            inside, values = frame > 0, np.int32(group.ReferencedSegmentNumber)
        if kind == "FRACTIONAL":
            half = 2.0 * frame >= float(segments.MaximumFractionalValue)
            counts["any"] += int(inside.sum())
            counts["less"] += int((inside & ~half).sum())
            inside = half & (frame > most)
            most[inside] = frame[inside]
        else:
            counts["several"] += int((ids[inside] * (ids[inside] != values) > 0).sum())
        ids[inside] = values
