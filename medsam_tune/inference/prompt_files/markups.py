"""Markups of 3D Slicer, `.mrk.json`: regions, points and lines that a person drew.

References:
    Schema: Slicer, Modules/Loadable/Markups/Resources/Schema/markups-schema-v1.0.3.json.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam_tune.errors import DataError, warn
from medsam_tune.formats.volume import LENGTHS, LPS_TO_RAS
from medsam_tune.inference.prompt_files.given import GivenObject, refuse_too_many, span
from medsam_tune.inference.prompt_files.names import OUTSIDE, Names, words_of
from medsam_tune.inference.prompt_files.values import numbers, shown
from medsam_tune.slices.frames import ScanGrid

TURNED = 5.0
"""Degrees between a region's sides and the grid's axes from which on the box around it is said."""

SHORT_AXIS = 0.75
"""Short axis of the ellipse whose long axis is a line, as a share of it."""

MOST_TILT = 2.0
"""Largest accepted distance of a line's two ends across the slices, in slices."""

LONGEST_TEXT = 500
"""Letters of a name, a label or a description that are looked at."""

_LISTS = ("Fiducial", "PointList")
_KINDS = ("ROI", "Line", *_LISTS)
_Vector = NDArray[np.float64]


@dataclass(frozen=True)
class _Markup:
    """One node of a file.

    Attributes:
        content: its JSON.
        where: place in the file, for messages.
        name: its name in Slicer; that of the file where it has none.
        to_lps: (3, 3) from its coordinates to LPS millimetres.
    """

    content: Mapping[str, Any]
    where: str
    name: str
    to_lps: _Vector


@dataclass(frozen=True)
class _Point:
    """A control point.

    Attributes:
        where: place in the file, for messages.
        voxel: (3,) in voxels of the scan's file, as in `GivenObject`.
        label: label that it or its list names; None if neither does.
        inside: False if it or its list says outside.
        markup: index of its list.
    """

    where: str
    voxel: _Vector
    label: int | None
    inside: bool
    markup: int


def is_markups(content: Mapping[str, Any]) -> bool:
    """Whether JSON is a file of markups."""
    return "markups" in content and "objects" not in content


def read_markups(
    content: Mapping[str, Any], grid: ScanGrid, labels: Mapping[int, str], name: str, stem: str
) -> list[GivenObject]:
    """The objects of a file of markups, see `read_prompts`.

    Args:
        content: the file's JSON.
        grid: grid of the scan.
        labels: label id -> name.
        name: name of the file, for messages.
        stem: name of the file without its ending, which Slicer gives to a node without a name.

    Returns:
        objects in voxels of the scan's file.

    Raises:
        DataError: see `read_prompts`.

    Warns:
        UserWarning: a region is turned against the grid; markups are hidden; points are hidden or
            not placed.
    """
    if grid.guess:
        raise DataError(
            f"{name}: markups lie in the world, but the scan's place is a guess: {grid.guess}. "
            "Give a prompt file in voxels."
        )
    items = content["markups"]
    if not isinstance(items, list) or not items:
        raise DataError(f"{name}: no markups; expected a list 'markups' with one at least.")
    names = Names(labels)
    objects: list[tuple[int, GivenObject]] = []  # each with the index of its markup
    points: list[_Point] = []
    left_out = hidden_markups = 0
    for index, item in enumerate(items):
        markup = _markup(item, f"{name}: markup {index}", stem)
        if _is_hidden(markup):
            hidden_markups += 1
            continue
        kind = markup.content["type"]
        if kind == "ROI":
            objects.append((index, _region(markup, names, grid)))
        elif kind == "Line":
            objects.append((index, _line(markup, names, grid)))
        else:
            placed, hidden = _points_of_list(markup, index, names, grid)
            points += placed
            left_out += hidden
        refuse_too_many(max(index + 1, len(points)), name)
    if hidden_markups:
        warn(f"{name}: {hidden_markups} of {len(items)} markups are hidden, and are left out")
    if left_out:
        warn(f"{name}: {left_out} points are hidden or not placed, and are left out")
    objects += _objects_of(points, name)
    if not objects:
        raise DataError(f"{name}: no region, line or point of an object in it; expected one.")
    _give_outside(points, objects, grid, name)
    return [each for _, each in objects]


