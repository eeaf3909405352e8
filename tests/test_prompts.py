"""Boxes: tight, jittered by what is asked for, the same for every method."""

from __future__ import annotations

import math

import pytest
import torch

from medsam_tune.prompts import (
    Prompts,
    boxes_from_masks,
    ellipses_in_boxes,
    jitter_boxes,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def filled(box: tuple[int, int, int, int], size: tuple[int, int] = (8, 10)) -> torch.Tensor:
    x0, y0, x1, y1 = box
    mask = torch.zeros(size, dtype=torch.bool)
    mask[y0:y1, x0:x1] = True
    return mask


@pytest.mark.parametrize(
    "box",
    [
        pytest.param((3, 2, 6, 7), id="inside"),
        pytest.param((0, 0, 2, 3), id="top-left"),
        pytest.param((7, 5, 10, 8), id="bottom-right"),
        pytest.param((0, 0, 10, 8), id="everything"),
        pytest.param((4, 5, 5, 6), id="one-pixel"),
        pytest.param((9, 7, 10, 8), id="last-pixel"),
    ],
)
def test_box_is_tight_with_exclusive_upper_bounds(box: tuple[int, int, int, int]) -> None:
    found = boxes_from_masks(filled(box))
    assert found.dtype == torch.float32
    assert found.tolist() == list(box)


def test_box_spans_the_parts_of_a_mask_and_batches() -> None:
    parts = filled((1, 1, 2, 2)) | filled((8, 6, 9, 7))
    assert boxes_from_masks(parts).tolist() == [1, 1, 9, 7]
    masks = torch.stack([parts, filled((0, 3, 4, 5)), filled((2, 2, 3, 3))] * 2).view(2, 3, 8, 10)
    boxes = boxes_from_masks(masks)
    assert boxes.shape == (2, 3, 4)
    assert boxes[1, 1].tolist() == [0, 3, 4, 5]


def test_empty_mask_is_named() -> None:
    masks = filled((1, 1, 3, 3)).repeat(2, 3, 1, 1)
    masks[1, 2] = False
    with pytest.raises(ValueError, match=r"mask \(1, 2\) is empty; it has no box"):
        boxes_from_masks(masks)


def test_jitter_comes_from_the_generator() -> None:
    masks = filled((3, 2, 7, 7)).repeat(5, 1, 1)
    first, again, other = (
        boxes_from_masks(masks, jitter=0.1, generator=generator(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])


def test_jittered_boxes_stay_inside_and_keep_a_pixel() -> None:
    corners = torch.tensor([[0, 0, 10, 8], [0, 0, 1, 1], [9, 7, 10, 8], [4, 3, 6, 4]])
    boxes = jitter_boxes(corners.float().repeat(500, 1), (8, 10), 2.0, generator())
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= torch.tensor([10, 8])).all()
    assert (boxes[:, 2:] - boxes[:, :2] > 1 - 1e-5).all()


def test_jittered_3d_boxes_move_each_side_by_its_own_extent() -> None:
    box = torch.tensor([300.0, 400.0, 90.0, 500.0, 500.0, 110.0])  # 200, 100 and 20 long
    shift = jitter_boxes(box.repeat(4000, 1), (200, 1000, 1000), 0.05, generator()) - box
    expected = torch.tensor([10.0, 5.0, 1.0, 10.0, 5.0, 1.0])
    assert torch.allclose(shift.std(0), expected, rtol=0.05)
    wild = jitter_boxes(box.repeat(500, 1), (115, 520, 510), 5.0, generator())
    lower, upper = wild.chunk(2, -1)
    assert (lower >= 0).all()
    assert (upper <= torch.tensor([510, 520, 115])).all()
    assert (upper - lower > 1 - 1e-4).all()


def test_jitter_has_the_standard_deviation_asked_for() -> None:
    box = torch.tensor([300.0, 400.0, 500.0, 500.0])  # 200 wide, 100 high, far from the borders
    shift = jitter_boxes(box.repeat(4000, 1), (1000, 1000), 0.05, generator()) - box
    expected = torch.tensor([10.0, 5.0, 10.0, 5.0])
    # sd of a standard deviation from 4000 samples: 1.1 %
    assert torch.allclose(shift.std(0), expected, rtol=0.05)
    assert (shift.mean(0).abs() < 5 * expected / math.sqrt(4000)).all()
    assert shift.T.corrcoef().fill_diagonal_(0).abs().max() < 0.1


def test_ellipse_fills_pi_quarters_of_its_box_only() -> None:
    boxes = torch.tensor([[[10.0, 20.0, 70.0, 60.0]], [[0.0, 0.0, 100.0, 80.0]]])
    inside = ellipses_in_boxes(boxes, (80, 100)) > 0
    assert inside.shape == (2, 1, 80, 100)
    for mask, box in zip(inside[:, 0], boxes[:, 0], strict=True):
        area = float((box[2] - box[0]) * (box[3] - box[1]))
        assert int(mask.sum()) == pytest.approx(math.pi / 4 * area, rel=0.01)
        assert torch.equal(boxes_from_masks(mask), box)


def test_ellipse_of_one_pixel_is_that_pixel() -> None:
    inside = ellipses_in_boxes(torch.tensor([4.0, 5.0, 5.0, 6.0]), (8, 10)) > 0
    assert torch.equal(inside, filled((4, 5, 5, 6)))


def test_prompts_name_what_is_given_and_keep_it_together() -> None:
    points, labels = torch.rand(3, 2, 4, 2), torch.arange(24).view(3, 2, 4)
    prompts = Prompts(points=points, point_labels=labels)
    assert list(prompts.given) == ["points", "point_labels"]
    assert prompts.given["point_labels"] is labels
    assert Prompts().given == {}
    assert Prompts().flattened() == Prompts() == Prompts().rows(torch.tensor([0]))
    flat = prompts.flattened()
    assert flat.boxes is None
    assert flat.masks is None
    assert torch.equal(flat.points, points.view(6, 4, 2))
    assert torch.equal(flat.point_labels, labels.view(6, 4))
    rows = prompts.rows(torch.tensor([2, 0]))
    assert torch.equal(rows.points, points[[2, 0]])
    assert torch.equal(rows.point_labels, labels[[2, 0]])
