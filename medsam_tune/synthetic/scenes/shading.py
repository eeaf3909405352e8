"""Looks of objects: intensities relative to the surroundings, textures, colours."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from medsam_tune.synthetic.scenes.draw import Draw
from medsam_tune.synthetic.scenes.fields import smooth_field
from medsam_tune.synthetic.scenes.shapes import CELLS, Layers

_TEXTURES = 6


def shade(
    draw: Draw, layers: Layers, ids: Tensor, inside: Tensor, difficulty: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Colour the uppermost layers; a tenth of the scenes are projections, as in X-ray.

    Args:
        draw: source of randomness.
        layers: layers of B scenes.
        ids: (B, S, S) int64, from `paint`.
        inside: (B, K + 1, S, S) float, from `paint`.
        difficulty: strength of textures and weakness of contrasts, 0 to 1.

    Returns:
        image (B, 3, S, S) float, about 0 to 1, sharp, and transparent (B,) bool, True for
        projections, in which no object hides another.
    """
    b, size = len(ids), ids.shape[-1]
    grey, contrast = _intensities(draw, layers, 0.05 + 0.2 * (1 - difficulty))
    n = grey.shape[1]
    amount = draw.log_uniform(b, n, low=0.004, high=0.16) * max(difficulty, 0.3)
    kind = F.one_hot(draw.integer(b, n, high=_TEXTURES - 1), _TEXTURES).float()
    page = layers.is_kind("page")
    written = page[:, None] & (torch.arange(n, device=grey.device) > 0) & draw.chance(b, n, p=0.7)
    text = F.one_hot(torch.tensor(_TEXTURES - 1, device=grey.device), _TEXTURES).float()
    kind = torch.where(written[..., None], text, kind)
    amount = torch.where(written, -0.4, amount)
    plain = (page[:, None] & ~written) | draw.chance(b, n, p=0.15)
    weights = kind * torch.where(plain, 0.0, amount)[..., None]  # (B, N, T)
    coloured = draw.chance(b, p=0.25) | layers.is_kind("aerial") | layers.is_kind("cells")
    tint = 0.12 * draw.normal(b, n, 3) * (coloured & draw.chance(b, p=0.85))[:, None, None]
    flat = ids.flatten(1)

    def of_pixel(table: Tensor) -> Tensor:
        return table.gather(1, flat).view_as(ids)

    texture = _textures(draw, b, size)
    image = of_pixel(grey)
    for t in range(_TEXTURES):
        image = image + of_pixel(weights[..., t]) * texture[:, t]
    rgb = torch.stack([image + of_pixel(tint[..., c].contiguous()) for c in range(3)], 1)
    transparent = draw.chance(b, p=0.1) & ~page & ~layers.is_kind("cells")
    rays = transparent.nonzero()[:, 0]
    if len(rays):
        depth = inside[rays].clamp(0, 1).sqrt()  # thickness of each layer along a ray
        depth[:, 0] = 0
        weight = contrast[rays, : depth.shape[1]] * draw.uniform(len(rays), 1, low=0.3, high=1)
        total = torch.einsum("bk,bkhw->bhw", weight, depth)
        total = total + 0.05 * texture[rays, 1] * draw.uniform(len(rays), 1, 1)
        low, high = total.flatten(1).aminmax(dim=1)
        total = (total - low[:, None, None]) / (high - low + 1e-3)[:, None, None]
        rgb[rays] = total[:, None].expand(-1, 3, -1, -1)
    return rgb, transparent


def _intensities(draw: Draw, layers: Layers, weakest: float) -> tuple[Tensor, Tensor]:
    """(B, N) float in [0, 1], and (B, N) signed contrast of each layer to its anchor."""
    b, k = layers.anchor.shape
    n = k + 1 + CELLS
    rows = torch.arange(b, device=draw.device)
    step = draw.sign(b, n) * draw.log_uniform(b, n, low=weakest, high=0.7)
    extreme = draw.uniform(b, n)
    grey = draw.uniform(b, n)
    air = layers.is_kind("body") & draw.chance(b, p=0.8)
    paper = layers.is_kind("page") & draw.chance(b, p=0.9)
    grey[:, 0] = torch.where(air, 0.03 * draw.uniform(b), grey[:, 0])
    grey[:, 0] = torch.where(paper, draw.uniform(b, low=0.85, high=1), grey[:, 0])
    alike = draw.chance(b, p=0.25)  # scenes whose objects have one intensity
    for i in range(1, k):
        around = grey[rows, layers.anchor[:, i]]
        value = around + step[:, i]
        # Into the range by the other sign, so that the contrast is kept.
        value = torch.where((value < 0) | (value > 1), around - step[:, i], value)
        value = torch.where(extreme[:, i] < 0.08, 1.0, value)  # bone, metal
        value = torch.where(extreme[:, i] > 0.93, 0.0, value)  # air
        like = alike & (i > 2)
        value = torch.where(like, grey[rows, min(2, i)] + 0.03 * step[:, i], value)
        if i == 1:
            trunk = air & ((value < 0.15) | (value > 0.75))  # neither air nor bone
            value = torch.where(trunk, draw.uniform(b, low=0.2, high=0.7), value)
        value = torch.where(paper, grey[:, 0] - 0.25 * draw.uniform(b) ** 2, value)
        grey[:, i] = value.clamp(0, 1)
    others = grey[:, :1] + step[:, k : k + 1] * 1.2
    others = torch.where((others < 0) | (others > 1), grey[:, :1] - step[:, k : k + 1], others)
    grey[:, k:] = (others + 0.05 * draw.normal(b, n - k)).clamp(0, 1)
    return grey, step


def _textures(draw: Draw, count: int, size: int) -> Tensor:
    """(B, T, S, S) float of standard deviation about 1: grain, four scales, stripes, text."""
    fine = smooth_field(draw, count, 1, max(4, size // 3), size)
    fields = [smooth_field(draw, count, 1, cells, size) for cells in (4, 10)]
    middle = smooth_field(draw, count, 1, max(4, size // 8), size)
    angle = draw.uniform(count, 1, 1, high=3.15)
    axis = (torch.arange(size, device=draw.device) + 0.5) / size
    along = angle.cos() * axis + angle.sin() * axis[:, None] + 0.03 * fields[0][:, 0]
    waves = torch.sin(along * draw.log_uniform(count, 1, 1, low=25, high=200))
    return torch.cat([fine, *fields, middle, waves[:, None] * 1.4, _text(draw, count, size)], 1)


def _text(draw: Draw, count: int, size: int) -> Tensor:
    """(B, 1, S, S) in [0, 1]: lines of words, in columns of one scene's line height."""
    rows = draw.uniform(count, low=size / 14, high=size / 3.5)
    axis = torch.arange(size, device=draw.device) / size
    line = axis * rows[:, None]  # (B, S)
    letters = draw.uniform(count, 1, size // 2, size // 2)
    words = F.interpolate(letters, size=(size, size), mode="nearest")[:, 0]
    ink = (words > 0.35).float() * draw.uniform(count, 1, 1, low=0.5, high=1)
    gap = smooth_field(draw, count, 1, max(4, size // 5), size)[:, 0] > -1
    return (ink * gap * ((line - line.floor()) < 0.6)[..., None])[:, None]
