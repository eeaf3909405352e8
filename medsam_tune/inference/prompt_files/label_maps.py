"""Label maps as prompts: what a person would draw who sees them."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor

from medsam_tune.cases.checks import check_pair
from medsam_tune.cases.classes import Coding, coding_said
from medsam_tune.cases.labels.grid import placed
from medsam_tune.cases.labels.open import open_label
from medsam_tune.errors import DataError, listed, warn
from medsam_tune.formats import vectors
from medsam_tune.formats.mending import Mending
from medsam_tune.formats.volume import with_meta_of
from medsam_tune.inference.prompt_files.spreading import spread_out
from medsam_tune.inference.simulated import KINDS, parse_kind, simulated_prompts
from medsam_tune.prompts import SlicePrompts
from medsam_tune.slices.cut import cut_label
from medsam_tune.slices.frames import ScanGrid
from medsam_tune.slices.objects import numbered

_COLUMN = "label"  # of polygons among prompts: id or name
SCRIBBLES = "scribbles"
"""Kind of prompts beside those of `simulated_prompts`: the voxels are what was drawn."""


def check_kind(kind: str, jitter: float = 0.0) -> None:
    """Refuse a kind of prompts that a label map cannot give.

    Args:
        kind: one of `simulated.KINDS`, or `SCRIBBLES`.
        jitter: see `simulated_prompts`.

    Raises:
        ValueError: an unknown kind, "none", or scribbles with jitter.
    """
    if kind == SCRIBBLES:
        if jitter:
            raise ValueError(
                f"jitter is {jitter:g}; expected 0 with scribbles, which are as drawn."
            )
    elif kind == "none":
        raise ValueError("kind of prompts 'none' takes nothing of a label map; leave the map out.")
    else:
        parse_kind(kind, (*(one for one in KINDS if one != "none"), SCRIBBLES))


def read_label_map(
    path: Path,
    grid: ScanGrid,
    labels: Mapping[int, str],
    kind: str,
    jitter: float = 0.0,
    seed: int = 0,
    components: int | None = None,
    coding: Mapping[str, Any] | None = None,
) -> SlicePrompts:
    """Prompts of a label map; see `read_prompts`.

    Args:
        path: label map, DICOM SEG, RTSTRUCT or folder of organs.
        grid: grid of the scan, on which the label lies.
        labels: label id -> name.
        kind: see `check_kind`.
        jitter: see `simulated_prompts`.
        seed: seed of the jitter.
        components: see `ScanRules`.
        coding: see `RunRecord.coding`; what nobody annotated is background here.

    Raises:
        DataError: the label cannot be read, or does not fit the scan, as in training; it is empty.
        ValueError: as in `check_kind`.
    """
    check_kind(kind, jitter)
    said = coding_without_gaps(coding, labels, path)
    if vectors.is_vector(path):
        columns = vectors.columns_of(path)
        column = next((one for one in (said.column, _COLUMN) if one in columns), "")
        said = replace(said, column=column)
    opened = open_label(path, said)
    label = opened.onto(_image_on(grid), Path("the scan"), labels, Mending())
    if vectors.is_vector(path):
        for note in label.meta["notes"]:
            warn(f"{path}: {note}")
    truth, _ = cut_label(label, grid)
    apart = cut_label(cast(MetaTensor, label[1:]), grid)[0] if label.shape[0] > 1 else None
    prompts = prompts_of_labels(truth, labels, kind, jitter, seed, components, apart)
    if not len(prompts):
        raise DataError(
            f"{path}: no label has a voxel; expected one of: {listed(labels.values())}."
        )
    return prompts


def coding_without_gaps(
    coding: Mapping[str, Any] | None, labels: Container[int], path: Path
) -> Coding:
    """How labels say their ids; what nobody annotated is background here.

    Args:
        coding: see `RunRecord.coding`.
        labels: label ids.
        path: file of the label, for messages.
    """
    said = coding_said(coding or {}, None, path)
    colours = {colour: i if i in labels else 0 for colour, i in said.colours.items()}
    return replace(said, colours=colours)


def label_on(label: MetaTensor, grid: ScanGrid, labels: Iterable[int], path: Path) -> Tensor:
    """A label map in memory on a scan's slices.

    Args:
        label: (1, I, J, K) or (I, J, K) ids of any real type.
        grid: grid of the scan, on which the label lies.
        labels: label ids that it may have.
        path: its file, for messages.

    Returns:
        (Z, H, W) int32 label slices.

    Raises:
        DataError: it does not lie on the scan's grid, or has other values.
    """
    image = _image_on(grid)
    if label.ndim == 3:
        label = cast(MetaTensor, with_meta_of(label, label.as_tensor()[None]))
    label = placed(label, path, image, resample=False)
    check_pair(image, label, labels, Path("the scan"), path)
    truth, _ = cut_label(cast(MetaTensor, label.to(torch.int32)), grid)
    return truth


def prompts_of_labels(
    truth: Tensor,
    labels: Mapping[int, str],
    kind: str,
    jitter: float = 0.0,
    seed: int = 0,
    components: int | None = None,
    apart: Tensor | None = None,
) -> SlicePrompts:
    """Prompts of label slices, of any kind.

    Args:
        truth: (Z, H, W) integer label slices.
        labels: label id -> name; other ids get no prompt.
        kind: see `check_kind`.
        jitter: see `simulated_prompts`.
        seed: seed of the jitter.
        components: pixels of the smallest piece that is an object of its own, see `ScanRules`;
            scribbles are of their label.
        apart: (Z, H, W) numbers of objects that the label tells apart, in place of its pieces.

    Returns:
        prompts in the slice frame; without a row if no label has a voxel.
    """
    check_kind(kind, jitter)
    if kind == SCRIBBLES:
        return _scribbles(truth, labels)
    objects = None
    if components is not None:
        given = None if apart is None else apart.numpy()
        objects = torch.from_numpy(numbered(truth.numpy(), components, given))
    prompts = simulated_prompts(truth, labels, kind, jitter, seed, objects=objects)
    assert prompts is not None  # as the kind is not "none"
    return prompts


def _image_on(grid: ScanGrid) -> MetaTensor:
    """An image of the scan's grid, whose voxels take no memory: what a label is laid on."""
    meta = {
        "original_affine": grid.affine,
        "spatial_shape": np.asarray(grid.shape),
        "guess": grid.guess,
        "series_uid": grid.series,
        "frame_uid": grid.frame,
        "georeference": grid.georeference,
    }
    voxels = torch.zeros(1).expand(1, *grid.shape)
    return MetaTensor(voxels, affine=torch.from_numpy(grid.affine), meta=meta)


