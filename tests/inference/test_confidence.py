"""Calibration of the model's own estimates: known curves, and files that are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medsam_tune.errors import DataError
from medsam_tune.files import file_hash, read_json, write_json
from medsam_tune.inference.confidence import (
    CALIBRATION,
    FEWEST,
    calibrate,
    fit,
    read_calibration,
    write_calibration,
)
from medsam_tune.runs import TUNED

RISING = [(0.5 + 0.02 * n, 0.2 + 0.03 * n) for n in range(20)]


def test_a_rising_relation_comes_back() -> None:
    curve = fit(RISING)
    assert curve is not None
    for quality, dice in RISING:
        assert curve.expected(quality) == pytest.approx(dice)
    assert curve.expected(0.0) == pytest.approx(0.2)  # beyond the ends: flat
    assert curve.expected(1.0) == pytest.approx(RISING[-1][1])
    assert sum(dice < curve.review_below for _, dice in RISING) == 4  # a fifth


def test_a_curve_never_falls_and_is_the_mean_of_what_does() -> None:
    generator = np.random.default_rng(0)
    masks = [(q, q**2 + generator.normal(0, 0.2)) for q in generator.uniform(0.3, 1, 200)]
    curve = fit(masks)
    assert curve is not None
    expected = [curve.expected(q) for q in np.linspace(0, 1, 101)]
    assert (np.diff(expected) >= 0).all()
    assert min(expected) >= 0
    assert max(expected) <= 1
    falling = fit([(0.5 + 0.02 * n, 0.9 - 0.03 * n) for n in range(20)])
    assert falling is not None
    assert falling.expected(0.6) == falling.expected(0.8) == pytest.approx(0.9 - 0.03 * 9.5)
    tied = fit([(0.5, 0.2), (0.5, 0.4)] * FEWEST)
    assert tied is not None
    assert tied.expected(0.5) == pytest.approx(0.3)


def test_too_few_masks_have_no_curve() -> None:
    assert fit(RISING[: FEWEST - 1]) is None
    assert calibrate({"slices": {1: RISING[:5]}}, "").kinds == {}
    few = calibrate({"slices": {1: RISING[: 2 * FEWEST - 1], 2: RISING[:3]}}, "")
    assert {*few.kinds["slices"]} == {"all"}
    assert {*calibrate({"slices": {1: RISING, 2: RISING[:3]}}, "").kinds["slices"]} == {"all", "1"}


def test_of_unknown_prompts_the_kind_that_promises_least_counts() -> None:
    worse = [(quality, dice - 0.1) for quality, dice in RISING]
    curves = calibrate({"slices": {1: RISING}, "box3d": {1: worse}, "none": {1: RISING}}, "")
    found = curves.least(1, 0.7, prompted=True)
    assert found is not None
    assert found[0] == pytest.approx(0.4)
    assert not found[1]
    assert curves.least(1, 0.5, prompted=True) == (pytest.approx(0.1), True)
    assert curves.least(1, 0.7, prompted=False) == (pytest.approx(0.5), False)
    assert calibrate({"none": {1: RISING}}, "").least(1, 0.7, prompted=True) is None


def test_the_file_is_of_these_weights(tmp_path: Path) -> None:
    (tmp_path / TUNED).write_bytes(b"weights")
    assert read_calibration(tmp_path) is None
    made = calibrate({"slices": {1: RISING}}, file_hash(tmp_path / TUNED))
    write_calibration(tmp_path, made)
    assert read_calibration(tmp_path) == made
    content = read_json(tmp_path / CALIBRATION)
    write_json(tmp_path / CALIBRATION, {**content, "format": 2})
    with pytest.raises(
        DataError, match="has format 2, of a newer version of medsam_tune; expected format 1"
    ):
        read_calibration(tmp_path)
    write_json(tmp_path / CALIBRATION, {**content, "kinds": {"slices": [1]}})
    with pytest.raises(DataError, match="is damaged"):
        read_calibration(tmp_path)
    write_calibration(tmp_path, made)
    (tmp_path / TUNED).write_bytes(b"others")
    assert read_calibration(tmp_path) is None
