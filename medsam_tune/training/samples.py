"""Slices become training samples: augmented, in the model frame, with box prompts."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.data import get_track_meta, set_track_meta
from monai.transforms import Randomizable
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from medsam_tune.errors import DataError, listed
from medsam_tune.prompts import boxes_from_masks
from medsam_tune.slices.frames import ModelFrame
from medsam_tune.slices.store import PreparedCase

OVERSIZE = 1.25
"""Longest side of a slice that is augmented, as a share of the model's input: a crop of four fifths
still fills the input, and more detail would be lost."""

Augment = Callable[[dict[str, Tensor]], Mapping[Any, Tensor]]


class SliceDataset(Dataset[dict[str, Any]]):
    """Slices as training samples: some objects with their boxes, or every class without.

    Indexed by `(index, seed)`, as `SeededSampler` gives it: the seed fixes everything random in
    the sample, so that it does not depend on the number of workers. A plain index is its own seed.
    A slice whose labels the augmentation moves out of sight is used as it is. Slices without
    content, which hold one value in all pixels, are left out with a warning that counts them.

    Args:
        cases: with labels.
        labels: ids to take objects from.
        image_size: S, side of the model's input, pixels.
        objects: P, objects per sample, drawn with replacement from the labels present, on slices
            that have any. None for models that need no prompt: the masks of all labels, by
            ascending id, present or not, on all slices.
        jitter: standard deviation of each box side's shift as a share of the box's side.
        augment: MONAI transform of `{"image": (C, H, W) float32 in [0, 1], "label": (1, H, W)
            float32}`, in the slice frame, of which slices larger than `OVERSIZE` S are shrunk
            first; its randomness is set by `set_random_state`.
        squash: see `ModelFrame`.

    Raises:
        DataError: no slice of any case has one of the labels.
    """

    def __init__(
        self,
        cases: Sequence[PreparedCase],
        labels: Iterable[int],
        image_size: int,
        objects: int | None = 4,
        jitter: float = 0.05,
        augment: Augment | None = None,
        squash: bool = False,
    ) -> None:
        self.cases = list(cases)
        self.labels = tuple(sorted(labels))
        self.image_size = image_size
        self.objects = objects
        self.jitter = jitter
        self.augment = augment
        self.squash = squash
        empty = {case.id: len(case.constant) for case in self.cases if case.constant}
        if empty:
            where = listed(f"{case} ({count})" for case, count in empty.items())
            warnings.warn(
                f"{sum(empty.values())} slices of {len(empty)} cases hold one value in all pixels "
                f"and are left out: {where}.",
                stacklevel=2,
            )
        slices = [
            (case, k, bool(set(present) & set(self.labels)))
            for case in range(len(self.cases))
            for k, present in enumerate(self.cases[case].labels_in_slice)
            if k not in self.cases[case].constant
        ]
        self.index = [(case, k) for case, k, seen in slices if seen or objects is None]
        if not any(seen for _, _, seen in slices):
            raise DataError(
                f"no slice of {len(self.cases)} cases has one of the labels "
                f"{', '.join(map(str, self.labels))}; expected at least one slice with foreground."
                " Check the label maps."
            )

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        """One sample.

        Args:
            key: index of the slice, or (index, seed).

        Returns:
            `image` (C, S, S) float32 in [0, 1], one channel repeated to 3; `masks` (P, S, S) bool;
            `labels` (P,) int64; `case` id; `slice` index; and unless every class is asked for
            `boxes` (P, 4) float32 XYXY in the model frame.
        """
        index, seed = key if isinstance(key, tuple) else (key, key)
        number, k = self.index[index]
        case = self.cases[number]
        image = torch.from_numpy(case.image_slice(k)).float() / 255
        label = torch.from_numpy(case.label_slice(k).astype(np.float32))[None]
        if self.augment is None:
            augmented, moved = image, label
        else:
            augmented, moved = self._augmented(self.augment, image, label, seed)
        sample: dict[str, Any] = {"case": case.id, "slice": k}
        if self.objects is None:
            image = augmented
            sample["labels"] = torch.tensor(self.labels)
            sample["masks"] = self._frame(moved).masks(self._each(moved, sample["labels"]))[0]
        else:
            found = self._masks(moved)
            image = image if found is None else augmented
            masks, ids = found or self._masks(label) or self._small_masks(label)
            generator = torch.Generator().manual_seed(seed)
            picks = torch.randint(len(ids), (self.objects,), generator=generator)
            sample |= {"labels": ids[picks], "masks": masks[picks]}
            sample["boxes"] = boxes_from_masks(
                sample["masks"], jitter=self.jitter, generator=generator
            )
        image = self._frame(image).image(image[None])[0]
        sample["image"] = image.expand(3, -1, -1) if image.shape[0] == 1 else image
        return sample

    @staticmethod
    def _each(label: Tensor, ids: Tensor) -> Tensor:
        """(1, H, W) label -> (1, n, H, W) bool, one mask for each id."""
        return (label == ids[:, None, None])[None]

    def _frame(self, image: Tensor) -> ModelFrame:
        """Of (C, H, W); the augmentation may have cropped the slice."""
        return ModelFrame((image.shape[-2], image.shape[-1]), self.image_size, self.squash)

    def _augmented(
        self, augment: Augment, image: Tensor, label: Tensor, seed: int
    ) -> tuple[Tensor, Tensor]:
        if isinstance(augment, Randomizable):
            augment.set_random_state(seed=seed)
        size = (image.shape[-2], image.shape[-1])
        if max(size) > (limit := round(OVERSIZE * self.image_size)):
            inner = ModelFrame(size, limit).inner
            image = F.interpolate(image[None], inner, mode="bilinear", antialias=True)[0]
            label = F.interpolate(label[None], inner, mode="nearest-exact")[0]
        with _plain_tensors():
            result = augment({"image": image, "label": label})
        return result["image"].clamp(0, 1), result["label"]

    def _masks(self, label: Tensor) -> tuple[Tensor, Tensor] | None:
        """Masks (n, S, S) of the labels that the model frame shows, and their ids (n,)."""
        ids = self._ids(label)
        if len(ids) == 0:
            return None
        masks = self._frame(label).masks(self._each(label, ids))[0]
        seen = masks.flatten(1).any(1)
        return (masks[seen], ids[seen]) if seen.any() else None

    def _small_masks(self, label: Tensor) -> tuple[Tensor, Tensor]:
        """The same, but a pixel is inside if any of the slice's pixels in it is."""
        ids = self._ids(label)
        objects = self._each(label, ids)[0].float()
        height, width = self._frame(label).inner
        masks = torch.zeros(len(ids), self.image_size, self.image_size, dtype=torch.bool)
        masks[:, :height, :width] = F.adaptive_max_pool2d(objects, (height, width)) > 0
        return masks, ids

    def _ids(self, label: Tensor) -> Tensor:
        """The wanted ids in (1, H, W), ascending int64."""
        present = [int(value) for value in label.unique()]
        return torch.tensor([value for value in present if value in self.labels]).long()


