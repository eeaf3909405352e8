"""Evaluation of whole cases: prompts from their labels, scores to files."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from torch import Tensor
from torch.utils.data import Dataset

from medsam_tune.errors import DataError, listed, warn
from medsam_tune.evaluation.folder import ResultFolder
from medsam_tune.evaluation.metrics import Score, annotated, score_case
from medsam_tune.evaluation.statistics import format_summary, summarise
from medsam_tune.files import written_whole
from medsam_tune.inference.inferers import EllipseInferer
from medsam_tune.inference.simulated import simulated_prompts
from medsam_tune.prompts import SlicePrompts
from medsam_tune.slices.frames import resized
from medsam_tune.slices.store import PreparedCase


class CaseDataset(Dataset[dict[str, Any]]):
    """Whole prepared cases with boxes from their own labels, for validation and evaluation.

    An item is `image` (Z, C, H, W) uint8, `label` (Z, H, W) int64, `truth`, the label in the scan's
    own grid (equal to `label` unless slices are resampled), `prompts` (`SlicePrompts`) and `case`.
    The same case, seed and jitter give the same boxes for every model. Cases without a label map
    are left out with a warning.

    Args:
        cases: cases from `SliceStore.prepare`, with labels.
        labels: label id -> name.
        jitter: standard deviation of each box side's shift as a share of the side.
        seed: seed of the jitter.

    Raises:
        DataError: no case has a label map.
    """

    def __init__(
        self,
        cases: Sequence[PreparedCase],
        labels: Mapping[int, str],
        jitter: float = 0.0,
        seed: int = 0,
    ) -> None:
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
        prompts = simulated_prompts(
            label, self.labels, "slices", jitter=self.jitter, seed=self.seed, case=case.id
        )
        return {
            "image": torch.from_numpy(case.image()),
            "label": label,
            "truth": torch.from_numpy(case.truth().astype(np.int64)) if case.has_truth else label,
            "prompts": prompts,
            "case": case.id,
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
    trained: Mapping[int, str], labels: Mapping[int, str], datalist: str | Path
) -> None:
    """Refuse a datalist whose labels mean something else than those of the training.

    Args:
        trained: label id -> name of the model.
        labels: label id -> name of the datalist.
        datalist: its path, for the message.

    Raises:
        DataError: an id with two names.
    """
    other = [
        f"{k} is {name!r} there, {trained[k]!r} in the training"
        for k, name in labels.items()
        if k in trained and trained[k] != name
    ]
    if other:
        raise DataError(
            f"{datalist}: its labels are not those of the run: {listed(other, separator='; ')}. "
            "Give a datalist of the same labels."
        )


def prepare_case(
    item: dict[str, Any], device: torch.device, non_blocking: bool = False, **_: Any
) -> tuple[Tensor, Tensor, tuple[SlicePrompts], dict[str, Any]]:
    """`prepare_batch` of an evaluator over `CaseDataset`; volumes stay where they are loaded."""
    return item["image"], item["label"], (item["prompts"],), {}


class CaseScores:
    """Handler of an evaluator: scores each case, and at the end the whole set.

    `engine.state.metrics` gets `mean_dice`, `mean_iou` and `mean_ellipse_dice`, as far as there is
    something to score. An evaluation that an error ends writes its files as well, unless those of
    an earlier one are there; `stopped_by` in `summary.json` is then the error, else null.

    Args:
        labels: label id -> name.
        output_dir: folder for `metrics.csv` and `summary.json`, replaced as a whole at the end;
            None writes nothing.
        about: more entries of `summary.json`, such as the model.
        ignore: id of voxels that nobody annotated; they are left out of the scores.
    """

    def __init__(
        self,
        labels: Mapping[int, str],
        output_dir: str | Path | ResultFolder | None = None,
        about: Mapping[str, Any] | None = None,
        ignore: int | None = None,
    ) -> None:
        self.labels = labels
        self.ignore = ignore
        if isinstance(output_dir, (str, Path)):
            output_dir = ResultFolder(output_dir)
        self.results = output_dir
        self.about = dict(about or {})
        self.scores: list[Score] = []
        self._ellipse = EllipseInferer()

    def attach(self, engine: Engine) -> None:
        """Attach to an engine; MONAI calls it."""
        engine.add_event_handler(Events.STARTED, lambda _: self._start())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._score)
        engine.add_event_handler(Events.COMPLETED, self._finish)
        if self.results is not None:
            engine.add_event_handler(Events.EXCEPTION_RAISED, self._stop)

    def _start(self) -> None:
        self.scores.clear()
        if self.results is not None:
            self.results.open()

    def _score(self, engine: Engine) -> None:
        state: Any = engine.state
        batch, prediction = state.batch, state.output["pred"]
        ellipse = self._ellipse(batch["image"], None, batch["prompts"]).to(prediction.device)
        truth = batch["truth"].to(prediction.device)
        own = (truth.shape[0], truth.shape[1], truth.shape[2])
        prediction, ellipse = (
            resized(maps[None], own, nearest=True)[0] for maps in (prediction, ellipse)
        )
        prediction, ellipse, truth = annotated(
            prediction, ellipse, truth, truth=truth, ignore=self.ignore
        )
        self.scores += score_case(batch["case"], prediction, truth, ellipse, self.labels)

    def _finish(self, engine: Engine) -> None:
        summary = summarise(self.scores)
        means = {k: v for k, v in summary.items() if k.startswith("mean_") and v is not None}
        engine.state.metrics |= means
        self._write(engine, summary, None)

    def _stop(self, engine: Engine, error: BaseException) -> None:
        """Write what was scored before the error, unless an evaluation is there; let it go on."""
        if self.results is not None and not self.results.path.exists():
            self._write(engine, summarise(self.scores), f"{type(error).__name__}: {error}")
        raise error

    def _write(self, engine: Engine, summary: Mapping[str, Any], stopped_by: str | None) -> None:
        if self.results is not None:
            content = {**self.about, **summary, "stopped_by": stopped_by}
            write_scores(self.results.scratch, self.scores, content)
            self.results.finish()
            engine.logger.info(f"{self.results.path}:\n{format_summary(summary)}")


def write_scores(folder: Path, scores: Sequence[Score], summary: Mapping[str, Any]) -> None:
    """Write `metrics.csv` and `summary.json`, each whole or not at all."""
    with (
        written_whole(folder / "metrics.csv") as table,
        written_whole(folder / "summary.json") as text,
    ):
        with table.open("w", newline="") as file:
            writer = csv.DictWriter(file, [f.name for f in fields(Score)])
            writer.writeheader()
            writer.writerows(asdict(s) for s in scores)
        text.write_text(json.dumps(summary, indent=2) + "\n")
