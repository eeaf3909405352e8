"""Losses of training.

Masks are bool; or uint8 with 1 inside, 0 outside, and `IGNORED` for pixels that nobody annotated,
which have no part in a loss.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from monai.losses import DiceLoss
from torch import Tensor, nn

from medsam_tune.training.batches import IGNORED


class MaskLoss(nn.Module):
    """Dice plus binary cross-entropy of each mask, averaged over masks; SAM's usual loss.

    A target at the logits' resolution is the share of each logit's pixels inside the mask. So the
    logits learn borders that run between pixels.

    References:
        Ma et al., "Segment anything in medical images", Nature Communications 2024.
    """

    def forward(self, logits: Tensor, masks: Tensor) -> Tensor:
        """(B, P, h, w) float logits and (B, P, S, S) masks -> scalar."""
        return mask_losses(logits, *_targets(masks, logits)).mean()


def mask_losses(logits: Tensor, target: Tensor, counted: Tensor | None = None) -> Tensor:
    """Dice and cross-entropy, each with weight 1, of each mask.

    Args:
        logits: (..., h, w) float.
        target: (..., h, w) float in [0, 1].
        counted: (..., h, w) bool, the logits that have a part in the loss; all of them if None.

    Returns:
        (...) float; 0 where no logit is counted.
    """
    logits, target = logits.float(), target.expand_as(logits)
    found = logits.sigmoid()
    flat = (-1, 1, *logits.shape[-2:])
    pair = (found, target) if counted is None else (found * counted, target * counted)
    dice = _DICE(*(part.reshape(flat) for part in pair)).reshape(logits.shape[:-2])
    return dice + _entropies(logits, target, counted)  # type: ignore[no-any-return]


def _entropies(logits: Tensor, target: Tensor, counted: Tensor | None) -> Tensor:
    """Cross-entropy of each mask: (..., h, w) -> (...), a mean over the counted logits."""
    each = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    if counted is None:
        return each.mean((-1, -2))
    return (each * counted).sum((-1, -2)) / counted.sum((-1, -2)).clamp(min=1)


_DICE = DiceLoss(reduction="none")


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
        """Logits (B, K, h, w) and presence (B, K) of a network, masks (B, K, S, S) -> scalar.

        The scalar is a mean over all B * K. The presence of a class is not known, and has no loss,
        where it was seen nowhere and some pixels are ignored.
        """
        logits, presence = (x.float().flatten(0, 1) for x in output)
        masks = masks.flatten(0, 1)  # (B * K, S, S)
        there = (masks == 1).flatten(1).any(1)
        known = there | ~(masks == IGNORED).flatten(1).any(1)
        scores = F.binary_cross_entropy_with_logits(presence, there.float(), reduction="none")
        loss = (scores * known).mean() * self.presence
        if there.any():
            share = there.float().mean()
            loss = loss + share * self.mask_loss(logits[there][None], masks[there][None])
        if not there.all():
            target, counted = _targets(masks[~there][None], logits[~there][None])
            empty = _entropies(logits[~there][None], target, counted).mean()
            loss = loss + (~there).float().mean() * empty
        return loss


def _targets(masks: Tensor, logits: Tensor) -> tuple[Tensor, Tensor | None]:
    """Targets at the logits' resolution, and which logits count: those with half their pixels."""
    if masks.dtype == torch.bool:
        return shares(masks, logits), None
    seen = shares(masks != IGNORED, logits)
    return shares(masks == 1, logits) / seen.clamp(min=1e-6), seen >= 0.5


def shares(masks: Tensor, logits: Tensor) -> Tensor:
    """(B, P, S, S) bool -> (B, P, h, w) float: share of each logit's pixels inside the mask."""
    h, w = logits.shape[-2:]
    return F.adaptive_avg_pool2d(masks.float(), (h, w))
