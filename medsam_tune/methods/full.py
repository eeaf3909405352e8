"""Tuning of everything except the prompt encoder."""

from __future__ import annotations

from medsam_tune.methods.blocks import train_mask_decoder
from medsam_tune.sam.model import PromptableSam


def full(sam: PromptableSam, multimask: bool = False) -> None:
    """Train the image encoder and the mask decoder.

    Args:
        sam: base, all frozen.
        multimask: train the heads of SAM's three further masks too, for a loss that uses them.

    References:
        Ma et al., "Segment anything in medical images" (MedSAM), Nature Communications 2024.
    """
    sam.image_encoder.requires_grad_(True)
    train_mask_decoder(sam, multimask)
