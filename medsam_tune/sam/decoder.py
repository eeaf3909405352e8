"""SAM's mask decoder on N (image, prompt) pairs at once, with tokens that may be absent.

Stock SAM repeats one image over its prompts, so a batch of images would need a loop. It also gives
every prompt of a batch the same number of tokens. Here the stock modules and weights are called in
the stock order. Attention runs on `scaled_dot_product_attention` and ignores padding tokens.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from segment_anything.modeling import MaskDecoder
from segment_anything.modeling.transformer import Attention as StockAttention
from torch import Tensor, nn


class DecoderAttention(nn.Module):
    """Stock SAM's decoder attention with the same names, in PyTorch's attention kernels.

    Args:
        width: D, number of channels of queries, keys and values.
        inner: number of channels within the attention.
        heads: number of attention heads; it divides `inner`.
    """

    def __init__(self, width: int, inner: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, inner)
        self.k_proj = nn.Linear(width, inner)
        self.v_proj = nn.Linear(width, inner)
        self.out_proj = nn.Linear(inner, width)

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        seen: Tensor | None = None,
        gate: Tensor | None = None,
        learned: int = 0,
    ) -> Tensor:
        """Attend from q to k, and beside it to learned tokens, as far as their gate is open.

        Args:
            q: (N, Q, D) float.
            k: (N, T, D) float.
            v: (N, T, D) float.
            seen: (N, 1, 1, T - learned) bool, False for padding keys.
            gate: (N, heads, 1, 1) float, weight of the learned tokens; None without them.
            learned: number of the keys, the last ones, that are learned tokens.

        Returns:
            (N, Q, D) float.
        """
        q, k, v = (
            projection(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection, x in ((self.q_proj, q), (self.k_proj, k), (self.v_proj, v))
        )  # (N, heads, Q or T, head width)
        if gate is None:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        else:
            own, more = slice(None, -learned), slice(-learned, None)
            out = F.scaled_dot_product_attention(q, k[:, :, own], v[:, :, own], attn_mask=seen)
            out = out + gate * F.scaled_dot_product_attention(q, k[:, :, more], v[:, :, more])
        return self.out_proj(out.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def replace_decoder_attention(decoder: MaskDecoder) -> None:
    """Replace every stock attention of a mask decoder by `DecoderAttention`; keep the weights."""
    for parent in list(decoder.modules()):
        for name, stock in list(parent.named_children()):
            if isinstance(stock, StockAttention):
                width = stock.q_proj.in_features
                with torch.device("meta"):  # the weights come from the stock attention
                    ours = DecoderAttention(width, stock.internal_dim, stock.num_heads)
                ours.load_state_dict(stock.state_dict(), assign=True)
                setattr(parent, name, ours)


def predict_masks(
    decoder: MaskDecoder,
    image: Tensor,
    image_pe: Tensor,
    sparse: Tensor,
    absent: Tensor | None = None,
    which: slice = slice(0, 1),
    learned: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Stock `MaskDecoder.predict_masks` for N (image, prompt) pairs and M of its four masks.

    Args:
        decoder: stock decoder with `DecoderAttention` (and perhaps adapted layers).
        image: (N, D, h, w) image embedding of each pair plus the dense prompt.
        image_pe: (1, D, h, w) positional encoding.
        sparse: (N, T, D) prompt tokens.
        absent: (N, T) bool, True for padding tokens; None if there are none.
        which: slice of the decoder's masks; the first is the single-mask output.
        learned: learned tokens (N, L, D) and their gates (N, layers, 2, heads), see
            `LearnedTokens`; None without them.

    Returns:
        logits (N, M, 4h, 4w), quality (N, M), and the quality token (N, D), the quality's source.
    """
    n, d, h, w = image.shape
    own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([own.expand(n, -1, -1), sparse], dim=1)
    seen = None
    if absent is not None:
        seen = F.pad(~absent, (len(own), 0), value=True)[:, None, None]  # (N, 1, 1, T)
    gates = None
    if learned is not None:
        tokens, gates = torch.cat([tokens, learned[0]], dim=1), learned[1][..., None, None]
    hidden, image = _two_way(
        decoder.transformer,
        tokens,
        image.flatten(2).transpose(1, 2),
        image_pe.flatten(2).transpose(1, 2),
        seen,
        gates,
        0 if learned is None else learned[0].shape[1],
    )
    upscaled = decoder.output_upscaling(image.transpose(1, 2).reshape(n, d, h, w))
    heads = list(decoder.output_hypernetworks_mlps)[which]
    own_tokens = hidden[:, 1 : len(own)][:, which].unbind(1)
    weights = torch.stack([head(x) for head, x in zip(heads, own_tokens, strict=True)], 1)
    logits = torch.einsum("nmd,ndhw->nmhw", weights, upscaled)
    return logits, decoder.iou_prediction_head(hidden[:, 0])[:, which], hidden[:, 0]


def _two_way(
    transformer: Any,
    tokens: Tensor,
    image: Tensor,
    image_pe: Tensor,
    seen: Tensor | None,
    gates: Tensor | None,
    learned: int,
) -> tuple[Tensor, Tensor]:
    """Stock `TwoWayTransformer`: tokens (N, T, D) and image (N, hw, D) attend to each other.

    The last `learned` tokens reach others through gates (N, layers, 2, heads, 1, 1) alone: those
    of the tokens' self-attention and of the image's attention to tokens.
    """
    queries = tokens
    for number, layer in enumerate(transformer.layers):
        among, to_image = (None, None) if gates is None else gates[:, number].unbind(1)
        if layer.skip_first_layer_pe:
            queries = layer.self_attn(queries, queries, queries, seen, among, learned)
        else:
            placed = queries + tokens
            queries = queries + layer.self_attn(placed, placed, queries, seen, among, learned)
        queries = layer.norm1(queries)
        pixels = image + image_pe
        found = layer.cross_attn_token_to_image(queries + tokens, pixels, image)
        queries = layer.norm2(queries + found)
        queries = layer.norm3(queries + layer.mlp(queries))
        found = layer.cross_attn_image_to_token(
            pixels, queries + tokens, queries, seen, to_image, learned
        )
        image = layer.norm4(image + found)
    found = transformer.final_attn_token_to_image(queries + tokens, image + image_pe, image)
    return transformer.norm_final_attn(queries + found), image
