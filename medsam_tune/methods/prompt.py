"""Tune a few tokens that stand before the user's own prompt."""

from __future__ import annotations

import torch
from segment_anything.modeling import PromptEncoder
from torch import Tensor, nn

from medsam_tune.sam.model import PromptableSam


class TokenPromptEncoder(nn.Module):
    """A prompt encoder whose sparse embeddings begin with learned tokens.

    Args:
        stock: the frozen prompt encoder.
        count: number of learned tokens.
    """

    def __init__(self, stock: PromptEncoder, count: int) -> None:
        super().__init__()
        self.stock = stock
        weight = stock.no_mask_embed.weight
        self.tokens = nn.Parameter(torch.randn(count, stock.embed_dim, device=weight.device) * 0.02)

    def forward(
        self,
        points: tuple[Tensor, Tensor] | None,
        boxes: Tensor | None,
        masks: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Sparse (N, count + T, D) and dense (N, D, h, w) embeddings; arguments as in stock."""
        sparse, dense = self.stock(points=points, boxes=boxes, masks=masks)
        return torch.cat([self.tokens.expand(sparse.shape[0], -1, -1), sparse], dim=1), dense

    def get_dense_pe(self) -> Tensor:
        """(1, D, h, w) positional encoding of the image embedding."""
        return self.stock.get_dense_pe()  # type: ignore[no-any-return]


def prompt(sam: PromptableSam, tokens: int = 10, mask_decoder: bool = False) -> None:
    """Train `tokens` vectors that the mask decoder reads before the user's prompt.

    Args:
        sam: the base, all frozen.
        tokens: how many.
        mask_decoder: train the mask decoder as well.

    Raises:
        ValueError: fewer than one token.

    References:
        Lester et al., "The Power of Scale for Parameter-Efficient Prompt Tuning", EMNLP 2021.
    """
    if tokens < 1:
        raise ValueError(f"tokens is {tokens}; expected at least 1.")
    sam.prompt_encoder = TokenPromptEncoder(sam.prompt_encoder, tokens)
    sam.mask_decoder.requires_grad_(mask_decoder)
