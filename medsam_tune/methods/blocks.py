"""Parts of any model, by name: the encoder's attention blocks, and what trains of the decoder."""

from __future__ import annotations

from typing import Any

from medsam_tune.sam.model import PromptableSam


def train_mask_decoder(sam: PromptableSam, multimask: bool = False) -> None:
    """Let the mask decoder train, as far as a loss of one mask for each prompt reaches.

    Args:
        sam: base model.
        multimask: the heads of SAM's three further masks as well.
    """
    sam.mask_decoder.requires_grad_(True)
    sam.mask_decoder.output_hypernetworks_mlps[1:].requires_grad_(multimask)


def encoder_blocks(sam: PromptableSam, last: int | None = None) -> dict[str, Any]:
    """Blocks with an `attn` and an `mlp`, in order: name in `sam` -> block.

    Args:
        sam: base model.
        last: number of blocks to take from the end; all if None.

    Raises:
        ValueError: `last` is below one or above the number of blocks.
    """
    blocks = {
        f"image_encoder.{name}": module
        for name, module in sam.image_encoder.named_modules()
        if hasattr(module, "attn") and hasattr(module, "mlp")
    }
    if last is None:
        return blocks
    if not 1 <= last <= len(blocks):
        raise ValueError(f"last_blocks is {last}; {sam.base.name} has 1 to {len(blocks)}.")
    return dict(list(blocks.items())[-last:])
