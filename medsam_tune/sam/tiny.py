"""TinyViT, the light image encoder of MobileSAM and LiteMedSAM, with separate q, k and v.

A few million parameters of convolutions and windowed attention replace SAM's ViT, for a clinic
without a GPU. Names and numbers are those of the two projects' checkpoints, except for the split of
`qkv`. (timm's TinyViT does not fit: it has other names and no neck, and it halves the resolution
before its last stage.)

References:
    Wu et al., "TinyViT: Fast Pretraining Distillation for Small Vision Transformers", ECCV 2022.
    Zhang et al., "Faster Segment Anything: Towards Lightweight SAM for Mobile Applications", 2023.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

WIDTHS = (64, 128, 160, 320)
_DEPTHS = (2, 2, 6, 2)
_HEADS = (2, 4, 5, 10)
_WINDOWS = (7, 7, 14, 7)
_STRIDES = (2, 2, 1)  # between the stages
# MobileSAM's checkpoint has a classifier that nothing calls.
_CLASSIFIER = {
    "image_encoder.norm_head.weight": (320,),
    "image_encoder.norm_head.bias": (320,),
    "image_encoder.head.weight": (1000, 320),
    "image_encoder.head.bias": (1000,),
}
_FUSED = re.compile(r"^(image_encoder\.layers\.\d+\.blocks\.\d+\.attn\.)qkv\.(weight|bias)$")
_SPLIT = re.compile(r"^(image_encoder\.layers\.\d+\.blocks\.\d+\.attn\.)([qkv])_proj\.(\w+)$")


class _ConvNorm(nn.Sequential):
    """A convolution without bias and its batch normalisation."""

    def __init__(
        self, inside: int, outside: int, kernel: int = 1, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        conv = nn.Conv2d(inside, outside, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.add_module("c", conv)
        self.add_module("bn", nn.BatchNorm2d(outside))


class _PatchEmbed(nn.Module):
    """(B, C, S, S) -> (B, D, S / reduction, S / reduction)."""

    def __init__(self, channels: int, width: int, reduction: int) -> None:
        super().__init__()
        kernel, stride = (3, 2) if reduction == 4 else (1, 1)
        self.seq = nn.Sequential(
            _ConvNorm(channels, width // 2, kernel, stride),
            nn.GELU(),
            _ConvNorm(width // 2, width, kernel, stride),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.seq(x)  # type: ignore[no-any-return]


class _InvertedBottleneck(nn.Module):
    """The convolutional block of the first stage, (B, D, H, W) -> (B, D, H, W)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = _ConvNorm(width, 4 * width)
        self.conv2 = _ConvNorm(4 * width, 4 * width, 3, groups=4 * width)
        self.conv3 = _ConvNorm(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.gelu(self.conv2(F.gelu(self.conv1(x))))
        return F.gelu(x + self.conv3(inner))


class _Merge(nn.Module):
    """Change to the width, and perhaps half the resolution, of the next stage; (B, D, H, W)."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _ConvNorm(inside, outside)
        self.conv2 = _ConvNorm(outside, outside, 3, stride, groups=outside)
        self.conv3 = _ConvNorm(outside, outside)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x)))))  # type: ignore[no-any-return]


class TinyAttention(nn.Module):
    """Multi-head attention within a window, with one learned bias for each offset of two tokens.

    Args:
        width: C, number of channels.
        heads: number of attention heads.
        window: side of the window, tokens.
    """

    offsets: Tensor

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)
        # Offsets are numbered row by row, from the corner of the window.
        self.attention_biases = nn.Parameter(torch.zeros(heads, window * window))
        place = torch.arange(window)
        apart = (place[:, None] - place[None]).abs()  # (w, w)
        offsets = apart[:, None, :, None] * window + apart[None, :, None, :]
        self.register_buffer("offsets", offsets.reshape(window**2, window**2), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, w * w, C) float -> (B, w * w, C) float."""
        x = self.norm(x)
        q, k, v = (
            projection(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        bias = self.attention_biases[:, self.offsets].to(q.dtype)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None])
        return self.proj(out.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class _Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(self.norm(x))))  # type: ignore[no-any-return]


