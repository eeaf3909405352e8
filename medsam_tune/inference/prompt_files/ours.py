"""Prompt files of our own, JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import nibabel as nib
import numpy as np

from medsam_tune.errors import DataError
from medsam_tune.files import FORMAT, refuse_other_format
from medsam_tune.inference.prompt_files.given import GivenObject, refuse_too_many
from medsam_tune.inference.prompt_files.values import (
    known_labels,
    numbers,
    refuse_unknown_keys,
    same_name,
    shown,
    switch,
)
from medsam_tune.slices.frames import ScanGrid

AXES = ("i", "j", "k")
"""Names of the axes of a file's array."""

TO_FILL = ["i0", "j0", "k0", "i1", "j1", "k1"]
"""What stands for a 3-D box until a person fills it in."""

PROMPTS_FORMAT = 1
"""Format of prompt files; one that a person wrote may leave the number out."""

_KEYS = (FORMAT, "space", "objects", "axis", "scan", "labels", "comment")
_KEYS_OF_SCAN = ("size", "spacing", "orientation", "comment")
_KEYS_OF_SLICE = ("box", "points", "comment")
_KEYS_OF_OBJECT = (
    *("label", "name", "box3d", "slices", "points"),
    *("propagate", "range", "interpolate", "comment"),
)


def read_ours(
    content: Mapping[str, Any], grid: ScanGrid, labels: Mapping[int, str], name: str
) -> list[GivenObject]:
    """The objects of a prompt file, see `read_prompts`.

    Args:
        content: the file's JSON.
        grid: grid of the scan.
        labels: label id -> name.
        name: name of the file, for messages.

    Returns:
        objects in voxels of the scan's file.

    Raises:
        DataError: see `read_prompts`.
    """
    if FORMAT in content:
        refuse_other_format(name, content, PROMPTS_FORMAT, "Write it again: medsam-tune prompts")
    refuse_unknown_keys(content, _KEYS, name)
    space = content.get("space", "voxel")
    if space not in ("voxel", "world"):
        raise DataError(f"{name}: space is {shown(space)}; expected 'voxel' or 'world'.")
    world = space == "world"
    if world and grid.guess:
        raise DataError(
            f"{name}: prompts are in world, but the scan's place is a guess: {grid.guess}. Give "
            "them in voxels."
        )
    axis = content.get("axis", AXES[2])
    if axis not in AXES:
        raise DataError(f"{name}: axis is {shown(axis)}; expected 'i', 'j' or 'k'.")
    _refuse_other_labels(content.get("labels", {}), labels, name)
    _refuse_other_scan(content.get("scan", {}), world, grid, name)
    items = content.get("objects")
    if not isinstance(items, list) or not items:
        raise DataError(f"{name}: no objects; expected a list 'objects' with at least one prompt.")
    objects, count = [], 0
    for index, item in enumerate(items):
        label = _label_of(item, labels, where := f"{name}: object {index}")
        given = GivenObject(label, where)
        _take_box3d(item, given)
        _take_slices(item, given, world, AXES.index(axis), grid)
        _take_points(item, given)
        if not given.boxes and not given.points:
            raise DataError(f"{where}: none of 'box3d', 'slices' and 'points' in it.")
        _take_ways(item, given, world, grid)
        count += len(given.boxes) + len(given.points)
        refuse_too_many(max(count, index + 1), name)
        objects.append(given)
    _into_voxels(objects, world, grid)
    return objects


def described(grid: ScanGrid) -> dict[str, Any]:
    """What a prompt file says of its scan."""
    return {
        "size": list(grid.shape),
        "spacing": np.linalg.norm(grid.affine[:3, :3], axis=0).round(4).tolist(),
        "orientation": "".join(nib.orientations.aff2axcodes(grid.affine)),
    }


def _refuse_other_labels(said: object, labels: Mapping[int, str], name: str) -> None:
    """Refuse a file that speaks of other labels than the model."""
    if not isinstance(said, Mapping):
        raise DataError(f'{name}: labels is {shown(said)}; expected e.g. {{"1": "spleen"}}.')
    for key, value in said.items():
        label = int(key) if str(key).isdecimal() and len(str(key)) < 11 else key
        if label not in labels or not same_name(value, labels[label]):
            raise DataError(
                f"{name}: labels has {shown(key)}: {shown(value)}; known: {known_labels(labels)}. "
                "The file was made for another model; give the prompts of this one."
            )


