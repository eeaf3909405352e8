"""Everything: segment-anything's generator on our model."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from medsam_tune.errors import DataError
from medsam_tune.inference import everything
from medsam_tune.inference.everything import EverythingInferer
from medsam_tune.inference.planes import Answers
from medsam_tune.prompts import SlicePrompts

LOOSE = {"points_per_side": 4, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}


class Squares:
    """A plane on which a point answers with the square of 8 x 8 pixels that it is in."""

    def __init__(self, network, size, rules=None):
        self.size = size

    def encode(self, slices):
        return torch.zeros(len(slices), 1)

    def decode(self, embeddings, where, asked):
        logits = torch.full((len(where), *self.size), -9.0)
        for mask, point in zip(logits, asked.points[:, 0], strict=True):
            x, y = (point // 8 * 8).int().tolist()
            mask[y : y + 8, x : x + 8] = 9
        return Answers(logits, asked.points[:, 0, 0] / 100)


def network(classes=0):
    return SimpleNamespace(classes=classes, image_size=64, pixel_mean=torch.zeros(1))


def test_objects_of_a_grid_of_points(monkeypatch):
    monkeypatch.setattr(everything, "plane_for", Squares)
    image = torch.arange(32 * 24).view(1, 1, 24, 32).to(torch.uint8)
    found = EverythingInferer(**LOOSE)(image, network())
    assert len(found.objects) == 12  # each square once, though several points lie in it
    numbers = found.numbers[0]
    assert (found.labels[0] == 1).all()
    squares = numbers.unfold(0, 8, 8).unfold(1, 8, 8).flatten(2).flatten(0, 1)
    assert (squares == squares[:, :1]).all()
    assert squares[:, 0].unique().numel() == 12
    number = int(numbers[3, 12])
    assert found.objects[number - 1].quality == pytest.approx(0.12)
    few = EverythingInferer(**LOOSE | {"pred_iou_thresh": 0.15})(image, network())
    assert few.numbers[0, :, :16].max() == 0
    assert len(few.objects) == 6


def test_small_objects_lie_over_large_ones(monkeypatch):
    masks = [torch.zeros(8, 8, dtype=torch.bool) for _ in range(2)]
    masks[0][2:4, 2:4], masks[1][1:7, 1:7] = True, True
    rows = [
        {"area": int(m.sum()), "segmentation": m.numpy(), "predicted_iou": q}
        for m, q in zip(masks, (0.25, 0.5), strict=True)
    ]
    monkeypatch.setattr(EverythingInferer, "_masks", lambda *_: rows)
    found = EverythingInferer()(torch.arange(64).view(1, 1, 8, 8), network())
    assert found.numbers[0, 3].tolist() == [0, 1, 2, 2, 1, 1, 1, 0]
    assert [one.quality for one in found.objects] == [0.5, 0.25]
    with pytest.warns(UserWarning, match="no object was found.*pred_iou_thresh=0.3"):
        empty = EverythingInferer()(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), network())
    assert (empty.objects, int(empty.numbers.max())) == ((), 0)


def test_what_is_refused():
    image = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    with pytest.raises(DataError, match=r"the model knows 2 labels.*train --class-agnostic"):
        EverythingInferer()(image, network(classes=2))
    with pytest.raises(DataError, match="prompts are given, and everything is asked for"):
        EverythingInferer()(image, network(), SlicePrompts.none())
