"""Means over cases with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medsam_tune.errors import DataError
from medsam_tune.evaluation.metrics import Score


def bootstrap_interval(
    values: Sequence[float], samples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean over cases.

    Args:
        values: one number per case.
        samples: number of resamples, drawn with replacement.
        seed: seed of the resampling.
    """
    data = np.asarray(values)
    picks = np.random.default_rng(seed).integers(len(data), size=(samples, len(data)))
    low, high = np.percentile(data[picks].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def summarise(scores: Sequence[Score]) -> dict[str, Any]:
    """Means over cases per label, with intervals, and the means over labels.

    Returns:
        `mean_dice`, `mean_iou`, `mean_ellipse_dice`: means over labels of the means over cases;
        `labels`: id -> `name`, `dice`, `dice_interval` (95 %), `iou`, `ellipse_dice`, `cases`
        (number counted) and `excluded` (number with both empty).

    Raises:
        DataError: no pair to count, for the model or for the ellipses of a label.
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
                f"{rows[0].name}: predicted, but in no case's truth, so it has no box and no "
                "ellipse to score. Leave this label out."
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


def format_summary(summary: Mapping[str, Any]) -> str:
    """Table of a summary as text."""
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
