"""Objects are followed from their prompted slices to the slices around them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from medsam_tune.console import tracked
from medsam_tune.inference.embedded import Batch, EmbeddedVolume
from medsam_tune.inference.planes import Answers, Asked
from medsam_tune.prompts import boxes_from_masks

CORNERS = torch.tensor([2, 3])
"""Labels of a box's corners, see `Prompts`."""


@dataclass(frozen=True)
class Propagation:
    """Rules by which an object is followed from slice to slice.

    On each next slice, the prompt is a box around the last mask. An object whose range of slices is
    known is followed to the ends of the range, and between two prompted slices to the middle, from
    both. Otherwise one of the `min_` rules or `stop_absent` ends it; the slice of the end gets no
    mask.

    Attributes:
        margin: share of its side by which the box is larger than the mask, at each side; one pixel
            comes on top.
        use_mask: let the model see the last mask's logits as well.
        min_area: smallest area of a mask, as a share of the prompted slice's mask; masks without a
            pixel end it always.
        min_quality: lowest quality of a mask, the model's estimate of its IoU, as a share of the
            prompted slice's.
        min_overlap: lowest IoU of a mask with that on the slice before.
        stop_absent: end where a model that knows the label says that it is not on the slice.

    Raises:
        ValueError: a number out of its range, or a switch that is none.
    """

    margin: float = 0.05
    use_mask: bool = True
    min_area: float = 0.05
    min_quality: float = 0.7
    min_overlap: float = 0.3
    stop_absent: bool = True

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if one.name in ("use_mask", "stop_absent"):
                fits, expected = isinstance(value, bool), "true or false"
            else:
                number = isinstance(value, (int, float)) and not isinstance(value, bool)
                fits, expected = number and 0 <= value <= 1, "a number from 0 to 1"
            if not fits:
                raise ValueError(f"propagation::{one.name} is {value!r}; expected {expected}.")


class Paintable(Protocol):
    """What masks are laid on, see `canvas.Canvas`."""

    def paint(self, slices: Tensor, labels: Tensor, logits: Tensor) -> None:
        """Lay masks over those so far."""


@dataclass
class Walk:
    """An object on its way from a prompted slice, in one direction.

    Attributes:
        label: label id of the object.
        kind: class of the label, see `Prompts`; None for a network without classes.
        canvas: place for the masks.
        at: index of the prompted slice.
        step: 1 or -1.
        left: number of slices to go.
        known: the object is known to be on all of them.
        points: (N, 2) float32 XY in the slice frame, the next prompt.
        point_labels: (N,) int64, see `Asked`.
        area: pixels of the prompted slice's mask.
        quality: quality of that mask.
        start: key of its logits in the volume's spool.
        qualities: list that gets the quality of each mask with a pixel.
        logits: (H, W) float32 of the last mask with a pixel; None before the first.
    """

    label: int
    kind: int | None
    canvas: Paintable
    at: int
    step: int
    left: int
    known: bool
    points: Tensor
    point_labels: Tensor
    area: int
    quality: float
    start: Hashable
    qualities: list[float]
    logits: Tensor | None = None


def ways(
    slices: Sequence[int], known: tuple[int, int] | None, length: int
) -> Iterator[tuple[int, int, int, bool]]:
    """The ways from an object's prompted slices to all others.

    Args:
        slices: prompted slices, ascending.
        known: first and last slice (exclusive) of the object, or None.
        length: Z, number of slices of the volume.

    Yields:
        index in `slices`, step (1 or -1), number of slices to go, and whether the object is known
        to be on them. Of an odd number between two prompted slices, the lower one gets more.
    """
    first, end = known or (0, length)
    for index, z in enumerate(slices):
        inner = [index > 0, index + 1 < len(slices)]
        below = (z - slices[index - 1] - 1) // 2 if inner[0] else z - max(first, 0)
        above = math.ceil((slices[index + 1] - z - 1) / 2) if inner[1] else min(end, length) - 1 - z
        for step, count, between in ((-1, below, inner[0]), (1, above, inner[1])):
            if count > 0:
                yield index, step, count, between or known is not None


def follow(
    volume: EmbeddedVolume,
    walks: Sequence[Walk],
    rules: Propagation,
    batch: Batch,
    progress: bool = False,
) -> None:
    """Walk all ways and paint the masks; slices of one value are passed over.

    Objects that are on the same slice in the same direction are decoded together.

    Args:
        volume: slices and their embeddings.
        walks: objects, of any number of canvases.
        rules: rules of the walk.
        batch: number of objects decoded at once.
        progress: show it on standard error.
    """
    for step, where in ((1, "up"), (-1, "down")):
        waiting: dict[int, list[Walk]] = defaultdict(list)
        for walk in walks:
            if walk.step == step and (walk.known or walk.area):
                waiting[walk.at + step].append(walk)
        order = range(len(volume))[::step]
        show = progress and bool(waiting)
        for z in tracked(order, f"follow {where}", unit="slice", show=show):
            here = waiting.pop(z, [])
            if here and volume.has_content(z):
                _ahead(volume, z, here)
                here = list(_masked(volume, z, here, rules, batch))
            for walk in here:
                walk.left -= 1
                if walk.left:
                    waiting[z + step].append(walk)