def _text(content: Mapping[str, Any], key: str) -> str:
    value = content.get(key)
    return value[:LONGEST_TEXT] if isinstance(value, str) else ""


def _markup(item: object, where: str, stem: str) -> _Markup:
    """A node of a kind that is known, and its coordinates."""
    kind = item.get("type") if isinstance(item, Mapping) else None
    if kind not in _KINDS:
        raise DataError(
            f"{where}: type is {shown(kind)}; expected one of {', '.join(_KINDS)}. Draw it as one "
            "of these, or take it out."
        )
    assert isinstance(item, Mapping)
    system = item.get("coordinateSystem", "LPS")
    if system not in ("LPS", "RAS"):
        raise DataError(f"{where}: coordinateSystem is {shown(system)}; expected LPS or RAS.")
    unit = item.get("coordinateUnits", "mm")
    if isinstance(unit, list) and unit:
        unit = unit[0]  # code, scheme and meaning
    scale = LENGTHS.get(unit) if isinstance(unit, str) else None
    if scale is None:
        raise DataError(f"{where}: coordinateUnits is {shown(unit)}; expected mm.")
    to_lps = (LPS_TO_RAS[:3, :3] if system == "RAS" else np.eye(3)) * scale
    return _Markup(item, where, _text(item, "name") or stem, to_lps)


