"""The worst masks and the reason that their numbers show."""

from __future__ import annotations

from typing import Any

import pytest

from medsam_tune.evaluation.metrics import Score
from medsam_tune.evaluation.worst import worst_masks

SLICES = {"truth_slices": 9, "missed_slices": 0, "added_slices": 0}


def score(case: str, dice: float | None, true: int, predicted: int, **more: Any) -> Score:
    base = Score(case, "slices", 1, "spleen", dice, None, true, predicted, None, 1)
    volumes = {"truth_volume": true / 100, "predicted_volume": predicted / 100}
    return Score(**{**vars(base), "unit": "mm", **volumes, **more})


@pytest.mark.parametrize(
    ("mask", "line"),
    [
        (score("a", 0.0, 900, 0), "a spleen 0.000: nothing predicted, 9 ml are annotated"),
        (score("a", 0.0, 0, 250), "a spleen 0.000: nothing is annotated, 2.5 ml are predicted"),
        (score("a", 0.5, 900, 1800), "a spleen 0.500: 2.0 times too large, 18 ml for 9 ml"),
        (score("a", 0.5, 900, 300), "a spleen 0.500: 33% of the size, 3 ml for 9 ml"),
        (score("a", 0.5, 9, 9, lesions=3, lesions_found=1), "a spleen 0.500: 1 of 3 pieces found"),
        (
            score("a", 0.5, 9, 9, **{**SLICES, "missed_slices": 3, "added_slices": 1}),
            "a spleen 0.500: 3 of 9 slices missed, 1 added",
        ),
        (score("a", 0.5, 9, 9, **{**SLICES, "added_slices": 2}), "0.500: 2 slices added to 9"),
        (
            score("a", 0.5, 900, 300, **{**SLICES, "missed_slices": 6}),
            "33% of the size, 3 ml for 9 ml; 6 of 9 slices missed",
        ),
        (
            score("a", 0.5, 9, 9, hd95=12.34, **{**SLICES, "missed_slices": 1}),
            "the size is right, the outline is off (HD95 12.3 mm)",
        ),
        (score("a", 0.5, 9, 9, hd95=12.34), "outline is off (HD95 12.3 mm)"),
        (score("a", 0.5, 9, 27, unit="px"), "3.0 times too large, 27 pixels for 9 pixels"),
    ],
)
def test_reasons(mask: Score, line: str) -> None:
    assert line in worst_masks([mask])[0]


def test_the_lowest_come_first_and_what_has_no_score_is_left_out() -> None:
    masks = [score(f"c{n}", n / 10, 9, 9) for n in range(9, 0, -1)] + [score("x", None, 0, 0)]
    assert [line.split()[0] for line in worst_masks(masks)] == ["c1", "c2", "c3", "c4", "c5"]
    assert worst_masks([score("a", 1.0, 9, 9)]) == []
