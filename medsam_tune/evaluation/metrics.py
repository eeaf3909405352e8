"""Dice and IoU per case and label, on whole volumes, by written rules.

Rules:
    - truth and prediction both empty: the pair is excluded from the mean, and counted.
    - one of them empty: Dice 0 and IoU 0.
    - nothing else is excluded; a mean over no pair is an error, never NaN.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from torch import Tensor
from torch.utils.data import Dataset

from medsam_tune.errors import DataError
from medsam_tune.files import written_whole
from medsam_tune.inference.inferers import EllipseInferer
from medsam_tune.prompts import SlicePrompts, prompts_from_labels
from medsam_tune.slices.frames import resized
from medsam_tune.slices.store import PreparedCase


@dataclass(frozen=True)
class Score:
    """One case and label; the columns of metrics.csv.

    Attributes:
        case: id of the case.
        label: id of the label.
        name: of the label.
        dice: 2 |P and T| / (|P| + |T|), 0..1; None if both are empty.
        iou: |P and T| / |P or T|, 0..1; None if both are empty.
        truth_voxels: |T|.
        predicted_voxels: |P|.
        ellipse_dice: Dice of the ellipses inscribed in the same boxes.
    """

    case: str
    label: int
    name: str
    dice: float | None
    iou: float | None
    truth_voxels: int
    predicted_voxels: int
    ellipse_dice: float | None


def overlap(prediction: Tensor, truth: Tensor) -> tuple[float | None, float | None]:
    """Dice and IoU of two binary masks of one shape; None for both if both are empty.

    Args:
        prediction: bool, any shape.
        truth: bool, the same shape.
    """
    both = int((prediction & truth).sum())
    total = int(prediction.sum()) + int(truth.sum())
    return (None, None) if total == 0 else (2 * both / total, both / (total - both))


def score_case(
    case: str, prediction: Tensor, truth: Tensor, ellipse: Tensor, labels: Mapping[int, str]
) -> list[Score]:
    """One `Score` per label.

    Args:
        case: id of the case.
        prediction: (Z, H, W) integer label slices.
        truth: the same, by the annotator.
        ellipse: the same, by `EllipseInferer` from the same boxes.
        labels: label id -> name.
    """
    scores = []
    for label, name in labels.items():
        predicted, true = prediction == label, truth == label
        dice, iou = overlap(predicted, true)
        scores.append(
            Score(
                case=case,
                label=label,
                name=name,
                dice=dice,
                iou=iou,
                truth_voxels=int(true.sum()),
                predicted_voxels=int(predicted.sum()),
                ellipse_dice=overlap(ellipse == label, true)[0],
            )
        )
    return scores


def bootstrap_interval(
    values: Sequence[float], samples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean over cases.

    Args:
        values: one number per case.
        samples: resamples with replacement.
        seed: of the resampling.
    """
    data = np.asarray(values)
    picks = np.random.default_rng(seed).integers(len(data), size=(samples, len(data)))
    low, high = np.percentile(data[picks].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def summarise(scores: Sequence[Score]) -> dict[str, Any]:
    """Means over cases per label, with intervals, and the mean of the labels.

    Returns:
        `mean_dice`, `mean_iou`, `mean_ellipse_dice`: means over labels of the means over cases;
        `labels`: for each id `name`, `dice`, `dice_interval` (95 %), `iou`, `ellipse_dice`,
        `cases` (counted) and `excluded` (both empty).

    Raises:
        DataError: not one pair to count, for the model or for the ellipses of one of its labels.
    """
    per_label: dict[str, dict[str, Any]] = {}
    for label in sorted({s.label for s in scores}):
        rows = [s for s in scores if s.label == label]
        dice = [s.dice for s in rows if s.dice is not None]
        if not dice:
            continue
        ellipse = [s.ellipse_dice for s in rows if s.ellipse_dice is not None]
        if not ellipse:
            raise DataError(
                f"{rows[0].name}: predicted, but in no case's truth, so no box stands for it and "
                "the ellipses have no Dice. Leave this label out."
            )
        per_label[str(label)] = {
            "name": rows[0].name,
            "dice": float(np.mean(dice)),
            "dice_interval": bootstrap_interval(dice),
            "iou": float(np.mean([s.iou for s in rows if s.iou is not None])),
            "ellipse_dice": float(np.mean(ellipse)),
            "cases": len(dice),
            "excluded": len(rows) - len(dice),
        }
    if not per_label:
        raise DataError("no label in any case and none predicted: there is no Dice to report.")
    means = {
        f"mean_{key}": float(np.mean([entry[key] for entry in per_label.values()]))
        for key in ("dice", "iou", "ellipse_dice")
    }
    return {**means, "labels": per_label}


class CaseDataset(Dataset[dict[str, Any]]):
    """Whole prepared cases with boxes taken from their own labels, for validation and evaluation.

    An item is `image` (Z, C, H, W) uint8, `label` (Z, H, W) int64, `truth`, the label in the scan's
    own grid (the same unless slices are resampled), `prompts` (`SlicePrompts`) and `case`. The same
    case, seed and jitter give the same boxes, whatever model is evaluated.

    Args:
        cases: from `SliceStore.prepare`, with labels.
        labels: label id -> name.
        jitter: standard deviation of each box side's shift as a share of the side.
        seed: of the jitter.
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
    """Handler of an evaluator: scores each case, and at the end the set.

    `engine.state.metrics` gets `mean_dice`, `mean_iou` and `mean_ellipse_dice`.

    Args:
        labels: label id -> name.
        output_dir: where `metrics.csv` and `summary.json` go; nothing is written if None.
        about: further entries of `summary.json`, such as the model.
    """

    def __init__(
        self,
        labels: Mapping[int, str],
        output_dir: str | Path | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self.labels = labels
        self.output_dir = None if output_dir is None else Path(output_dir)
        self.about = dict(about or {})
        self.scores: list[Score] = []
        self._ellipse = EllipseInferer()

    def attach(self, engine: Engine) -> None:
        """Called by MONAI for each handler."""
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


def format_summary(summary: Mapping[str, Any]) -> str:
    """A small table of a summary, for people."""
    lines = [f"{'label':<20} {'cases':>5}  {'Dice (95 % interval)':<24} {'ellipse':>7}"]
    for entry in summary["labels"].values():
        low, high = entry["dice_interval"]
        lines.append(
            f"{entry['name']:<20} {entry['cases']:>5}  "
            f"{entry['dice']:.3f} ({low:.3f} to {high:.3f})   {entry['ellipse_dice']:>7.3f}"
        )
    mean, ellipse = summary["mean_dice"], summary["mean_ellipse_dice"]
    lines.append(f"{'mean':<20} {'':>5}  {mean:.3f}{'':<19} {ellipse:>7.3f}")
    return "\n".join(lines)
