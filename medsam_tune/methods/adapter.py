"""Tune a small bottleneck after every encoder block."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from medsam_tune.sam.model import PromptableSam


class Adapter(nn.Module):
    """`x + up(gelu(down(x)))`, the identity at the start because `up` starts at zero.

    Args:
        width: channels C of the tokens.
        bottleneck: hidden channels.
    """

    def __init__(self, width: int, bottleneck: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, bottleneck)
        self.up = nn.Linear(bottleneck, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return x + self.up(F.gelu(self.down(x)))  # type: ignore[no-any-return]


class AdaptedBlock(nn.Module):
    """An encoder block followed by its adapter; stands in the block's place.

    Args:
        block: the frozen block, (B, G, G, C) -> (B, G, G, C).
        adapter: what follows it.
    """

    def __init__(self, block: nn.Module, adapter: Adapter) -> None:
        super().__init__()
        self.block = block
        self.adapter = adapter

    def forward(self, x: Tensor) -> Tensor:
        """(B, G, G, C) -> (B, G, G, C)."""
        return self.adapter(self.block(x))  # type: ignore[no-any-return]


def adapter(sam: PromptableSam, bottleneck: int = 64, mask_decoder: bool = False) -> None:
    """Train a bottleneck after each block of the image encoder.

    Args:
        sam: the base, all frozen.
        bottleneck: hidden channels of each adapter.
        mask_decoder: train the mask decoder as well.

    Raises:
        ValueError: a bottleneck below 1.

    References:
        Houlsby et al., "Parameter-Efficient Transfer Learning for NLP", ICML 2019.
    """
    if bottleneck < 1:
        raise ValueError(f"bottleneck is {bottleneck}; expected at least 1.")
    blocks = sam.image_encoder.blocks
    for index, block in enumerate(blocks):
        weight = block.mlp.lin1.weight
        blocks[index] = AdaptedBlock(block, Adapter(weight.shape[1], bottleneck).to(weight.device))
    sam.mask_decoder.requires_grad_(mask_decoder)
