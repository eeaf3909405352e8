"""How good the boxes must be: Dice over the noise of the prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medsam_tune.evaluation.report import write_report
from medsam_tune.evaluation.results import JITTER
from medsam_tune.evaluation.statistics import interval_note
from medsam_tune.files import read_json, write_json


def parse_jitters(text: str) -> list[float]:
    """Read deviations of boxes, such as "0,0.05,0.1", in ascending order.

    Raises:
        ValueError: not numbers from 0 to 1, or one twice.
    """
    try:
        found = sorted(float(part) for part in text.split(","))
    except ValueError:
        found = [-1.0]
    if not all(0 <= one <= 1 for one in found) or len({*found}) < len(found):
        raise ValueError(
            f"--jitter {text}: expected numbers from 0 to 1, each once, such as 0,0.05,0.1,0.2: "
            "the standard deviation of each side, as a share of the box."
        )
    return found


def write_curve(folder: Path, summaries: Mapping[float, Path]) -> None:
    """Write `jitter.json` into the folder of an evaluation, and its report again.

    Args:
        folder: folder of an evaluation.
        summaries: deviation -> folder of the evaluation by such boxes.
    """
    points: Sequence[dict[str, Any]] = [
        {"jitter": jitter, "dice": _dice(read_json(place / "summary.json"))}
        for jitter, place in sorted(summaries.items())
    ]
    write_json(folder / JITTER, {"points": points})
    write_report(folder)


def _dice(summary: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Kind of prompts -> mean Dice over the labels, with its interval."""
    found = {}
    for kind, each in summary["by_prompts"].items():
        patients = max((one["n_patients"] for one in each["labels"].values()), default=0)
        found[kind] = {
            "mean": each["mean_dice"],
            "interval": each["intervals"]["dice"],
            "n_patients": patients,
            "note": interval_note(patients),
        }
    return found
