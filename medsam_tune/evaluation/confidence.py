"""How well a model knows how good its masks are: predicted Dice beside the true one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medsam_tune.errors import DataError
from medsam_tune.evaluation.report import write_report
from medsam_tune.evaluation.results import CONFIDENCE, Results, read_results
from medsam_tune.files import file_hash, write_json
from medsam_tune.inference.confidence import (
    FEWEST,
    Calibration,
    calibrate,
    write_calibration,
)
from medsam_tune.runs import TUNED

WORST = 0.1
"""Share of the masks that count as the worst."""


def write_confidence(run: Path, validation: Path, test: Path) -> None:
    """Calibrate a run on its validation cases, and judge that on its test cases.

    Writes `calibration.json` into the run, which `predict` reads, and `confidence.json` and the
    report into the evaluation of the test cases.

    Args:
        run: folder of a run.
        validation: folder of the evaluation of its validation cases.
        test: folder of the evaluation of its test cases, by the same kinds of prompts.

    Raises:
        DataError: too few masks of validation cases for any curve.
    """
    known, held_out = read_results(validation), read_results(test)
    masks = {
        kind: {
            int(label): [(quality, dice) for row, quality, dice in own if row["label"] == label]
            for label in dict.fromkeys(row["label"] for row, _, _ in own)
        }
        for kind, own in ((kind, _masks(rows)) for kind, rows in known.rows.items())
    }
    calibration = calibrate(masks, file_hash(run / TUNED))
    if not calibration.kinds:
        most = max(sum(map(len, labels.values())) for labels in masks.values())
        raise DataError(
            f"{validation}: has {most} masks by the same prompts; expected {FEWEST} or more to "
            "tell how well the model knows its own masks. Split with a larger fraction for "
            "validation."
        )
    write_calibration(run, calibration)
    write_json(test / CONFIDENCE, judge(calibration, held_out))
    write_report(test)


def judge(calibration: Calibration, results: Results) -> dict[str, Any]:
    """Compare expected and true Dice of the masks of an evaluation, as JSON.

    Returns:
        kind of prompts -> `n` masks; `calibrated_on`, number of masks; `error`, mean of
        |expected - true|; `bias`, mean of expected - true; `worst`, number of the worst tenth by
        true Dice; `caught`, how many of them are flagged; `flagged`, how many of all are; and
        `masks`: case, label, expected, true, flagged.
    """
    found = {}
    for kind, rows in results.rows.items():
        if kind not in calibration.kinds:
            continue
        masks = []
        for row, quality, dice in _masks(rows):
            curve = calibration.curve(kind, row["label"])
            if curve is not None:
                expected = curve.expected(quality)
                masks.append(
                    {
                        **{"case": row["case"], "label": row["label"], "name": row["name"]},
                        **{"expected": expected, "true": dice},
                        "flagged": expected < curve.review_below,
                    }
                )
        if masks:
            on = max(curve.n for curve in calibration.kinds[kind].values())
            found[kind] = {"calibrated_on": on, **_judged(masks), "masks": masks}
    return found


def _judged(masks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    expected, true = np.array([(one["expected"], one["true"]) for one in masks]).T
    worst = np.argsort(true, kind="stable")[: max(1, round(WORST * len(masks)))]
    flagged = np.array([one["flagged"] for one in masks])
    return {
        "n": len(masks),
        "error": float(np.abs(expected - true).mean()),
        "bias": float((expected - true).mean()),
        "worst": len(worst),
        "caught": int(flagged[worst].sum()),
        "flagged": int(flagged.sum()),
    }


def _masks(rows: Sequence[Mapping[str, str]]) -> list[tuple[Mapping[str, str], float, float]]:
    """Rows with a mask, its predicted quality and its Dice."""
    return [
        (row, float(row["quality"]), float(row["dice"]))
        for row in rows
        if row.get("quality") and row.get("dice")
    ]
