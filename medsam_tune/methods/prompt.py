"""Tuning of a few tokens beside the user's own prompt."""

from __future__ import annotations

from typing import Any

import torch

from medsam_tune.methods.blocks import train_mask_decoder
from medsam_tune.sam.learned import LearnedTokens
from medsam_tune.sam.model import PromptableSam


def prompt(sam: PromptableSam, tokens: int = 10, mask_decoder: bool = False) -> None:
    """Train `tokens` vectors that the mask decoder reads beside the user's prompt.

    Their gates start at zero, see `LearnedTokens`, so that step 0 gives the base's masks.

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
    """New tokens for a base, apart from each other as its embeddings of points and boxes are."""
    kinds = torch.cat([kind.weight for kind in sam.prompt_encoder.point_embeddings])  # (4, D)
    layers: Any = sam.mask_decoder.transformer.layers
    spread = kinds.detach().std()
    return LearnedTokens(
        kinds.shape[1], tokens, len(layers), layers[0].self_attn.heads, classes, spread
    )
