"""Evaluation of whole cases: prompts from their labels, scores to files."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from torch import Tensor
from torch.utils.data import Dataset

from medsam_tune.evaluation.metrics import Score, annotated, score_case
from medsam_tune.evaluation.statistics import format_summary, summarise
from medsam_tune.files import written_whole
from medsam_tune.inference.inferers import EllipseInferer
from medsam_tune.prompts import SlicePrompts, prompts_from_labels
from medsam_tune.slices.frames import resized
from medsam_tune.slices.store import PreparedCase


class CaseDataset(Dataset[dict[str, Any]]):
    """Whole prepared cases with boxes from their own labels, for validation and evaluation.

    An item is `image` (Z, C, H, W) uint8, `label` (Z, H, W) int64, `truth`, the label in the scan's
    own grid (equal to `label` unless slices are resampled), `prompts` (`SlicePrompts`) and `case`.
    The same case, seed and jitter give the same boxes for every model.

    Args:
        cases: cases from `SliceStore.prepare`, with labels.
        labels: label id -> name.
        jitter: standard deviation of each box side's shift as a share of the side.
        seed: seed of the jitter.
    """

    def __init__(
        self,
        cases: Sequence[PreparedCase],
        labels: Mapping[int, str],
        jitter: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.cases = cases
        self.labels = labels
        self.jitter = jitter
        self.seed = seed

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> dict[str, Any]:
        case = self.cases[index]
        label = torch.from_numpy(case.label().astype(np.int64))
        prompts = prompts_from_labels(
            label, self.labels, jitter=self.jitter, seed=self.seed, case=case.id
        )
        return {
            "image": torch.from_numpy(case.image()),
            "label": label,
            "truth": torch.from_numpy(case.truth().astype(np.int64)) if case.has_truth else label,
            "prompts": prompts,
            "case": case.id,
        }


def prepare_case(
    item: dict[str, Any], device: torch.device, non_blocking: bool = False, **_: Any
) -> tuple[Tensor, Tensor, tuple[SlicePrompts], dict[str, Any]]:
    """`prepare_batch` of an evaluator over `CaseDataset`; volumes stay where they are loaded."""
    return item["image"], item["label"], (item["prompts"],), {}


class CaseScores:
    """Handler of an evaluator: scores each case, and at the end the whole set.

    `engine.state.metrics` gets `mean_dice`, `mean_iou` and `mean_ellipse_dice`.

    Args:
        labels: label id -> name.
        output_dir: folder for `metrics.csv` and `summary.json`; None writes nothing.
        about: more entries of `summary.json`, such as the model.
        ignore: id of voxels that nobody annotated; they are left out of the scores.
    """

    def __init__(
        self,
        labels: Mapping[int, str],
        output_dir: str | Path | None = None,
        about: Mapping[str, Any] | None = None,
        ignore: int | None = None,
    ) -> None:
        self.labels = labels
        self.ignore = ignore
        self.output_dir = None if output_dir is None else Path(output_dir)
        self.about = dict(about or {})
        self.scores: list[Score] = []
        self._ellipse = EllipseInferer()

    def attach(self, engine: Engine) -> None:
        """Attach to an engine; MONAI calls it."""
        engine.add_event_handler(Events.STARTED, lambda _: self.scores.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._score)
        engine.add_event_handler(Events.COMPLETED, self._finish)

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
        engine.state.metrics |= {k: v for k, v in summary.items() if k.startswith("mean_")}
        if self.output_dir is not None:
            write_scores(self.output_dir, self.scores, {**self.about, **summary})
            engine.logger.info(f"{self.output_dir}:\n{format_summary(summary)}")


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
