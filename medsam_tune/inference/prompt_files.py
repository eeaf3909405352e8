"""Prompt files: boxes that a person or a viewer gives, as boxes on slices."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medsam_tune.errors import DataError
from medsam_tune.files import read_json
from medsam_tune.prompts import SlicePrompts
from medsam_tune.slices.frames import ScanGrid


def read_prompts(
    source: str | Path | Mapping[str, Any], grid: ScanGrid, labels: Mapping[int, str]
) -> SlicePrompts:
    """Prompts for the slices of one scan from a prompt file.

    The file is JSON: `{"space": "voxel" | "world", "objects": [...]}`. An object has `label` and
    either `box3d`, six bounds (voxel: i0, j0, k0, i1, j1, k1 of the file's own array; world: two
    opposite corners in LPS millimetres), or, in voxels, `slices`: `{"57": {"box": [i0, j0, i1,
    j1]}}` by index along the third axis of the file. Upper bounds are exclusive.

    Args:
        source: file, or its parsed content.
        grid: grid of the scan.
        labels: label id -> name; a prompt for another label is refused.

    Raises:
        DataError: an object is wrong; names it and the reason.
    """
    content, name = _prompt_content(source)
    space = content.get("space", "voxel")
    objects = content.get("objects")
    if space not in ("voxel", "world"):
        raise DataError(f"{name}: space is {space!r}; expected 'voxel' or 'world'.")
    if not isinstance(objects, list) or not objects:
        raise DataError(f"{name}: no objects; expected a list 'objects' with at least one box.")
    found: list[tuple[int, int, list[float]]] = []
    for index, item in enumerate(objects):
        where = f"{name}: object {index}"
        label = item.get("label") if isinstance(item, Mapping) else None
        if type(label) is not int or label not in labels:  # JSON's true would be 1
            known = ", ".join(f"{k} ({v})" for k, v in labels.items())
            raise DataError(f"{where}: label {label!r} is not there; known: {known}.")
        for box in _boxes_of(item, space, grid, where):
            found.extend((z, label, bounds) for z, bounds in _on_slices(box, grid, where))
    found.sort(key=lambda entry: entry[:2])
    return SlicePrompts(
        slices=torch.tensor([z for z, _, _ in found]),
        boxes=torch.tensor([bounds for _, _, bounds in found], dtype=torch.float32),
        labels=torch.tensor([label for _, label, _ in found]),
    )


def _prompt_content(source: str | Path | Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    if isinstance(source, Mapping):
        return source, "prompts"
    path = Path(source)
    if not path.is_file():
        raise DataError(f"{path}: no such prompt file; expected JSON with 'space' and 'objects'.")
    return read_json(path), str(path)


def _boxes_of(
    item: Mapping[str, Any], space: str, grid: ScanGrid, where: str
) -> list[NDArray[np.float64]]:
    """The object's 3-D boxes in voxels of the file, each (6,) with upper bounds exclusive."""
    if "box3d" in item and "slices" in item:
        raise DataError(f"{where}: has both 'box3d' and 'slices'; give one of them.")
    if "box3d" in item:
        box = _numbers(item["box3d"], 6, f"{where}: box3d")
        return [grid.box_from_world(box) if space == "world" else box]
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
        if not isinstance(content, Mapping) or set(content) != {"box"}:
            raise DataError(f"{where}: slice {key}: expected {{'box': [i0, j0, i1, j1]}}.")
        if not str(key).isdecimal():
            raise DataError(f"{where}: slice {key!r} is no index; expected 0, 1, 2, ...")
        i0, j0, i1, j1 = _numbers(content["box"], 4, f"{where}: slice {key}: box")
        boxes.append(np.array([i0, j0, int(key), i1, j1, int(key) + 1]))
    return boxes


def _numbers(value: object, count: int, where: str) -> NDArray[np.float64]:
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        array = np.empty(0)
    if array.shape != (count,) or not np.isfinite(array).all():
        raise DataError(f"{where} is {value!r}; expected {count} finite numbers.")
    return array


def _on_slices(
    box: NDArray[np.float64], grid: ScanGrid, where: str
) -> list[tuple[int, list[float]]]:
    """A 3-D box in voxels of the file -> (slice, XYXY) for every slice whose centre is in it."""
    half = len(box) // 2
    if (box[half:] <= box[:half]).any():
        raise DataError(
            f"{where}: box {box.tolist()} has no extent; upper bounds are exclusive and above "
            "the lower ones."
        )
    inside = np.concatenate([box[:half].clip(min=0), np.minimum(box[half:], grid.shape)])
    if (inside[half:] <= inside[:half]).any():
        raise DataError(
            f"{where}: box {box.round(1).tolist()} lies outside the scan of shape {grid.shape}. "
            "Boxes are in voxels of the file's own array, or set space to 'world'."
        )
    x0, y0, z0, x1, y1, z1 = grid.box_to_slices(inside).tolist()
    first, last = int(np.ceil(z0 - 0.5)), int(np.ceil(z1 - 0.5))
    if first == last:  # between two centres: the slice of the box's middle
        first = int((z0 + z1) / 2)
        last = first + 1
    return [(z, [x0, y0, x1, y1]) for z in range(first, last)]
