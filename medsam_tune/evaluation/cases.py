"""Whole cases for an evaluator, with prompts of several kinds from their labels."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from medsam_tune.errors import DataError, listed, warn
from medsam_tune.inference.simulated import KINDS_OF_IMAGES, parse_kinds, simulated_prompts
from medsam_tune.prompts import SlicePrompts
from medsam_tune.slices.store import PreparedCase


class CaseDataset(Dataset[dict[str, Any]]):
    """Whole prepared cases with prompts from their own labels, for validation and evaluation.

    An item is `image` (Z, C, H, W) uint8, `label` (Z, H, W) int64, `truth`, the label in the scan's
    own grid (equal to `label` unless slices are resampled), `prompts` (a dict from each kind to its
    `SlicePrompts`, or to None for "none"), `case`, and as `PreparedCase` has them `objects`
    (Z, H, W) int32 and `components`, both None where a label is one object, `spacing` and `axes`.
    The same case, kind, seed and jitter give the same prompts for every model. Cases without a
    label map are left out with a warning.

    Args:
        cases: cases from `SliceStore.prepare`, with labels.
        labels: label id -> name.
        jitter: standard deviation of each box side's shift as a share of the side.
        seed: seed of the jitter.
        kinds: kinds of prompts, see `inference.simulated`.

    Raises:
        DataError: no case has a label map.
        ValueError: an unknown kind, one twice, or none at all.
    """

    def __init__(
        self,
        cases: Sequence[PreparedCase],
        labels: Mapping[int, str],
        jitter: float = 0.0,
        seed: int = 0,
        kinds: str | Sequence[str] = ("slices", "box3d"),
    ) -> None:
        self.kinds = parse_kinds(kinds)
        self.cases = [case for case in cases if case.has_label]
        left_out = [case.id for case in cases if not case.has_label]
        if left_out and not self.cases:
            raise DataError(
                f"none of {len(left_out)} cases has a label map: {listed(left_out)}; expected one "
                "to score a prediction by. Name it in the datalist. `medsam-tune predict` needs "
                "none."
            )
        if left_out:
            warn(f"{len(left_out)} cases without a label map are left out: {listed(left_out)}.")
        self.labels = labels
        self.jitter = jitter
        self.seed = seed

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> dict[str, Any]:
        case = self.cases[index]
        label = torch.from_numpy(case.label().astype(np.int64))
        numbers = case.objects()
        objects = None if numbers is None else torch.from_numpy(numbers)
        prompts = {
            kind: simulated_prompts(
                label, self.labels, kind, self.jitter, self.seed, case.id, objects
            )
            for kind in self.kinds
        }
        return {
            "image": torch.from_numpy(case.image()),
            "label": label,
            "objects": numbers,
            "components": case.components,
            "truth": torch.from_numpy(case.truth().astype(np.int64)) if case.has_truth else label,
            "prompts": prompts,
            "case": case.id,
            "spacing": case.spacing,
            "axes": case.axes,
        }


def refuse_without_labels(
    cases: Sequence[PreparedCase], labels: Mapping[int, str], subset: str
) -> None:
    """Refuse cases by which no checkpoint can be chosen, before the first epoch.

    Labels that some of them lack are logged: they are not scored where they are not predicted.

    Args:
        cases: prepared cases of the subset.
        labels: label id -> name.
        subset: its name.

    Raises:
        DataError: no case has a voxel of one of the labels.
    """
    present = {k for case in cases for ids in case.labels_in_slice for k in ids}
    missing = [f"{k} {name}" for k, name in labels.items() if k not in present]
    if len(missing) == len(labels):
        raise DataError(
            f"training needs a {subset} case with one of the labels {listed(missing)}, as their "
            f"Dice chooses the checkpoint; {len(cases)} {subset} cases have no voxel of them: "
            f"{listed(case.id for case in cases)}. Check their label maps, or split again: "
            "medsam-tune split"
        )
    if missing:
        logging.getLogger(__name__).info(
            f"no {subset} case has {listed(missing)}: not counted where it is not predicted"
        )


def refuse_other_labels(
    trained: Mapping[int, str],
    labels: Mapping[int, str],
    datalist: str | Path,
    kinds: str | Sequence[str] = (),
) -> None:
    """Refuse a datalist whose labels mean something else than those of the training.

    Args:
        trained: label id -> name of the model.
        labels: label id -> name of the datalist.
        datalist: its path, for the message.
        kinds: kinds of prompts; by "none" a model gives no label that it does not know, which is a
            warning.

    Raises:
        DataError: an id with two names, a name with two ids, or by "none" no label in common.
    """
    ids = {name.casefold(): k for k, name in trained.items()}
    other = [
        f"{k} is {name!r} there, {trained[k]!r} in the training"
        for k, name in labels.items()
        if k in trained and trained[k] != name
    ]
    other += [
        f"{name!r} is {k} there, {ids[name.casefold()]} in the training"
        for k, name in labels.items()
        if k not in trained and name.casefold() in ids
    ]
    if other:
        raise DataError(
            f"{datalist}: its labels are not those of the run: {listed(other, separator='; ')}. "
            "Give a datalist of the same labels by the same numbers; or predict the scans, and "
            "score the masks by `medsam-tune evaluate --masks`, which goes by the names where a "
            "dataset.json in their folder has them."
        )
    unknown = [f"{k} {name}" for k, name in labels.items() if k not in trained]
    if unknown and kinds and "none" in parse_kinds(kinds):
        said = f"{datalist}: the run was not trained for {listed(unknown)}, and without prompts"
        if len(unknown) == len(labels):
            raise DataError(
                f"{said} gives only {listed(f'{k} {name}' for k, name in trained.items())}. Give a "
                "datalist of these labels, or leave 'none' out of --prompts."
            )
        warn(f"{said} gives none of them: their scores are 0 there.")


def refuse_kinds(kinds: str | Sequence[str], prompted: bool | None, flat: bool = False) -> None:
    """Refuse kinds of prompts that a model cannot do, before any work.

    Args:
        kinds: kinds of prompts, see `inference.simulated`.
        prompted: whether the model needs prompts, see `RunRecord.prompted`.
        flat: whether the cases are images of one slice, where kinds of scans mean nothing new.

    Raises:
        ValueError: an unknown kind, one twice, none at all, or one that the model cannot do.
    """
    wanted = parse_kinds(kinds)
    of_scans = [kind for kind in wanted if kind not in KINDS_OF_IMAGES]
    if flat and of_scans:
        raise ValueError(
            f"prompts: {', '.join(of_scans)}: for scans; an image has one slice. Expected some of "
            f"{', '.join(KINDS_OF_IMAGES)}: 'slices' is a box around each object."
        )
    if "none" in wanted and prompted:
        raise ValueError(
            "prompts: 'none' asks for every label without a prompt, but the model segments what is "
            "prompted. Leave 'none' out, or evaluate a run that was trained for it."
        )
    others = [kind for kind in wanted if kind != "none"]
    if others and prompted is False:
        raise ValueError(
            f"prompts: {', '.join(others)}: the model was trained without prompts; expected 'none'."
        )


def prepare_case(
    item: dict[str, Any], device: torch.device, non_blocking: bool = False, **_: Any
) -> tuple[Tensor, Tensor, tuple[dict[str, SlicePrompts | None]], dict[str, Any]]:
    """`prepare_batch` of an evaluator over `CaseDataset`; volumes stay where they are loaded."""
    return item["image"], item["label"], (item["prompts"],), {"name": item["case"]}
