"""Means, intervals and what is excluded."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from medsam_tune.evaluation.metrics import Score
from medsam_tune.evaluation.statistics import (
    bootstrap_interval,
    distribution,
    footnote,
    format_summary,
    holm,
    mean_text,
    paired_tests,
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
    voxels = 0 if dice is None else 9
    name = LABELS.get(label, "other")
    return Score(case, prompts, label, name, dice, iou, voxels, voxels, ellipse)


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
    assert (liver["name"], liver["n"], liver["n_empty"]) == ("liver", 2, 1)
    assert (spleen["name"], spleen["n"], spleen["n_empty"]) == ("spleen", 1, 1)
    assert liver["dice"]["mean"] == pytest.approx(0.7)
    assert (other["dice"]["mean"], other["iou"]["mean"], other["n"], other["n_empty"]) == (
        None,
        None,
        0,
        1,
    )
    lines = format_summary({"slices": summary}).splitlines()[1:]
    assert lines[1].split() == [
        "liver",
        "2",
        "1",
        "0",
        "0",
        "0.700",
        "(too",
        "few)",
        "0.548",
        "0.500",
    ]
    assert lines[3].split() == ["other", "0", "1", "0", "0", "-", "-", "-"]
    assert lines[4].split() == ["mean", "0.450", "0.329", "0.300"]
    assert lines[5] == footnote()


def test_one_empty_counts_as_zero() -> None:
    summary = summarise([score("a", 1, 1.0), score("b", 1, 0.0)])
    assert (summary["mean_dice"], summary["labels"]["1"]["n"]) == (0.5, 2)


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
    assert summary["labels"]["1"]["ellipse_dice"]["mean"] is None


@pytest.mark.parametrize(
    ("cases", "note", "mark"), [(1, "too few", ""), (4, "too few", ""), (5, "few", "*")]
)
def test_row_100_intervals_of_few_cases(cases: int, note: str, mark: str) -> None:
    summary = summarise([score(f"c{n}", 1, 0.5 + n / 100) for n in range(cases)])
    dice = summary["labels"]["1"]["dice"]
    assert dice["note"] == note
    assert (dice["interval"] is None) == (note == "too few")
    text = format_summary({"slices": summary})
    assert f"({note})" in text if note == "too few" else ")* " in text
    assert text.endswith(footnote())


def test_row_100_intervals_of_many_cases() -> None:
    for cases, note in ((29, "few"), (30, "")):
        summary = summarise([score(f"c{n}", 1, 0.5 + n / 100) for n in range(cases)])
        assert summary["labels"]["1"]["dice"]["note"] == note
        text = format_summary({"slices": summary})
        assert (footnote() in text) == bool(note)
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
    assert summary["by_prompts"]["none"]["labels"]["1"]["n"] == 1
    lines = format_summary(summary["by_prompts"]).splitlines()
    assert [line for line in lines if line.startswith("prompts")] == [
        "prompts: slices (by a box on every slice)",
        "prompts: interpolated:5 (by boxes on 5 slices)",
        "prompts: none (without prompts)",
    ]
    of_images = format_summary(summary["by_prompts"], flat=True)
    assert of_images.startswith("prompts: slices (by a box around each object)")
    assert lines[6].split() == [
        "liver",
        "2",
        "0",
        "0",
        "0",
        "0.400",
        "(too",
        "few)",
        "0.255",
        "0.500",
    ]
    assert " ".join(lines[10].split()) == "liver 1 1 0 0 0.400 (too few) 0.250 -"
    assert lines[12:] == [footnote()]
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


def test_many_patients_are_drawn_in_parts() -> None:
    """As many resamples as asked for, as if they were drawn at once."""
    values = np.random.default_rng(0).normal(0.8, 0.1, 700)
    picks = np.random.default_rng(3).integers(700, size=(1000, 700))
    expected = np.percentile(values[picks].mean(1), [2.5, 97.5])
    assert bootstrap_interval(values.tolist(), samples=1000, seed=3) == pytest.approx(expected)


def test_patients_are_drawn_with_all_their_cases() -> None:
    """Ten patients of ten equal cases each say as much as ten cases."""
    values = np.random.default_rng(0).normal(0.8, 0.1, 10).tolist()
    alone = bootstrap_interval(values)
    rows = [(patient, "liver", value) for patient, value in enumerate(values) for _ in range(10)]
    assert bootstrap_interval(rows) == pytest.approx(alone)
    assert bootstrap_interval([("p", 1, 0.5)] * 100) is None
    many = [replace(score(f"{n}", 1, 0.5 + n / 100), patient=f"{n % 4}") for n in range(20)]
    dice = summarise(many)["labels"]["1"]["dice"]
    assert (dice["n"], dice["n_patients"], dice["interval"], dice["note"]) == (
        *(20, 4, None),
        "too few",
    )


def test_interval_of_the_mean_over_labels() -> None:
    scores = [score(f"{n}", 1, 0.5 + n / 100) for n in range(40)]
    scores += [score(f"{n}", 2, 0.9) for n in range(10)]
    summary = summarise(scores)
    low, high = summary["intervals"]["dice"]
    assert low < summary["mean_dice"] < high
    liver_low, liver_high = summary["labels"]["1"]["dice"]["interval"]
    assert high - low == pytest.approx((liver_high - liver_low) / 2, rel=0.05)


def test_quartiles() -> None:
    found = distribution([(n, 1, float(n)) for n in range(9)])
    keys = ("n", "mean", "median", "q1", "q3", "min", "max")
    assert [found[key] for key in keys] == [9, 4, 4, 2, 6, 0, 8]
    assert distribution([])["median"] is None


def test_no_case_is_lost() -> None:
    scores = [
        score("both empty", 1, None),
        replace(score("missed", 1, 0.0), predicted_voxels=0),
        replace(score("invented", 1, 0.0), truth_voxels=0),
        score("good", 1, 0.9),
    ]
    entry = summarise(scores)["labels"]["1"]
    assert [entry[key] for key in ("n", "n_empty", "n_missed", "n_false")] == [3, 1, 1, 1]
    assert entry["dice"]["mean"] == pytest.approx(0.3)


def test_groups_by_a_column() -> None:
    scores = [score("a", 1, 0.8), score("b", 1, 0.6), score("c", 1, 0.1)]
    groups = summarise(scores, {"site": {"a": "X", "b": "X"}})["groups"]
    assert {value: each["1"]["n"] for value, each in groups["site"].items()} == {"X": 2, "": 1}
    assert groups["site"]["X"]["1"]["dice"]["mean"] == pytest.approx(0.7)


def test_paired_tests() -> None:
    rng = np.random.default_rng(0)
    base = {f"c{n}": float(v) for n, v in enumerate(rng.uniform(0.5, 0.7, 12))}
    better = {case: value + 0.01 * (n + 1) for n, (case, value) in enumerate(base.items())}
    values = {"decoder": base, "lora": better, "full": dict(better)}
    first, second, third = paired_tests(values, {})
    assert (first["first"], first["second"], first["n_patients"]) == ("decoder", "lora", 12)
    assert first["difference"] == pytest.approx(0.065)
    assert first["p"] == pytest.approx(2 / 2**12)  # of all signs, this one or its mirror
    assert first["effect"] == 1
    assert second["p_holm"] == pytest.approx(3 * first["p"])
    assert (third["p"], third["effect"], third["difference"]) == (1, None, 0)
    worse = {**better, "c11": base["c11"] - 1}  # ranks 1 to 11 against 12
    effect = paired_tests({"a": base, "b": worse}, {})[0]["effect"]
    assert effect == pytest.approx((66 - 12) / 78)
    of_one = dict.fromkeys(base, "the same patient")
    (only,) = paired_tests({"a": base, "b": better}, of_one)
    assert (only["n_patients"], only["p"], only["interval"]) == (1, None, None)


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03, None]) == pytest.approx([0.03, 0.06, 0.06, None])
    assert holm([0.9, 0.8]) == [1, 1]