@contextmanager
def _plain_tensors() -> Iterator[None]:
    """MONAI's transforms without MetaTensor, which costs more than they do on a slice."""
    before = get_track_meta()
    set_track_meta(False)
    try:
        yield
    finally:
        set_track_meta(before)


class SeededSampler(Sampler[tuple[int, int]]):
    """`(index, seed)` in an order that depends on the seed and the epoch only.

    Epochs continue one endless sequence of shuffled passes, so each slice is drawn equally often
    whatever the length of an epoch.

    Args:
        length: of the dataset.
        seed: of order and samples.
        num_samples: length of an epoch; by default one pass.
    """

    def __init__(self, length: int, seed: int = 0, num_samples: int | None = None) -> None:
        self.size = length
        self.seed = seed
        self.num_samples = self.size if num_samples is None else num_samples
        self.epoch = 0
        if self.size < 1 or self.num_samples < 1:
            raise DataError(
                f"{self.num_samples} samples from {self.size} slices; expected at least one of each"
            )

    def set_epoch(self, epoch: int) -> None:
        """Fix the place in the sequence that the next iteration starts from."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[tuple[int, int]]:
        start = self.epoch * self.num_samples
        stop = start + self.num_samples
        seeds = np.random.default_rng([self.seed, 1, self.epoch]).integers(2**31, size=len(self))
        place = 0
        for number in range(start // self.size, -(-stop // self.size)):
            order = np.random.default_rng([self.seed, 0, number]).permutation(self.size)
            begin = number * self.size
            for index in order[max(start - begin, 0) : stop - begin]:
                yield int(index), int(seeds[place])
                place += 1