def _controls(markup: _Markup) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Control points and their places in the file."""
    items = markup.content.get("controlPoints", [])
    if not isinstance(items, list):
        raise DataError(f"{markup.where}: controlPoints is {shown(items)}; expected a list.")
    for index, item in enumerate(items):
        where = f"{markup.where}: point {index}"
        if not isinstance(item, Mapping):
            raise DataError(f"{where} is {shown(item)}; expected an object with 'position'.")
        yield where, item


def _is_hidden(markup: _Markup) -> bool:
    """Whether Slicer hides all of it."""
    display = markup.content.get("display")
    return isinstance(display, Mapping) and display.get("visibility") is False


def _is_placed(control: Mapping[str, Any]) -> bool:
    return bool(control.get("positionStatus", "defined") == "defined")


def _positions(controls: Sequence[tuple[str, Mapping[str, Any]]], markup: _Markup) -> _Vector:
    """(N, 3) LPS millimetres."""
    found = [numbers(item.get("position"), 3, f"{where}: position") for where, item in controls]
    with np.errstate(all="ignore"):  # what overflows lies outside, and is refused as that
        return np.array(found).reshape(-1, 3) @ markup.to_lps


def _points_of_list(
    markup: _Markup, index: int, names: Names, grid: ScanGrid
) -> tuple[list[_Point], int]:
    """The points of a list, and how many are left out."""
    every = list(_controls(markup))
    seen = [one for one in every if _is_placed(one[1]) and one[1].get("visibility") is not False]
    with np.errstate(all="ignore"):
        voxels = grid.points_from_world(_positions(seen, markup))
    whole, outside = names.meaning(markup.name)
    counted = whole is not None or _counts(markup)
    found = []
    for (where, item), voxel in zip(seen, voxels, strict=True):
        text = _text(item, "label")
        text = "" if counted and text.strip().isdecimal() else text
        label, out = (None, False) if _is_numbered(text, markup) else names.meaning(text)
        out |= outside or any(word in OUTSIDE for word in words_of(_text(item, "description")))
        label = whole if label is None else label
        if not out:
            label = names.one(label, text or markup.name, where)
        found.append(_Point(where, voxel, label, not out, index))
    return found, len(every) - len(seen)


def _is_numbered(text: str, markup: _Markup) -> bool:
    """Whether Slicer made a point's label of its list's name and a number; it then says nothing."""
    form = _text(markup.content, "labelFormat") or "%N-%d"
    # one number: a pattern of many takes for ever on a name of digits
    pattern = re.escape(form).replace("%N", re.escape(markup.name)).replace("%d", r"\d+", 1)
    return re.fullmatch(pattern, text) is not None


def _counts(markup: _Markup) -> bool:
    """Whether its points are labelled 1, 2, 3 and so on, in order; this names no label."""
    texts = [_text(item, "label").strip() for _, item in _controls(markup)]
    return texts == [str(n) for n in range(1, len(texts) + 1)]


def _objects_of(points: Sequence[_Point], name: str) -> list[tuple[int, GivenObject]]:
    """An object for each list and label, of its points inside; it is followed from them."""
    found: dict[tuple[int, int], GivenObject] = {}
    for point in points:
        if point.inside and point.label is not None:
            where = f"{name}: markup {point.markup}"
            new = GivenObject(point.label, where, propagate=True)
            each = found.setdefault((point.markup, point.label), new)
            each.points.append((point.where, point.voxel.tolist(), 1))
    return [(index, each) for (index, _), each in found.items()]


def _give_outside(
    points: Sequence[_Point],
    objects: Sequence[tuple[int, GivenObject]],
    grid: ScanGrid,
    name: str,
) -> None:
    """Give each point outside to the objects of its label that have a prompt on its slice.

    Those of its own list go before all others.

    Raises:
        DataError: there is none.
    """
    given = [point for point in points if not point.inside]
    if not given:
        return
    boxes = [(n, box) for n, (_, each) in enumerate(objects) for _, box in each.boxes]
    inner = [(n, at) for n, (_, each) in enumerate(objects) for _, at, _ in each.points]
    with np.errstate(all="ignore"):  # those outside the scan are refused afterwards
        bounds = grid.box_to_slices(np.array([box for _, box in boxes]).reshape(-1, 6))
        first, count = span(bounds[:, 2], bounds[:, 5])
    own = np.floor(grid.points_to_slices(np.array([at for _, at in inner]).reshape(-1, 3))[:, 2])
    low, high = np.concatenate([first, own]), np.concatenate([first + count, own + 1])
    owner = np.array([n for n, _ in (*boxes, *inner)])
    lists = np.array([index for index, _ in objects])[owner]
    labels = np.array([each.label for _, each in objects])[owner]
    slices = np.floor(grid.points_to_slices(np.array([point.voxel for point in given]))[:, 2])
    total = len(points)
    for point, z in zip(given, slices, strict=True):
        near = (low <= z) & (z < high)
        if point.label is not None:
            near &= labels == point.label
        if (near & (lists == point.markup)).any():
            near &= lists == point.markup
        if not near.any():
            raise DataError(
                f"{point.where}: a point outside, and no object has a box or a point inside on its "
                "slice; expected one there. Move the point, or take it out."
            )
        for n in np.unique(owner[near]):
            objects[n][1].points.append((point.where, point.voxel.tolist(), 0))
            total += 1
            refuse_too_many(total, name)


def _named(markup: _Markup, names: Names) -> int:
    """The label of a region or a line: of its name, or of its first point's."""
    label, out = names.meaning(markup.name)
    for _, item in () if _counts(markup) else _controls(markup):
        if label is None and not out and not _is_numbered(_text(item, "label"), markup):
            label, out = names.meaning(_text(item, "label"))
    if out:
        raise DataError(
            f"{markup.where}: its name {shown(markup.name)} says outside; expected that of points "
            "alone. Give the outside as points."
        )
    return names.one(label, markup.name, markup.where)


