"""Number of parameters that a method trains."""

from __future__ import annotations

import torch

from medsam_tune.methods import apply_method
from medsam_tune.sam.build import build_sam


def trained_parameters(model: str, method: str) -> tuple[dict[str, int], int]:
    """Count the parameters that a method trains on a base model; no weights are needed.

    Args:
        model: key of `ARCHITECTURES`.
        method: key of `METHODS`; its default options are used.

    Returns:
        name of each trained tensor -> its number of parameters; and the number of all parameters.
    """
    with torch.device("meta"):
        tuned = apply_method(build_sam(model), method)
    sizes = {k: p.numel() for k, p in tuned.named_parameters() if p.requires_grad}
    return sizes, sum(p.numel() for p in tuned.parameters())
