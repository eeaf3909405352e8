"""DICOM RTSTRUCT: contours in patient coordinates become a label map on the image's grid.

Contours are placed by position alone, so a volume may be stored, or turned, in any way. A voxel is
inside where its centre is, by the even-odd rule over all contours of an ROI in a slice: a contour
within another is a hole, and a keyhole contour, whose channel is walked both ways, encloses what it
should.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray

from medsam_tune.errors import DataError
from medsam_tune.formats.dicom.headers import import_pydicom, without_warnings
from medsam_tune.formats.volume import LPS_TO_RAS

PLANE_TOLERANCE = 0.5
"""Largest accepted distance of a contour's points from the centre of their slice, millimetres (or a
quarter of the slices' spacing, where that is less)."""

SNAP_TOLERANCE = 0.01
"""Points this near to a voxel's centre are on it, share of a voxel; files round millimetres."""

_CLOSED = {"CLOSED_PLANAR", "CLOSEDPLANAR_XOR"}
_NO_ORGANS = {"EXTERNAL", "SUPPORT"}  # the body's outline and the couch, in every plan
_Points = NDArray[np.float64]


@dataclass(frozen=True)
class Region:
    """One ROI of a structure set.

    Attributes:
        number: ROINumber.
        name: ROIName, without blanks around it.
        kind: RTROIInterpretedType, such as "ORGAN", "PTV" or "EXTERNAL"; empty where unknown.
        contours: of its closed contours (N, 3) points each, LPS millimetres.
    """

    number: int
    name: str
    kind: str
    contours: tuple[_Points, ...]


def read_regions(path: Path) -> list[Region]:
    """The ROIs of a structure set that have closed contours; points and open lines are left out.

    Args:
        path: of an RTSTRUCT file.

    Raises:
        DataError: it cannot be read, or a contour is not made of points.
    """
    pydicom = import_pydicom()
    try:
        with without_warnings():
            content = pydicom.dcmread(path, force=True)
            names = {int(roi.ROINumber): roi for roi in content.get("StructureSetROISequence", ())}
            kinds = {
                int(one.ReferencedROINumber): str(one.get("RTROIInterpretedType") or "")
                for one in content.get("RTROIObservationsSequence", ())
            }
            regions = []
            for item in content.get("ROIContourSequence", ()):
                number = int(item.ReferencedROINumber)
                name = str(names[number].get("ROIName") or "").strip()
                contours = tuple(_closed(item))
                regions.append(Region(number, name, kinds.get(number, ""), contours))
    except Exception as error:  # whatever a broken file makes pydicom or numpy stumble on
        raise DataError(
            f"{path}: cannot read this RTSTRUCT ({type(error).__name__}). Export it again."
        ) from error
    return [region for region in regions if region.contours]


def _closed(item: Any) -> Iterator[_Points]:
    for contour in item.get("ContourSequence", ()):
        if contour.ContourGeometricType in _CLOSED:
            # As bytes: pydicom's own numbers are one object each, and contours have millions.
            value = contour.get_item("ContourData").value
            texts = value.strip(b"\0 ").split(b"\\") if isinstance(value, bytes) else value
            points = np.asarray(texts, dtype=np.float64).reshape(-1, 3)
            if not np.isfinite(points).all():
                raise ValueError("contour")
            yield points


def organ_regions(path: Path) -> list[Region]:
    """Those that may be an organ: not the body's outline and not the couch.

    Raises:
        DataError: see `read_regions`.
    """
    return [one for one in read_regions(path) if one.name and one.kind not in _NO_ORGANS]


def named_regions(path: Path, labels: Mapping[int, str]) -> tuple[dict[int, Region], int]:
    """The ROIs that a datalist names, compared without regard to case.

    Args:
        path: of the structure set.
        labels: label id -> name.

    Returns:
        label id -> ROI, without those that the structure set does not have, and how many ROIs have
        another name.

    Raises:
        DataError: see `read_regions`; a name that two ROIs or two labels have, or ROIs of which the
            datalist names none.
    """
    regions = read_regions(path)
    ids: dict[str, int] = {}
    for number, name in labels.items():
        if (other := ids.setdefault(name.strip().casefold(), number)) != number:
            raise DataError(
                f"labels {other} and {number} are both {name!r} but for their case; "
                f"in a structure set they are one ROI ({path}). Rename one in the datalist."
            )
    found: dict[int, Region] = {}
    for region in regions:
        label = ids.get(region.name.casefold())
        if label is None:
            continue
        if label in found:
            raise DataError(
                f"ROIs {found[label].number} and {region.number} are both "
                f"{labels[label]!r} ({path}); expected one. Remove or rename one of them."
            )
        found[label] = region
    if regions and not found:
        raise DataError(
            f"none of the {len(regions)} ROIs with contours has a name of the "
            f"datalist: {', '.join(labels.values())} ({path}). Correct the names in the datalist's "
            "labels, or take the case out."
        )
    return found, len(regions) - len(found)


