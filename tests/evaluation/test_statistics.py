"""Means, intervals and what is excluded."""

from __future__ import annotations

import numpy as np
import pytest

from medsam_tune.evaluation.metrics import Score
from medsam_tune.evaluation.statistics import (
    FOOTNOTE,
    bootstrap_interval,
    format_summary,
    mean_text,
    summarise,
    summarise_kinds,
)
from tests.scans import LABELS


def score(
    case: str,
    label: int,
    dice: float | None,
    ellipse: float | None = 0.5,
    prompts: str = "slices",
) -> Score:
    iou = None if dice is None else dice / (2 - dice)
    return Score(case, prompts, label, LABELS.get(label, "other"), dice, iou, 9, 9, ellipse)


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
    liver, spleen, other = (summary["labels"][key] for key in "123")
    assert (liver["name"], liver["cases"], liver["excluded"]) == ("liver", 2, 1)
    assert (spleen["name"], spleen["cases"], spleen["excluded"]) == ("spleen", 1, 1)
    assert liver["dice"] == pytest.approx(0.7)
    assert (other["dice"], other["iou"], other["cases"], other["excluded"]) == (None, None, 0, 1)
    lines = format_summary({"slices": summary}).splitlines()[1:]
    assert lines[1].split() == ["liver", "2", "0", "0.700", "(too", "few)", "0.548", "0.500"]
    assert lines[3].split() == ["other", "0", "0", "-", "-", "-"]
    assert lines[4].split() == ["mean", "0.450", "0.329", "0.300"]
    assert lines[5] == FOOTNOTE


def test_one_empty_counts_as_zero() -> None:
    summary = summarise([score("a", 1, 1.0), score("b", 1, 0.0)])
    assert (summary["mean_dice"], summary["labels"]["1"]["cases"]) == (0.5, 2)


def test_a_mean_over_nothing_is_empty() -> None:
    for scores in ([], [score("a", 1, None, None), score("b", 2, None, None)]):
        summary = summarise(scores)
        assert summary["mean_dice"] is summary["mean_iou"] is summary["mean_ellipse_dice"] is None
        lines = format_summary({"slices": summary}).splitlines()
        assert lines[2 + len(scores)].split() == ["mean", "-", "-", "-"]
    # predicted where no annotator drew anything, so no box and no ellipse either
    summary = summarise([score("a", 1, 0.0, None), score("a", 2, 0.6, 0.4)])
    assert summary["mean_dice"] == pytest.approx(0.3)
    assert summary["mean_ellipse_dice"] == pytest.approx(0.4)
    assert summary["labels"]["1"]["ellipse_dice"] is None


@pytest.mark.parametrize(
    ("cases", "note", "mark"), [(1, "too few", ""), (4, "too few", ""), (5, "few", "*")]
)
def test_row_100_intervals_of_few_cases(cases: int, note: str, mark: str) -> None:
    summary = summarise([score(f"c{n}", 1, 0.5 + n / 100) for n in range(cases)])
    entry = summary["labels"]["1"]
    assert entry["dice_interval_note"] == note
    assert (entry["dice_interval"] is None) == (note == "too few")
    text = format_summary({"slices": summary})
    assert f"({note})" in text if note == "too few" else ")* " in text
    assert text.endswith(FOOTNOTE)


def test_row_100_intervals_of_many_cases() -> None:
    for cases, note in ((29, "few"), (30, "")):
        summary = summarise([score(f"c{n}", 1, 0.5 + n / 100) for n in range(cases)])
        assert summary["labels"]["1"]["dice_interval_note"] == note
        text = format_summary({"slices": summary})
        assert (FOOTNOTE in text) == bool(note)
        assert ("*" in text) == bool(note)
    assert mean_text(0.7454, (0.659, 0.8191), 30) == "0.745 (0.659 to 0.819)"
    assert mean_text(None, None, 0) == "-"


def test_row_101_every_table_names_its_prompts() -> None:
    summary = summarise_kinds(
        {
            "slices": [score("a", 1, 0.8), score("b", 1, 0.6)],
            "interpolated:5": [score("a", 1, 0.5), score("b", 1, 0.3)],
            "none": [score("a", 1, 0.4, None), score("b", 1, None, None)],
        }
    )
    assert (summary["prompts"], summary["mean_dice"]) == ("slices", pytest.approx(0.7))
    assert summary["labels"] == summary["by_prompts"]["slices"]["labels"]
    means = {kind: each["mean_dice"] for kind, each in summary["by_prompts"].items()}
    assert means == pytest.approx({"slices": 0.7, "interpolated:5": 0.4, "none": 0.4})
    assert summary["by_prompts"]["none"]["mean_ellipse_dice"] is None
    assert summary["by_prompts"]["none"]["labels"]["1"]["cases"] == 1
    lines = format_summary(summary["by_prompts"]).splitlines()
    assert [line for line in lines if line.startswith("prompts")] == [
        "prompts: slices (a box on every slice)",
        "prompts: interpolated:5 (boxes on 5 slices)",
        "prompts: none (no prompt)",
    ]
    assert lines[6].split() == ["liver", "2", "0", "0.400", "(too", "few)", "0.255", "0.500"]
    assert lines[10].split() == ["liver", "1", "0", "0.400", "(too", "few)", "0.250", "-"]
    assert lines[12:] == [FOOTNOTE]
    nothing = summarise_kinds({})
    assert (nothing["prompts"], nothing["mean_dice"], nothing["by_prompts"]) == (None, None, {})


def test_bootstrap_interval() -> None:
    values = np.random.default_rng(0).normal(0.8, 0.1, 40).tolist()
    interval = bootstrap_interval(values)
    assert interval is not None
    low, high = interval
    assert low < np.mean(values) < high
    assert high - low == pytest.approx(2 * 1.96 * np.std(values) / np.sqrt(40), rel=0.1)
    assert bootstrap_interval(values) == (low, high)
    assert bootstrap_interval(values, seed=1) != (low, high)
    assert bootstrap_interval([0.7] * 5) == pytest.approx((0.7, 0.7))
    assert bootstrap_interval([0.7] * 4) is None