def _refuse_other_scan(said: object, world: bool, grid: ScanGrid, name: str) -> None:
    """Refuse voxels that were counted in another scan; a place in the world is that of any."""
    if not isinstance(said, Mapping):
        raise DataError(f"{name}: scan is {shown(said)}; expected an object with 'size'.")
    refuse_unknown_keys(said, _KEYS_OF_SCAN, f"{name}: scan")
    for key, value in ({} if world else described(grid)).items():
        given = said.get(key, value)
        if key == "spacing":
            found = numbers(given, 3, f"{name}: scan: spacing")
            same = bool(np.allclose(found, value, rtol=1e-3, atol=1e-3))
        else:
            same = given == value
        if not same:
            raise DataError(
                f"{name}: its prompts are voxels of a scan with {key} {shown(given)}, this one has "
                f"{value}. Give the prompts of this scan (`medsam-tune prompts` writes a file)."
            )


def _label_of(item: object, labels: Mapping[int, str], where: str) -> int:
    label = item.get("label") if isinstance(item, Mapping) else None
    if type(label) is not int or label not in labels:  # JSON's true would be 1
        raise DataError(
            f"{where}: label {shown(label)} is not there; known: {known_labels(labels)}."
        )
    assert isinstance(item, Mapping)
    refuse_unknown_keys(item, _KEYS_OF_OBJECT, where)
    name = item.get("name", labels[label])
    if not same_name(name, labels[label]):
        raise DataError(
            f"{where}: label {label} is {labels[label]!r}, but its name is {shown(name)}; known: "
            f"{known_labels(labels)}. Correct the label or the name."
        )
    return label


def _take_box3d(item: Mapping[str, Any], given: GivenObject) -> None:
    """Take the object's 3-D box, in the file's space."""
    if "box3d" not in item:
        return
    if "slices" in item:
        raise DataError(f"{given.where}: has both 'box3d' and 'slices'; give one of them.")
    if item["box3d"] == TO_FILL:
        raise DataError(f"{given.where}: box3d is not filled in; put six numbers there.")
    given.boxes.append((given.where, numbers(item["box3d"], 6, f"{given.where}: box3d")))


def _take_slices(
    item: Mapping[str, Any], given: GivenObject, world: bool, axis: int, grid: ScanGrid
) -> None:
    """Take the boxes and points that stand by slice, in voxels."""
    if "slices" not in item:
        return
    slices, where = item["slices"], given.where
    if not isinstance(slices, Mapping) or not slices:
        raise DataError(f'{where}: slices is {shown(slices)}; expected {{"57": {{"box": ...}}}}.')
    if world:
        raise DataError(
            f"{where}: 'slices' are indices of voxels, and space is 'world'; give a 'box3d' or "
            "'points' in millimetres, or set space to 'voxel'."
        )
    if grid.slice_axis != axis:
        raise DataError(
            f"{where}: 'slices' are indices along axis {AXES[axis]} of the file, and the model "
            f"works on slices along axis {AXES[grid.slice_axis]}; give a 'box3d' or 'points' of "
            "the object instead."
        )
    seen: dict[int, object] = {}
    flat = [AXES[n] for n in range(3) if n != axis]
    for key, content in slices.items():
        if not (str(key).isascii() and str(key).isdecimal() and len(str(key)) < 10):
            raise DataError(f"{where}: slice {shown(key)} is no index; expected 0, 1, 2, ...")
        place, index = f"{where}: slice {key}", int(str(key))
        if (other := seen.setdefault(index, key)) is not key:
            raise DataError(
                f"{where}: slices {shown(other)} and {shown(key)} are one; give it once."
            )
        if not isinstance(content, Mapping) or not {"box", "points"} & {*content}:
            a, b = flat
            raise DataError(
                f"{place}: expected {{'box': [{a}0, {b}0, {a}1, {b}1]}}, 'points': "
                f"[[{a}, {b}, 1]], or both."
            )
        refuse_unknown_keys(content, _KEYS_OF_SLICE, place)
        if "box" in content:
            a0, b0, a1, b1 = numbers(content["box"], 4, f"{place}: box")
            box = [a0, b0, a1, b1]
            box.insert(axis, float(index))
            box.insert(axis + 3, float(index) + 1)
            given.boxes.append((place, box))
        for where_, point, inside in _points(content.get("points", []), 2, place):
            point.insert(axis, float(index))
            given.points.append((where_, point, inside))


