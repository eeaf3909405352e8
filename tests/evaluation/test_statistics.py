"""Means, intervals and what is excluded."""

from __future__ import annotations

import numpy as np
import pytest

from medsam_tune.errors import DataError
from medsam_tune.evaluation.metrics import Score
from medsam_tune.evaluation.statistics import bootstrap_interval, format_summary, summarise
from tests.scans import LABELS


def score(case: str, label: int, dice: float | None, ellipse: float | None = 0.5) -> Score:
    iou = None if dice is None else dice / (2 - dice)
    return Score(case, label, LABELS.get(label, "other"), dice, iou, 9, 9, ellipse)


def test_mean_of_labels_of_means_of_cases() -> None:
    scores = [
        score("a", 1, 0.8, 0.6),
        score("b", 1, 0.6, 0.4),
        score("c", 1, None, None),
        score("a", 2, 0.2, 0.1),
        score("b", 2, None, None),
        score("a", 3, None, None),
    ]
    summary = summarise(scores)
    assert summary["mean_dice"] == pytest.approx((0.7 + 0.2) / 2)
    assert summary["mean_ellipse_dice"] == pytest.approx((0.5 + 0.1) / 2)
    assert summary["mean_iou"] == pytest.approx(((0.8 / 1.2 + 0.6 / 1.4) / 2 + 0.2 / 1.8) / 2)
    assert set(summary["labels"]) == {"1", "2"}
    liver, spleen = summary["labels"]["1"], summary["labels"]["2"]
    assert (liver["name"], liver["cases"], liver["excluded"]) == ("liver", 2, 1)
    assert (spleen["name"], spleen["cases"], spleen["excluded"]) == ("spleen", 1, 1)
    assert liver["dice"] == pytest.approx(0.7)
    assert liver["dice_interval"] == pytest.approx((0.6, 0.8))
    assert spleen["dice_interval"] == pytest.approx((0.2, 0.2))
    text = format_summary(summary)
    assert "liver" in text
    assert "0.450" in text.splitlines()[-1]


def test_one_empty_counts_as_zero() -> None:
    summary = summarise([score("a", 1, 1.0), score("b", 1, 0.0)])
    assert (summary["mean_dice"], summary["labels"]["1"]["cases"]) == (0.5, 2)


def test_a_mean_over_nothing_is_an_error() -> None:
    for scores in ([], [score("a", 1, None, None), score("b", 2, None, None)]):
        with pytest.raises(DataError, match="no label in any case and none predicted"):
            summarise(scores)
    # predicted where no annotator drew anything, so no box and no ellipse either
    with pytest.raises(DataError, match="liver: predicted, but in no case's truth"):
        summarise([score("a", 1, 0.0, None)])


def test_bootstrap_interval() -> None:
    values = np.random.default_rng(0).normal(0.8, 0.1, 40).tolist()
    low, high = bootstrap_interval(values)
    assert low < np.mean(values) < high
    assert high - low == pytest.approx(2 * 1.96 * np.std(values) / np.sqrt(40), rel=0.1)
    assert bootstrap_interval(values) == (low, high)
    assert bootstrap_interval(values, seed=1) != (low, high)
    assert bootstrap_interval([0.7] * 5) == pytest.approx((0.7, 0.7))
    assert bootstrap_interval([0.7]) == pytest.approx((0.7, 0.7))