def _ahead(volume: EmbeddedVolume, z: int, walks: Sequence[Walk]) -> None:
    """Encode the slice, and in the same batch those that are certain to follow."""
    sure = max((walk.left for walk in walks if walk.known), default=1)
    step = walks[0].step
    nearest = range(z, z + step * min(sure, volume.batch.size), step)
    volume.encode(torch.tensor([y for y in nearest if volume.has_content(y)]))


def _masked(
    volume: EmbeddedVolume, z: int, walks: Sequence[Walk], rules: Propagation, batch: Batch
) -> Iterator[Walk]:
    """Paint the masks of objects on a slice; the objects that go on."""
    embedding = volume.embed(torch.tensor([z]))
    for walk in walks:
        if walk.logits is None and walk.area:
            walk.logits = volume.spool[walk.start].to(embedding.device)
    seen = [walk for walk in walks if walk.logits is not None]
    unseen = [walk for walk in walks if walk.logits is None]  # no mask so far
    for group in (seen, unseen):

        def work(part: Tensor, group: Sequence[Walk] = group) -> Answers:
            asked = _asked([group[row] for row in part.tolist()], rules)
            return volume.plane.decode(embedding, torch.zeros_like(part), asked)

        for part, answers in batch.each(torch.arange(len(group)), work):
            yield from _judged(z, [group[row] for row in part.tolist()], answers, rules)


def _asked(walks: Sequence[Walk], rules: Propagation) -> Asked:
    logits = [walk.logits for walk in walks if walk.logits is not None]
    kinds = [walk.kind for walk in walks if walk.kind is not None]
    return Asked(
        points=pad_sequence([walk.points for walk in walks], batch_first=True),
        point_labels=pad_sequence(
            [walk.point_labels for walk in walks], batch_first=True, padding_value=-1
        ),
        classes=torch.tensor(kinds) if kinds else None,
        masks=torch.stack(logits) if logits and rules.use_mask else None,
    )


def _judged(z: int, walks: Sequence[Walk], answers: Answers, rules: Propagation) -> Iterator[Walk]:
    """Paint the masks of the objects that go on, and give them their next prompts."""
    masks = answers.logits > 0
    areas = masks.flatten(1).sum(1)
    ends = _ends(walks, masks, areas, answers, rules)
    corners = around(masks, rules.margin)
    going: dict[int, list[int]] = defaultdict(list)  # canvas -> rows
    found = zip(walks, areas.tolist(), answers.quality.tolist(), strict=True)
    for row, (walk, area, quality) in enumerate(found):
        if not walk.known and ends[row]:
            continue
        going[id(walk.canvas)].append(row)
        if area:
            walk.points, walk.point_labels = corners[row], CORNERS
            walk.logits = answers.logits[row].clone()
            walk.qualities.append(quality)
        yield walk
    for rows in going.values():
        labels = torch.tensor([walks[row].label for row in rows])
        canvas = walks[rows[0]].canvas
        canvas.paint(torch.full_like(labels, z), labels, answers.logits[rows])


def _ends(
    walks: Sequence[Walk], masks: Tensor, areas: Tensor, answers: Answers, rules: Propagation
) -> list[bool]:
    """Whether each of R masks (R, H, W) bool is beyond the end of its object."""
    area, quality = torch.tensor([[walk.area, walk.quality] for walk in walks]).to(areas.device).T
    ends = (areas == 0) | (areas < rules.min_area * area)
    ends |= answers.quality < rules.min_quality * quality
    if rules.stop_absent and answers.presence is not None:
        ends |= answers.presence <= 0
    before = [walk.logits for walk in walks if walk.logits is not None]
    if before:
        last = torch.stack(before).to(masks.device) > 0
        shared, either = (masks & last).flatten(1).sum(1), (masks | last).flatten(1).sum(1)
        ends |= shared < rules.min_overlap * either
    return ends.tolist()  # type: ignore[no-any-return]


def around(masks: Tensor, margin: float) -> Tensor:
    """Corners of boxes around masks.

    Args:
        masks: (R, H, W) bool; an empty one gets a box without extent.
        margin: share of its side by which a box is larger at each side; a pixel comes on top.

    Returns:
        (R, 2, 2) float32 XY in the masks' frame, inside [0, W] x [0, H], on the CPU.
    """
    some = masks.flatten(1).any(1)
    corners = torch.zeros(len(masks), 2, 2)
    low, high = boxes_from_masks(masks[some]).cpu().view(-1, 2, 2).unbind(1)
    extra = margin * (high - low) + 1
    limit = torch.tensor([masks.shape[-1], masks.shape[-2]])
    corners[some.cpu()] = torch.stack(
        [(low - extra).clamp(min=0), torch.minimum(high + extra, limit)], 1
    )
    return corners
