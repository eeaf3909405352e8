"""Tuning of a few tokens that come before the user's own prompt."""

from __future__ import annotations

from medsam_tune.methods.blocks import train_mask_decoder
from medsam_tune.sam.model import LearnedTokens, PromptableSam


def prompt(sam: PromptableSam, tokens: int = 10, mask_decoder: bool = False) -> None:
    """Train `tokens` vectors that the mask decoder reads before the user's prompt.

    Args:
        sam: base, all frozen.
        tokens: number of tokens.
        mask_decoder: train the mask decoder as well.

    References:
        Lester et al., "The Power of Scale for Parameter-Efficient Prompt Tuning", EMNLP 2021.
    """
    sam.learned = learned_tokens(sam, tokens)
    if mask_decoder:
        train_mask_decoder(sam)


def learned_tokens(sam: PromptableSam, tokens: int, classes: int = 0) -> LearnedTokens:
    """New tokens for a base: SAM's "not a point" embedding plus a little noise."""
    start = sam.prompt_encoder.not_a_point_embed.weight[0].detach()
    return LearnedTokens(len(start), tokens, classes, start)
