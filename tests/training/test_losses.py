"""What training minimises is per mask, lower for better masks, and defined for empty ones."""

from __future__ import annotations

import math
from collections.abc import Callable

import monai
import pytest
import torch
from monai.losses import DiceCELoss

from medsam_tune.sam.model import Masks
from medsam_tune.training.batches import IGNORED
from medsam_tune.training.losses import PromptLoss, loss_of_prompts, shares


def mask_loss(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """The loss of the masks alone."""
    return PromptLoss(quality=0)(Masks(logits, torch.zeros(logits.shape[:2])), masks)


def class_loss(
    logits: torch.Tensor, presence: torch.Tensor, masks: torch.Tensor, weight: float = 0.1
) -> torch.Tensor:
    """The loss of masks and presence."""
    output = Masks(logits, torch.zeros_like(presence), presence)
    return PromptLoss(quality=0, presence=weight)(output, masks)


def logits_for(masks: torch.Tensor, strength: float = 20.0) -> torch.Tensor:
    return (masks.float() * 2 - 1) * strength


def test_targets_are_shares_of_each_logits_pixels() -> None:
    masks = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    masks[0, 0, :4, :2] = True  # half of the first of four logits
    shares = torch.tensor([[[[0.5, 0.0], [0.0, 0.0]]]])
    logits = torch.randn(1, 1, 2, 2)
    expected = DiceCELoss(sigmoid=True)(logits, shares)
    assert torch.allclose(mask_loss(logits, masks), expected)


def test_loss_is_per_mask_and_lower_for_better_masks() -> None:
    loss = mask_loss
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
    loss = class_loss
    masks = torch.zeros(2, 3, 8, 8, dtype=torch.bool)
    masks[0, 0, 2:6, 2:6] = True  # one class on one image, all others empty
    right, there = logits_for(masks), logits_for(masks.flatten(2).any(2))
    best = float(loss(right, there, masks))
    assert best < 1e-3
    wrong_mask, ghost, unseen = right.clone(), right.clone(), there.clone()
    wrong_mask[0, 0] *= -1
    ghost[1, 2] *= -1
    unseen[0, 0] *= -1
    for output in ((wrong_mask, there), (ghost, there), (right, unseen)):
        assert float(loss(*output, masks)) > best + 0.1
    assert math.isclose(
        float(class_loss(right, unseen, masks, 2.0)),
        20 * float(loss(right, unseen, masks)),
        rel_tol=1e-2,
    )


def test_class_loss_of_all_or_no_classes_has_gradients() -> None:
    for value in (False, True):
        logits = torch.zeros(1, 2, 4, 4, requires_grad=True)
        presence = torch.zeros(1, 2, requires_grad=True)
        masks = torch.full((1, 2, 16, 16), value)
        class_loss(logits, presence, masks).backward()
        for tensor in (logits, presence):
            assert tensor.grad is not None
            assert tensor.grad.isfinite().all()
            assert float(tensor.grad.abs().sum()) > 0


def test_what_nobody_annotated_has_no_loss() -> None:
    masks = torch.zeros(1, 2, 16, 16, dtype=torch.uint8)
    masks[..., 2:10, 2:10] = 1
    known = masks.bool()
    masks[..., 8:] = IGNORED
    logits = torch.randn(1, 2, 8, 8, requires_grad=True)
    loss = mask_loss(logits, masks)
    loss.backward()
    assert (logits.grad[..., 4:] == 0).all()
    assert (logits.grad[..., :4] != 0).all()
    part = mask_loss(logits[..., :4], known[..., :8])
    assert torch.allclose(loss, part, atol=1e-5)
    assert torch.equal(mask_loss(logits, known.to(torch.uint8)), mask_loss(logits, known))
    assert float(mask_loss(logits, torch.full_like(masks, IGNORED)).detach()) < 1e-3


def test_a_logit_with_half_its_pixels_counts_by_them() -> None:
    masks = torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
    masks[..., :2, 0] = 1  # of the first logit: half inside, half ignored
    masks[..., :2, 1] = IGNORED
    masks[..., 2:, :2] = IGNORED
    masks[..., 2, 0] = 1  # of the third, a quarter is known
    logits = torch.tensor([[[[3.0, -3.0], [0.0, -3.0]]]], requires_grad=True)
    mask_loss(logits, masks).backward()
    assert logits.grad[0, 0, 1, 0] == 0
    assert logits.grad[0, 0, 0, 0] < 0  # towards all of it, not half


def test_presence_of_a_class_that_may_be_where_nobody_looked() -> None:
    masks = torch.zeros(1, 2, 8, 8, dtype=torch.uint8)
    masks[0, 0, 2:4, 2:4] = 1
    masks[..., 6:] = IGNORED
    logits, presence = torch.zeros(1, 2, 4, 4), torch.zeros(1, 2)
    logits.requires_grad_()
    presence.requires_grad_()
    class_loss(logits, presence, masks).backward()
    assert presence.grad[0, 0] < 0  # it is there
    assert presence.grad[0, 1] == 0  # nobody knows
    assert (logits.grad[..., 3] == 0).all()
    assert (logits.grad[0, 1, :, :3] > 0).all()


def test_quality_learns_the_overlap_of_the_masks() -> None:
    masks = torch.zeros(1, 3, 8, 8, dtype=torch.bool)
    masks[0, 0, :4] = True  # found twice as large, found exactly, absent
    masks[0, 1, :4] = True
    found = torch.zeros_like(masks)
    found[0, 0] = True
    found[0, 1, :4] = True
    found[0, 2, :2] = True
    logits = logits_for(found, 5.0)
    quality = torch.zeros(1, 3, requires_grad=True)
    PromptLoss(quality=1.0)(Masks(logits, quality), masks).backward()
    assert torch.allclose(quality.grad, -2 * torch.tensor([[0.5, 1.0, 0.0]]) / 3)
    right = torch.tensor([[0.5, 1.0, 0.3]])
    best = PromptLoss()(Masks(logits, right), masks)
    assert torch.allclose(best, mask_loss(logits, masks), atol=1e-6)
    twice = PromptLoss(quality=2.0)(Masks(logits, right + 0.5), masks)
    assert torch.allclose(twice - best, torch.tensor(2 * 0.25 * 2 / 3), atol=1e-5)


def test_quality_is_of_what_was_annotated() -> None:
    masks = torch.full((1, 1, 8, 8), IGNORED, dtype=torch.uint8)
    masks[0, 0, :4, :4] = 1
    masks[0, 0, 4:, :4] = 0
    logits = logits_for(torch.ones(1, 1, 8, 8, dtype=torch.bool))
    quality = torch.zeros(1, 1, requires_grad=True)
    PromptLoss()(Masks(logits, quality), masks).backward()
    assert torch.allclose(quality.grad, torch.tensor([[-2 * 0.5]]))


@pytest.mark.parametrize(
    "loss", [torch.nn.BCEWithLogitsLoss(), DiceCELoss(sigmoid=True)], ids=["bce", "monai"]
)
def test_a_loss_of_torch_or_monai_takes_the_place_of_that_of_masks(loss: torch.nn.Module) -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 8, 8)
    masks = torch.rand(2, 3, 32, 32) > 0.4
    target = shares(masks, logits).flatten(0, 1)[:, None]
    plain = loss(logits.flatten(0, 1)[:, None], target)
    output = Masks(logits, torch.zeros(2, 3))
    quality = PromptLoss(quality=2)(output, masks) - PromptLoss(quality=1)(output, masks)
    found = loss_of_prompts(loss)(output, masks)
    assert float(found) == pytest.approx(float(plain + quality), rel=1e-5)
    alone = PromptLoss(quality=0, presence=0, masks=loss)
    assert float(alone(output._replace(presence=torch.ones(2, 3)), masks)) == float(plain)
    own = PromptLoss()
    assert loss_of_prompts(own) is own


