"""Learning curves: a power that is known comes back, and what cannot be foretold is not."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
import pytest

from medsam_tune.evaluation.learning import FARTHEST, Values, foretell

CASES = {(f"case_{n}", label): f"p{n // 2}" for n in range(16) for label in ("1", "2")}
PATIENTS: dict[Hashable, Hashable] = {**CASES}


def scores(mean: float, spread: float = 0.0, seed: int = 0) -> Values:
    noise = np.random.default_rng(seed).normal(size=len(CASES))
    return dict(zip(CASES, mean + spread * (noise - noise.mean()), strict=True))


def test_a_known_power_comes_back() -> None:
    found = foretell({n: [scores(1 - 0.6 * n**-0.5)] for n in (5, 10, 50)}, PATIENTS)
    assert found["exponent"] == pytest.approx(0.5)
    assert found["interval"] == pytest.approx([0.5, 0.5])
    assert [one["patients"] for one in found["next"]] == [100, FARTHEST * 50]
    for one in found["next"]:
        assert one["mean"] == pytest.approx(1 - 0.6 * one["patients"] ** -0.5)


def test_uncertainty_is_of_patients_and_of_trainings() -> None:
    def width(spread: float, between: float) -> float:
        curve = {
            n: [
                scores(1 - 0.6 * n**-0.5 + s * between, spread, n + k)
                for k, s in enumerate((-1, 1))
            ]
            for n in (5, 10, 50)
        }
        low, high = foretell(curve, PATIENTS)["next"][0]["interval"]
        return float(high - low)

    assert width(0, 0) == pytest.approx(0)
    assert width(0.05, 0) > 0.005
    assert width(0, 0.05) > 0.005


@pytest.mark.parametrize(
    ("means", "patients", "why"),
    [
        ({5: 0.6, 10: 0.7}, PATIENTS, "2 numbers of training patients"),
        ({5: 0.7, 10: 0.7, 50: 0.6}, PATIENTS, "do not rise"),
        ({5: 0.6, 10: 0.7, 50: 0.8}, dict.fromkeys(CASES, "p"), "1 test patients; expected 5"),
    ],
)
def test_what_cannot_be_foretold(
    means: dict[int, float], patients: dict[Hashable, Hashable], why: str
) -> None:
    found = foretell({n: [scores(mean)] for n, mean in means.items()}, patients)
    assert why in found["why"]
    assert {*found} == {"why"}