def rasterise(path: Path, image: MetaTensor, labels: Mapping[int, str]) -> MetaTensor:
    """A structure set as a label map.

    Args:
        path: of the structure set.
        image: (1, X, Y, Z), in any orientation; the contours lie in planes across one of its axes.
        labels: label id -> name of the ROIs that are wanted; other ROIs are left out.

    Returns:
        (1, X, Y, Z) int32 on the image's grid. A voxel whose centre lies on a contour is inside; if
        it belongs to no ROI otherwise, and is on the contours of two, it is of the lower id.
        `meta["notes"]` counts ROIs that were left out and slices without a contour.

    Raises:
        DataError: see `named_regions`; contours beside the slices' centres or outside the image;
            ROIs that overlap.
    """
    regions, extra = named_regions(path, labels)
    affine = np.asarray(image.affine, dtype=np.float64)
    notes = [f"{extra} ROIs that the datalist does not name left out"] if extra else []
    indices = {i: _voxels(region, affine) for i, region in sorted(regions.items())}
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    axis = _across([points for contours in indices.values() for points in contours], spacing)
    by_slice: dict[int, dict[int, list[_Points]]] = defaultdict(lambda: defaultdict(list))
    for label, contours in indices.items():
        for points in contours:
            k = _slice_of(path, labels[label], points, axis, spacing, image.shape[1 + axis])
            by_slice[k][label].append(np.delete(points, axis, axis=1))
        if without := _skipped(k for k in by_slice if label in by_slice[k]):
            notes.append(f"{labels[label]}: {without} slices between its contours without one")
    merged = np.zeros(image.shape[1:], dtype=np.int32)
    planes = np.moveaxis(merged, axis, 0)  # a view
    twice: dict[tuple[int, int], int] = defaultdict(int)
    for k, drawn in by_slice.items():
        _draw(planes[k], drawn, twice)
    if twice:
        raise _overlap(path, twice, labels)
    meta = {**image.meta, "notes": notes}
    return MetaTensor(torch.from_numpy(merged)[None], meta=meta)


def _voxels(region: Region, affine: NDArray[np.float64]) -> list[_Points]:
    """The contours' points (N, 3) in voxels of the image, centres at whole numbers."""
    inverse = np.linalg.inv(LPS_TO_RAS @ affine)
    found = []
    for points in region.contours:
        voxels = points @ inverse[:3, :3].T + inverse[:3, 3]
        whole = np.round(voxels)
        found.append(np.where(np.abs(voxels - whole) <= SNAP_TOLERANCE, whole, voxels))
    return found


def _across(contours: Sequence[_Points], spacing: NDArray[np.float64]) -> int:
    """The axis along which the contours are flat."""
    if not contours:
        return 2
    extents = np.max([np.ptp(points, axis=0) for points in contours], axis=0)
    return int(np.argmin(extents * spacing))


def _slice_of(
    path: Path,
    name: str,
    points: _Points,
    axis: int,
    spacing: NDArray[np.float64],
    count: int,
) -> int:
    """Which of the slices a contour lies in."""
    heights = points[:, axis]
    k = round(float(heights.mean()))
    off = float(np.abs(heights - k).max() * spacing[axis])
    if off > min(PLANE_TOLERANCE, spacing[axis] / 4):
        raise DataError(
            f"a contour of {name!r} has points {off:.2f} mm beside the centre of the "
            f"nearest slice, the slices are {spacing[axis]:.2f} mm apart ({path}); expected "
            "contours in the image's slices. Choose the structure set of this series."
        )
    if not 0 <= k < count:
        raise DataError(
            f"a contour of {name!r} lies in slice {k} of 0 to {count - 1} ({path}); "
            "the structure set must come from the same series. Choose that of this series, or "
            "give the whole scan."
        )
    return k


