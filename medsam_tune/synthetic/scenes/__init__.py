"""Synthetic scenes to pre-train a promptable model: images and the masks of their objects.

They use no real image. A seed fixes them; a batch is drawn at once, on CPU or GPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from medsam_tune.lazy import import_when_named
from medsam_tune.synthetic.scenes.artefacts import degrade
from medsam_tune.synthetic.scenes.draw import Draw
from medsam_tune.synthetic.scenes.shading import shade
from medsam_tune.synthetic.scenes.shapes import LAYERS, Layers, descendants, paint, plan_layers

import_when_named(__name__)

__all__ = ["draw_scenes"]

# Limits of an object to prompt for: visible share of the image, and pixels. The smallest share
# runs from easy scenes to difficult ones.
_SMALLEST = (0.01, 0.0002)
_LARGEST = 0.85
_PIXELS = 12


def draw_scenes(
    seed: int,
    count: int,
    size: int,
    objects: int = 8,
    device: str | torch.device = "cpu",
    difficulty: float = 1.0,
) -> dict[str, Tensor]:
    """Draw scenes and some of their objects.

    Args:
        seed: seed; it fixes the scenes on one kind of device.
        count: B, number of scenes.
        size: S, side of the images, pixels.
        objects: P, number of objects of each image, drawn with replacement; an object may be a part
            of another object.
        device: device to draw on.
        difficulty: 1 for full difficulty; towards 0 contrasts are stronger, objects larger, noise
            and artefacts weaker.

    Returns:
        `image` (B, 3, S, S) float32 in [0, 1], `masks` (B, P, S, S) bool, none empty, and
        `everything` (B, 1, S, S) bool, the whole foreground.
        A third of the images is padded with 0 on one side, like a padded slice.
    """
    draw = Draw(seed, device)
    layers = plan_layers(draw, count)
    ids, inside = paint(draw, layers, size)
    image, transparent = shade(draw, layers, ids, inside, difficulty)
    coarse = size if draw.choices.random() < 0.35 else draw.choices.randrange(size // 4, size + 1)
    image = degrade(draw, image, coarse, difficulty)
    within = _field_of_view(draw, count, size)
    image = image * within[:, None]
    shown = _candidates(layers, ids, inside > 0, transparent) & within[:, None]
    smallest = _SMALLEST[0] * (_SMALLEST[1] / _SMALLEST[0]) ** difficulty
    smallest = max(smallest, _PIXELS / size**2)
    area = shown.flatten(2).float().mean(2)  # (B, N)
    usable = (area > smallest) & (area < _LARGEST)
    # Small objects are drawn more often, as in scans and tiles; the largest if none is usable.
    usable = usable * area.clamp(min=smallest) ** -0.25 + 1e-6 * area
    nothing = usable.sum(1) == 0
    shown[nothing, 0], usable[nothing, 0] = within[nothing], 1.0
    chosen = torch.multinomial(usable, objects, replacement=True, generator=draw.generator)
    masks = shown.gather(1, chosen[..., None, None].expand(-1, -1, size, size))
    body = shown[:, 1:].any(1, keepdim=True) | ((ids > 0) & within)[:, None]
    return {"image": image, "masks": masks, "everything": body}


def _field_of_view(draw: Draw, count: int, size: int) -> Tensor:
    """(B, S, S) bool: the whole image, or all rows or columns up to a random one."""
    side = draw.uniform(count, low=0.55, high=1.0) * size
    side = torch.where(draw.chance(count, p=0.65), size, side)
    along = torch.arange(size, device=draw.device) < side[:, None]  # (B, S)
    flip = draw.chance(count, p=0.5)[:, None, None]
    return torch.where(flip, along[:, None], along[..., None])


def _candidates(layers: Layers, ids: Tensor, shapes: Tensor, transparent: Tensor) -> Tensor:
    """(B, N, S, S) bool: the visible part of each object."""
    tree = descendants(layers)  # (B, N, N)
    b, n, _ = tree.shape
    seen = tree.gather(2, ids.flatten(1)[:, None].expand(-1, n, -1)).view(b, n, *ids.shape[1:])
    seen[:, LAYERS + 1] = False  # cells without a name
    rays = transparent.nonzero()[:, 0]
    if len(rays):
        seen[rays, 1 : LAYERS + 1] = shapes[rays, 1:]
        seen[rays, LAYERS + 1 :] = False
    return seen
