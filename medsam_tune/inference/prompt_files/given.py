"""Objects as people give them, in voxels of the scan's file, onto the model's slices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np
import torch
from numpy.typing import NDArray

from medsam_tune.errors import DataError, listed, warn
from medsam_tune.inference.prompt_files.spreading import MOST_POINTS, spread_out
from medsam_tune.inference.simulated import interpolated
from medsam_tune.prompts import SlicePrompts
from medsam_tune.slices.frames import ScanGrid

MOST_PROMPTS = 100_000
"""Most boxes and points in a file."""

MOST_ON_SLICES = 1_000_000
"""Most prompts on slices, into which 3-D boxes are cut; each counts as its box or its points."""

_SMALLEST = 1e-3  # voxels; a thinner box is none, a point so far outside is on the border
_Floats = NDArray[np.float64]
_Ints = NDArray[np.int64]


@dataclass
class GivenObject:
    """An object and what was given of it.

    Attributes:
        label: label id.
        where: place in the file, for messages.
        boxes: place of each and its bounds i0, j0, k0, i1, j1, k1 in voxels of the file, upper
            bounds exclusive.
        points: place of each, its i, j, k in voxels of the file, the centre of voxel i at i + 0.5,
            and 1 for inside, 0 for outside.
        propagate: follow the object from its prompts to the slices around them.
        range: lowest and highest (exclusive) voxel along the slices' axis of the file, between
            which the object is followed; None where that is not known.
        interpolate: put boxes on the slices between its boxes.
    """

    label: int
    where: str
    boxes: list[tuple[str, Sequence[float]]] = field(default_factory=list)
    points: list[tuple[str, Sequence[float], int]] = field(default_factory=list)
    propagate: bool = False
    range: tuple[float, float] | None = None
    interpolate: bool = False


@dataclass(frozen=True)
class _Boxes:
    """Boxes on slices, R rows.

    Attributes:
        owner: (R,) index of the object.
        slices: (R,) index of the slice.
        boxes: (R, 4) XYXY in the slice frame.
        drawn: (R,) whether drawn on this very slice.
    """

    owner: _Ints
    slices: _Ints
    boxes: _Floats
    drawn: NDArray[np.bool_]


@dataclass(frozen=True)
class _Points:
    """Points on slices, R rows.

    Attributes:
        owner: (R,) index of the object.
        slices: (R,) index of the slice.
        points: (R, 2) XY in the slice frame.
        inside: (R,) 1 for inside, 0 for outside.
    """

    owner: _Ints
    slices: _Ints
    points: _Floats
    inside: _Ints


def refuse_too_many(count: int, name: str) -> None:
    """Refuse more boxes and points than a person or a viewer gives."""
    if count > MOST_PROMPTS:
        raise DataError(f"{name}: more than {MOST_PROMPTS:,} boxes and points; give fewer.")


def on_slices(objects: Sequence[GivenObject], grid: ScanGrid, name: str) -> SlicePrompts:
    """Objects in voxels of a scan's file -> prompts on the slices that the model sees.

    A box lies on every slice whose centre is in it, a thin one on the slice of its middle. It is
    drawn there if it is one voxel thick, or on one slice only. A point lies on the slice around it.
    What an object has on one slice is one row; several boxes there become the box around them.

    Args:
        objects: objects, each with a box or a point at least.
        grid: grid of the scan.
        name: name of the file, for messages.

    Returns:
        rows by slice, then by label, then by object; objects are numbered from 0.

    Raises:
        DataError: a box or a point outside the scan, a box without extent, points outside of an
            object alone on a slice, interpolation without two boxes, a range without its prompts, a
            3-D box that is followed, or more than `MOST_ON_SLICES`.

    Warns:
        UserWarning: a box is cut off at the scan's border; of many points on a slice,
            `MOST_POINTS` are taken; slices between an object's prompts stay empty.
    """
    boxes = _between(_merged(_boxes_on_slices(objects, grid, name)), objects, name)
    points = _thinned(_points_on_slices(objects, grid), name)
    prompts = _rows(boxes, points, np.array([each.label for each in objects]), name)
    _refuse_outside_alone(prompts, objects, grid)
    _warn_of_gaps(prompts, objects, name)
    return replace(prompts, spread=_spread(prompts, objects, grid))


def _boxes_on_slices(objects: Sequence[GivenObject], grid: ScanGrid, name: str) -> _Boxes:
    """The boxes of all objects, each on its slices."""
    places = [place for each in objects for place, _ in each.boxes]
    found = np.array([box for each in objects for _, box in each.boxes]).reshape(-1, 6)
    owner = np.repeat(np.arange(len(objects)), [len(each.boxes) for each in objects])
    inner = _inside(found, grid, places, name)
    x0, y0, z0, x1, y1, z1 = grid.box_to_slices(inner).T
    first, count = span(z0, z1)
    _refuse_many(int(count.sum()), name)
    row = np.repeat(np.arange(len(inner)), count)
    nth = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
    axis = grid.slice_axis
    thin = inner[:, axis + 3] - inner[:, axis] <= 1 + _SMALLEST
    return _Boxes(
        owner=owner[row],
        slices=first[row] + nth,
        boxes=np.stack([x0, y0, x1, y1], axis=1)[row],
        drawn=(thin | (count == 1))[row],
    )


def _inside(boxes: _Floats, grid: ScanGrid, places: Sequence[str], name: str) -> _Floats:
    """(N, 6) boxes in voxels of the file, cut off at the scan's border.

    Raises:
        DataError: a box without extent, or wholly outside; the first of them is named.
    """
    low, high = boxes[:, :3], boxes[:, 3:]
    for index in np.flatnonzero(~(high - low >= _SMALLEST).all(1))[:1].tolist():
        if np.isfinite(boxes[index]).all():
            raise DataError(
                f"{places[index]}: box {boxes[index].tolist()} has no extent; upper bounds are "
                "exclusive and above the lower ones."
            )
    inner_low, inner_high = low.clip(min=0), np.minimum(high, grid.shape)
    for index in np.flatnonzero(~(inner_high - inner_low >= _SMALLEST).all(1))[:1].tolist():
        raise DataError(
            f"{places[index]}: box {boxes[index].round(1).tolist()} lies outside the scan of shape "
            f"{grid.shape}. Boxes are in voxels of the file's own array, or set space to 'world'."
        )
    cut = np.flatnonzero(((inner_low - low > _SMALLEST) | (high - inner_high > _SMALLEST)).any(1))
    if len(cut):
        which = [places[index].removeprefix(f"{name}: ") for index in cut.tolist()]
        warn(
            f"{name}: {len(which)} of {len(boxes)} boxes reach out of the scan of shape "
            f"{grid.shape} and are cut off at its border: {listed(which, 5)}"
        )
    return np.concatenate([inner_low, inner_high], axis=1)


def span(low: _Floats, high: _Floats) -> tuple[_Ints, _Ints]:
    """First slice and number of slices whose centre lies between bounds (N,); one at least."""
    first, end = (np.ceil(z - 0.5).astype(np.int64) for z in (low, high))
    thin = first == end  # between two centres: the slice of the middle
    first = np.where(thin, ((low + high) / 2).astype(np.int64), first)
    return first, np.where(thin, 1, end - first)


def _refuse_many(count: int, name: str) -> None:
    if count > MOST_ON_SLICES:
        raise DataError(
            f"{name}: {count:,} prompts on slices; at most {MOST_ON_SLICES:,} are taken. Give "
            "fewer boxes or points."
        )


def _merged(given: _Boxes) -> _Boxes:
    """The same with one row for each object and slice, by object and then by slice."""
    step = int(given.slices.max(initial=0)) + 1
    keys, row = np.unique(given.owner * step + given.slices, return_inverse=True)
    boxes = np.tile([np.inf, np.inf, -np.inf, -np.inf], (len(keys), 1))
    np.minimum.at(boxes[:, :2], row, given.boxes[:, :2])
    np.maximum.at(boxes[:, 2:], row, given.boxes[:, 2:])
    drawn = np.zeros(len(keys), bool)
    np.logical_or.at(drawn, row, given.drawn)
    return _Boxes(keys // step, keys % step, boxes, drawn)


def _between(given: _Boxes, objects: Sequence[GivenObject], name: str) -> _Boxes:
    """Merged boxes, with those between the boxes of interpolated objects."""
    added = [given]
    start = np.searchsorted(given.owner, np.arange(len(objects) + 1))
    total = len(given.owner)
    for index, each in enumerate(objects):
        if not each.interpolate:
            continue
        slices, boxes = (x[start[index] : start[index + 1]] for x in (given.slices, given.boxes))
        if len(slices) < 2:
            raise DataError(
                f"{each.where}: 'interpolate' with boxes on {len(slices)} slices; expected two "
                "slices or more, between which others get a box. Give a second one."
            )
        total += int(slices[-1] - slices[0]) + 1 - len(slices)
        _refuse_many(total, name)
        every, between = interpolated(torch.from_numpy(slices), torch.from_numpy(boxes))
        new = ~np.isin(every, slices)
        count = int(new.sum())
        added.append(
            _Boxes(
                owner=np.full(count, index),
                slices=every.numpy()[new],
                boxes=between.numpy()[new].astype(float),
                drawn=np.zeros(count, bool),
            )
        )
    return _Boxes(
        *(np.concatenate([getattr(one, each.name) for one in added]) for each in fields(_Boxes))
    )


def _points_on_slices(objects: Sequence[GivenObject], grid: ScanGrid) -> _Points:
    """The points of all objects, each on the slice around it.

    Raises:
        DataError: a point outside the scan; the first is named.
    """
    given = [(index, *one) for index, each in enumerate(objects) for one in each.points]
    found = np.array([point for _, _, point, _ in given], float).reshape(-1, 3)
    inside = (found >= -_SMALLEST) & (found <= np.array(grid.shape) + _SMALLEST)
    for index in np.flatnonzero(~inside.all(1))[:1].tolist():
        raise DataError(
            f"{given[index][1]}: point at voxel {(found[index] - 0.5).round(1).tolist()} lies "
            f"outside the scan of shape {grid.shape}. Points are in voxels of the file's own array "
            "(i, j, k), or set space to 'world'."
        )
    x, y, z = grid.points_to_slices(found.clip(0, grid.shape)).T
    return _Points(
        owner=np.array([index for index, *_ in given], np.int64),
        slices=z.astype(np.int64).clip(max=grid.size[2] - 1),
        points=np.stack([x, y], axis=1),
        inside=np.array([label for *_, label in given], np.int64),
    )


def _thinned(given: _Points, name: str) -> _Points:
    """The same with few points of each object inside and outside on a slice."""
    keys = np.stack([given.owner, given.slices, given.inside], axis=1)
    _, group, counts = np.unique(keys, axis=0, return_inverse=True, return_counts=True)
    crowded = np.flatnonzero(counts > MOST_POINTS)
    if not len(crowded):
        return given
    kept = counts[group.ravel()] <= MOST_POINTS
    order = np.argsort(group.ravel(), kind="stable")
    ends = np.cumsum(counts)
    for n in crowded:
        rows = order[ends[n] - counts[n] : ends[n]]
        kept[rows[spread_out(given.points[rows])]] = True
    warn(
        f"{name}: {len(kept) - int(kept.sum()):,} of {len(kept):,} points are left out; the model "
        f"takes {MOST_POINTS} inside and {MOST_POINTS} outside of an object on a slice, and those "
        "that lie far apart are kept"
    )
    return _Points(given.owner[kept], given.slices[kept], given.points[kept], given.inside[kept])


def _rows(boxes: _Boxes, points: _Points, labels: _Ints, name: str) -> SlicePrompts:
    """Boxes and points of the objects' labels (N,), one row for each object and slice."""
    order = np.argsort(labels, kind="stable")
    rank = np.argsort(order)
    owner = np.concatenate([boxes.owner, points.owner])
    keys = np.concatenate([boxes.slices, points.slices]) * len(labels) + rank[owner]
    keys, row = np.unique(keys, return_inverse=True)  # by slice, label and object
    of_box, of_point = np.split(row, [len(boxes.owner)])
    counts = np.bincount(of_point, minlength=len(keys))
    most = int(counts.max(initial=0))
    _refuse_many(len(keys) * max(1, most), name)

    found = np.full((len(keys), 4), np.nan, np.float32)
    found[of_box] = boxes.boxes
    drawn = np.zeros(len(keys), bool)
    drawn[of_box] = boxes.drawn
    drawn[of_point[points.inside == 1]] = True  # a point inside says that the object is here
    by_row = np.argsort(of_point, kind="stable")
    column = np.arange(len(by_row)) - (np.cumsum(counts) - counts)[of_point[by_row]]
    places = np.zeros((len(keys), most, 2), np.float32)
    places[of_point[by_row], column] = points.points[by_row]
    kinds = np.full((len(keys), most), -1)
    kinds[of_point[by_row], column] = points.inside[by_row]
    owners = order[keys % len(labels)]
    return SlicePrompts(
        slices=torch.from_numpy(keys // len(labels)),
        labels=torch.from_numpy(labels[owners]),
        boxes=torch.from_numpy(found),
        points=torch.from_numpy(places),
        point_labels=torch.from_numpy(kinds),
        objects=torch.from_numpy(owners),
        drawn=torch.from_numpy(drawn),
    )


def _refuse_outside_alone(
    prompts: SlicePrompts, objects: Sequence[GivenObject], grid: ScanGrid
) -> None:
    """Refuse a slice of an object that says only where the object is not."""
    alone = ~prompts.boxed & ~(prompts.point_labels == 1).any(1)
    for row in alone.nonzero().flatten()[:1].tolist():
        each = objects[int(prompts.objects[row])]
        raise DataError(
            f"{each.where}: on slice {grid.index_in_file(int(prompts.slices[row]))} it has only "
            "points outside of it; expected a box, or a point inside, on each slice with points. "
            "Add one there, or move the points."
        )


def _warn_of_gaps(prompts: SlicePrompts, objects: Sequence[GivenObject], name: str) -> None:
    """Warn of slices between the prompts of an object on which nothing is segmented."""
    order = np.lexsort((prompts.slices, prompts.objects))
    owner, slices = prompts.objects.numpy()[order], prompts.slices.numpy()[order]
    gaps = np.flatnonzero((owner[1:] == owner[:-1]) & (slices[1:] > slices[:-1] + 1))
    which = [each for each in (objects[k] for k in np.unique(owner[gaps])) if not each.propagate]
    if which:
        warn(
            f"{name}: slices between the prompts of {len(which)} objects stay empty: "
            f"{listed((each.where.removeprefix(f'{name}: ') for each in which), 5)}. "
            "'propagate': true follows an object through them, 'interpolate': true puts boxes there"
        )


def _spread(
    prompts: SlicePrompts, objects: Sequence[GivenObject], grid: ScanGrid
) -> dict[int, tuple[int, int] | None]:
    """The objects that are followed, and the slices between which they are."""
    spread: dict[int, tuple[int, int] | None] = {}
    order = prompts.objects.argsort(stable=True)
    counts = prompts.objects.bincount(minlength=len(objects)).tolist()
    slices, drawn = prompts.slices[order].split(counts), prompts.drawn[order].split(counts)
    for index, each in enumerate(objects):
        if not each.propagate:
            continue
        if not drawn[index].all():
            raise DataError(
                f"{each.where}: 'propagate' with a box3d of several slices, which has a rectangle "
                "on each. Leave 'propagate' out, or give the box of one slice."
            )
        spread[index] = None
        if each.range is not None:
            known = spread[index] = _range(each.range, grid)
            _refuse_out_of_range(known, slices[index].tolist(), each.where)
    return spread


def _range(bounds: tuple[float, float], grid: ScanGrid) -> tuple[int, int]:
    """First slice and the one after the last of bounds in voxels along the slices' axis."""
    low, high = bounds
    axis = grid.slice_axis
    box = np.array([0.0, 0, 0, *grid.shape])
    box[[axis, axis + 3]] = low, high
    _, _, z0, _, _, z1 = grid.box_to_slices(box)
    first, count = span(z0[None], z1[None])
    return int(first[0]), int(first[0] + count[0])


def _refuse_out_of_range(known: tuple[int, int], slices: Sequence[int], where: str) -> None:
    if outside := [z for z in slices if not known[0] <= z < known[1]]:
        raise DataError(
            f"{where}: {len(outside)} of its {len(slices)} prompts lie outside its range; expected "
            "the range of slices that the object fills, and its prompts there. Correct one of them."
        )
