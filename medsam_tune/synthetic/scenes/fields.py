"""Smooth random fields; they bend outlines, roughen borders and give regions texture."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from medsam_tune.synthetic.scenes.draw import Draw


def smooth_field(draw: Draw, count: int, channels: int, cells: int, size: int) -> Tensor:
    """Random fields of one correlation length.

    Args:
        draw: source of randomness.
        count: B.
        channels: C.
        cells: number of correlation lengths along a side.
        size: S, side of the square, pixels.

    Returns:
        (B, C, S, S) float, mean about 0 and standard deviation about 1.
    """
    nodes = draw.normal(count, channels, cells + 4, cells + 4)
    # Each scene gets its own shift; fixed nodes would leave the same lattice in all scenes.
    rows, columns = (_splines(draw.uniform(count, 1), cells, size)[:, None] for _ in range(2))
    return rows @ nodes @ columns.mT * 2.1


def _splines(shift: Tensor, cells: int, size: int) -> Tensor:
    """(B, S, cells + 4) weights of cubic B-splines, for nodes shifted by (B, 1) in [0, 1)."""
    place = (torch.arange(size, device=shift.device) + 0.5) * (cells / size) + 1 + shift  # (B, S)
    distance = (place[..., None] - torch.arange(cells + 4, device=shift.device)).abs()
    far = (2 - distance).clamp(min=0) ** 3 / 6
    return far - 4 * (1 - distance).clamp(min=0) ** 3 / 6


def gaussian_blur(image: Tensor, sigma: Tensor) -> Tensor:
    """Blur each image by its own width.

    Args:
        image: (B, C, H, W) float.
        sigma: (B,) standard deviations, pixels; 0 leaves an image as it is.

    Returns:
        (B, C, H, W) float; border pixels are replicated.
    """
    b, c, h, w = image.shape
    reach = 7
    offsets = torch.arange(-reach, reach + 1, device=image.device).float()
    kernel = torch.exp(-0.5 * (offsets / sigma[:, None].clamp(min=0.05)) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(c, 0)  # (B * C, taps)
    flat = F.pad(image.reshape(1, b * c, h, w), (reach,) * 4, mode="replicate")
    flat = F.conv2d(flat, kernel[:, None, :, None], groups=b * c)
    flat = F.conv2d(flat, kernel[:, None, None, :], groups=b * c)
    return flat.reshape(b, c, h, w)