def _skipped(slices: Iterable[int]) -> int:
    """How many whole numbers are missing between the lowest and the highest."""
    found = set(slices)
    return max(found) - min(found) + 1 - len(found) if found else 0


def _draw(
    plane: NDArray[np.int32],
    drawn: Mapping[int, Sequence[_Points]],
    twice: dict[tuple[int, int], int],
) -> None:
    """Write ids into a slice (W, H), in place; voxels inside two ROIs are counted in `twice`."""
    filled = {label: _fill(contours, plane.shape) for label, contours in sorted(drawn.items())}
    for label, (window, inside, _) in filled.items():
        part = plane[window]
        for other in np.unique(part[inside & (part > 0)]).tolist():
            twice[other, label] += int((inside & (part == other)).sum())
        part[inside] = label
    for label, (window, _, edge) in filled.items():
        part = plane[window]
        part[edge & (part == 0)] = label


def _fill(
    contours: Sequence[_Points], size: tuple[int, ...]
) -> tuple[tuple[slice, slice], NDArray[np.bool_], NDArray[np.bool_]]:
    """Pixels of one ROI in one slice.

    Args:
        contours: (N, 2) points each, in pixels.
        size: (W, H) of the slice.

    Returns:
        the window of the slice that holds them, and of that window (w, h) which centres are inside
        by the even-odd rule, and which lie on a contour and are not counted inside.
    """
    every = np.concatenate(contours)
    low = np.clip(np.floor(every.min(axis=0)), 0, size).astype(int)
    high = np.clip(np.floor(every.max(axis=0)) + 1, low, size).astype(int)
    width, height = (high - low).tolist()
    flips = np.zeros((width + 1, height), dtype=np.int64)
    edge = np.zeros((width, height), dtype=bool)
    for contour in contours:
        starts = contour - low
        ends = np.roll(starts, -1, axis=0)
        _mark(edge, starts)
        for axis in (0, 1):
            edges, across, along = _crossings(starts, ends, axis)
            at = np.stack([across, along] if axis == 0 else [along, across], axis=1)
            _mark(edge, np.where(np.abs(at - np.round(at)) < 1e-6, np.round(at), at))
        # Of the last turn, along rows: each row is entered and left at its crossings.
        once = across < np.maximum(starts[:, 1], ends[:, 1])[edges]
        here = once & (across >= 0) & (across < height)
        columns = np.clip(np.ceil(along[here] - 1e-9), 0, width).astype(int)
        np.add.at(flips, (columns, across[here].astype(int)), 1)
    inside = np.cumsum(flips[:-1], axis=0) % 2 == 1
    window = (slice(low[0], high[0]), slice(low[1], high[1]))
    return window, inside & ~edge, edge


def _crossings(
    starts: _Points, ends: _Points, axis: int
) -> tuple[NDArray[np.intp], NDArray[np.float64], NDArray[np.float64]]:
    """Where edges (N, 2) -> (N, 2) meet the whole numbers of an axis.

    Returns:
        for each of the M crossings the edge's index, that whole number, and where along the other
        axis.
    """
    a, b = starts[:, axis], ends[:, axis]
    low, high = np.ceil(np.minimum(a, b)), np.floor(np.maximum(a, b))
    count = np.where(a == b, 0, np.maximum(high - low + 1, 0)).astype(int)
    edges = np.repeat(np.arange(len(a)), count)
    at = low[edges] + np.arange(len(edges)) - np.repeat(np.cumsum(count) - count, count)
    share = (at - a[edges]) / (b - a)[edges]
    other = starts[edges, 1 - axis] + share * (ends - starts)[edges, 1 - axis]
    return edges, at, other


def _mark(pixels: NDArray[np.bool_], points: _Points) -> None:
    """Set those (W, H) whose centre one of the points (N, 2) is."""
    whole = points[(points == np.round(points)).all(axis=1)].astype(int)
    whole = whole[((whole >= 0) & (whole < pixels.shape)).all(axis=1)]
    pixels[whole[:, 0], whole[:, 1]] = True


def _overlap(
    path: Path, twice: Mapping[tuple[int, int], int], labels: Mapping[int, str]
) -> DataError:
    listed = "; ".join(
        f"{labels[one]!r} and {labels[two]!r} in {count}" for (one, two), count in twice.items()
    )
    return DataError(
        f"ROIs overlap in {sum(twice.values())} voxels ({path}): {listed}; expected "
        "each voxel in one. Take one of them out of the datalist's labels, or correct the contours."
    )