def _region(markup: _Markup, names: Names, grid: ScanGrid) -> GivenObject:
    """The box around a region, in voxels of the file."""
    content, where = markup.content, markup.where
    if content.get("insideOut", False) is not False:
        raise DataError(f"{where}: the region is inside out; expected the inside of an object.")
    size = np.array(numbers(content.get("size"), 3, f"{where}: size"))
    if not (size > 0).all():
        raise DataError(f"{where}: size is {size.tolist()}; expected three numbers above 0.")
    centre = content.get("center")
    if centre is None:
        centre = next((item.get("position") for _, item in _controls(markup)), None)
    middle = np.array(numbers(centre, 3, f"{where}: center"))
    turn = content.get("orientation", [1, 0, 0, 0, 1, 0, 0, 0, 1])
    sides = np.array(numbers(turn, 9, f"{where}: orientation")).reshape(3, 3)  # in columns
    with np.errstate(all="ignore"):
        right = np.abs(sides.T @ sides - np.eye(3)).max() < 0.01
        if not right:
            raise DataError(
                f"{where}: orientation is {shown(turn)}; expected the three directions of the "
                "sides, of length 1 and at right angles, by rows of x, y and z."
            )
        corners = np.array([sides @ (size * step / 2) for step in _CORNERS]) + middle
        voxels = grid.points_from_world(corners @ markup.to_lps)
    degrees = _turned(sides.T @ markup.to_lps, grid)
    if degrees > TURNED:
        warn(
            f"{where}: the region is turned by {degrees:.0f} degrees against the scan's grid; the "
            "box around it, which is larger, is taken"
        )
    label = _named(markup, names)
    return GivenObject(label, where, [(where, [*voxels.min(0), *voxels.max(0)])])


_CORNERS = np.array([*np.ndindex(2, 2, 2)]) * 2 - 1  # (8, 3)


def _turned(sides: _Vector, grid: ScanGrid) -> float:
    """Largest angle between an axis of the grid and the nearest of the sides (3, 3), degrees."""
    axes = (LPS_TO_RAS[:3, :3] @ grid.affine[:3, :3]).T
    axes, sides = (one / np.linalg.norm(one, axis=1, keepdims=True) for one in (axes, sides))
    nearest = np.abs(axes @ sides.T).max(axis=1).min()
    return float(np.degrees(np.arccos(nearest.clip(max=1))))


def _line(markup: _Markup, names: Names, grid: ScanGrid) -> GivenObject:
    """The box around the ellipse of which a line is the long axis, on the slice of its middle."""
    where = markup.where
    placed = [one for one in _controls(markup) if _is_placed(one[1])]
    if len(placed) != 2:
        raise DataError(f"{where}: a line of {len(placed)} points; expected its two ends.")
    ends = _positions(placed, markup)
    axis = grid.slice_axis
    with np.errstate(all="ignore"):
        voxels = grid.points_from_world(ends)
        steps = np.linalg.inv(grid.affine)[:3, :3] @ LPS_TO_RAS[:3, :3]  # voxels for each mm
        across = steps[axis] / np.linalg.norm(steps[axis])
        half = (ends[1] - ends[0]) / 2
        half = half - across * (half @ across)  # in the slice
        tilt = abs(voxels[1, axis] - voxels[0, axis])
        short = np.cross(across, half) * SHORT_AXIS
        reach = np.hypot(steps @ half, steps @ short)
    if not tilt <= MOST_TILT:
        raise DataError(
            f"{where}: the line crosses {tilt:.0f} slices; expected both ends on one slice, as of "
            "the longest diameter. Draw it in the plane of the slices."
        )
    if not np.linalg.norm(half) > 0:
        raise DataError(f"{where}: the line has no length; expected two ends apart.")
    low, high = voxels.mean(0) - reach, voxels.mean(0) + reach
    low[axis] = np.floor(voxels[:, axis].mean())
    high[axis] = low[axis] + 1
    given = GivenObject(_named(markup, names), where, propagate=True)
    given.boxes.append((where, [*low, *high]))
    return given
