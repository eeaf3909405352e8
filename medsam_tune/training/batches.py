"""Batches of slices, as MONAI's trainer hands them to network and loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def prepare_batch(
    batch: Mapping[str, Any], device: torch.device, non_blocking: bool = False, **_: Any
) -> tuple[Tensor, Tensor, tuple[Tensor, ...], dict[str, Any]]:
    """A batch of `SliceDataset` -> what MONAI's `SupervisedTrainer` hands to network and loss.

    Args:
        batch: `image` (B, C, S, S) float in [0, 1], `masks` (B, P, S, S) bool, and `boxes`
            (B, P, 4), unless P are the classes of a model that needs no prompt.
        device: of the network.
        non_blocking: copy from pinned memory without waiting.

    Returns:
        image, masks (B, P, S, S) bool, and what else the network is called with: (boxes,), {}, or
        (), {"return_quality": True}.
    """
    image, masks = (batch[key].to(device, non_blocking=non_blocking) for key in ("image", "masks"))
    if "boxes" in batch:
        return image, masks, (batch["boxes"].to(device, non_blocking=non_blocking),), {}
    return image, masks, (), {"return_quality": True}


class MixUp:
    """`prepare_batch` for few cases: images are mixed with others of their batch, kept fainter.

    A mixed image keeps its own masks and prompts: what is asked for is the object that a box stands
    on, so a share of the other's masks would ask for what no prompt names.

    Args:
        alpha: of the Beta distribution of the share that an image keeps, at least one half.
        prob: of a batch to be mixed.

    References:
        Zhang et al., "mixup: beyond empirical risk minimization", ICLR 2018.
    """

    def __init__(self, alpha: float = 0.4, prob: float = 0.5) -> None:
        self.prob = prob
        self.shares = torch.distributions.Beta(alpha, alpha)

    def __call__(
        self, batch: Mapping[str, Any], device: torch.device, non_blocking: bool = False, **_: Any
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...], dict[str, Any]]:
        """As `prepare_batch`."""
        image, masks, prompts, options = prepare_batch(batch, device, non_blocking)
        if torch.rand(()) < self.prob:
            share = self.shares.sample((len(image), 1, 1, 1)).to(image)
            share = torch.maximum(share, 1 - share)
            image = share * image + (1 - share) * image[torch.randperm(len(image))]
        return image, masks, prompts, options