def _take_points(item: Mapping[str, Any], given: GivenObject) -> None:
    """Take the object's points in three dimensions, in the file's space."""
    given.points.extend(_points(item.get("points", []), 3, given.where))


def _points(value: object, count: int, where: str) -> Iterable[tuple[str, list[float], int]]:
    """Place, coordinates and label of points, each a list of so many coordinates and the label."""
    if not isinstance(value, list):
        form = "[[i, j, 1]]" if count == 2 else "[[i, j, k, 1]]"
        raise DataError(f"{where}: points is {shown(value)}; expected a list, such as {form}.")
    for index, each in enumerate(value):
        place = f"{where}: point {index}"
        *point, label = numbers(each, count + 1, place)
        if label not in (0, 1):
            raise DataError(
                f"{place}: its label, the last number, is {label:g}; expected 1 for a point inside "
                "the object, 0 for one outside."
            )
        yield place, point, int(label)


def _take_ways(item: Mapping[str, Any], given: GivenObject, world: bool, grid: ScanGrid) -> None:
    """Take how the object goes on from its prompts: `propagate` and `range`, or `interpolate`."""
    where = given.where
    given.propagate = switch(item, "propagate", where)
    given.interpolate = switch(item, "interpolate", where)
    if given.propagate and given.interpolate:
        raise DataError(f"{where}: both 'propagate' and 'interpolate'; give one of them.")
    if given.interpolate and "slices" not in item:
        raise DataError(f"{where}: 'interpolate' without 'slices'; it goes from box to box there.")
    if "range" not in item:
        return
    if not given.propagate:
        raise DataError(f"{where}: 'range' without 'propagate'; it says how far to follow.")
    given.range = _range_of(item["range"], world, grid, where)


def _range_of(value: object, world: bool, grid: ScanGrid, where: str) -> tuple[float, float]:
    """Voxels of the file along the slices' axis, from the lower bound to the upper, exclusive."""
    axis = grid.slice_axis
    size = grid.shape[axis]
    if world:
        if not isinstance(value, list) or len(value) != 2:
            raise DataError(
                f"{where}: range is {shown(value)}; expected two points in LPS millimetres, one on "
                "the first slice and one on the last: [[x, y, z], [x, y, z]]."
            )
        ends = np.array(
            [numbers(end, 3, f"{where}: range: point {n}") for n, end in enumerate(value)]
        )
        with np.errstate(all="ignore"):
            along = grid.points_from_world(ends)[:, axis]
        low, high = np.floor(along.min()), np.floor(along.max()) + 1
        said = f"slices {low:g} to {high - 1:g}"
    else:
        low, high = numbers(value, 2, f"{where}: range")
        said = shown(value)
    if not (0 <= low < high <= size and low % 1 == high % 1 == 0):
        raise DataError(
            f"{where}: range is {said}; expected whole numbers along axis {AXES[axis]}, of which "
            f"the scan has {size}: the first slice, and the one after the last."
        )
    return float(low), float(high)


def _into_voxels(objects: Iterable[GivenObject], world: bool, grid: ScanGrid) -> None:
    """Bring boxes and points of the file's space into voxels, all at once."""
    objects = list(objects)
    boxes = np.array([box for each in objects for _, box in each.boxes]).reshape(-1, 6)
    points = np.array([p for each in objects for _, p, _ in each.points]).reshape(-1, 3)
    if world:
        with np.errstate(all="ignore"):  # what overflows lies outside, and is refused as that
            boxes, points = grid.box_from_world(boxes), grid.points_from_world(points)
    else:
        points = points + 0.5  # an index means the voxel's centre
    next_box, next_point = iter(boxes.tolist()), iter(points.tolist())
    for each in objects:
        each.boxes = [(place, next(next_box)) for place, _ in each.boxes]
        each.points = [(place, next(next_point), inside) for place, _, inside in each.points]
