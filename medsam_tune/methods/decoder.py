"""Tuning of the mask decoder; everything else is frozen."""

from __future__ import annotations

from medsam_tune.sam.model import PromptableSam


def decoder(sam: PromptableSam) -> None:
    """Train the whole mask decoder; the encoder runs without gradients.

    References:
        MedSAM v1 (Ma et al., 2023) and mazurowski-lab/finetune-SAM.
    """
    sam.mask_decoder.requires_grad_(True)
