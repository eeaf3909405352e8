"""Scores by the written rules, from masks of known overlap to the files of a whole evaluation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from monai.metrics.panoptic_quality import compute_panoptic_quality

from medsam_tune.evaluation.borders import boundary_iou, paired
from medsam_tune.evaluation.label_maps import overlap
from medsam_tune.evaluation.metrics import Answer, Measures, Score, score_case
from medsam_tune.evaluation.statistics import format_summary, summarise

COLUMNS = "case,prompts,label,name,dice,iou,truth_voxels,predicted_voxels,ellipse_dice,objects"


def test_one_score_per_label() -> None:
    truth = torch.tensor([[[1, 1, 1]], [[0, 2, 0]]])
    prediction = torch.tensor([[[1, 1, 0]], [[0, 0, 0]]]).short()
    ellipse = torch.tensor([[[1, 0, 0]], [[0, 2, 2]]]).short()
    liver, spleen, kidney = score_case(
        Answer("a", "slices", prediction, truth, ellipse), {1: "liver", 2: "spleen", 3: "kidney"}
    )
    assert liver == Score("a", "slices", 1, "liver", 0.8, pytest.approx(2 / 3), 3, 2, 0.5)
    assert spleen == Score("a", "slices", 2, "spleen", 0.0, 0.0, 1, 0, pytest.approx(2 / 3))
    assert kidney == Score("a", "slices", 3, "kidney", None, None, 0, 0, None)
    (alone,) = score_case(Answer("a", "none", prediction, truth), {1: "liver"})
    assert alone == Score("a", "none", 1, "liver", 0.8, pytest.approx(2 / 3), 3, 2, None)


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
    assert boundary_iou(prediction.numpy(), truth.numpy()) == pytest.approx(expected)


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
    road, house = score_case(Answer("a", "none", found, truth, numbers=numbers), {1: "r", 2: "h"})
    assert (road.true_objects, road.found_objects, road.paired_objects) == (2, 2, 1)
    assert (house.true_objects, house.found_objects, house.paired_iou) == (1, 0, 0)
    assert (road.boundary_iou, house.boundary_iou) == (pytest.approx(3 / 5), 0)
    (scan,) = score_case(
        Answer("a", "none", found.expand(2, 1, 8), truth.expand(2, 1, 8)), {1: "r"}
    )
    assert (scan.boundary_iou, scan.true_objects) == (None, None)
    label = summarise([road, house, road])["labels"]["1"]
    assert (label["object_precision"], label["object_recall"], label["pq"]) == (0.5, 0.5, 0.5)
    assert "border" in format_summary({"none": summarise([road])})


def cubes(*places: tuple[int, int, int], side: int = 2) -> torch.Tensor:
    found = torch.zeros(8, 10, 12, dtype=torch.int64)
    for z, y, x in places:
        found[z : z + side, y : y + side, x : x + side] = 1
    return found


def measured(
    prediction: torch.Tensor, truth: torch.Tensor, spacing: object = (5.0, 2.0, 1.0), **options: Any
) -> Score:
    answer = Answer("a", "none", prediction, truth, spacing=spacing)  # type: ignore[arg-type]
    (score,) = score_case(answer, {1: "liver"}, Measures(**options))
    return score


def test_volumes_and_counts_of_voxels() -> None:
    score = measured(cubes((1, 2, 3), (1, 2, 5)), cubes((1, 2, 3), (1, 6, 3)))
    assert (score.true_positive, score.false_positive, score.false_negative) == (8, 8, 8)
    assert (score.precision, score.recall, score.dice, score.iou) == (0.5, 0.5, 0.5, 1 / 3)
    assert (score.truth_volume, score.predicted_volume) == pytest.approx((0.16, 0.16))  # ml
    smaller = measured(cubes((1, 2, 3)), cubes((1, 2, 3), (1, 6, 3)))
    assert smaller.volume_difference == pytest.approx(-0.08)
    assert (smaller.unit, smaller.tolerance) == ("mm", 2.0)


def test_lesions_are_found_by_a_voxel() -> None:
    truth = cubes((0, 0, 0), (0, 0, 5), (4, 4, 8))
    score = measured(cubes((1, 1, 1), (4, 4, 8), (4, 8, 0)), truth)
    assert (score.lesions, score.lesions_found, score.false_lesions) == (3, 2, 1)
    assert score.found is True
    touching = torch.zeros(8, 10, 12, dtype=torch.int64)
    touching[0, 0, 0] = touching[1, 1, 1] = 1  # a diagonal is one piece
    assert measured(touching, touching).lesions == 1


def test_one_of_two_empty_is_as_bad_as_can_be() -> None:
    nothing, cube = cubes(), cubes((1, 2, 3))
    diagonal = float(np.linalg.norm([8 * 5, 10 * 2, 12 * 1]))
    for prediction, truth, found in ((nothing, cube, False), (cube, nothing, None)):
        score = measured(prediction, truth)
        assert (score.dice, score.iou, score.nsd) == (0, 0, 0)
        assert score.hd95 == score.surface_distance == pytest.approx(diagonal)
        assert score.found is found
        as_nnunet = measured(prediction, truth, empty="nnunet")
        assert (as_nnunet.dice, as_nnunet.hd95, as_nnunet.nsd) == (0, None, None)
    assert measured(nothing, cube).missed
    assert not measured(cube, nothing).missed


@pytest.mark.parametrize(
    ("rule", "dice", "distance"), [("exclude", None, None), ("one", 1, 0), ("nnunet", None, None)]
)
def test_both_empty_by_each_rule(rule: str, dice: float | None, distance: float | None) -> None:
    score = measured(cubes(), cubes(), empty=rule)
    assert (score.dice, score.iou, score.nsd) == (dice, dice, dice)
    assert (score.hd95, score.surface_distance) == (distance, distance)
    assert (score.empty, score.recall, score.found) == (True, None, None)


def test_images_and_unknown_pixels_have_no_millimetres() -> None:
    flat = torch.zeros(1, 20, 20, dtype=torch.int64)
    flat[0, 5:10, 5:10] = 1
    for spacing in (None, (1.0, 300.0, 300.0)):
        score = measured(flat.roll(1, 2), flat, spacing)
        assert (score.unit, score.hd95, score.truth_volume) == ("px", 1, 25)
    volume = measured(cubes((1, 2, 4)), cubes((1, 2, 3)), None)
    assert (volume.unit, volume.hd95, volume.truth_volume) == ("px", 1, 8)


def test_the_part_around_a_label_gives_the_scores_of_the_whole() -> None:
    rng = np.random.default_rng(0)
    truth, found = torch.from_numpy(rng.integers(0, 4, (2, 5, 9, 9)))
    truth[:, :, 5:] = found[:2] = 0
    names = {1: "a", 2: "b", 3: "c", 9: "d"}
    alone = score_case(Answer("a", "none", found, truth, spacing=(1, 1, 1)), names, Measures())
    far = {1: 70_001, 2: 2**31 - 1, 3: 5, 9: 9}  # a list of boxes of all ids would not fit
    moved = [sum((one == k) * v for k, v in far.items()) for one in (found, truth)]
    answer = Answer("a", "none", *moved, spacing=(1, 1, 1))
    again = score_case(answer, {far[k]: name for k, name in names.items()}, Measures())
    assert [replace(one, label=0) for one in alone] == [replace(one, label=0) for one in again]
    assert [one.dice for one in alone] == [
        overlap(found == label, truth == label)[0] for label in names
    ]


def test_tolerance_by_label() -> None:
    by_name = Measures({"spleen": 3}, default=1.0)
    assert (by_name.of("spleen"), by_name.of("liver"), Measures(0).of("liver")) == (3, 1, 0)
    with pytest.raises(ValueError, match=r"tolerance::spleen is -1; expected millimetres, 0 or mo"):
        Measures({"spleen": -1})
    with pytest.raises(ValueError, match="empty is 'zero'; expected one of exclude, one, nnunet"):
        Measures(empty="zero")


def test_a_training_measures_the_overlap_alone() -> None:
    (score,) = score_case(Answer("a", "none", cubes((1, 2, 3)), cubes((1, 2, 3))), {1: "liver"})
    assert (score.dice, score.hd95, score.unit, score.lesions) == (1, None, None, None)
