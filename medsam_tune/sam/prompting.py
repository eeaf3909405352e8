"""SAM's prompt embeddings for N prompts of mixed kinds, each object with its own points."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from segment_anything.modeling import PromptEncoder
from torch import Tensor

from medsam_tune.prompts import Prompts

# Labels of points, as in SAM's own ONNX model.
PADDING, OUTSIDE, INSIDE, TOP_LEFT, BOTTOM_RIGHT = -1, 0, 1, 2, 3


def embed_prompts(
    encoder: PromptEncoder, count: int, prompts: Prompts
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Stock `PromptEncoder.forward` that also marks padding points.

    It runs in float32 even under autocast, because bfloat16 would move a point by pixels.

    Args:
        encoder: stock prompt encoder, whose weights are used.
        count: N, number of prompts.
        prompts: `flattened` prompts, N for (B, P); points and their labels come together.

    Returns:
        sparse (N, T, D), dense (N or 1, D, h, w), and absent (N, T) bool, True for tokens that the
        attention ignores, or None if there are none.
    """
    boxes, points, point_labels, masks, _classes = prompts
    tokens: list[Tensor] = []
    absent: list[Tensor] = []
    with torch.autocast(encoder.no_mask_embed.weight.device.type, enabled=False):
        kinds = torch.cat([kind.weight for kind in encoder.point_embeddings])  # (4, D)
        size = encoder.input_image_size
        if points is not None and point_labels is not None:
            places = encoder.pe_layer.forward_with_coords(points.float() + 0.5, size)
            tokens.append(places + kinds[point_labels.clamp(min=0).long()])
            absent.append(point_labels == PADDING)
            if boxes is None:  # SAM was trained with this token where there are points and no box
                tokens.append(encoder.not_a_point_embed.weight.expand(count, 1, -1))
                pointed = (point_labels == INSIDE) | (point_labels == OUTSIDE)
                boxed = (point_labels >= TOP_LEFT).any(1, keepdim=True)
                absent.append(boxed | ~pointed.any(1, keepdim=True))
        if boxes is not None:
            corners = boxes.float().reshape(count, 2, 2) + 0.5
            places = encoder.pe_layer.forward_with_coords(corners, size)
            tokens.append(places + kinds[TOP_LEFT:])
            absent.append(torch.zeros(count, 2, dtype=torch.bool, device=boxes.device))
        dense = encoder.no_mask_embed.weight[..., None, None]
        dense = dense.expand(-1, -1, *encoder.image_embedding_size)
        if masks is not None:
            h, w = encoder.image_embedding_size
            logits = F.adaptive_avg_pool2d(masks[:, None].float(), (4 * h, 4 * w))
            without = logits[:, :, :1, :1].isnan()
            dense = torch.where(without, dense, encoder.mask_downscaling(logits.nan_to_num()))
        sparse = torch.cat(tokens, 1) if tokens else kinds.new_zeros(count, 0, kinds.shape[1])
    return sparse, dense, torch.cat(absent, 1) if points is not None else None
