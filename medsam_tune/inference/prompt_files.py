"""Prompt files: boxes that a person or a viewer gives, as boxes on slices."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from medsam_tune.errors import DataError, listed, nearest, warn
from medsam_tune.files import read_json, written_whole
from medsam_tune.prompts import SlicePrompts
from medsam_tune.slices.frames import ScanGrid

MOST_BOXES = 100_000
"""Most boxes in a file."""

MOST_ON_SLICES = 1_000_000
"""Most boxes on slices, into which 3-D boxes are cut."""

_SMALLEST = 1e-3  # voxels; a thinner box is none
_TO_FILL = ["i0", "j0", "k0", "i1", "j1", "k1"]
_KEYS = ("space", "objects", "scan", "labels", "comment")
_KEYS_OF_SCAN = ("size", "spacing", "orientation", "comment")
_KEYS_OF_OBJECT = ("label", "name", "box3d", "slices", "comment")


def read_prompts(
    source: str | Path | Mapping[str, Any], grid: ScanGrid, labels: Mapping[int, str]
) -> SlicePrompts:
    """Prompts for the slices of one scan from a prompt file.

    The file is JSON: `{"space": "voxel" | "world", "objects": [...]}`. An object has `label` and
    either `box3d`, six bounds (voxel: i0, j0, k0, i1, j1, k1 of the file's own array; world: two
    opposite corners in LPS millimetres), or, in voxels, `slices`: `{"57": {"box": [i0, j0, i1,
    j1]}}` by index along the third axis of the file. Upper bounds are exclusive. A box that reaches
    out of the scan is cut off at its border, with a warning.

    `comment` may stand anywhere. `name` of an object and `labels` of the file must agree with
    `labels` here; `scan` (`size`, `spacing` in mm, `orientation`) with the grid, where boxes are in
    voxels.

    Args:
        source: file, or its parsed content.
        grid: grid of the scan.
        labels: label id -> name; a prompt for another label is refused.

    Returns:
        boxes in the slice frame, ordered by slice and then by label.

    Raises:
        DataError: the file or one of its objects is wrong; names it and the reason. Above
            `MOST_BOXES` and `MOST_ON_SLICES`, it is refused.
    """
    content, name = _prompt_content(source)
    _refuse_unknown_keys(content, _KEYS, name)
    space = content.get("space", "voxel")
    if space not in ("voxel", "world"):
        raise DataError(f"{name}: space is {_shown(space)}; expected 'voxel' or 'world'.")
    if space == "world" and grid.guess:
        raise DataError(
            f"{name}: boxes are in world, but the scan's place is a guess: {grid.guess}. Give "
            "them in voxels."
        )
    _refuse_other_labels(content.get("labels", {}), labels, name)
    if space == "voxel":
        _refuse_other_scan(content.get("scan", {}), grid, name)
    objects = content.get("objects")
    if not isinstance(objects, list) or not objects:
        raise DataError(f"{name}: no objects; expected a list 'objects' with at least one box.")
    ids: list[int] = []
    places: list[str] = []
    found: list[list[float]] = []
    for index, item in enumerate(objects):
        label = _label_of(item, labels, where := f"{name}: object {index}")
        for place, box in _boxes_of(item, space, grid, where):
            ids.append(label)
            places.append(place)
            found.append(box)
        if max(len(objects), len(found)) > MOST_BOXES:
            raise DataError(f"{name}: more than {MOST_BOXES:,} boxes; give fewer.")
    boxes = np.array(found)
    if space == "world":
        with np.errstate(all="ignore"):  # what overflows lies outside, and is refused as that
            boxes = grid.box_from_world(boxes)
    return _on_slices(_inside(boxes, grid, places, name), np.array(ids), grid, name)


def _prompt_content(source: str | Path | Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    if isinstance(source, Mapping):
        return source, "prompts"
    path = Path(source)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "no such prompt file"
        raise DataError(
            f"{path}: {what}; expected JSON with 'space' and 'objects'. `medsam-tune prompts SCAN "
            "--output boxes.json` writes one to fill in."
        )
    return read_json(path), str(path)


def _refuse_unknown_keys(content: Mapping[Any, Any], known: Iterable[str], where: str) -> None:
    for key in content:
        if key not in known:
            raise DataError(
                f"{where}: unknown key {_shown(key)}; known: {', '.join(known)}."
                f"{nearest(str(key), known)}"
            )


def _refuse_other_labels(said: object, labels: Mapping[int, str], name: str) -> None:
    """Refuse a file that speaks of other labels than the model."""
    if not isinstance(said, Mapping):
        raise DataError(f'{name}: labels is {_shown(said)}; expected e.g. {{"1": "spleen"}}.')
    for key, value in said.items():
        label = int(key) if str(key).isdecimal() and len(str(key)) < 11 else key
        if label not in labels or not _same_name(value, labels[label]):
            raise DataError(
                f"{name}: labels has {_shown(key)}: {_shown(value)}; known: {_known(labels)}. The "
                "file was made for another model; give the prompts of this one."
            )


def _refuse_other_scan(said: object, grid: ScanGrid, name: str) -> None:
    """Refuse voxels that were counted in another scan."""
    if not isinstance(said, Mapping):
        raise DataError(f"{name}: scan is {_shown(said)}; expected an object with 'size'.")
    _refuse_unknown_keys(said, _KEYS_OF_SCAN, f"{name}: scan")
    for key, value in _described(grid).items():
        given = said.get(key, value)
        if key == "spacing":
            numbers = _numbers(given, 3, f"{name}: scan: spacing")
            same = bool(np.allclose(numbers, value, rtol=1e-3, atol=1e-3))
        else:
            same = given == value
        if not same:
            raise DataError(
                f"{name}: its boxes are voxels of a scan with {key} {_shown(given)}, this one has "
                f"{value}. Give the prompts of this scan (`medsam-tune prompts` writes a file)."
            )


def _described(grid: ScanGrid) -> dict[str, Any]:
    """What a prompt file says of its scan."""
    return {
        "size": list(grid.shape),
        "spacing": np.linalg.norm(grid.affine[:3, :3], axis=0).round(4).tolist(),
        "orientation": "".join(nib.orientations.aff2axcodes(grid.affine)),
    }


def _label_of(item: object, labels: Mapping[int, str], where: str) -> int:
    label = item.get("label") if isinstance(item, Mapping) else None
    if type(label) is not int or label not in labels:  # JSON's true would be 1
        raise DataError(f"{where}: label {_shown(label)} is not there; known: {_known(labels)}.")
    assert isinstance(item, Mapping)
    _refuse_unknown_keys(item, _KEYS_OF_OBJECT, where)
    name = item.get("name", labels[label])
    if not _same_name(name, labels[label]):
        raise DataError(
            f"{where}: label {label} is {labels[label]!r}, but its name is {_shown(name)}; known: "
            f"{_known(labels)}. Correct the label or the name."
        )
    return label


def _same_name(said: object, name: str) -> bool:
    return isinstance(said, str) and said.strip().casefold() == name.strip().casefold()


def _known(labels: Mapping[int, str]) -> str:
    return listed(f"{k} ({v})" for k, v in labels.items())


def _boxes_of(
    item: Mapping[str, Any], space: str, grid: ScanGrid, where: str
) -> Iterable[tuple[str, list[float]]]:
    """The object's boxes: where each stands, and its six bounds, in voxels of the file or world."""
    if "box3d" in item and "slices" in item:
        raise DataError(f"{where}: has both 'box3d' and 'slices'; give one of them.")
    if "box3d" in item:
        if item["box3d"] == _TO_FILL:
            raise DataError(f"{where}: box3d is not filled in; put six numbers there.")
        return [(where, _numbers(item["box3d"], 6, f"{where}: box3d"))]
    slices = item.get("slices")
    if not isinstance(slices, Mapping) or not slices:
        raise DataError(f"{where}: neither 'box3d' nor 'slices' in it.")
    if space == "world" or grid.slice_axis != 2:
        raise DataError(
            f"{where}: 'slices' are indices along the third axis of the file, and the model works "
            f"on axial slices, stacked along axis {grid.slice_axis + 1}"
            f"{' in voxels' if space == 'world' else ''}; give a 'box3d' instead."
        )
    boxes = []
    for key, content in slices.items():
        if not (str(key).isascii() and str(key).isdecimal() and len(str(key)) < 10):
            raise DataError(f"{where}: slice {_shown(key)} is no index; expected 0, 1, 2, ...")
        place = f"{where}: slice {key}"
        if not isinstance(content, Mapping) or set(content) != {"box"}:
            raise DataError(f"{place}: expected {{'box': [i0, j0, i1, j1]}}.")
        i0, j0, i1, j1 = _numbers(content["box"], 4, f"{place}: box")
        boxes.append((place, [i0, j0, float(key), i1, j1, float(key) + 1]))
    return boxes