@pytest.mark.parametrize(
    ("loss", "options"),
    [
        (monai.losses.DiceLoss, {}),
        (monai.losses.DiceLoss, {"softmax": True}),
        (monai.losses.MaskedDiceLoss, {}),
        (monai.losses.DiceCELoss, {}),
        (monai.losses.DiceFocalLoss, {}),
        (monai.losses.TverskyLoss, {}),
        (monai.losses.HausdorffDTLoss, {}),
    ],
)
def test_a_loss_on_probabilities_is_refused(
    loss: Callable[..., torch.nn.Module], options: dict[str, bool]
) -> None:
    """MONAI leaves the sigmoid out by default, and softmax where there is one channel."""
    error = rf"{loss.__name__} has no sigmoid, .* Give monai.losses.{loss.__name__}\(sigmoid=True"
    with pytest.raises(ValueError, match=error):
        loss_of_prompts(loss(**options))
    loss_of_prompts(loss(sigmoid=True))
    loss_of_prompts(loss(other_act=torch.sigmoid))


def test_a_loss_of_monai_without_that_choice_is_taken() -> None:
    loss_of_prompts(monai.losses.FocalLoss())


def test_ignored_pixels_have_no_part_in_a_loss_of_torch() -> None:
    masks = torch.full((1, 1, 8, 8), IGNORED, dtype=torch.uint8)
    masks[..., :4] = 1
    logits = torch.zeros(1, 1, 8, 8, requires_grad=True)
    loss = loss_of_prompts(torch.nn.BCEWithLogitsLoss())(Masks(logits, torch.ones(1, 1)), masks)
    loss.backward()
    assert logits.grad is not None
    assert not logits.grad[..., 4:].any()
    assert logits.grad[..., :4].abs().min() > 0
