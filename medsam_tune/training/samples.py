"""Training samples from slices; a sample's randomness depends on its seed alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from monai.data import get_track_meta, set_track_meta
from monai.transforms import Compose
from numpy.typing import NDArray
from torch.utils.data import Dataset, Sampler

from medsam_tune import ranks
from medsam_tune.errors import DataError, listed
from medsam_tune.slices.embeddings import EmbeddingStore, Place
from medsam_tune.slices.store import PreparedCase
from medsam_tune.training.randomness import seed_chain
from medsam_tune.training.views import Views


class SliceDataset(Dataset[dict[str, Any]]):
    """Slices of prepared cases through a MONAI transform.

    The index is `(index, seed, view)` from `SeededSampler`. The seed fixes all randomness of the
    sample, so the number of workers does not matter. A plain index is its own seed, in view 0.
    Slices without content (one value in all pixels) are left out; a warning counts them.

    Args:
        cases: cases with labels.
        labels: ids of the objects to train on.
        transform: transform of `{"case": PreparedCase, "slice": k}`. Its result has `labels`, the
            ids of the masks, one at least. `set_random_state` sets its randomness.
        empty_slices: number of slices without any of the labels to take as well, at most, as a
            share of those with one. Those next to a label come first, the others are drawn once.
        prompts: step of the transform that draws the prompts; with it, the steps before it make
            one of the slice's views, see `Views`. None: each sample is augmented anew.
        embeddings: store of the views' embeddings. A sample then has `embedding` instead of
            `image`, where it is there, and `place` (3,) int64: case, slice and view.

    Raises:
        DataError: no slice of any case has one of the labels.
    """

    def __init__(
        self,
        cases: Sequence[PreparedCase],
        labels: Iterable[int],
        transform: Callable[[dict[str, Any]], Mapping[Any, Any]],
        empty_slices: float = 0.0,
        prompts: Any = None,
        embeddings: EmbeddingStore | None = None,
    ) -> None:
        self.cases = list(cases)
        self.labels = tuple(sorted(labels))
        self.transform = transform
        self.embeddings = embeddings
        self.views: Views | None = None
        if prompts is not None:
            if not isinstance(transform, Compose):
                raise ValueError(f"transform is {type(transform).__name__}; views need a Compose.")
            self.views = Views(transform, prompts, embeddings)
        elif embeddings is not None:
            raise ValueError("embeddings are of views; give prompts, the step that draws them.")
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
        labelled = [(case, k) for case, k, seen in slices if seen]
        empty_ones = _worth_most([(case, k) for case, k, seen in slices if not seen], labelled)
        self.index = sorted([*labelled, *empty_ones[: int(empty_slices * len(labelled))]])
        if not any(seen for _, _, seen in slices):
            raise DataError(
                f"no slice of {len(self.cases)} cases has one of the labels "
                f"{', '.join(map(str, self.labels))}; expected at least one slice with foreground."
                " Check the label maps."
            )

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: int | tuple[int, int] | tuple[int, int, int]) -> dict[str, Any]:
        """One sample from the transform, in plain tensors.

        Args:
            key: index of the slice, (index, seed), or (index, seed, view).

        Raises:
            DataError: the transform left no label.
        """
        index, seed, *view = key if isinstance(key, tuple) else (key, key)
        number, k = self.index[index]
        place = Place(self.cases[number], k, view[0] if view else 0)
        case = place.case
        with _plain_tensors():
            if self.views is not None:
                sample = dict(self.views(place, seed))
            else:
                seed_chain(self.transform, seed)
                sample = dict(self.transform({"case": case, "slice": k}))
        if self.embeddings is not None:
            sample["place"] = torch.tensor([number, k, place.view])
        if not len(sample["labels"]):
            raise DataError(
                f"case {case.id}: slice {k} has none of the labels "
                f"{', '.join(map(str, self.labels))} left after the transform. Put the "
                "augmentation into KeepObjectsd."
            )
        return sample


def _worth_most(
    empty: list[tuple[int, int]], labelled: list[tuple[int, int]]
) -> list[tuple[int, int]]:
    """Empty slices (case, k): those next to a labelled one, then the others spread over all."""
    beside = {(case, k + step) for case, k in labelled for step in (-1, 1)}
    near = [each for each in empty if each in beside]
    far = [each for each in empty if each not in beside]
    order = np.random.default_rng(0).permutation(len(far))
    return near + [far[index] for index in order]


@contextmanager
def _plain_tensors() -> Iterator[None]:
    """MONAI's transforms without MetaTensor, which takes longer than they do on a slice."""
    before = get_track_meta()
    set_track_meta(False)
    try:
        yield
    finally:
        set_track_meta(before)


class SeededSampler(Sampler[tuple[int, ...]]):
    """Pairs `(index, seed)`; their order depends on the seed and the epoch only.

    Epochs continue one endless sequence of shuffled passes. So each slice is drawn equally often,
    for any length of an epoch. With K views, they are `(index, seed, view)`: any K passes on end
    take a slice in each of its views once; a pass has views of all numbers.

    Of several ranks (`medsam_tune.ranks`), each takes its batches in turn, so that together they
    take the batches that one process would take of `batch_size` times their number; an epoch is
    then lengthened until all have as many.

    Args:
        length: length of the dataset.
        seed: seed of the order and of the samples.
        num_samples: length of an epoch; by default one pass.
        batch_size: samples of a batch of a rank.
        views: K; None for slices without views.
    """

    def __init__(
        self,
        length: int,
        seed: int = 0,
        num_samples: int | None = None,
        batch_size: int = 1,
        views: int | None = None,
    ) -> None:
        self.size = length
        self.seed = seed
        self.views = views
        self.num_samples = self.size if num_samples is None else num_samples
        self.batch_size = batch_size
        if ranks.count() > 1:
            together = batch_size * ranks.count()
            self.num_samples = -(-self.num_samples // together) * together
        self.epoch = 0
        self.done = 0
        if self.size < 1 or self.num_samples < 1:
            raise DataError(
                f"{self.num_samples} samples from {self.size} slices; expected at least one of each"
            )

    def set_epoch(self, epoch: int, done: int = 0) -> None:
        """Set the place in the sequence where the next iteration starts.

        Args:
            epoch: number of the epoch.
            done: samples of the epoch, of this rank, that the next iteration passes over.
        """
        self.epoch = epoch
        self.done = done

    def __len__(self) -> int:
        return self.num_samples // ranks.count()

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        mine = 0
        for place, sample in enumerate(self._all()):
            if place // self.batch_size % ranks.count() == ranks.rank():
                mine += 1
                if mine > self.done:
                    yield sample

    def _all(self) -> Iterator[tuple[int, ...]]:
        """The samples of all ranks in an epoch."""
        start = self.epoch * self.num_samples
        stop = start + self.num_samples
        seeds = np.random.default_rng([self.seed, 1, self.epoch]).integers(2**31, size=stop - start)
        place = 0
        for number in range(start // self.size, -(-stop // self.size)):
            order = np.random.default_rng([self.seed, 0, number]).permutation(self.size)
            views = None if self.views is None else _views(self.size, self.views, number, self.seed)
            begin = number * self.size
            for index in order[max(start - begin, 0) : stop - begin]:
                view = () if views is None else (int(views[index]),)
                yield int(index), int(seeds[place]), *view
                place += 1


def _views(size: int, count: int, number: int, seed: int) -> NDArray[np.int64]:
    """View of each slice (N,) in a pass, by the number of the pass."""
    drawn = np.random.default_rng([seed, 2]).random((size, count))
    return np.argsort(drawn, axis=1)[:, number % count]
