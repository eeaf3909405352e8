"""Learning curves: the score over the number of training patients, and what more of them may bring.

The error 1 - Dice falls with the number n of patients about as a power, a n^-b (Cortes et al.,
"Learning curves: asymptotic values and rate of convergence", NeurIPS 1993). A line through the
points on logarithmic axes is that power; it is drawn anew for resampled patients and trainings, and
the spread of these lines is the uncertainty of what it foretells.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam_tune.evaluation.statistics import FEWEST

SAMPLES = 1000
"""Resamples behind the uncertainty of a fit."""
FARTHEST = 4
"""How many times the largest number of patients is foretold; beyond, a power says little."""

Values = Mapping[Hashable, float]
"""(case, label) -> score, 0..1."""


def foretell(
    trainings: Mapping[int, Sequence[Values]],
    patients: Mapping[Hashable, Hashable],
    seed: int = 0,
    of: str = "patient",
) -> dict[str, Any]:
    """Fit a power to the scores of trainings with more and more patients.

    Args:
        trainings: number of training patients -> the scores of each training with so many, of the
            same test cases.
        patients: (case, label) -> test patient; they are resampled with all their scores.
        seed: seed of the resampling.
        of: what the cases are grouped by, see `words.people`.

    Returns:
        `exponent`: b, positive where more patients bring more, with its 95 % `interval`;
        `next`: for twice and `FARTHEST` times the largest number: `patients`, `mean`, `interval`.
        Where nothing can be foretold, `why` alone: fewer than 3 numbers of patients, fewer than
        `FEWEST` test patients, or scores that do not rise.
    """
    sizes = sorted(trainings)
    if len(sizes) < 3:
        return {"why": f"{len(sizes)} numbers of training {of}s; a curve needs 3 or more"}
    people = {who: n for n, who in enumerate(dict.fromkeys(patients.values()))}
    if len(people) < FEWEST:
        return {"why": f"{len(people)} test {of}s; expected {FEWEST} or more"}
    labels = {name: n for n, name in enumerate(dict.fromkeys(_label(p) for p in patients))}
    sums = [[_sums(one, patients, people, labels) for one in trainings[n]] for n in sizes]
    all_of_them = np.ones(len(people))
    slope, level = _fit(sizes, [_mean(each, all_of_them) for each in sums])
    if slope >= 0:
        return {"why": f"the scores do not rise with the number of {of}s"}
    generator = np.random.default_rng(seed)
    lines = []
    for _ in range(SAMPLES):
        weights = np.bincount(
            generator.integers(len(people), size=len(people)), minlength=len(people)
        ).astype(float)
        drawn = [[each[i] for i in generator.integers(len(each), size=len(each))] for each in sums]
        lines.append(_fit(sizes, [_mean(each, weights) for each in drawn]))
    further = [_further(times * sizes[-1], (slope, level), lines) for times in (2, FARTHEST)]
    ends = np.percentile([-line[0] for line in lines], [2.5, 97.5])
    return {"exponent": -slope, "interval": [float(one) for one in ends], "next": further}


def _further(
    patients: int, line: tuple[float, float], lines: Sequence[tuple[float, float]]
) -> dict[str, Any]:
    def score(slope: float, level: float) -> float:
        return float(1 - np.exp(level + slope * np.log(patients)))

    low, high = np.percentile([score(*one) for one in lines], [2.5, 97.5])
    return {
        "patients": patients,
        "mean": score(*line),
        "interval": [max(0.0, float(low)), float(high)],
    }


def _label(place: Hashable) -> Hashable:
    return place[1] if isinstance(place, tuple) else 0


def _sums(
    values: Values,
    patients: Mapping[Hashable, Hashable],
    people: Mapping[Hashable, int],
    labels: Mapping[Hashable, int],
) -> NDArray[np.float64]:
    """Sums of the scores and their number, of each patient and label: (2, patients, labels)."""
    found = np.zeros((2, len(people), len(labels)))
    for place, value in values.items():
        found[:, people[patients[place]], labels[_label(place)]] += value, 1
    return found


def _mean(trainings: Sequence[NDArray[np.float64]], weights: NDArray[np.float64]) -> float:
    """The mean over labels of the weighted mean over patients, mean over the trainings."""
    means = []
    for sums in trainings:
        total, number = np.tensordot(weights, sums, (0, 1))
        means.append(np.mean(total[number > 0] / number[number > 0]) if number.any() else 0.0)
    return float(np.mean(means))


def _fit(sizes: Sequence[int], means: Sequence[float]) -> tuple[float, float]:
    """Slope and level of the line through the logarithms of sizes and errors."""
    errors = np.clip(1 - np.array(means), 1e-4, None)
    slope, level = np.polyfit(np.log(sizes), np.log(errors), 1)
    return float(slope), float(level)
