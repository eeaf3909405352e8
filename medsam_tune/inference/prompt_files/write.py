"""Prompt files that are written: to fill in, or with prompts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medsam_tune.files import FORMAT, written_whole
from medsam_tune.inference.prompt_files.ours import AXES, PROMPTS_FORMAT, TO_FILL, described
from medsam_tune.prompts import SlicePrompts
from medsam_tune.slices.frames import ScanGrid


def objects_to_fill(labels: Mapping[int, str]) -> list[dict[str, Any]]:
    """An object for each label, whose box a person fills in; unfilled, it is refused."""
    named = labels or {1: ""}
    return [{**_head(label, name), "box3d": TO_FILL} for label, name in named.items()]


def objects_of(
    prompts: SlicePrompts, grid: ScanGrid, labels: Mapping[int, str]
) -> list[dict[str, Any]]:
    """Prompts as objects of a prompt file, which `read_prompts` makes the same prompts of.

    An object without a drawn row becomes a `box3d`, one with some becomes `slices` with
    `interpolate`; one that is followed gets `propagate`, and `range` if it is known.

    Args:
        prompts: prompts in the slice frame, as `simulated_prompts` makes them.
        grid: grid of the scan, whose slices are not resampled.
        labels: label id -> name, or "" for none.

    Returns:
        an object for each of the prompts' objects, in their order.
    """
    return [
        _object(prompts.rows(prompts.objects == index), index, grid, labels)
        for index in prompts.objects.unique().tolist()
    ]


def write_prompts(
    path: Path, grid: ScanGrid, labels: Mapping[int, str], objects: Iterable[Mapping[str, Any]]
) -> None:
    """Write a prompt file in voxels, one object a line, whole or not at all.

    Args:
        path: file to write; one that is there is replaced.
        grid: grid of the scan that the prompts belong to.
        labels: label id -> name; left out where empty.
        objects: from `objects_to_fill` or `objects_of`.
    """
    along = AXES[grid.slice_axis]
    a, b = (axis for axis in AXES if axis != along)
    head: dict[str, Any] = {
        FORMAT: PROMPTS_FORMAT,
        "comment": "voxels of the scan's file, counted from 0. box3d: i0, j0, k0, i1, j1, k1, the "
        f"last three exclusive; one object for each box. slices: by index along {along}, with box: "
        f"{a}0, {b}0, {a}1, {b}1, and points: [{a}, {b}, 1] inside, [{a}, {b}, 0] outside.",
        "scan": described(grid),
    }
    if named := {str(k): v for k, v in labels.items() if v}:
        head["labels"] = named
    head["space"] = "voxel"
    if along != AXES[2]:
        head["axis"] = along
    lines = [f" {json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}," for k, v in head.items()]
    rows = [f"  {json.dumps(each, ensure_ascii=False)}" for each in objects]
    text = "\n".join(["{", *lines, ' "objects": [', ",\n".join(rows), " ]", "}"])
    with written_whole(path) as beside:
        beside.write_text(text + "\n", encoding="utf-8")


def _head(label: int, name: str) -> dict[str, Any]:
    return {"label": label} | ({"name": name} if name else {})


def _object(
    rows: SlicePrompts, index: int, grid: ScanGrid, labels: Mapping[int, str]
) -> dict[str, Any]:
    """An object of its rows."""
    label = int(rows.labels[0])
    found = _head(label, labels.get(label, ""))
    if not rows.drawn.any():
        x0, y0, x1, y1 = rows.boxes[0].tolist()
        box = grid.box_from_slices(
            np.array([x0, y0, int(rows.slices[0]), x1, y1, int(rows.slices[-1]) + 1])
        )
        return {**found, "box3d": _plain(box)}
    own = rows.rows(rows.drawn)
    found["slices"] = dict(
        sorted(_slice(own.rows(torch.tensor([n])), grid) for n in range(len(own)))
    )
    if len(own) < len(rows):
        found["interpolate"] = True
    if index in rows.spread:
        found["propagate"] = True
        known = rows.spread[index]
        if known is not None:
            bounds = grid.box_from_slices(np.array([0.0, 0, known[0], 0, 0, known[1]]))
            found["range"] = _plain(bounds[[grid.slice_axis, grid.slice_axis + 3]])
    return found


def _slice(row: SlicePrompts, grid: ScanGrid) -> tuple[str, dict[str, Any]]:
    """Index along the slices' axis of the file, and what is drawn there, of one row."""
    axis, z = grid.slice_axis, int(row.slices[0])
    drawn: dict[str, Any] = {}
    if row.boxed.all():
        x0, y0, x1, y1 = row.boxes[0].tolist()
        box = grid.box_from_slices(np.array([x0, y0, z, x1, y1, z + 1]))
        drawn["box"] = _plain(np.delete(box, [axis, axis + 3]))
    given = row.point_labels[0] >= 0
    if given.any():
        xy = row.points[0][given].double().numpy()
        xyz = np.insert(xy, 2, z + 0.5, axis=1)
        flat = np.delete(grid.points_from_slices(xyz) - 0.5, axis, axis=1)
        kinds = row.point_labels[0][given].tolist()
        drawn["points"] = [[*_plain(p), kind] for p, kind in zip(flat, kinds, strict=True)]
    return str(grid.index_in_file(z)), drawn


def _plain(values: np.ndarray) -> list[float]:
    """Numbers for JSON: whole ones as such."""
    return [int(v) if v == int(v) else v for v in values.tolist()]
