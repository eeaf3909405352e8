"""Tuning of small bottlenecks in the encoder's blocks."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from medsam_tune.methods.blocks import encoder_blocks, train_mask_decoder
from medsam_tune.sam.model import PromptableSam

PLACEMENTS = ("block", "attention", "mlp")


class Bottleneck(nn.Module):
    """Bottleneck `up(gelu(down(x)))`; `up` starts at zero.

    Args:
        width: C, number of channels of the tokens.
        hidden: number of channels in between.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, hidden)
        self.up = nn.Linear(hidden, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return self.up(F.gelu(self.down(x)))  # type: ignore[no-any-return]


class Adapted(nn.Module):
    """A frozen part of the encoder with a bottleneck after or beside it; it replaces the part.

    Args:
        base: the part, (..., C) -> (..., C).
        adapter: bottleneck whose output is added.
        parallel: give the adapter the part's input instead of its output.
    """

    def __init__(self, base: nn.Module, adapter: Bottleneck, parallel: bool) -> None:
        super().__init__()
        self.base = base
        self.adapter = adapter
        self.parallel = parallel

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        out = self.base(x)
        return out + self.adapter(x if self.parallel else out)  # type: ignore[no-any-return]


def adapter(
    sam: PromptableSam,
    bottleneck: int = 64,
    placement: str = "block",
    last_blocks: int | None = None,
    mask_decoder: bool = False,
) -> None:
    """Train a bottleneck in each block of the image encoder.

    Args:
        sam: base, all frozen.
        bottleneck: number of hidden channels of each adapter.
        placement: "block" after the whole block, "attention" after its attention, "mlp" parallel
            to its MLP.
        last_blocks: number of blocks, from the end, that get one; fewer blocks need less memory.
            All if None.
        mask_decoder: train the mask decoder as well.

    Raises:
        ValueError: an unknown placement, or more blocks than there are.

    References:
        "block": Houlsby et al., "Parameter-Efficient Transfer Learning for NLP", ICML 2019.
        "attention": Wu et al., "Medical SAM Adapter", 2023.
        "mlp": Chen et al., "AdaptFormer", NeurIPS 2022.
    """
    if placement not in PLACEMENTS:
        raise ValueError(f"placement is {placement!r}; expected one of {', '.join(PLACEMENTS)}.")
    for name, block in encoder_blocks(sam, last_blocks).items():
        weight = block.attn.proj.weight  # (C, inner)
        added = Bottleneck(weight.shape[0], bottleneck).to(weight.device)
        if placement == "block":
            sam.set_submodule(name, Adapted(block, added, parallel=False))
        elif placement == "attention":
            block.attn = Adapted(block.attn, added, parallel=False)
        else:
            block.mlp = Adapted(block.mlp, added, parallel=True)
    if mask_decoder:
        train_mask_decoder(sam)