class TinyBlock(nn.Module):
    """Windowed attention, a 3 x 3 convolution and an MLP; (B, H, W, C) -> (B, H, W, C).

    Args:
        width: C, number of channels.
        heads: number of attention heads.
        window: side of the attention's windows, tokens; the grid is padded to a multiple of it.
    """

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.attn = TinyAttention(width, heads, window)
        self.local_conv = _ConvNorm(width, width, 3, groups=width)
        self.mlp = _Mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) float -> (B, H, W, C) float."""
        _, h, w, c = x.shape
        n = self.window
        padded = F.pad(x, (0, 0, 0, -w % n, 0, -h % n))
        rows, columns = padded.shape[1] // n, padded.shape[2] // n
        windows = padded.unflatten(2, (columns, n)).unflatten(1, (rows, n)).transpose(2, 3)
        found = self.attn(windows.reshape(-1, n * n, c))
        found = found.view(-1, rows, columns, n, n, c).transpose(2, 3)
        x = x + found.reshape(padded.shape)[:, :h, :w]
        x = self.local_conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x + self.mlp(x)  # type: ignore[no-any-return]


class _Stage(nn.Module):
    """Blocks, and the step to the next stage; (B, D, H, W)."""

    def __init__(self, index: int) -> None:
        super().__init__()
        width, depth = WIDTHS[index], _DEPTHS[index]
        self.blocks = nn.ModuleList(
            TinyBlock(width, _HEADS[index], _WINDOWS[index])
            if index
            else _InvertedBottleneck(width)
            for _ in range(depth)
        )
        self.attends = index > 0
        self.downsample: nn.Module = nn.Identity()
        if index < len(_STRIDES):
            self.downsample = _Merge(width, WIDTHS[index + 1], _STRIDES[index])

    def forward(self, x: Tensor, recompute: bool) -> Tensor:
        x = x.permute(0, 2, 3, 1) if self.attends else x
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if recompute else block(x)
        x = x.permute(0, 3, 1, 2) if self.attends else x
        return self.downsample(x)  # type: ignore[no-any-return]


class TinyViT(nn.Module):
    """The image encoder of MobileSAM and LiteMedSAM.

    No weight depends on the input's size: windows have a fixed size, and there are no absolute
    positions.

    Args:
        img_size: S, side of the input, pixels.
        reduction: factor of the resolution before the first stage: 4 in MobileSAM (the embedding
            has side S/16), 1 in LiteMedSAM (S/4).
        out_chans: D, number of channels of the embedding.

    Attributes:
        gradient_checkpointing: recompute each block in the backward pass, for memory.
    """

    def __init__(self, img_size: int, reduction: int, out_chans: int = 256) -> None:
        super().__init__()
        self.img_size = img_size
        self.gradient_checkpointing = False
        self.patch_embed = _PatchEmbed(3, WIDTHS[0], reduction)
        self.layers = nn.ModuleList(_Stage(index) for index in range(len(WIDTHS)))
        self.neck = nn.Sequential(
            nn.Conv2d(WIDTHS[-1], out_chans, 1, bias=False),
            LayerNorm2d(out_chans),
            nn.Conv2d(out_chans, out_chans, 3, padding=1, bias=False),
            LayerNorm2d(out_chans),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, S, S) normalised image -> (B, D, S/16, S/16) or (B, D, S/4, S/4) embedding."""
        recompute = self.gradient_checkpointing and torch.is_grad_enabled()
        x = self.patch_embed(x)
        for stage in self.layers:
            x = stage(x, recompute)
        return self.neck(x)  # type: ignore[no-any-return]


def split_tiny(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A published state dict with `qkv` split, and without MobileSAM's unused classifier.

    The published layers hold q, k and v of the first head, then those of the next.

    Args:
        state: state dict of a whole model; an already split one passes unchanged.
    """
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        found = _FUSED.match(key)
        if found is None:
            if key not in _CLASSIFIER:
                out[key] = value
            continue
        heads = len(state[f"{found[1]}attention_biases"])
        parts = value.unflatten(0, (heads, 3, -1)).unbind(1)  # (heads, head width, ...) each
        for name, part in zip("qkv", parts, strict=True):
            out[f"{found[1]}{name}_proj.{found[2]}"] = part.flatten(0, 1).clone()
    return out


def fuse_tiny(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `split_tiny`: a state dict that the two projects' own code loads strictly.

    MobileSAM's unused classifier is filled with zeros.
    """
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        found = _SPLIT.match(key)
        if found is None:
            out[key] = value
        elif found[2] == "q":
            heads = len(state[f"{found[1]}attention_biases"])
            parts = [state[f"{found[1]}{p}_proj.{found[3]}"] for p in "qkv"]
            apart = [part.unflatten(0, (heads, -1)) for part in parts]
            out[f"{found[1]}qkv.{found[3]}"] = torch.stack(apart, 1).flatten(0, 2)
    if out["image_encoder.patch_embed.seq.0.c.weight"].shape[-1] == 3:  # MobileSAM's
        out |= {key: torch.zeros(shape) for key, shape in _CLASSIFIER.items()}
    return out
