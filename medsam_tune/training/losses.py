"""Losses of training.

Masks are bool; or uint8 with 1 inside, 0 outside, and `IGNORED` for pixels that nobody annotated,
which have no part in a loss.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from monai.losses import DiceLoss
from torch import Tensor, nn

from medsam_tune.sam.model import Masks
from medsam_tune.training.batches import IGNORED


class PromptLoss(nn.Module):
    """Loss of prompted masks, of their quality, and of the labels' presence.

    A mask has Dice plus binary cross-entropy, SAM's usual loss; an empty one, of a prompt whose
    label is absent, cross-entropy only, because Dice is not defined for it. A target at the logits'
    resolution is the share of each logit's pixels inside the mask. So the logits learn borders that
    run between pixels.

    Args:
        quality: weight of the squared error of the quality, an estimate of the mask's IoU.
        presence: weight of the cross-entropy of the presence.
        masks: loss of the masks instead of Dice plus cross-entropy, from logits (N, 1, h, w) and
            targets in [0, 1] of that shape, such as `torch.nn.BCEWithLogitsLoss()` or
            `monai.losses.DiceFocalLoss(sigmoid=True)`. It gets empty masks too; logits that are not
            counted are far outside in both.

    Raises:
        ValueError: a loss of MONAI that takes probabilities, as `monai.losses.DiceLoss()` does.

    References:
        Ma et al., "Segment anything in medical images", Nature Communications 2024; Kirillov et
        al., "Segment Anything", ICCV 2023, for the quality.
    """

    def __init__(
        self, quality: float = 1.0, presence: float = 0.1, masks: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.quality = quality
        self.presence = presence
        self.masks = masks
        if masks is not None:
            _refuse_probabilities(masks)

    def forward(self, output: Masks, masks: Tensor) -> Tensor:
        """Output of a network for B * P prompts, and masks (B, P, S, S) -> scalar.

        The scalar is a mean over all B * P. The presence of a label is not known, and has no loss,
        where it was seen nowhere and some pixels are ignored.
        """
        logits = output.logits.float().flatten(0, 1)  # (B * P, h, w)
        masks = masks.flatten(0, 1)
        target, counted = _targets(masks[:, None], logits[:, None])
        target, counted = target[:, 0], None if counted is None else counted[:, 0]
        there = (masks == 1).flatten(1).any(1)
        iou = _ious(logits.detach() > 0, target, counted)
        quality = (output.quality.float().flatten() - iou).square()
        loss = (there * self.quality * quality).mean()
        if self.masks is None:
            dice, entropy = _dices(logits, target, counted), _entropies(logits, target, counted)
            loss = loss + (there * dice + entropy).mean()
        else:
            loss = loss + self.masks(*_as_channel(logits, target, counted))
        if output.presence is not None:
            known = there | ~(masks == IGNORED).flatten(1).any(1)
            presence = output.presence.float().flatten()
            scores = F.binary_cross_entropy_with_logits(presence, there.float(), reduction="none")
            loss = loss + (scores * known).mean() * self.presence
        return loss


def _refuse_probabilities(loss: nn.Module) -> None:
    """Refuse a loss of MONAI that would take logits as probabilities, in all or in a part of it."""
    if not type(loss).__module__.startswith("monai.losses"):
        return
    for part in loss.modules():
        acts = [f"{when}{name}" for when in ("", "pre_") for name in ("sigmoid", "other_act")]
        if hasattr(part, "sigmoid") and not any(getattr(part, name, None) for name in acts):
            name = type(loss).__name__
            raise ValueError(
                f"{name} has no sigmoid, and takes the logits of masks as probabilities (softmax "
                f"does nothing to one channel). Give monai.losses.{name}(sigmoid=True)."
            )


def loss_of_prompts(loss: nn.Module) -> nn.Module:
    """A loss for the trainer: `PromptLoss` as it is, any other as `PromptLoss(masks=loss)`.

    So quality and presence are learned beside it; `PromptLoss(quality=0, presence=0, masks=loss)`
    is the loss alone.

    Raises:
        ValueError: see `PromptLoss`.
    """
    return loss if isinstance(loss, PromptLoss) else PromptLoss(masks=loss)


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
    return _dices(logits, target, counted) + _entropies(logits, target, counted)


def _dices(logits: Tensor, target: Tensor, counted: Tensor | None) -> Tensor:
    """Dice loss of each mask: (..., h, w) -> (...), over the counted logits."""
    found = logits.sigmoid()
    flat = (-1, 1, *logits.shape[-2:])
    pair = (found, target) if counted is None else (found * counted, target * counted)
    return _DICE(*(part.reshape(flat) for part in pair)).reshape(logits.shape[:-2])  # type: ignore[no-any-return]


def _ious(found: Tensor, target: Tensor, counted: Tensor | None) -> Tensor:
    """IoU of each mask: (..., h, w) bool and shares -> (...), over the counted logits."""
    inside = target >= 0.5
    if counted is not None:
        found, inside = found & counted, inside & counted
    both, either = (found & inside).sum((-1, -2)), (found | inside).sum((-1, -2))
    return both / either.clamp(min=1)


def _entropies(logits: Tensor, target: Tensor, counted: Tensor | None) -> Tensor:
    """Cross-entropy of each mask: (..., h, w) -> (...), a mean over the counted logits."""
    each = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    if counted is None:
        return each.mean((-1, -2))
    return (each * counted).sum((-1, -2)) / counted.sum((-1, -2)).clamp(min=1)


_DICE = DiceLoss(reduction="none")
_OUTSIDE = -20.0
"""Logit of what is not counted: no loss and no gradient where the target is 0."""


def _as_channel(logits: Tensor, target: Tensor, counted: Tensor | None) -> tuple[Tensor, Tensor]:
    """Logits and targets (N, h, w) -> (N, 1, h, w), without what is not counted."""
    if counted is not None:
        logits, target = logits.masked_fill(~counted, _OUTSIDE), target.masked_fill(~counted, 0)
    return logits[:, None], target[:, None]


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
