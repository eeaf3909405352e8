"""What training minimises is per mask, lower for better masks, and defined for empty ones."""

from __future__ import annotations

import math

import torch
from monai.losses import DiceCELoss

from medsam_tune.training.losses import ClassLoss, MaskLoss


def logits_for(masks: torch.Tensor, strength: float = 20.0) -> torch.Tensor:
    return (masks.float() * 2 - 1) * strength


def test_targets_are_shares_of_each_logits_pixels() -> None:
    masks = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    masks[0, 0, :4, :2] = True  # half of the first of four logits
    shares = torch.tensor([[[[0.5, 0.0], [0.0, 0.0]]]])
    logits = torch.randn(1, 1, 2, 2)
    expected = DiceCELoss(sigmoid=True)(logits, shares)
    assert torch.allclose(MaskLoss()(logits, masks), expected)


def test_loss_is_per_mask_and_lower_for_better_masks() -> None:
    loss = MaskLoss()
    masks = torch.zeros(2, 3, 8, 8, dtype=torch.bool)
    masks[..., 2:6, 2:6] = True
    right = logits_for(masks)
    assert float(loss(right, masks)) < 1e-3
    assert float(loss(-right, masks)) > 10
    one_wrong = right.clone()
    one_wrong[0, 0] *= -1
    expected = (5 * float(loss(right, masks)) + float(loss(-right, masks))) / 6
    assert math.isclose(float(loss(one_wrong, masks)), expected, rel_tol=1e-5)
    folded = loss(one_wrong.reshape(1, 6, 8, 8), masks.reshape(1, 6, 8, 8))
    assert torch.allclose(folded, loss(one_wrong, masks))


def test_class_loss_wants_right_masks_empty_ones_and_presence() -> None:
    loss = ClassLoss()
    masks = torch.zeros(2, 3, 8, 8, dtype=torch.bool)
    masks[0, 0, 2:6, 2:6] = True  # one class on one image, all others empty
    right, there = logits_for(masks), logits_for(masks.flatten(2).any(2))
    best = float(loss((right, there), masks))
    assert best < 1e-3
    wrong_mask, ghost, unseen = right.clone(), right.clone(), there.clone()
    wrong_mask[0, 0] *= -1
    ghost[1, 2] *= -1
    unseen[0, 0] *= -1
    for output in ((wrong_mask, there), (ghost, there), (right, unseen)):
        assert float(loss(output, masks)) > best + 0.1
    assert math.isclose(
        float(ClassLoss(presence=2.0)((right, unseen), masks)),
        20 * float(loss((right, unseen), masks)),
        rel_tol=1e-2,
    )


def test_class_loss_of_all_or_no_classes_has_gradients() -> None:
    for value in (False, True):
        logits = torch.zeros(1, 2, 4, 4, requires_grad=True)
        presence = torch.zeros(1, 2, requires_grad=True)
        masks = torch.full((1, 2, 16, 16), value)
        ClassLoss()((logits, presence), masks).backward()
        for tensor in (logits, presence):
            assert tensor.grad is not None
            assert tensor.grad.isfinite().all()
            assert float(tensor.grad.abs().sum()) > 0
