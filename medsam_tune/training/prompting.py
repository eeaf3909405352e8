"""MONAI dictionary transforms that choose objects of a label map and prompt for them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import (
    InvertibleTransform,
    MapTransform,
    Randomizable,
    RandomizableTransform,
    allow_missing_keys_mode,
)
from monai.utils import convert_to_tensor
from torch import Tensor

from medsam_tune.cases.checks import label_values
from medsam_tune.formats.volume import with_meta_of
from medsam_tune.prompts import boxes_from_masks, points_in_masks
from medsam_tune.sam.prompting import INSIDE, OUTSIDE, PADDING
from medsam_tune.training.randomness import share_state

Data = Mapping[Hashable, Any]


class _Promptsd(RandomizableTransform, MapTransform):
    """Choose objects of a label map; sub-classes make the prompts."""

    def __init__(
        self, keys: KeysCollection, labels: Iterable[int] | None, count: int | None
    ) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob=1.0)
        self.key = one_key(self.keys)
        if count is not None and count < 1:
            raise ValueError(f"count is {count}; expected at least 1, or None for every object.")
        self.labels = None if labels is None else sorted_ids(labels)
        self.count = count

    def randomize(self, data: Any = None) -> None:
        """Draw the seed of the next call."""
        super().randomize(data)
        self._seed = int(self.R.randint(2**31))

    def _generator(self) -> torch.Generator:
        self.randomize()
        return torch.Generator().manual_seed(self._seed)

    def _chosen(self, data: Data, generator: torch.Generator) -> dict[Hashable, Any]:
        """The dictionary with `masks`, `labels` and, for a volume, `slices` of the objects."""
        found = dict(data)
        if "masks" in found:
            return found
        label = found[self.key]
        planes = label_map(label, self.key, self.labels)
        volume = planes.ndim == 4
        planes = planes[0].movedim(-1, 0) if volume else planes  # (D or 1, H, W)
        pairs = [(k, i) for k, plane in enumerate(planes) for i in self._present(plane)]
        if self.count is not None and pairs:
            picks = torch.randint(len(pairs), (self.count,), generator=generator)
            pairs = [pairs[pick] for pick in picks.tolist()]
        masks = [planes[k] == i for k, i in pairs]
        none = planes.new_zeros((0, *planes.shape[1:]), dtype=torch.bool)
        found["masks"] = torch.stack(masks) if masks else none
        found["labels"] = torch.tensor([i for _, i in pairs], dtype=torch.int64)
        if volume:
            found["slices"] = torch.tensor([k for k, _ in pairs], dtype=torch.int64)
        else:  # the label's trace, so that transforms of the masks can be inverted
            found["masks"] = with_meta_of(label, found["masks"])
        return found

    def _present(self, plane: Tensor) -> list[int]:
        there = label_values(plane[..., None])  # (H, W, 1), counted in one piece
        return [i for i in there if i > 0 and (self.labels is None or i in self.labels)]


class BoxPromptsd(_Promptsd):
    """Choose objects of a label map, and draw a jittered box around each.

    Adds `masks` (P, H, W) bool, `labels` (P,) int64 and `boxes` (P, 4) float32 XYXY in pixels of
    the label map, x along W, y along H, upper bounds exclusive. An object is a label in a slice. A
    slice without objects gives P = 0 and no error. If an earlier transform made `masks`, these get
    the boxes and none are chosen.

    Args:
        keys: label map (1, H, W); or (1, H, W, D), slices stacked along the last axis, which adds
            `slices` (P,) int64, the slice of each object.
        labels: ids to take objects from; all above 0 if None.
        count: P, drawn with replacement, so that samples make a batch. None takes every object
            once, by slice and then by ascending id.
        jitter: standard deviation of each box side's shift as a share of the box's side.

    References:
        Ma et al., "Segment anything in medical images", Nature Communications 2024; it moves each
        side by 0 to 20 pixels of 1024.
    """

    def __init__(
        self,
        keys: KeysCollection,
        labels: Iterable[int] | None = None,
        count: int | None = None,
        jitter: float = 0.05,
    ) -> None:
        super().__init__(keys, labels, count)
        self.jitter = jitter

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        """The dictionary with boxes."""
        generator = self._generator()
        found = self._chosen(data, generator)
        masks = _masks(found)
        boxes = torch.zeros(0, 4)
        if len(masks):
            boxes = boxes_from_masks(masks.cpu(), jitter=self.jitter, generator=generator)
        found["boxes"] = boxes.to(masks.device)
        return found


class PointPromptsd(_Promptsd):
    """Choose objects of a label map, and draw points inside and outside of each.

    Adds `masks` and `labels` as `BoxPromptsd` does, `points` (P, N, 2) float32 XY, centres of
    pixels of the label map, and `point_labels` (P, N) int64: 1 inside, 0 outside, -1 padding, if
    an object leaves no room outside of it.

    Args:
        keys: label map, see `BoxPromptsd`.
        labels: ids to take objects from; all above 0 if None.
        count: P, drawn with replacement; None takes every object once.
        inside: number of points drawn from the object.
        outside: number of points drawn around it, within its box plus a margin of half a side.

    References:
        Kirillov et al., "Segment Anything", ICCV 2023.
    """

    def __init__(
        self,
        keys: KeysCollection,
        labels: Iterable[int] | None = None,
        count: int | None = None,
        inside: int = 1,
        outside: int = 0,
    ) -> None:
        super().__init__(keys, labels, count)
        if inside < 1 or outside < 0:
            raise ValueError(f"points: {inside} inside, {outside} outside; expected at least 1, 0.")
        self.inside = inside
        self.outside = outside

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        """The dictionary with points."""
        generator = self._generator()
        found = self._chosen(data, generator)
        masks = _masks(found).cpu()
        count = self.inside + self.outside
        points = torch.zeros(len(masks), count, 2)
        kinds = torch.full((len(masks), count), PADDING, dtype=torch.int64)
        if len(masks):
            points[:, : self.inside] = points_in_masks(masks, self.inside, generator=generator)
            kinds[:, : self.inside] = INSIDE
            near = around(masks)
            there = near.flatten(1).any(1)
            if self.outside and there.any():
                points[there, self.inside :] = points_in_masks(
                    near[there], self.outside, generator=generator
                )
                kinds[there, self.inside :] = OUTSIDE
        device = found["masks"].device
        found["points"], found["point_labels"] = points.to(device), kinds.to(device)
        return found


class KeepObjectsd(Randomizable, MapTransform, InvertibleTransform):
    """Augment, unless that moves all objects out of the slice; then keep the original.

    The inverse inverts the augmentation, where it was kept.

    Args:
        keys: label map (1, H, W).
        transform: augmentation of the whole dictionary, one dictionary in and one out. A lazy one
            is put into a `Compose(..., lazy=True)` of its own.
        labels: ids of the objects; all above 0 if None.
    """

    def __init__(
        self,
        keys: KeysCollection,
        transform: Callable[[Any], Any],
        labels: Iterable[int] | None = None,
    ) -> None:
        super().__init__(keys)
        self.key = one_key(self.keys)
        self.transform = transform
        self.labels = None if labels is None else sorted_ids(labels)

    def set_random_state(
        self, seed: int | None = None, state: np.random.RandomState | None = None
    ) -> KeepObjectsd:
        """Set the randomness of the augmentation: a seed of its own, or the generator given."""
        super().set_random_state(seed, state)
        if state is not None:
            share_state(self.transform, state)
        elif isinstance(self.transform, Randomizable):
            self.transform.set_random_state(seed=int(self.R.randint(2**31)))
        return self

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        """The dictionary, augmented or original."""
        # Copies: some of MONAI's transforms write into their input.
        moved = self.transform({key: _copied(value) for key, value in data.items()})
        if not isinstance(moved, Mapping):
            raise TypeError(
                f"{type(self.transform).__name__} gives a {type(moved).__name__}; expected one "
                "dictionary. Put transforms that give several outside of KeepObjectsd."
            )
        if getattr(moved[self.key], "pending_operations", None):
            raise ValueError("the augmentation is lazy; put it into a Compose(..., lazy=True).")
        kept = self._any(moved) or not self._any(data)
        found = dict(moved if kept else data)
        for key, value in found.items():
            if isinstance(value, MetaTensor):
                value = value if kept else value.clone()
                found[key] = self.push_transform(value, extra_info={"kept": kept})  # type: ignore[no-untyped-call]
        return found

    def inverse(self, data: Data) -> dict[Hashable, Any]:
        """The dictionary before the augmentation."""
        found = dict(data)
        kept = [
            self.pop_transform(value)["extra_info"]["kept"]
            for value in found.values()
            if isinstance(value, MetaTensor) and value.applied_operations
        ]
        if any(kept) and isinstance(self.transform, InvertibleTransform):
            with allow_missing_keys_mode(self.transform):  # type: ignore[arg-type]
                return dict(self.transform.inverse(found))
        return found

    def _any(self, data: Data) -> bool:
        label = label_map(data[self.key], self.key, self.labels)
        if self.labels is None:
            return bool((label > 0).any())
        return any(bool((label == i).any()) for i in self.labels)


class IgnoredPixelsd(MapTransform):
    """Find the pixels that nobody annotated, which have no part in the loss.

    Adds `ignored` (1, H, W) bool, unless `ignore` is None.

    Args:
        keys: label map (1, H, W).
        ignore: id of those pixels; None if all are annotated.
    """

    def __init__(self, keys: KeysCollection, ignore: int | None) -> None:
        super().__init__(keys)
        self.key = one_key(self.keys)
        self.ignore = ignore

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        """The dictionary with the ignored pixels."""
        if self.ignore is None:
            return dict(data)
        label = label_map(data[self.key], self.key, [self.ignore])
        return {**data, "ignored": label == self.ignore}


_MADE = (
    *("masks", "ignored", "labels", "boxes", "points", "point_labels", "slices"),
    *("earlier", "has_earlier", "classes"),
)


def one_key(keys: tuple[Hashable, ...]) -> Hashable:
    """The only one of the keys, which prompts do not take.

    Raises:
        ValueError: several keys, or one of a prompt.
    """
    if len(keys) != 1:
        raise ValueError(f"keys are {keys}; expected one label map.")
    if keys[0] in _MADE:
        raise ValueError(f"prompts are written to {keys[0]!r}; give the label map another key.")
    return keys[0]


def sorted_ids(labels: Iterable[int]) -> list[int]:
    """Label ids, ascending.

    Raises:
        ValueError: something else than ids, or two that float32 does not tell apart.
    """
    ids = sorted(labels)
    if not all(type(i) is int for i in ids):
        raise ValueError(f"labels are {ids}; expected label ids, such as [1, 2].")
    for one, two in pairwise(ids):
        if one != two and np.float32(one) == np.float32(two):
            raise ValueError(
                f"labels {one} and {two} are one number in float32, which MONAI's transforms make "
                "of label maps; expected ids that differ in it. Renumber one of them."
            )
    return ids


def label_map(label: Any, key: Hashable, labels: Iterable[int] | None) -> Tensor:
    """(1, H, W) or (1, H, W, D) int32 of a label map of any type.

    Args:
        label: the label map; ids above 2**24 are rounded if it is float32. A second channel, of
            numbers of objects, is left out; see `object_map`.
        key: its key, for messages.
        labels: known ids; those that were rounded become themselves again.

    Raises:
        ValueError: another shape, or values that are not whole numbers.
    """
    values: Tensor = convert_to_tensor(label, track_meta=False)
    values = values[:1] if values.ndim == 3 and values.shape[0] == 2 else values
    if values.ndim not in (3, 4) or values.shape[0] != 1:
        raise ValueError(
            f"{key!r} has shape {tuple(values.shape)}; expected a label map of one channel, "
            "(1, H, W) or (1, H, W, D)."
        )
    held = {i: int(np.float32(i)) for i in labels or ()}
    rounded = {i: value for i, value in held.items() if i != value}
    ids = values.to(torch.int64 if rounded else torch.int32)
    if values.is_floating_point() and not torch.equal(values, ids.to(values.dtype)):
        raise ValueError(
            f"{key!r} has values that are not whole numbers; expected label ids. Interpolate label "
            "maps with mode 'nearest', and not lazily."
        )
    for i, value in rounded.items():
        ids[ids == value] = i
    return ids.to(torch.int32)


def object_map(label: Any) -> Tensor | None:
    """(H, W) int64 numbers of objects, the second channel of a label map; None without one."""
    values: Tensor = convert_to_tensor(label, track_meta=False)
    return values[1].round().long() if values.ndim == 3 and values.shape[0] == 2 else None


def _masks(data: Data) -> Tensor:
    """(P, H, W) bool, without MONAI's metadata."""
    return convert_to_tensor(data["masks"], track_meta=False).bool()  # type: ignore[no-any-return]


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    return value.copy() if isinstance(value, np.ndarray) else value


def around(masks: Tensor) -> Tensor:
    """(P, H, W) bool: outside of each mask, within its box plus half a side."""
    h, w = masks.shape[-2:]
    boxes = boxes_from_masks(masks)
    margin = (boxes[:, 2:] - boxes[:, :2]) / 2
    low, high = (boxes[:, :2] - margin)[..., None, None], (boxes[:, 2:] + margin)[..., None, None]
    x, y = torch.arange(w) + 0.5, (torch.arange(h) + 0.5)[:, None]
    near = (x >= low[:, 0]) & (x <= high[:, 0]) & (y >= low[:, 1]) & (y <= high[:, 1])
    return near & ~masks
