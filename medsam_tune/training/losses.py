"""Losses of training."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from monai.losses import DiceLoss
from torch import Tensor, nn


class MaskLoss(nn.Module):
    """Dice plus binary cross-entropy of each mask, averaged over masks; SAM's usual loss.

    A target at the logits' resolution is the share of each logit's pixels inside the mask. So the
    logits learn borders that run between pixels.

    References:
        Ma et al., "Segment anything in medical images", Nature Communications 2024.
    """

    def forward(self, logits: Tensor, masks: Tensor) -> Tensor:
        """(B, P, h, w) float logits and (B, P, S, S) bool masks -> scalar."""
        return mask_losses(logits, shares(masks, logits)).mean()


def mask_losses(logits: Tensor, target: Tensor) -> Tensor:
    """Dice and cross-entropy, each with weight 1, of each mask.

    Args:
        logits: (..., h, w) float.
        target: (..., h, w) float in [0, 1].

    Returns:
        (...) float.
    """
    logits, target = logits.float(), target.expand_as(logits)
    flat = (-1, 1, *logits.shape[-2:])
    dice = _DICE(logits.reshape(flat), target.reshape(flat)).reshape(logits.shape[:-2])
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean((-1, -2))
    return dice + entropy  # type: ignore[no-any-return]


_DICE = DiceLoss(sigmoid=True, reduction="none")


class ClassLoss(nn.Module):
    """Loss for models that need no prompt: `MaskLoss` of present classes, and a presence loss.

    An absent class adds cross-entropy only, because Dice is not defined for an empty mask.

    Args:
        presence: weight of the cross-entropy of the presence score.
    """

    def __init__(self, presence: float = 0.1) -> None:
        super().__init__()
        self.presence = presence
        self.mask_loss = MaskLoss()

    def forward(self, output: tuple[Tensor, Tensor], masks: Tensor) -> Tensor:
        """Logits (B, K, h, w) and presence (B, K) of a network, masks (B, K, S, S) bool -> scalar.

        The scalar is a mean over all B * K.
        """
        logits, presence = (x.float().flatten(0, 1) for x in output)
        masks = masks.flatten(0, 1)  # (B * K, S, S)
        there = masks.flatten(1).any(1)
        loss = F.binary_cross_entropy_with_logits(presence, there.float()) * self.presence
        if there.any():
            share = there.float().mean()
            loss = loss + share * self.mask_loss(logits[there][None], masks[there][None])
        if not there.all():
            empty = F.binary_cross_entropy_with_logits(
                logits[~there], torch.zeros_like(logits[~there])
            )
            loss = loss + (~there).float().mean() * empty
        return loss


def shares(masks: Tensor, logits: Tensor) -> Tensor:
    """(B, P, S, S) bool -> (B, P, h, w) float: share of each logit's pixels inside the mask."""
    h, w = logits.shape[-2:]
    return F.adaptive_avg_pool2d(masks.float(), (h, w))
