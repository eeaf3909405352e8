"""A MONAI dictionary transform that draws the prompts of training from a mixture of kinds."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform
from torch import Tensor

from medsam_tune.prompts import boxes_from_masks, jitter_boxes, points_in_masks
from medsam_tune.sam.prompting import BOTTOM_RIGHT, INSIDE, OUTSIDE, PADDING, TOP_LEFT
from medsam_tune.training.prompting import around, label_map, object_map, one_key, sorted_ids

Data = Mapping[Hashable, Any]
KINDS = ("box", "loose", "rectangle", "interpolated", "followed", "points", "none")
"""Kinds of prompts that training draws from."""

_POINTS = 3  # most points inside or outside of an object
_CORNERS = [TOP_LEFT, BOTTOM_RIGHT]


class MixedPromptsd(RandomizableTransform, MapTransform):
    """Draw P prompts for a slice, each of a random kind and for a random label.

    The kinds are what a user may give for a slice, and what is made of it for the slices around:

    - `box`: the tight box, jittered.
    - `loose`: a box with each side moved outwards by up to a third of the box's side.
    - `rectangle`: the rectangle of the object's 3-D box.
    - `interpolated`: a box that is linear between the tight boxes of a slice below and one above.
    - `followed`: what an object is followed by from the slice before or after: the box around its
      mask there, with a margin, in half of the cases together with that mask. It may have ended.
    - `points`: one to three points inside, none to three outside.
    - `none`: the label alone; it may be absent from the slice.

    Where the label map has a second channel, the numbers of objects, a prompt is for one object of
    its label, drawn by the square root of its area; but for the kind `none`, which is the label.

    Adds `masks` (P, H, W) bool, empty where the label is absent; `labels` (P,) int64; `points` (P,
    8, 2) float32 XY in pixels of the label map; `point_labels` (P, 8) int64 (2 and 3 are a box's
    corners, 1 inside, 0 outside, -1 padding); `earlier` (P, H, W) bool, the mask of the slice
    before or after, and `has_earlier` (P,) bool; with `classes`, also `classes` (P,) int64, the
    place of the label among `labels`.

    Args:
        keys: label map (1, H, W), or (2, H, W) with numbers of objects.
        labels: K label ids.
        count: P.
        jitter: standard deviation of each box side's shift as a share of the box's side.
        mixture: kind -> weight of its probability. A kind that a slice does not allow (no label on
            it, or none on the slice before) is replaced by one that it allows.
        classes: name each prompt's class. Without, the kind `none` makes no sense and is refused.
        before: key of the label map (1, H, W) of the slice before or after; may be absent.
        extents: key of kind -> label id -> (4,) float, by how much the box of the kinds `rectangle`
            and `interpolated` is larger than the tight box on the four sides (left, top, right,
            bottom), as a share of the tight box's width and height; may be absent. Rotation and
            deformation are not applied to it.

    Raises:
        ValueError: a mixture of unknown kinds or without weight.
    """

    def __init__(
        self,
        keys: KeysCollection,
        labels: Iterable[int],
        count: int,
        jitter: float = 0.05,
        mixture: Mapping[str, float] | None = None,
        classes: bool = True,
        before: str = "before",
        extents: str = "extents",
    ) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob=1.0)
        self.key = one_key(self.keys)
        self.labels = sorted_ids(labels)
        self.count = count
        self.jitter = jitter
        self.weights = checked_mixture(mixture or {"box": 1.0}, classes)
        self.classes = classes
        self.before = before
        self.extents = extents

    def randomize(self, data: Any = None) -> None:
        """Draw the seed of the next call."""
        super().randomize(data)
        self._seed = int(self.R.randint(2**31))

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        """The dictionary with prompts; those without `classes` need a label on the slice."""
        self.randomize()
        generator = torch.Generator().manual_seed(self._seed)
        label, objects = self._slice(data, self.key), object_map(data[self.key])
        before = torch.zeros_like(label)
        if self.before in data:
            before = self._slice(data, self.before)
        there = [i for i in self.labels if bool((label == i).any())]
        earlier = [i for i in self.labels if bool((before == i).any())]
        rows = [
            self._draw(
                (label, objects), before, there, earlier, data.get(self.extents, {}), generator
            )
            for _ in range(self.count if there or self.classes else 0)
        ]
        names = ("masks", "points", "point_labels", "earlier", "has_earlier", "labels")
        found = dict(data)
        for name, values in zip(names, zip(*rows, strict=True) if rows else [[]] * 6, strict=True):
            found[name] = torch.stack([*values]) if rows else torch.zeros(0)
        if self.classes:
            found["classes"] = torch.searchsorted(torch.tensor(self.labels), found["labels"])
        return found

    def _slice(self, data: Data, key: Hashable) -> Tensor:
        """(H, W) int32 label ids."""
        found = label_map(data[key], key, self.labels)
        if found.ndim != 3:
            raise ValueError(f"{key!r} is a volume, {tuple(found.shape)}; expected (1, H, W).")
        return found[0]

    def _draw(
        self,
        label_and_objects: tuple[Tensor, Tensor | None],
        before: Tensor,
        there: list[int],
        earlier: list[int],
        extents: Mapping[str, Mapping[int, Tensor]],
        generator: torch.Generator,
    ) -> tuple[Tensor, ...]:
        label, objects = label_and_objects
        kind = self._kind(there, earlier, generator)
        among = {"none": self.labels, "followed": earlier}.get(kind, there)
        chosen = among[int(torch.randint(len(among), (1,), generator=generator))]
        mask = label == chosen
        if objects is not None and kind not in ("none", "followed"):
            mask = _one_of(mask, objects, generator)
        size = (int(label.shape[0]), int(label.shape[1]))
        points = torch.zeros(2 + 2 * _POINTS, 2)
        kinds = torch.full((2 + 2 * _POINTS,), PADDING)
        hint = torch.zeros_like(mask)
        if kind == "points":
            points[2:], kinds[2:] = _some_points(mask, generator)
        elif kind != "none":
            source = before == chosen if kind == "followed" else mask
            box = boxes_from_masks(source)
            if kind in ("rectangle", "interpolated"):
                share = extents.get(kind, {}).get(chosen, box.new_zeros(4))
                box = _expanded(box, share, size)
            elif kind == "loose":
                box = _expanded(box, torch.rand(4, generator=generator) / 3, size)
            elif kind == "followed":
                box = _expanded(box, 0.2 * torch.rand(4, generator=generator), size)
                if torch.rand((), generator=generator) < 0.5:
                    hint = source
            box = jitter_boxes(box, size, self.jitter, generator)
            points[:2], kinds[:2] = box.view(2, 2), torch.tensor(_CORNERS)
        return mask, points, kinds, hint, hint.any(), torch.tensor(chosen)

    def _kind(self, there: list[int], earlier: list[int], generator: torch.Generator) -> str:
        """A kind that the slice allows, by the weights."""
        open_to = {"none": self.classes, "followed": bool(earlier)}
        weights = [w * open_to.get(kind, bool(there)) for kind, w in self.weights.items()]
        if not any(weights):
            return "box" if there else "none"
        pick = torch.multinomial(torch.tensor(weights), 1, generator=generator)
        return list(self.weights)[int(pick)]


def _one_of(mask: Tensor, objects: Tensor, generator: torch.Generator) -> Tensor:
    """The mask of one object of a label, or of the label where no object is large enough."""
    areas = objects[mask].bincount()
    areas[:1] = 0
    if not areas.any():
        return mask
    pick = torch.multinomial(areas.double().sqrt(), 1, generator=generator)
    return mask & (objects == pick)


def checked_mixture(mixture: Mapping[str, float], classes: bool) -> dict[str, float]:
    """The weights of all kinds that have one.

    Args:
        mixture: kind -> weight.
        classes: whether the model knows labels.

    Raises:
        ValueError: an unknown kind, a weight below 0 or that is no number, no weight above 0, or
            `none` for a model that does not know labels.
    """
    for kind, weight in mixture.items():
        if kind not in KINDS:
            raise ValueError(f"mixture has {kind!r}; expected some of {', '.join(KINDS)}.")
        if type(weight) not in (int, float) or not 0 <= weight < float("inf"):
            raise ValueError(f"mixture::{kind} is {weight!r}; expected a weight, 0 or above.")
    weights = {kind: float(weight) for kind, weight in mixture.items() if weight}
    if not weights:
        raise ValueError(f"mixture is {dict(mixture)}; expected a weight above 0.")
    if not classes and "none" in weights:
        raise ValueError(
            "mixture::none is above 0, but the model does not know labels, and needs a prompt; set "
            "it to 0."
        )
    return weights


def _expanded(box: Tensor, share: Tensor, size: tuple[int, int]) -> Tensor:
    """(4,) box, each side moved outwards by a share (4,) of its length, at least a pixel wide."""
    extent = (box[2:] - box[:2]).repeat(2)
    moved = box + torch.tensor([-1.0, -1.0, 1.0, 1.0]) * share * extent
    h, w = size
    low = torch.minimum(moved[:2].clamp(min=0), torch.tensor([w - 1.0, h - 1.0]))
    high = torch.minimum(torch.maximum(moved[2:], low + 1), torch.tensor([float(w), float(h)]))
    return torch.cat([low, high])


def _some_points(mask: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(6, 2) points and their labels (6,): one to three inside, none to three outside."""
    points = torch.zeros(2 * _POINTS, 2)
    kinds = torch.full((2 * _POINTS,), PADDING)
    inside = 1 + int(torch.randint(_POINTS, (1,), generator=generator))
    outside = int(torch.randint(_POINTS + 1, (1,), generator=generator))
    points[:inside] = points_in_masks(mask, inside, generator=generator)
    kinds[:inside] = INSIDE
    near = around(mask[None])[0]
    if outside and near.any():
        points[_POINTS : _POINTS + outside] = points_in_masks(near, outside, generator=generator)
        kinds[_POINTS : _POINTS + outside] = OUTSIDE
    return points, kinds
