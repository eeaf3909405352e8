"""Artefacts of a scanner or camera: blur, pixels, noise, shading, streaks, ghosts."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from medsam_tune.synthetic.scenes.draw import Draw
from medsam_tune.synthetic.scenes.fields import gaussian_blur, smooth_field


def degrade(draw: Draw, image: Tensor, coarse: int, difficulty: float = 1.0) -> Tensor:
    """Acquire scenes with fewer pixels, then enlarge them again.

    Args:
        draw: source of randomness.
        image: (B, 3, S, S) float, about 0 to 1, sharp.
        coarse: side of the acquired image, pixels, at most S.
        difficulty: strength of noise and artefacts, 0 to 1.

    Returns:
        (B, 3, S, S) float in [0, 1].
    """
    b, _, size, _ = image.shape
    image = _shaded(draw, image)
    sharp = draw.log_uniform(b, low=0.2, high=1.1) * (size / coarse)
    image = gaussian_blur(image, sharp.clamp(max=4))
    if coarse < size:
        image = F.interpolate(image, coarse, mode="bilinear", antialias=True)
    ghosts = _ghosts(draw, image) + _rings_and_streaks(draw, b, coarse)
    image = image + difficulty * (_noisy(draw, ghosts) - image)
    if coarse < size:
        image = F.interpolate(image, size, mode="bilinear")
    image = _windowed(draw, image)
    return (image * 255).round() / 255  # 8 bits, as in a slice store


def _some(draw: Draw, count: int, p: float) -> Tensor:
    """(B, 1, 1, 1) float, 1 with probability p."""
    return draw.chance(count, 1, 1, 1, p=p).float()


def _shaded(draw: Draw, image: Tensor) -> Tensor:
    """A coil's bias field, or uneven light."""
    b, _, size, _ = image.shape
    field = smooth_field(draw, b, 1, 2, size)
    strength = draw.uniform(b, 1, 1, 1, high=0.35) * _some(draw, b, 0.5)
    return image * torch.exp(field * strength)


def _ghosts(draw: Draw, image: Tensor) -> Tensor:
    """Motion during the acquisition: fainter copies along one side."""
    b, _, _, size = image.shape
    shift = draw.choices.randrange(2, max(3, size // 4))
    axis = draw.choices.choice((-1, -2))
    share = draw.uniform(b, 1, 1, 1, high=0.25) * _some(draw, b, 0.12)
    ghosts = (image.roll(shift, axis) + image.roll(-shift, axis)) / 2
    return image + share * (ghosts - image)


def _rings_and_streaks(draw: Draw, count: int, size: int) -> Tensor:
    """(B, 1, S, S) rings of a faulty detector element and streaks of metal in CT."""
    axis = (torch.arange(size, device=draw.device) + 0.5) / size * 2 - 1
    radius = (axis**2 + axis[:, None] ** 2).sqrt()
    profile = draw.normal(count, size) * draw.chance(count, size, p=0.3)
    place = (radius * (size / 2)).long().clamp(max=size - 1).flatten()
    rings = profile[:, place].view(count, 1, size, size)
    strong = draw.log_uniform(count, 1, 1, 1, low=0.01, high=0.08) * _some(draw, count, 0.1)
    centre = draw.uniform(count, 2, 1, 1, low=-0.6, high=0.6)
    dx, dy = axis - centre[:, 0], axis[:, None] - centre[:, 1]
    angle = torch.atan2(dy, dx)
    waves = draw.integer(count, 3, 1, 1, high=14) + 2
    phase = draw.uniform(count, 3, 1, 1, high=2 * math.pi)
    spokes = torch.sin(angle[:, None] * waves + phase).prod(1, keepdim=True)
    fade = 1 / (1 + 4 * (dx * dx + dy * dy))[:, None]
    bright = draw.uniform(count, 1, 1, 1, high=0.3) * _some(draw, count, 0.06)
    return rings * strong + spokes * fade * bright


def _noisy(draw: Draw, image: Tensor) -> Tensor:
    """Gaussian, Rician, speckle or Poisson noise; grey scenes have one channel's noise."""
    b, c, h, w = image.shape
    level = draw.log_uniform(b, 1, 1, 1, low=0.004, high=0.12)
    kind = draw.integer(b, 1, 1, 1, high=4)
    grains = torch.where(draw.chance(b, p=0.4), draw.uniform(b, low=0.4, high=1.0), 0.0)
    noise = gaussian_blur(draw.normal(b, 2, h, w), grains)
    noise = noise * (1 + 2.5 * grains.square())[:, None, None, None]  # undo the loss by the blur
    coloured = (image[:, :1] != image[:, 1:2]).flatten(1).any(1)
    channels = noise[:, :1].expand(b, c, h, w)
    if bool(coloured.any()):
        own = draw.normal(b, c, h, w)
        channels = torch.where(coloured[:, None, None, None], own, channels)
    level = torch.where(coloured[:, None, None, None], level * 0.6, level)
    plain = image + level * channels
    rician = (plain.square() + (level * noise[:, 1:]).square()).sqrt()
    speckle = image * (1 + 2 * level * channels)
    poisson = image + level * image.clamp(min=0).sqrt() * channels
    return torch.where(
        kind == 0, plain, torch.where(kind == 1, rician, torch.where(kind == 2, speckle, poisson))
    )


def _windowed(draw: Draw, image: Tensor) -> Tensor:
    """Window, gamma, sometimes inverted; clipped as a display does."""
    b = len(image)
    low = draw.uniform(b, 1, 1, 1, low=-0.05, high=0.15)
    width = draw.uniform(b, 1, 1, 1, low=0.7, high=1.15)
    image = ((image - low) / width).clamp(0, 1)
    image = image ** draw.log_uniform(b, 1, 1, 1, low=0.6, high=1.6)
    invert = _some(draw, b, 0.15)
    return image + invert * (1 - 2 * image)
