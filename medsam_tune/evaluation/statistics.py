"""Means over cases with their intervals.

An interval says how far a mean may lie from that of other cases. Of few cases it says nothing:
below `FEWEST` there is none, below `FEW` it is marked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from medsam_tune.evaluation.metrics import Score
from medsam_tune.inference.simulated import parse_kind

FEWEST = 5
"""Smallest number of cases of which an interval is given."""

FEW = 30
"""Number of cases below which an interval is marked: the bootstrap makes it too narrow."""


_OTHERS = {"iou": "IoU", "ellipse_dice": "ellipse", "boundary_iou": "border", "pq": "PQ"}
"""Key of a summary of a label -> head of its column."""

_OF_IMAGES = ("boundary_iou", "pq")  # left out where no label has it


def bootstrap_interval(
    values: Sequence[float], samples: int = 2000, seed: int = 0
) -> tuple[float, float] | None:
    """95 % percentile bootstrap interval of the mean over cases; None below `FEWEST` cases.

    Args:
        values: one number per case.
        samples: number of resamples, drawn with replacement.
        seed: seed of the resampling.
    """
    if len(values) < FEWEST:
        return None
    data = np.asarray(values)
    picks = np.random.default_rng(seed).integers(len(data), size=(samples, len(data)))
    low, high = np.percentile(data[picks].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def interval_note(cases: int) -> str:
    """What must be known of an interval over so many cases: "too few", "few", or nothing."""
    return "too few" if cases < FEWEST else "few" if cases < FEW else ""


def mean_text(mean: float | None, interval: Sequence[float] | None, cases: int) -> str:
    """A mean and its interval for a table, such as "0.745 (0.659 to 0.819)*"; `FOOTNOTE` says why.

    Args:
        mean: mean over the cases; None if none could be scored.
        interval: from `bootstrap_interval`.
        cases: number of cases.
    """
    if mean is None:
        return "-"
    if interval is None:
        return f"{mean:.3f} ({interval_note(cases)})"
    low, high = interval
    return f"{mean:.3f} ({low:.3f} to {high:.3f}){'*' * bool(interval_note(cases))}"


FOOTNOTE = f"* of fewer than {FEW} cases; too few: below {FEWEST} there is no interval"


def summarise(scores: Sequence[Score]) -> dict[str, Any]:
    """Means over cases per label, with intervals, and the means over the labels that have one.

    A mean over nothing is None: a label that no case has and that was nowhere predicted, or the
    ellipse of a label that is predicted and in no case's truth, so that it has no box.

    Returns:
        `mean_dice`, `mean_iou`, `mean_ellipse_dice`, `mean_ellipse_iou`: means over labels of the
        means over cases;
        `labels`: id -> `name`, `dice`, `dice_interval` (95 %, or None), `dice_interval_note`
        ("too few", "few" or ""), `iou`, `boundary_iou`, `ellipse_dice`, `ellipse_iou`, `cases`
        (number counted), `excluded` (number with both empty), `objects` (number prompted for in all
        cases); and `precision`, `recall` and `pq` of the objects of all cases together, see
        `metrics.paired`.
    """
    per_label: dict[str, dict[str, Any]] = {}
    for label in sorted({s.label for s in scores}):
        rows = [s for s in scores if s.label == label]
        dice = [s.dice for s in rows if s.dice is not None]
        per_label[str(label)] = {
            "name": rows[0].name,
            "dice": _mean(dice),
            "dice_interval": bootstrap_interval(dice),
            "dice_interval_note": interval_note(len(dice)),
            "iou": _mean([s.iou for s in rows]),
            "boundary_iou": _mean([s.boundary_iou for s in rows]),
            "ellipse_dice": _mean([s.ellipse_dice for s in rows]),
            "ellipse_iou": _mean([_iou(s.ellipse_dice) for s in rows]),
            "cases": len(dice),
            "excluded": len(rows) - len(dice),
            "objects": sum(s.objects for s in rows),
            **_of_objects(rows),
        }
    means = {
        f"mean_{key}": _mean([entry[key] for entry in per_label.values()])
        for key in ("dice", "iou", "ellipse_dice", "ellipse_iou")
    }
    return {**means, "labels": per_label}


def _iou(dice: float | None) -> float | None:
    """The IoU of two masks by their Dice."""
    return None if dice is None else dice / (2 - dice)


def _of_objects(scores: Sequence[Score]) -> dict[str, float | None]:
    """Precision, recall and panoptic quality of the objects of one label; None without objects."""
    true, found, pairs, iou = (
        sum(getattr(s, key) or 0 for s in scores)
        for key in ("true_objects", "found_objects", "paired_objects", "paired_iou")
    )
    return {
        "precision": pairs / found if found else None,
        "recall": pairs / true if true else None,
        "pq": 2 * iou / (true + found) if true + found else None,
    }


def summarise_kinds(scores: Mapping[str, Sequence[Score]]) -> dict[str, Any]:
    """Summaries of several kinds of prompts.

    Args:
        scores: kind -> scores.

    Returns:
        what `summarise` says of the first kind; `prompts`, its name (None if there is no kind);
        and `by_prompts`: kind -> what `summarise` says of it, the first one too.
    """
    by_prompts = {kind: summarise(each) for kind, each in scores.items()}
    first = next(iter(by_prompts), None)
    main = summarise([]) if first is None else by_prompts[first]
    return {"prompts": first, **main, "by_prompts": by_prompts}


def format_summary(by_prompts: Mapping[str, Mapping[str, Any]]) -> str:
    """Table of kinds of prompts as text, a block for each.

    Args:
        by_prompts: kind -> what `summarise` says of it.
    """
    lines = []
    entries = [entry for each in by_prompts.values() for entry in each["labels"].values()]
    others = [k for k in _OTHERS if k not in _OF_IMAGES or any(e[k] is not None for e in entries)]
    for kind, summary in by_prompts.items():
        lines.append(f"prompts: {kind} ({parse_kind(kind).words})")
        head = f"{'label':<20} {'cases':>5} {'objects':>7}  {'Dice (95 % interval)':<25}"
        lines.append(head + "".join(f" {_OTHERS[key]:>7}" for key in others))
        for entry in summary["labels"].values():
            dice = mean_text(entry["dice"], entry["dice_interval"], entry["cases"])
            counts = f"{entry['cases']:>5} {entry['objects']:>7}"
            lines.append(f"{entry['name']:<20} {counts}  {dice:<25}{_cells(entry, others)}")
        rows = summary["labels"].values()
        cells = _cells({key: _mean(row[key] for row in rows) for key in others}, others)
        lines.append(f"{'mean':<20} {'':>13}  {_number(summary['mean_dice']):<25}{cells}")
    if any(entry["dice_interval_note"] for entry in entries):
        lines.append(FOOTNOTE)
    return "\n".join(lines)


def _mean(values: Iterable[float | None]) -> float | None:
    counted = [value for value in values if value is not None]
    return float(np.mean(counted)) if counted else None


def _cells(entry: Mapping[str, Any], keys: Iterable[str]) -> str:
    return "".join(f" {_number(entry[key]):>7}" for key in keys)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
