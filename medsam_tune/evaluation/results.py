"""The files of an evaluation, read again."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from medsam_tune.errors import DataError
from medsam_tune.files import read_json, refuse_other_format
from medsam_tune.inference.simulated import parse_kind

SUMMARY_FORMAT = 1
"""Format of an evaluation: summary.json and the tables beside it."""

INDEX = "index.json"
"""File beside the pictures that says which cases they show."""

CONFIDENCE = "confidence.json"
"""File of how well the model knows its own masks."""

JITTER = "jitter.json"
"""File of the curve of Dice over the noise of the prompts."""


@dataclass(frozen=True)
class Results:
    """The files of an evaluation.

    Attributes:
        folder: folder of the files.
        summary: content of summary.json.
        rows: kind of prompts -> rows of its metrics.csv, column -> text.
    """

    folder: Path
    summary: dict[str, Any]
    rows: dict[str, list[dict[str, str]]]

    @property
    def labels(self) -> dict[str, dict[str, Any]]:
        """Summaries of the labels by the first kind of prompts."""
        found: dict[str, dict[str, Any]] = self.summary["labels"]
        return found

    @property
    def first(self) -> list[dict[str, str]]:
        """Rows of the first kind of prompts."""
        return next(iter(self.rows.values()), [])

    def rows_of(self, label: str) -> list[dict[str, str]]:
        """Rows of a label by the first kind of prompts."""
        return self._by_label.get(label, [])

    @cached_property
    def _by_label(self) -> dict[str, list[dict[str, str]]]:
        found: dict[str, list[dict[str, str]]] = {}
        for row in self.first:
            found.setdefault(row["label"], []).append(row)
        return found


def read_results(folder: str | Path) -> Results:
    """Read the files of an evaluation.

    Args:
        folder: folder of a run or of an evaluation.

    Raises:
        DataError: no evaluation in it, or one of another version.
    """
    folder = Path(folder)
    folder = folder if (folder / "summary.json").is_file() else folder / "evaluation"
    if not (folder / "summary.json").is_file():
        raise DataError(
            f"{folder.parent}: no evaluation in it (no summary.json); `medsam-tune evaluate --run "
            f"{folder.parent}` makes one."
        )
    summary = read_json(folder / "summary.json")
    refuse_other_format(folder / "summary.json", summary, SUMMARY_FORMAT, "Evaluate again.")
    if not isinstance(summary.get("by_prompts"), dict) or "intervals" not in summary:
        raise DataError(
            f"{folder / 'summary.json'}: is damaged or of another version. Evaluate again."
        )
    rows: dict[str, list[dict[str, str]]] = {}
    for kind in summary["by_prompts"]:
        place = folder / parse_kind(kind).file_name if rows else folder
        path = place / "metrics.csv"
        if not path.is_file():
            raise DataError(f"{path}: no such file; the evaluation is not whole. Evaluate again.")
        with path.open(newline="") as file:
            rows[kind] = list(csv.DictReader(file))
    return Results(folder, summary, rows)
