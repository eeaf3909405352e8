"""Tokens that a method teaches the mask decoder to read."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LearnedTokens(nn.Module):
    """Tokens that the mask decoder reads beside the user's prompt, or instead of it.

    Each attention to tokens (of the tokens among each other, and of the image to them, in each
    layer of the decoder) takes the learned ones up as far as a gate is open, one for each head.
    The gates start at zero, so that an untrained model gives the base's masks.

    Where nothing but its class is asked for, a prompt's logits also have those of a linear
    classifier of the embedding. SAM's decoder knows no objects without a prompt, and the classifier
    finds where they are long before the tokens have taught it.

    Args:
        width: D, number of channels of a token.
        tokens: T, number of learned tokens for each prompt.
        layers: number of layers of the mask decoder.
        heads: number of heads of its attention.
        classes: K, number of classes with their own tokens; 0 for tokens that all prompts share.
        spread: standard deviation of the tokens' start, a float tensor; 1 if None.

    References:
        Zhang et al., "LLaMA-Adapter: Efficient Fine-tuning of Language Models with Zero-init
        Attention", ICLR 2024.
    """

    def __init__(
        self,
        width: int,
        tokens: int,
        layers: int,
        heads: int,
        classes: int = 0,
        spread: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.classes = classes
        start = torch.randn(max(classes, 1), tokens, width)
        self.tokens = nn.Parameter(start if spread is None else start.to(spread) * spread)
        self.gates = nn.Parameter(self.tokens.new_zeros(layers, 2, heads))
        if classes:
            self.present = nn.Parameter(self.tokens.new_zeros(classes, width + 1))
            self.coarse = nn.Parameter(self.tokens.new_zeros(classes, width + 1))

    def forward(self, classes: Tensor | None, count: int) -> tuple[Tensor, Tensor]:
        """The tokens of N prompts, and how far they are let in.

        Args:
            classes: (N,) int64 class of each prompt, -1 for none; None for shared tokens.
            count: N.

        Returns:
            tokens (N, T, D); gates (N, layers, 2, heads), 0 for class -1, first of the tokens'
            self-attention, then of the image's attention to tokens.
        """
        if classes is None:
            return self.tokens.expand(count, -1, -1), self.gates.expand(count, -1, -1, -1)
        known = (classes >= 0)[:, None, None, None]
        return self.tokens[classes.clamp(min=0)], self.gates * known

    def presence(self, quality_token: Tensor, classes: Tensor) -> Tensor:
        """Presence (N,) of each prompt's class, a logit; 0 for class -1.

        Args:
            quality_token: (N, D) float, from the mask decoder.
            classes: (N,) int64.
        """
        weights = self.present[classes.clamp(min=0)]  # (N, D + 1)
        score = (quality_token * weights[:, :-1]).sum(-1) + weights[:, -1]
        return score * (classes >= 0)

    def coarse_logits(self, embedding: Tensor, classes: Tensor, size: Sequence[int]) -> Tensor:
        """What a linear classifier of the embedding says of each prompt's class.

        Args:
            embedding: (B, D, G, G) float.
            classes: (B, P) int64.
            size: (h, w) of the logits.

        Returns:
            (B, P, h, w) float logits, bilinear between those of the embedding; 0 for class -1.
        """
        weights = self.coarse[classes.clamp(min=0)]  # (B, P, D + 1)
        # Contiguous, so that embeddings that were kept give the same bits as those just made.
        pixels = embedding.flatten(2).contiguous()
        found = (weights[..., :-1] @ pixels + weights[..., -1:]).unflatten(2, embedding.shape[2:])
        known = (classes >= 0)[..., None, None]
        return F.interpolate(found * known, tuple(size), mode="bilinear")
