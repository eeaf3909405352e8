"""Batches of slices in the form of MONAI's trainer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

IGNORED = 255
"""Value of a mask's pixels that nobody annotated."""


EARLIER = 6.0
"""Logit of the inside of a mask that is given as a prompt; its outside has the negative."""


def prepare_batch(
    batch: Mapping[str, Any], device: torch.device, non_blocking: bool = False, **_: Any
) -> tuple[Tensor, Tensor, tuple[Tensor, ...], dict[str, Any]]:
    """Batch of a `SliceDataset` -> inputs of network and loss in MONAI's `SupervisedTrainer`.

    Args:
        batch: `image` (B, C, S, S) float in [0, 1], `masks` (B, P, S, S) bool, and the prompts of
            `MixedPromptsd` or of `BoxPromptsd`; `ignored` (B, 1, S, S) bool if some pixels were not
            annotated.
        device: device of the network.
        non_blocking: copy from pinned memory without waiting.

    Returns:
        image, masks (B, P, S, S), (), and the other arguments of the network. Masks are bool; with
        `ignored` uint8, and `IGNORED` there.
    """
    moved = {
        key: batch[key].to(device, non_blocking=non_blocking) for key in _TENSORS if key in batch
    }
    masks = moved["masks"]
    if "ignored" in moved:
        masks = masks.to(torch.uint8).masked_fill(moved["ignored"], IGNORED)
    asked = {key: moved[key] for key in _PROMPTS if key in moved}
    if "earlier" in moved and bool(batch["has_earlier"].any()):  # on the CPU: no wait for the GPU
        earlier = moved["earlier"].float() * (2 * EARLIER) - EARLIER
        absent = ~moved["has_earlier"][..., None, None]
        asked["masks"] = earlier.masked_fill(absent, float("nan"))
    return moved["image"], masks, (), {**asked, "return_quality": True}


_PROMPTS = ("boxes", "points", "point_labels", "classes")
_TENSORS = ("image", "masks", "ignored", "earlier", "has_earlier", *_PROMPTS)


class MixUp:
    """`prepare_batch` for few cases: mixes each image with a fainter one of its batch.

    A mixed image keeps its own masks and prompts. The other image's masks are left out, because no
    prompt names its objects.

    Args:
        alpha: parameter of the Beta distribution of the image's share, at least one half.
        prob: probability that a batch is mixed.

    References:
        Zhang et al., "mixup: beyond empirical risk minimization", ICLR 2018.
    """

    def __init__(self, alpha: float = 0.4, prob: float = 0.5) -> None:
        self.prob = prob
        self.shares = torch.distributions.Beta(alpha, alpha)

    def __call__(
        self, batch: Mapping[str, Any], device: torch.device, non_blocking: bool = False, **_: Any
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...], dict[str, Any]]:
        """Prepare a batch as `prepare_batch` does, and mix it."""
        image, masks, prompts, options = prepare_batch(batch, device, non_blocking)
        if torch.rand(()) < self.prob:
            share = self.shares.sample((len(image), 1, 1, 1)).to(image)
            share = torch.maximum(share, 1 - share)
            image = share * image + (1 - share) * image[torch.randperm(len(image))]
        return image, masks, prompts, options
