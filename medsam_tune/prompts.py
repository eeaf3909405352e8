"""Prompts of a model and of a volume, and boxes and points from masks. Tensors only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import NamedTuple

import torch
from torch import Tensor


class Prompts(NamedTuple):
    """P prompts on each of B images, of one or more kinds; all None means no prompt.

    Attributes:
        boxes: (B, P, 4) float XYXY in pixels, model frame, upper bounds exclusive.
        points: (B, P, N, 2) float XY in pixels, model frame; only together with `point_labels`.
        point_labels: (B, P, N) int, 1 = inside, 0 = outside, -1 = padding, which fills up objects
            with fewer points and does not change their masks. 2 and 3 are a box's top-left and
            bottom-right corner, for batches where only some objects have a box.
        masks: (B, P, h, w) float logits of an earlier mask, model frame; brought to (4G, 4G), where
            G is the side of the embedding. NaN for a prompt without one.
        classes: (B, P) int64 class of each object, 0..K-1, for models with learned class tokens;
            -1 leaves the tokens out.
    """

    boxes: Tensor | None = None
    points: Tensor | None = None
    point_labels: Tensor | None = None
    masks: Tensor | None = None
    classes: Tensor | None = None

    @property
    def given(self) -> dict[str, Tensor]:
        """The tensors that are not None, by name."""
        return {name: tensor for name, tensor in self._asdict().items() if tensor is not None}

    @property
    def placed(self) -> Tensor | None:
        """(B, P) bool, which prompts say where their object is; None where none does."""
        found = [] if self.boxes is None else [self.boxes.new_ones(self.boxes.shape[:2]).bool()]
        if self.point_labels is not None:
            found.append((self.point_labels >= 0).any(-1))
        if self.masks is not None:
            found.append(~self.masks[..., 0, 0].isnan())
        return torch.stack(found).any(0) if found else None

    def rows(self, index: Tensor) -> Prompts:
        """The prompts of M images; `index` (M,) int64 on any device."""
        return Prompts(**{name: x[index.to(x.device)] for name, x in self.given.items()})

    def flattened(self) -> Prompts:
        """The same as (B * P, ...): one row for each prompt."""
        return Prompts(**{name: tensor.flatten(0, 1) for name, tensor in self.given.items()})


def boxes_from_masks(
    masks: Tensor, *, jitter: float = 0.0, generator: torch.Generator | None = None
) -> Tensor:
    """Tight boxes around binary masks, optionally perturbed.

    Args:
        masks: (..., H, W) bool; an empty mask is an error.
        jitter: standard deviation of each side's shift as a share of the box side, e.g. 0.05.
        generator: source of randomness; the global one if None.

    Returns:
        (..., 4) float32 XYXY in pixels of the masks' frame, upper bounds exclusive, inside
        [0, W] x [0, H], at least one pixel wide and high.

    Raises:
        ValueError: an empty mask, naming its index.
    """
    h, w = masks.shape[-2:]
    rows, cols = masks.any(-1), masks.any(-2)  # (..., H), (..., W)
    empty = ~rows.any(-1)
    if empty.any():
        raise ValueError(f"mask {tuple(empty.nonzero()[0].tolist())} is empty; it has no box.")
    lower_x, upper_x = _bounds(cols)
    lower_y, upper_y = _bounds(rows)
    boxes = torch.stack([lower_x, lower_y, upper_x, upper_y], dim=-1).float()
    return jitter_boxes(boxes, (h, w), jitter, generator) if jitter else boxes


def jitter_boxes(
    boxes: Tensor,
    size: Sequence[int],
    jitter: float | Tensor,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Move each side of each box in or out, by a normal random share of the box's side.

    Args:
        boxes: (..., 4) float XYXY, or (..., 6) XYZXYZ, upper bounds exclusive.
        size: (H, W) of the frame, or (Z, H, W), pixels.
        jitter: standard deviation of the shift as a share of the box's width or height; one for
            all boxes, or (..., 1) float.
        generator: source of randomness; the global one if None.

    Returns:
        boxes of the same shape inside [0, W] x [0, H] (x [0, Z]), each side at least one pixel.
    """
    lower, upper = boxes.chunk(2, -1)
    extent = torch.cat([upper - lower] * 2, dim=-1)
    noise = torch.randn(boxes.shape, generator=generator, device=boxes.device)
    lower, upper = (boxes + noise * jitter * extent).chunk(2, -1)
    limit = torch.tensor([*size][::-1], dtype=lower.dtype, device=boxes.device)
    lower = torch.minimum(lower.clamp(min=0), limit - 1)
    upper = torch.minimum(torch.maximum(upper, lower + 1), limit)
    return torch.cat([lower, upper], dim=-1)


