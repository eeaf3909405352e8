"""A long scan takes no more memory than a short one, beside the scan and its mask."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from medsam_tune.inference.inferers import VolumeInferer
from medsam_tune.prompts import SlicePrompts
from tests.inference.test_propagation import Finder, discs, joined, on, shown


class Floats(TorchDispatchMode):
    """Counts the bytes of all floating-point tensors that are alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.owners: Counter[int] = Counter()
        self.sizes: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        for one in tree_leaves(found):
            if isinstance(one, torch.Tensor) and one.is_floating_point():
                self._see(one)
        return found

    def _see(self, one: torch.Tensor) -> None:
        storage = one.untyped_storage()
        place = storage.data_ptr()
        if not self.owners[place]:
            self.sizes[place] = storage.nbytes()
            self.now += self.sizes[place]
            self.peak = max(self.peak, self.now)
        self.owners[place] += 1
        weakref.finalize(one, self._gone, place)

    def _gone(self, place: int) -> None:
        self.owners[place] -= 1
        if not self.owners[place]:
            self.now -= self.sizes[place]


class Forgetful(Finder):
    """A network whose record of questions holds no tensors."""

    def decode(self, embedding: torch.Tensor, prompts: Any) -> Any:
        found = super().decode(embedding, prompts)
        self.asked.clear()
        return found


def peak(length: int, kind: str) -> int:
    """Bytes of floats at once for a scan of so many slices."""
    first, second = discs([5.0] * length, (20, 20)), discs([5.0] * length, (40, 40))
    image, every = shown(first, second), [*range(length)]
    prompts: SlicePrompts | None = joined(on(first, every), on(second, every, number=2))
    if kind == "boxes":
        prompts = replace(prompts, spread={})  # type: ignore[type-var]
    elif kind == "followed":
        prompts = joined(on(first, [0]), on(second, [length - 1], number=2))
    network = Forgetful(classes=2)
    budget = 100_000 if kind == "followed" else 2**30  # only who comes again needs a place
    inferer = VolumeInferer([1, 2], slice_batch=2, embedding_budget=budget)
    with Floats() as floats:
        found = inferer(image, network, None if kind == "labels" else prompts)
    assert found.flatten(1).any(1).all()
    assert sorted(network.encoded) == list(range(1, length + 1))
    return floats.peak


@pytest.mark.parametrize("kind", ["boxes", "labels", "followed"])
def test_memory_does_not_grow_with_the_number_of_slices(kind: str) -> None:
    short, long = peak(10, kind), peak(40, kind)
    slice_of_floats = 64 * 64 * 4
    assert long - short < slice_of_floats
    assert short > slice_of_floats