def _numbers(value: object, count: int, where: str) -> list[float]:
    """Finite numbers, and nothing that only can be read as one: no true, no "5"."""
    values = value.tolist() if isinstance(value, np.ndarray) else value
    kinds = (int, float, np.integer, np.floating)
    try:
        if isinstance(values, (list, tuple)) and len(values) == count:
            if all(isinstance(v, kinds) and not isinstance(v, bool) for v in values):
                numbers = [float(v) for v in values]
                if all(map(math.isfinite, numbers)):
                    return numbers
    except OverflowError:
        pass
    raise DataError(f"{where} is {_shown(value)}; expected {count} finite numbers.")


def _shown(value: object) -> str:
    """A value for a message: short, and never an error itself."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits; a deep list
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _inside(
    boxes: NDArray[np.float64], grid: ScanGrid, places: list[str], name: str
) -> NDArray[np.float64]:
    """(N, 6) boxes in voxels of the file, cut off at the scan's border.

    Raises:
        DataError: a box without extent, or wholly outside; the first of them is named.
    """
    low, high = boxes[:, :3], boxes[:, 3:]
    for index in np.flatnonzero(~(high - low >= _SMALLEST).all(1))[:1]:
        if np.isfinite(boxes[index]).all():
            raise DataError(
                f"{places[index]}: box {boxes[index].tolist()} has no extent; upper bounds are "
                "exclusive and above the lower ones."
            )
    inner_low, inner_high = low.clip(min=0), np.minimum(high, grid.shape)
    for index in np.flatnonzero(~(inner_high - inner_low >= _SMALLEST).all(1))[:1]:
        raise DataError(
            f"{places[index]}: box {boxes[index].round(1).tolist()} lies outside the scan of shape "
            f"{grid.shape}. Boxes are in voxels of the file's own array, or set space to 'world'."
        )
    cut = np.flatnonzero(((inner_low - low > _SMALLEST) | (high - inner_high > _SMALLEST)).any(1))
    if len(cut):
        which = [places[index].removeprefix(f"{name}: ") for index in cut]
        warn(
            f"{name}: {len(which)} of {len(boxes)} boxes reach out of the scan of shape "
            f"{grid.shape} and are cut off at its border: {listed(which, 5)}"
        )
    return np.concatenate([inner_low, inner_high], axis=1)


def _on_slices(
    boxes: NDArray[np.float64], ids: NDArray[np.int64], grid: ScanGrid, name: str
) -> SlicePrompts:
    """(N, 6) boxes in voxels of the file -> a box on every slice whose centre is in one."""
    x0, y0, z0, x1, y1, z1 = grid.box_to_slices(boxes).T
    first, last = (np.ceil(z - 0.5).astype(np.int64) for z in (z0, z1))
    thin = first == last  # between two centres: the slice of the box's middle
    first = np.where(thin, ((z0 + z1) / 2).astype(np.int64), first)
    counts = np.where(thin, 1, last - first)
    if counts.sum() > MOST_ON_SLICES:
        raise DataError(
            f"{name}: {counts.sum():,} boxes on slices; at most {MOST_ON_SLICES:,} are taken. Give "
            "fewer boxes."
        )
    row = np.repeat(np.arange(len(boxes)), counts)
    slices = first[row] + np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    order = np.lexsort((ids[row], slices))
    row, slices = row[order], slices[order]
    flat = np.stack([x0, y0, x1, y1], axis=1)
    return SlicePrompts.of_boxes(
        slices=torch.from_numpy(slices),
        boxes=torch.from_numpy(flat[row].astype(np.float32)),
        labels=torch.from_numpy(ids[row]),
    )


def objects_to_fill(labels: Mapping[int, str]) -> list[dict[str, Any]]:
    """An object for each label, whose box a person fills in; unfilled, it is refused."""
    named = labels or {1: ""}
    return [
        {"label": label} | ({"name": name} if name else {}) | {"box3d": _TO_FILL}
        for label, name in named.items()
    ]


def objects_of_labels(
    array: NDArray[np.integer], labels: Mapping[int, str], slice_axis: int | None = None
) -> list[dict[str, Any]]:
    """Tight boxes around the labels of a label map, as objects of a prompt file.

    Args:
        array: (I, J, K) label ids in the array of the scan's own file.
        labels: label id -> name, or "" for none; other ids get no box.
        slice_axis: axis of the array (0, 1 or 2) along which the model's slices are stacked, for a
            box on every slice; None for one 3-D box.

    Returns:
        one object for each label that has a voxel; by slices of the first or second axis, one for
        each slice, as `slices` counts along the third.
    """
    ids = np.array([0, *sorted(labels)])
    compact = np.searchsorted(ids, array).clip(max=len(ids) - 1)
    compact[ids[compact] != array] = 0
    objects = []
    for label, place in zip(ids[1:].tolist(), find_objects(compact, len(ids) - 1), strict=True):
        if place is None:
            continue
        head = {"label": label} | ({"name": labels[label]} if labels[label] else {})
        box = [side.start for side in place] + [side.stop for side in place]
        if slice_axis is None:
            objects.append({**head, "box3d": box})
            continue
        boxes = list(_by_slice(array[place] == label, box[:3], slice_axis))
        if slice_axis == 2:
            slices = {str(b[2]): {"box": [b[0], b[1], b[3], b[4]]} for b in boxes}
            objects.append({**head, "slices": slices})
        else:
            objects += [{**head, "box3d": b} for b in boxes]
    return objects


def _by_slice(mask: NDArray[np.bool_], start: list[int], axis: int) -> Iterable[list[int]]:
    """Tight boxes (6,) of the slices of a mask (I, J, K) along an axis, moved by `start`."""
    for index in np.flatnonzero(mask.any(tuple({0, 1, 2} - {axis}))):
        flat = np.expand_dims(mask.take(index, axis), axis)
        found = np.argwhere(flat)
        low, high = found.min(0), found.max(0) + 1
        low[axis], high[axis] = index, index + 1
        yield [*(low + start).tolist(), *(high + start).tolist()]


def write_prompts(
    path: Path, grid: ScanGrid, labels: Mapping[int, str], objects: Iterable[Mapping[str, Any]]
) -> None:
    """Write a prompt file in voxels, one object a line, whole or not at all.

    Args:
        path: file to write; one that is there is replaced.
        grid: grid of the scan that the boxes belong to.
        labels: label id -> name; left out where empty.
        objects: from `objects_to_fill` or `objects_of_labels`.
    """
    head: dict[str, Any] = {
        "comment": "box3d: i0, j0, k0, i1, j1, k1 in voxels of the scan's file, counted from 0; "
        "the last three are exclusive. One object for each box.",
        "scan": _described(grid),
    }
    if named := {str(k): v for k, v in labels.items() if v}:
        head["labels"] = named
    head["space"] = "voxel"
    lines = [f" {json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}," for k, v in head.items()]
    rows = [f"  {json.dumps(each, ensure_ascii=False)}" for each in objects]
    text = "\n".join(["{", *lines, ' "objects": [', ",\n".join(rows), " ]", "}"])
    with written_whole(path) as beside:
        beside.write_text(text + "\n", encoding="utf-8")
