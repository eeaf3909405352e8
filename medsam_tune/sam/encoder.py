"""SAM's image-encoder attention on `scaled_dot_product_attention`, with separate q, k and v.

Stock SAM computes q, k and v by one fused Linear and materialises an N x N matrix of relative
positions. Here they are three Linears, so that a method can adapt q and v without k. The product
runs in PyTorch's attention kernels. The results equal those of stock SAM.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from segment_anything.modeling import ImageEncoderViT
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

_FUSED = re.compile(r"^(image_encoder\.blocks\.\d+\.attn\.)qkv\.(weight|bias)$")
_SPLIT = re.compile(r"^(image_encoder\.blocks\.\d+\.attn\.)q_proj\.(weight|bias)$")


class Attention(nn.Module):
    """Multi-head attention with decomposed relative positions, equal to stock SAM's.

    Args:
        width: C, number of channels.
        heads: number of attention heads; it divides C.
        grid: G, side of the token grid (or window) of the relative positions.

    References:
        Li et al., "Exploring Plain Vision Transformer Backbones for Object Detection" (ViTDet),
        and `segment_anything.modeling.image_encoder.Attention`.
    """

    def __init__(self, width: int, heads: int, grid: int) -> None:
        super().__init__()
        self.heads = heads
        head_width = width // heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * grid - 1, head_width))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * grid - 1, head_width))

    def forward(self, x: Tensor) -> Tensor:
        """Attend within a square grid of tokens.

        Args:
            x: (B, G, G, C) float tokens.

        Returns:
            (B, G, G, C) float tokens.
        """
        b, h, w, c = x.shape
        q, k, v = (
            f(x).view(b, h * w, self.heads, c // self.heads).transpose(1, 2)
            for f in (self.q_proj, self.k_proj, self.v_proj)
        )  # (B, heads, N, head width) each
        grid_q = q.reshape(b, self.heads, h, w, -1)
        row = torch.einsum("bnhwc,hkc->bnhwk", grid_q, _relative(self.rel_pos_h, h))
        col = torch.einsum("bnhwc,wkc->bnhwk", grid_q, _relative(self.rel_pos_w, w))
        out = _attend(q, k, v, row, col)
        return self.proj(out.transpose(1, 2).reshape(b, h, w, c))  # type: ignore[no-any-return]


def _relative(rel_pos: Tensor, size: int) -> Tensor:
    """(2 * size - 1, head width) table -> (size, size, head width), one entry per query and key."""
    steps = torch.arange(size, device=rel_pos.device)
    return rel_pos[steps[:, None] - steps[None, :] + (size - 1)]


def _attend(q: Tensor, k: Tensor, v: Tensor, row: Tensor, col: Tensor) -> Tensor:
    """Scaled dot-product attention plus relative positions, by the fastest variant.

    `benchmarks/attention.py` measures them. On a CPU the bias is faster without gradients, and
    folding with gradients, because it keeps no N x N matrix. A GPU always folds, because flash
    kernels take no bias (not measured yet).

    Args:
        q: (B, heads, N, head width) float, queries.
        k: (B, heads, N, head width) float, keys.
        v: (B, heads, N, head width) float, values.
        row: (B, heads, H, W, H) float, term of a query for each row of keys; N = H * W.
        col: (B, heads, H, W, W) float, term of a query for each column of keys.

    Returns:
        (B, heads, N, head width).
    """
    attend = _attend_folded if q.is_cuda or q.requires_grad else _attend_biased
    return attend(q, k, v, row, col)


def _attend_biased(q: Tensor, k: Tensor, v: Tensor, row: Tensor, col: Tensor) -> Tensor:
    """Relative positions as an additive (B, N, N) bias, one head at a time to save memory."""
    heads = []
    for i in range(q.shape[1]):
        bias = (row[:, i].unsqueeze(-1) + col[:, i].unsqueeze(-2)).flatten(-2).flatten(1, 2)
        heads.append(F.scaled_dot_product_attention(q[:, i], k[:, i], v[:, i], attn_mask=bias))
    return torch.stack(heads, dim=1)


def _attend_folded(q: Tensor, k: Tensor, v: Tensor, row: Tensor, col: Tensor) -> Tensor:
    """Relative positions folded into q and k: memory linear in N, in flash kernels.

    With one-hot row and column indicators appended to k, the product of (q * scale, row, col)
    and (k, one-hot row, one-hot col) is the scaled product plus both relative terms. v is padded
    because flash kernels need one width for q, k and v.
    """
    h, w = row.shape[2:4]
    width = q.shape[-1]
    eye_h = torch.eye(h, dtype=k.dtype, device=k.device).repeat_interleave(w, 0)  # (N, H)
    eye_w = torch.eye(w, dtype=k.dtype, device=k.device).repeat(h, 1)  # (N, W)
    where = torch.cat([eye_h, eye_w], -1).expand(*k.shape[:2], -1, -1)
    scaled = q * width**-0.5
    q = torch.cat([scaled, row.flatten(2, 3).to(q.dtype), col.flatten(2, 3).to(q.dtype)], -1)
    k = torch.cat([k, where], -1)
    out = F.scaled_dot_product_attention(q, k, F.pad(v, (0, h + w)), scale=1.0)
    return out[..., :width]


class ImageEncoder(ImageEncoderViT):
    """Stock SAM's ViT with `Attention` in its blocks; it takes the stock arguments.

    Attributes:
        gradient_checkpointing: recompute each block in the backward pass instead of keeping its
            activations; same gradients, a third more time, a fraction of the memory.
    """

    def __init__(self, **stock: Any) -> None:
        super().__init__(**stock)
        self.gradient_checkpointing = False
        replace_attention(self)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """`torch.compile` each block. Equal blocks share their code, so it takes seconds.

        Args:
            args: arguments of `torch.compile`.
            kwargs: arguments of `torch.compile`.
        """
        for block in self.blocks:
            block.compile(*args, **kwargs)

    def forward(self, x: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """Embed images, or do a part of it.

        Args:
            x: (B, C, S, S) normalised image; from a later block on, (B, G, G, W) tokens.
            start: first block to run.
            stop: block before which it ends; None for the end.

        Returns:
            (B, D, G, G) embedding; before a block, the tokens (B, G, G, W) that it takes.
        """
        if start == 0:
            x = self.patch_embed(x) + self.pos_embed
            x = x.contiguous()  # one layout, so that tokens that were stored give the same numbers
        for block in self.blocks[start:stop]:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        if stop is not None:
            return x
        return self.neck(x.permute(0, 3, 1, 2))  # type: ignore[no-any-return]


def replace_attention(encoder: ImageEncoderViT) -> None:
    """Replace every stock attention of an image encoder by a new `Attention`, in place."""
    for block in encoder.blocks:
        stock = block.attn
        grid = (stock.rel_pos_h.shape[0] + 1) // 2
        block.attn = Attention(stock.proj.in_features, stock.num_heads, grid).to(
            stock.proj.weight.device
        )


def split_qkv(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A stock state dict with every fused `qkv` split into `q_proj`, `k_proj`, `v_proj`.

    Args:
        state: state dict of a SAM; an already split one passes unchanged.
    """
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        found = _FUSED.match(key)
        if found is None:
            out[key] = value
            continue
        for name, part in zip(("q_proj", "k_proj", "v_proj"), value.chunk(3), strict=True):
            out[f"{found[1]}{name}.{found[2]}"] = part.clone()
    return out


def fuse_qkv(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `split_qkv`: a state dict that stock `segment_anything` loads strictly."""
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        found = _SPLIT.match(key)
        if found is not None:
            names = [f"{found[1]}{p}_proj.{found[2]}" for p in "qkv"]
            out[f"{found[1]}qkv.{found[2]}"] = torch.cat([state[name] for name in names])
        elif re.match(r"^image_encoder\.blocks\.\d+\.attn\.[kv]_proj\.", key) is None:
            out[key] = value
    return out
