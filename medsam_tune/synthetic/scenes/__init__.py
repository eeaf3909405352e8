"""Synthetic scenes to pre-train a promptable model on: images and the masks of their objects.

No real image has a part in them. They are drawn by a seed, a batch at a time, on CPU or GPU.
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

# An object of which less or more than these shares of the image is seen is not asked for, nor one
# of fewer pixels; in easy scenes the smallest is larger.
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
        seed: the same seed gives the same scenes on the same kind of device.
        count: B.
        size: S, side of the images, pixels.
        objects: P objects of each image, drawn with replacement; an object may be a part of
            another one, so that its box decides which is meant.
        device: where they are made.
        difficulty: 1 for all there is; towards 0 contrasts are stronger, objects larger, noise and
            artefacts weaker, to start from.

    Returns:
        `image` (B, 3, S, S) float32 in [0, 1], `masks` (B, P, S, S) bool, none of them empty, and
        `everything` (B, 1, S, S) bool, what is no background.
        One side of a third of the images ends early; the rest is 0, as in a padded slice.
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
    # Small ones somewhat more often, as scans and tiles have them; the largest if there is none.
    usable = usable * area.clamp(min=smallest) ** -0.25 + 1e-6 * area
    nothing = usable.sum(1) == 0
    shown[nothing, 0], usable[nothing, 0] = within[nothing], 1.0
    chosen = torch.multinomial(usable, objects, replacement=True, generator=draw.generator)
    masks = shown.gather(1, chosen[..., None, None].expand(-1, -1, size, size))
    body = shown[:, 1:].any(1, keepdim=True) | ((ids > 0) & within)[:, None]
    return {"image": image, "masks": masks, "everything": body}


def _field_of_view(draw: Draw, count: int, size: int) -> Tensor:
    """(B, S, S) bool: the whole, or all rows or columns up to a random one."""
    side = draw.uniform(count, low=0.55, high=1.0) * size
    side = torch.where(draw.chance(count, p=0.65), size, side)
    along = torch.arange(size, device=draw.device) < side[:, None]  # (B, S)
    flip = draw.chance(count, p=0.5)[:, None, None]
    return torch.where(flip, along[:, None], along[..., None])


def _candidates(layers: Layers, ids: Tensor, shapes: Tensor, transparent: Tensor) -> Tensor:
    """(B, N, S, S) bool: each object as far as it can be seen."""
    tree = descendants(layers)  # (B, N, N)
    b, n, _ = tree.shape
    seen = tree.gather(2, ids.flatten(1)[:, None].expand(-1, n, -1)).view(b, n, *ids.shape[1:])
    seen[:, LAYERS + 1] = False  # cells without a name
    rays = transparent.nonzero()[:, 0]
    if len(rays):
        seen[rays, 1 : LAYERS + 1] = shapes[rays, 1:]
        seen[rays, LAYERS + 1 :] = False
    return seen
