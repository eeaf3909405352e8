"""Tuning of the mask decoder; everything else is frozen."""

from __future__ import annotations

from medsam_tune.methods.blocks import train_mask_decoder
from medsam_tune.sam.model import PromptableSam


def decoder(sam: PromptableSam, multimask: bool = False) -> None:
    """Train the mask decoder; the encoder runs without gradients.

    Args:
        sam: base, all frozen.
        multimask: train the heads of SAM's three further masks too, for a loss that uses them.

    References:
        MedSAM v1 (Ma et al., 2023) and mazurowski-lab/finetune-SAM.
    """
    train_mask_decoder(sam, multimask)