def points_in_masks(
    masks: Tensor, count: int = 1, *, generator: torch.Generator | None = None
) -> Tensor:
    """Random points from the pixels of binary masks, with replacement.

    Args:
        masks: (..., H, W) bool, or float weights of pixels; none empty.
        count: N, number of points in each.
        generator: source of randomness; the global one if None.

    Returns:
        (..., N, 2) float32 XY, centres of pixels, in the masks' frame.

    Raises:
        ValueError: an empty mask, naming its index.
    """
    weights = masks.flatten(-2).float()
    empty = ~(weights > 0).any(-1)
    if empty.any():
        raise ValueError(
            f"mask {tuple(empty.nonzero()[0].tolist())} is empty; no point lies in it."
        )
    flat = torch.multinomial(
        weights.reshape(-1, weights.shape[-1]), count, replacement=True, generator=generator
    )
    w = masks.shape[-1]
    points = torch.stack([flat % w, flat // w], -1) + 0.5
    return points.view(*masks.shape[:-2], count, 2)


@dataclass(frozen=True)
class SlicePrompts:
    """Prompts on the slices of one volume: M rows, each for one object on one slice.

    Attributes:
        slices: (M,) int64 index of the slice, ascending.
        labels: (M,) int64 label id, the mask's value in the result.
        boxes: (M, 4) float32 XYXY in the slice frame, upper bounds exclusive; NaN for a row without
            a box.
        points: (M, N, 2) float32 XY in the slice frame.
        point_labels: (M, N) int64, 1 = inside, 0 = outside, -1 = padding.
        objects: (M,) int64 number of the row's object; the rows of an object have one label.
        drawn: (M,) bool, True where the prompt was made on this very slice. Elsewhere (a 3-D box's
            rectangle) a model that knows the label may say that the object is not there.
        spread: object -> first and last slice (exclusive) that it is known to fill, or None where
            that is not known. Such an object is followed from its rows to the slices around them.
            Objects that are not in it stay on their rows.
    """

    slices: Tensor
    labels: Tensor
    boxes: Tensor
    points: Tensor
    point_labels: Tensor
    objects: Tensor
    drawn: Tensor
    spread: Mapping[int, tuple[int, int] | None] = field(default_factory=dict)

    @classmethod
    def of_boxes(
        cls,
        slices: Tensor,
        boxes: Tensor,
        labels: Tensor,
        objects: Tensor | None = None,
        drawn: bool = True,
    ) -> SlicePrompts:
        """Boxes alone; by default each label is one object.

        Args:
            slices: (M,) int64, ascending.
            boxes: (M, 4) float32.
            labels: (M,) int64.
            objects: (M,) int64.
            drawn: see the class.
        """
        count = len(slices)
        return cls(
            slices=slices,
            labels=labels,
            boxes=boxes,
            points=torch.zeros(count, 0, 2),
            point_labels=torch.zeros(count, 0, dtype=torch.int64),
            objects=labels if objects is None else objects,
            drawn=torch.full((count,), drawn),
        )

    @classmethod
    def none(cls) -> SlicePrompts:
        """No prompt at all: nothing is segmented."""
        empty = torch.empty(0, dtype=torch.int64)
        return cls.of_boxes(empty, torch.empty(0, 4), empty)

    def __len__(self) -> int:
        return len(self.slices)

    def rows(self, index: Tensor) -> SlicePrompts:
        """Some rows; `index` (R,) int64 or (M,) bool."""
        tensors = {
            one.name: getattr(self, one.name)[index] for one in fields(self) if one.name != "spread"
        }
        return replace(self, **tensors)

    @property
    def boxed(self) -> Tensor:
        """(M,) bool, True for rows with a box."""
        return ~self.boxes.isnan().any(1)

    def corners_and_points(self) -> tuple[Tensor, Tensor]:
        """All prompts as points: (M, 2 + N, 2) float32 XY, slice frame, and labels (M, 2 + N).

        A box is its two corners with the labels 2 and 3, padding has -1; see `Prompts`.
        """
        boxed = self.boxed[:, None]
        corners = torch.where(boxed, self.boxes, 0.0).unflatten(1, (2, 2))
        kinds = torch.where(boxed, torch.tensor([[2, 3]]), -1)
        return torch.cat([corners, self.points], 1), torch.cat([kinds, self.point_labels], 1)


def ellipses_in_boxes(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """The ellipse inscribed in each box: the box-only baseline of every table.

    Args:
        boxes: (..., 4) float XYXY, upper bounds exclusive.
        size: (H, W) of the frame, pixels.

    Returns:
        (..., H, W) float, positive inside the ellipse, comparable to logits.
    """
    h, w = size
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2
    radius = ((boxes[..., 2:] - boxes[..., :2]) / 2).clamp(min=0.5)
    x = torch.arange(w, device=boxes.device) + 0.5
    y = torch.arange(h, device=boxes.device) + 0.5
    dx = (x - centre[..., 0, None]) / radius[..., 0, None]  # (..., W)
    dy = (y - centre[..., 1, None]) / radius[..., 1, None]  # (..., H)
    return 1 - dx[..., None, :] ** 2 - dy[..., :, None] ** 2


def _bounds(occupied: Tensor) -> tuple[Tensor, Tensor]:
    """First occupied index and one past the last, along the last axis of (..., N) bool."""
    n = occupied.shape[-1]
    first = occupied.int().argmax(-1)
    last = n - occupied.flip(-1).int().argmax(-1)
    return first, last