def _scribbles(truth: Tensor, labels: Mapping[int, str]) -> SlicePrompts:
    """Points inside on each slice, from voxels that a person drew; every label is followed.

    Nothing in a label map says whether the slices between are meant. They are, as few people
    scribble on all.
    """
    found: list[tuple[int, int, Tensor]] = []
    for label in sorted(labels):
        mask = truth == label
        for z in mask.flatten(1).any(1).nonzero().flatten().tolist():
            pixels = mask[z].nonzero().flip(1).double()
            found.append((z, label, pixels[spread_out(pixels.numpy())]))
    found.sort(key=lambda each: each[:2])
    if not found:
        return SlicePrompts.none()
    most = max(len(points) for *_, points in found)
    points = torch.zeros(len(found), most, 2)
    kinds = torch.full((len(found), most), -1)
    for row, (*_, own) in enumerate(found):
        points[row, : len(own)] = own.float() + 0.5
        kinds[row, : len(own)] = 1
    slices, ids = torch.tensor([each[:2] for each in found]).unbind(1)
    return SlicePrompts(
        slices=slices,
        labels=ids,
        boxes=torch.full((len(found), 4), torch.nan),
        points=points,
        point_labels=kinds,
        objects=ids,
        drawn=torch.ones(len(found), dtype=torch.bool),
        spread=dict.fromkeys(ids.unique().tolist()),
    )
