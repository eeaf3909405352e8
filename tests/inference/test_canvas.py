"""Masks are combined by their logits, in any order."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch

from medsam_tune.inference.canvas import Canvas, SeparateCanvas, smallest_type
from medsam_tune.inference.spool import Spool

SHAPE = (3, 2, 4)


def logits(*values: float) -> torch.Tensor:
    """A mask whose rows are the values."""
    return torch.tensor([values] * 2)


ROWS = [
    (1, 7, logits(-1.0, 2.0, 3.0, 0.0)),
    (1, 3, logits(-1.0, 1.0, 3.0, 0.0)),
    (1, 5, logits(-9.0, 2.0, 4.0, -1.0)),
    (2, 3, logits(1.0, -1.0, -1.0, -1.0)),
]


@pytest.mark.parametrize("order", [*permutations(range(4))])
@pytest.mark.parametrize("memory", [0, 2**20])
def test_the_highest_logit_wins_in_any_order(order: tuple[int, ...], memory: int) -> None:
    spool = Spool(memory)
    canvas = Canvas(SHAPE, {3, 5, 7}, spool)
    for z, label, mask in (ROWS[index] for index in order):
        canvas.paint(torch.tensor([z]), torch.tensor([label]), mask[None])
    assert canvas.result.tolist() == [[[0] * 4] * 2, [[0, 5, 5, 0]] * 2, [[3, 0, 0, 0]] * 2]
    assert len(spool) == 2
    canvas.finish()
    assert len(spool) == 0


def test_masks_may_come_together() -> None:
    canvas = Canvas(SHAPE, {3, 5, 7}, Spool())
    slices, labels = torch.tensor([r[0] for r in ROWS]), torch.tensor([r[1] for r in ROWS])
    canvas.paint(slices, labels, torch.stack([r[2] for r in ROWS]))
    assert canvas.result[1].tolist() == [[0, 5, 5, 0]] * 2
    assert canvas.result[2].tolist() == [[3, 0, 0, 0]] * 2


def test_of_equal_logits_the_lower_label_wins() -> None:
    for labels in ([2, 9], [9, 2]):
        canvas = Canvas(SHAPE, labels, Spool())
        for label in labels:
            canvas.paint(torch.tensor([0]), torch.tensor([label]), torch.full((1, 2, 4), 0.5))
        assert canvas.result[0].unique().tolist() == [2]
        together = Canvas(SHAPE, labels, Spool())
        together.paint(torch.tensor([0, 0]), torch.tensor(labels), torch.full((2, 2, 4), 0.5))
        assert together.result[0].unique().tolist() == [2]


def test_two_canvases_share_a_spool() -> None:
    spool = Spool()
    first, second = Canvas(SHAPE, {1}, spool), Canvas(SHAPE, {1}, spool)
    first.paint(torch.tensor([0]), torch.tensor([1]), torch.full((1, 2, 4), 9.0))
    second.paint(torch.tensor([0]), torch.tensor([1]), torch.full((1, 2, 4), 0.5))
    assert second.result[0].all()
    first.finish()
    assert len(spool) == 1


@pytest.mark.parametrize(
    ("label", "dtype"),
    [
        (255, torch.uint8),
        (256, torch.int16),
        (32767, torch.int16),
        (40_000, torch.int32),
        (2**31 - 1, torch.int32),
        (2**31, torch.int64),
    ],
)
def test_the_type_is_the_smallest_that_holds_the_ids(label: int, dtype: torch.dtype) -> None:
    assert smallest_type({1, label}) is dtype
    canvas = Canvas(SHAPE, {1, label}, Spool())
    canvas.paint(torch.tensor([2]), torch.tensor([label]), torch.ones(1, 2, 4))
    assert canvas.result.dtype is dtype
    assert canvas.result.unique().tolist() == [0, label]
    assert smallest_type([]) is torch.uint8


def test_separate_masks_overlap() -> None:
    canvas = SeparateCanvas(SHAPE, [7, 3, 5])
    for z, label, mask in ROWS:
        canvas.paint(torch.tensor([z]), torch.tensor([label]), mask[None])
    canvas.paint(torch.tensor([1]), torch.tensor([3]), logits(1.0, -1.0, -1.0, -1.0)[None])
    canvas.finish()
    assert list(canvas.result) == [3, 5, 7]
    assert canvas.result[3][1].tolist() == [[True, True, True, False]] * 2
    assert canvas.result[7][1].tolist() == [[False, True, True, False]] * 2
    assert canvas.result[3][2].tolist() == [[True, False, False, False]] * 2
    assert not canvas.result[5][2].any()
