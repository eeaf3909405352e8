"""Parameter groups for an optimizer, and the schedule of their rates."""

from __future__ import annotations

import re
from typing import Any

from monai.optimizers import WarmupCosineSchedule

from medsam_tune.sam.model import PromptableSam


def parameter_groups(
    network: PromptableSam, lr: float, layer_decay: float = 1.0, token_lr: float | None = None
) -> list[dict[str, Any]]:
    """Trained parameters for an optimizer, with a learning rate that falls towards the input.

    Args:
        network: model with a method applied.
        lr: learning rate of all parts after the encoder's blocks.
        layer_decay: factor of the rate from each block to the block before it; 1 gives one rate
            everywhere.
        token_lr: learning rate of `LearnedTokens`, which start from noise and from zero, where
            everything else starts from what SAM knows; None is `lr`.

    Returns:
        groups that depend on the network, and on whether there is a decay, but not on the rates: so
        a checkpoint of one rate is taken at any other.

    Raises:
        ValueError: a decay outside (0, 1].

    References:
        Bao et al., "BEiT", ICLR 2022; ViTDet tunes vit_b with 0.7, vit_l with 0.8, vit_h with 0.9.
    """
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay is {layer_decay}; expected more than 0 and at most 1.")
    names = {key: _BLOCK.match(key) for key, _ in network.named_parameters()}
    blocks = list(dict.fromkeys(found[0] for found in names.values() if found))
    groups: dict[tuple[bool, int], dict[str, Any]] = {}
    for key, parameter in network.named_parameters():
        if parameter.requires_grad:
            found = names[key]
            depth = len(blocks) + 1
            if found:
                depth = blocks.index(found[0]) + 1
            elif key.startswith(("image_encoder.patch_embed", "image_encoder.pos_embed")):
                depth = 0
            token = key.startswith("learned.")
            rate = lr * layer_decay ** (len(blocks) + 1 - depth)
            if token and token_lr is not None:
                rate = token_lr
            group = (token, 0 if layer_decay == 1 else depth)
            groups.setdefault(group, {"params": [], "lr": rate})["params"].append(parameter)
    return [*groups.values()]


class WarmupCosine(WarmupCosineSchedule):
    """MONAI's schedule, whose rate rises again after its last step; here it stays as it ended."""

    def lr_lambda(self, step: int) -> float:
        """Factor of the rates at a step."""
        return float(super().lr_lambda(min(step, self.t_total)))  # type: ignore[no-untyped-call]


_BLOCK = re.compile(r"image_encoder\.(?:layers\.\d+\.)?blocks\.\d+\.")
