"""Scores by the written rules, from masks of known overlap to the files of a whole evaluation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.metrics.panoptic_quality import compute_panoptic_quality

from medsam_tune.evaluation.metrics import (
    Score,
    annotated,
    boundary_iou,
    overlap,
    paired,
    score_case,
)
from medsam_tune.evaluation.statistics import format_summary, summarise

COLUMNS = "case,prompts,label,name,dice,iou,truth_voxels,predicted_voxels,ellipse_dice,objects"


def mask(*ones: int) -> torch.Tensor:
    flat = torch.zeros(12, dtype=torch.bool)
    flat[list(ones)] = True
    return flat.view(2, 2, 3)


@pytest.mark.parametrize(
    ("prediction", "truth", "dice", "iou"),
    [
        pytest.param(mask(1, 2, 3), mask(1, 2, 3), 1.0, 1.0, id="equal"),
        pytest.param(mask(1, 2, 3), mask(4, 5), 0.0, 0.0, id="apart"),
        pytest.param(mask(1, 2), mask(2, 3, 4, 5), 1 / 3, 1 / 5, id="one-in-common"),
        pytest.param(mask(1), mask(1, 2, 3), 0.5, 1 / 3, id="inside"),
        pytest.param(mask(), mask(1), 0.0, 0.0, id="nothing-found"),
        pytest.param(mask(1), mask(), 0.0, 0.0, id="nothing-there"),
        pytest.param(mask(), mask(), None, None, id="both-empty"),
    ],
)
def test_overlap(
    prediction: torch.Tensor, truth: torch.Tensor, dice: float | None, iou: float | None
) -> None:
    assert overlap(prediction, truth) == pytest.approx((dice, iou))
    assert overlap(truth, prediction) == pytest.approx((dice, iou))


def test_one_score_per_label() -> None:
    truth = torch.tensor([[[1, 1, 1]], [[0, 2, 0]]])
    prediction = torch.tensor([[[1, 1, 0]], [[0, 0, 0]]]).short()
    ellipse = torch.tensor([[[1, 0, 0]], [[0, 2, 2]]]).short()
    liver, spleen, kidney = score_case(
        "a", "slices", prediction, truth, ellipse, {1: "liver", 2: "spleen", 3: "kidney"}
    )
    assert liver == Score("a", "slices", 1, "liver", 0.8, pytest.approx(2 / 3), 3, 2, 0.5)
    assert spleen == Score("a", "slices", 2, "spleen", 0.0, 0.0, 1, 0, pytest.approx(2 / 3))
    assert kidney == Score("a", "slices", 3, "kidney", None, None, 0, 0, None)
    (alone,) = score_case("a", "none", prediction, truth, None, {1: "liver"})
    assert alone == Score("a", "none", 1, "liver", 0.8, pytest.approx(2 / 3), 3, 2, None)


def test_nothing_is_left_where_nobody_annotated() -> None:
    truth, found = torch.tensor([0, 1, 9, 9]), torch.tensor([1, 1, 1, 0])
    assert annotated(truth, found, truth=truth, ignore=None) == (truth, found)
    kept = annotated(truth, found, truth=truth, ignore=9)
    assert [one.tolist() for one in kept] == [[0, 1, 0, 0], [1, 1, 0, 0]]


def square(size: int, low: int, high: int) -> torch.Tensor:
    found = torch.zeros(size, size, dtype=torch.bool)
    found[low:high, low:high] = True
    return found


@pytest.mark.parametrize(
    ("prediction", "truth", "expected"),
    [
        (square(100, 20, 60), square(100, 20, 60), 1.0),
        # A diagonal of 141 gives a rim of 3: 40 x 40 without 34 x 34, and 38 x 38 without 32 x 32.
        # They share the ring of 38 x 38 without 34 x 34.
        (square(100, 21, 59), square(100, 20, 60), 288 / (444 + 420 - 288)),
        (square(100, 0, 100), square(100, 10, 90), 0.0),  # the image's edge is a border
        (square(9, 0, 3), square(9, 5, 8), 0.0),
        (square(9, 0, 0), square(9, 5, 8), 0.0),
        (square(9, 0, 0), square(9, 0, 0), None),
    ],
)
def test_boundary_iou(prediction, truth, expected) -> None:
    assert boundary_iou(prediction, truth) == pytest.approx(expected)


def test_objects_in_pairs() -> None:
    truth = np.array([[1, 1, 1, 1, 0, 7, 7, 0, 9, 9]], np.int32)
    found = np.array([[4, 4, 4, 0, 0, 2, 0, 0, 3, 0]], np.int32)
    # 4 has three of four pixels; 2 and 3 have one of two, which is not above a half; 8 is none.
    assert paired(found, truth) == (3, 3, 1, 0.75)
    assert paired(truth, truth) == (3, 3, 3, 3.0)
    assert paired(0 * found, truth) == (3, 0, 0, 0.0)
    assert paired(found, 0 * truth) == (0, 3, 0, 0.0)


def test_pairs_are_those_of_monai() -> None:
    rng = np.random.default_rng(0)
    truth = np.kron(rng.integers(0, 6, (6, 6)), np.ones((4, 4))).astype(np.int32)
    found = np.where(rng.random(truth.shape) < 0.4, 0, np.roll(truth, 1, 0))
    tp, fp, fn, iou = compute_panoptic_quality(
        torch.from_numpy(found), torch.from_numpy(truth), output_confusion_matrix=True
    ).tolist()
    assert 0 < tp < 5
    assert paired(found, truth) == (tp + fn, tp + fp, tp, pytest.approx(iou))


def test_borders_and_objects_of_an_image() -> None:
    truth = torch.tensor([[[1, 1, 0, 1, 1, 0, 2, 2]]])
    found = torch.tensor([[[1, 1, 0, 0, 1, 1, 0, 0]]])
    numbers = tuple(
        np.array(n, np.int32) for n in ([[[1, 1, 0, 0, 2, 2, 0, 0]]], [[[1, 1, 0, 2, 2, 0, 3, 3]]])
    )
    road, house = score_case("a", "none", found, truth, None, {1: "r", 2: "h"}, None, numbers)
    assert (road.true_objects, road.found_objects, road.paired_objects) == (2, 2, 1)
    assert (house.true_objects, house.found_objects, house.paired_iou) == (1, 0, 0)
    assert (road.boundary_iou, house.boundary_iou) == (pytest.approx(3 / 5), 0)
    (scan,) = score_case("a", "none", found.expand(2, 1, 8), truth.expand(2, 1, 8), None, {1: "r"})
    assert (scan.boundary_iou, scan.true_objects) == (None, None)
    label = summarise([road, house, road])["labels"]["1"]
    assert (label["precision"], label["recall"], label["pq"]) == (0.5, 0.5, 0.5)
    assert "border" in format_summary({"none": summarise([road])})
