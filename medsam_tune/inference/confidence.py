"""What a model says of its own masks, as the Dice that is to be expected.

The network's estimate of a mask's IoU is no probability: it is trained on other masks, and is the
same for a box and for a guess. Where cases with annotation were scored, its values and the Dice
that came of them are joined by the isotonic regression, the best curve that never falls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import isotonic_regression

from medsam_tune.errors import DataError
from medsam_tune.files import FORMAT, file_hash, read_json, refuse_other_format, write_json
from medsam_tune.runs import TUNED

CALIBRATION = "calibration.json"
"""File in the folder of a run."""
CALIBRATION_FORMAT = 1
"""Its format."""
_WAY_OUT = "`medsam-tune evaluate --confidence` writes it anew."
FEWEST = 10
"""Masks by which a curve is drawn at least; for a curve of one label alone, twice as many."""
REVIEWED = 0.2
"""Share of the masks behind a curve that it flags: those with the lowest expected Dice."""

ALL = "all"


@dataclass(frozen=True)
class Curve:
    """Expected Dice over predicted quality.

    Attributes:
        quality: predicted qualities, ascending.
        dice: expected Dice at each, never falling; between them a straight line, beyond them flat.
        n: number of masks behind it.
        review_below: expected Dice below which a mask should be looked at.
    """

    quality: tuple[float, ...]
    dice: tuple[float, ...]
    n: int
    review_below: float

    def expected(self, quality: float) -> float:
        """The Dice to be expected of a mask, 0..1."""
        return float(np.interp(quality, self.quality, self.dice))


@dataclass(frozen=True)
class Calibration:
    """The curves of a run.

    Attributes:
        kinds: kind of prompts -> label id, or "all" -> curve.
        tuned: SHA-256 of the tuned file that they are of.
    """

    kinds: Mapping[str, Mapping[str, Curve]]
    tuned: str

    def curve(self, kind: str, label: int | str) -> Curve | None:
        """The curve for a kind of prompts and a label; None where there is none."""
        curves = self.kinds.get(kind, {})
        return curves.get(str(label), curves.get(ALL))

    def least(self, label: int, quality: float, prompted: bool) -> tuple[float, bool] | None:
        """Expected Dice, and whether to review, where the kind of the prompts is not known.

        Of the kinds that it may be, the one that promises least.

        Args:
            label: label id.
            quality: predicted quality.
            prompted: whether there were prompts.
        """
        kinds = [kind for kind in self.kinds if prompted is (kind != "none")]
        curves = [curve for kind in kinds if (curve := self.curve(kind, label))]
        found = [(curve.expected(quality), curve) for curve in curves]
        if not found:
            return None
        dice, curve = min(found, key=lambda one: one[0])
        return dice, dice < curve.review_below


def fit(masks: Sequence[tuple[float, float]]) -> Curve | None:
    """The isotonic regression of Dice on predicted quality; None of fewer than `FEWEST` masks.

    Args:
        masks: predicted quality and Dice of each.
    """
    if len(masks) < FEWEST:
        return None
    quality, dice = np.array(sorted(masks)).T
    values, where = np.unique(quality, return_inverse=True)
    counts = np.bincount(where)
    means = np.bincount(where, weights=dice) / counts
    fitted = np.clip(isotonic_regression(means, weights=counts).x, 0, 1)
    limit = float(np.quantile(np.interp(quality, values, fitted), REVIEWED, method="higher"))
    ends = _ends_of_steps(fitted)
    return Curve(tuple(values[ends].tolist()), tuple(fitted[ends].tolist()), len(masks), limit)


def _ends_of_steps(fitted: np.ndarray) -> np.ndarray:
    """First and last place of each step; between them the curve is flat."""
    rises = np.flatnonzero(np.diff(fitted))
    return np.unique([0, *rises, *(rises + 1), len(fitted) - 1])


def calibrate(
    masks: Mapping[str, Mapping[int, Sequence[tuple[float, float]]]], tuned: str
) -> Calibration:
    """Draw the curves of a run.

    Args:
        masks: kind of prompts -> label id -> predicted quality and Dice of each mask. A label with
            twice `FEWEST` masks gets a curve of its own.
        tuned: SHA-256 of the tuned file.
    """
    kinds = {}
    for kind, labels in masks.items():
        curves = {ALL: fit([mask for each in labels.values() for mask in each])}
        curves |= {str(k): fit(each) for k, each in labels.items() if len(each) >= 2 * FEWEST}
        if found := {name: curve for name, curve in curves.items() if curve is not None}:
            kinds[kind] = found
    return Calibration(kinds, tuned)


def write_calibration(run: Path, calibration: Calibration) -> None:
    """Write `calibration.json` into the folder of a run."""
    kinds = {
        kind: {name: asdict(curve) for name, curve in curves.items()}
        for kind, curves in calibration.kinds.items()
    }
    content = {FORMAT: CALIBRATION_FORMAT, "tuned_sha256": calibration.tuned, "kinds": kinds}
    write_json(run / CALIBRATION, content)


def read_calibration(run: Path) -> Calibration | None:
    """Read the curves of a run; None where it has none, or they are of other weights.

    Raises:
        DataError: a damaged file, or one of another format.
    """
    path = run / CALIBRATION
    if not path.is_file():
        return None
    content: dict[str, Any] = read_json(path)
    refuse_other_format(path, content, CALIBRATION_FORMAT, _WAY_OUT)
    try:
        kinds = {
            kind: {
                name: Curve(
                    tuple(map(float, one["quality"])),
                    tuple(map(float, one["dice"])),
                    int(one["n"]),
                    float(one["review_below"]),
                )
                for name, one in curves.items()
            }
            for kind, curves in content["kinds"].items()
        }
        tuned = str(content["tuned_sha256"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path}: is damaged. {_WAY_OUT}") from error
    return Calibration(kinds, tuned) if tuned == file_hash(run / TUNED) else None
