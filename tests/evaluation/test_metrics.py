"""Scores by the written rules, from masks of known overlap to the files of a whole evaluation."""

from __future__ import annotations

import pytest
import torch

from medsam_tune.evaluation.metrics import Score, annotated, overlap, score_case

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
    truth = torch.tensor([[[1, 1, 1, 0, 2, 0]]])
    prediction = torch.tensor([[[1, 1, 0, 0, 0, 0]]]).short()
    ellipse = torch.tensor([[[1, 0, 0, 0, 2, 2]]]).short()
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
