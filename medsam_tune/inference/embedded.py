"""A volume whose slices are encoded when they are asked for, each once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from threading import Lock
from typing import Any, TypeVar

import torch
from torch import Tensor

from medsam_tune.errors import warn
from medsam_tune.inference.ensembles import Ensemble, EnsemblePlane
from medsam_tune.inference.planes import Plane, WholePlane
from medsam_tune.inference.spool import MEMORY, Spool
from medsam_tune.inference.windows import WindowedPlane
from medsam_tune.slices.frames import ModelFrame
from medsam_tune.slices.rules import ScanRules

T = TypeVar("T")


class Batch:
    """Number of things that go to the GPU at once: halved where its memory runs out.

    Args:
        size: number of things at the start.
        unit: name of one thing, for the warning.
    """

    def __init__(self, size: int, unit: str) -> None:
        self.size = size
        self.unit = unit

    def each(self, items: Tensor, work: Callable[[Tensor], T]) -> Iterator[tuple[Tensor, T]]:
        """Do work on parts of the items.

        Args:
            items: (N,) int64.
            work: function of a part.

        Yields:
            each part, and the work's result.

        Raises:
            torch.cuda.OutOfMemoryError: the memory does not even hold one thing.
        """
        start = 0
        while start < len(items):
            part = items[start : start + self.size]
            try:
                found = work(part)
            except torch.cuda.OutOfMemoryError:
                if len(part) == 1:
                    raise
                self._halve(len(part))
            else:
                yield part, found
                start += len(part)

    def _halve(self, tried: int) -> None:
        self.size = min(self.size, tried // 2)
        warn(
            f"the GPU's memory does not hold {tried} {self.unit}s at once; going on with "
            f"{self.size}."
        )
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


class KeptEmbeddings:
    """Embeddings of the slices of several volumes, which the next pass over them finds again.

    They are those of one network, whose encoder does not change. The first that fit into the memory
    stay; others are made in each pass.

    Args:
        memory: bound in bytes.
    """

    def __init__(self, memory: int = MEMORY) -> None:
        self.memory = memory
        self.held = 0
        self._device = torch.device("cpu")
        self._embeddings: dict[tuple[str, int], Tensor] = {}

    def find(self, volume: str, z: int) -> Tensor | None:
        """The embedding of a slice on the network's device, or None."""
        found = self._embeddings.get((volume, z))
        return None if found is None else found.to(self._device)

    def put(self, volume: str, z: int, embedding: Tensor) -> None:
        """Keep a copy of an embedding in the CPU's memory, if it fits."""
        if self.held + embedding.nbytes <= self.memory and (volume, z) not in self._embeddings:
            self._embeddings[volume, z] = embedding.detach().clone().cpu()
            self._device = embedding.device
            self.held += embedding.nbytes


class EmbeddedVolume:
    """The slices of a volume, and their embeddings. Several threads may use it.

    Args:
        slices: (Z, C, H, W) uint8, on any device.
        plane: encoder of these slices.
        batch: number of slices encoded at once.
        spool: place for the embeddings.
        keep: keep the embeddings; otherwise `embed` makes them for one use.
        kept: embeddings of earlier passes, and the name of this volume among them; or None.
    """

    def __init__(
        self,
        slices: Tensor,
        plane: Plane,
        batch: Batch,
        spool: Spool,
        keep: bool = True,
        kept: tuple[KeptEmbeddings, str] | None = None,
    ) -> None:
        self.slices = slices
        self.plane = plane
        self.spool = spool
        self.batch = batch
        self._keep = keep
        self._kept = kept
        self._device = slices.device
        self._content: dict[int, bool] = {}
        self._encoding = Lock()

    def __len__(self) -> int:
        return len(self.slices)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(Z, H, W)."""
        return len(self), *self.plane.size

    def has_content(self, z: int) -> bool:
        """Whether a slice holds more than one value; others are not looked at."""
        if z not in self._content:
            flat = self.slices[z].flatten(1)
            self._content[z] = bool((flat.amax(1) > flat.amin(1)).any())
        return self._content[z]

    def embed(self, which: Tensor) -> Tensor:
        """Embeddings of slices, on the network's device.

        Args:
            which: (N,) int64 indices of slices with content, each once.

        Returns:
            (N, ...) float, see `Plane`.
        """
        if not self._keep:
            return torch.cat([found for _, found in self._encoded(which)])
        self.encode(which)
        kept = [self.spool[(self, z)] for z in which.tolist()]
        return torch.stack(kept).to(self._device)

    def encode(self, which: Tensor) -> None:
        """Encode and keep those of the slices that are not there yet; see `embed`."""
        if all((self, z) in self.spool for z in which.tolist()):
            return
        with self._encoding:
            missing = [z for z in which.tolist() if (self, z) not in self.spool]
            for part, found in self._encoded(torch.tensor(missing, dtype=torch.int64)):
                self._device = found.device
                for z, embedding in zip(part.tolist(), found, strict=True):
                    self.spool[(self, z)] = embedding

    def _encoded(self, which: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        return self.batch.each(which, self._encode)

    def _encode(self, part: Tensor) -> Tensor:
        if self._kept is None:
            return self.plane.encode(self.slices[part.to(self.slices.device)])
        kept, name = self._kept
        found = {z: kept.find(name, z) for z in part.tolist()}
        missing = torch.tensor([z for z, one in found.items() if one is None], dtype=torch.int64)
        if len(missing):
            made = self.plane.encode(self.slices[missing.to(self.slices.device)])
            for z, one in zip(missing.tolist(), made, strict=True):
                found[z] = one
                kept.put(name, z, one)
        return torch.stack([one for one in found.values() if one is not None])


def plane_for(network: Any, size: tuple[int, int], rules: ScanRules | None = None) -> Plane:
    """The way in which a network sees slices; the one place that chooses it.

    Args:
        network: a `PromptableSam`, or an `Ensemble`.
        size: (H, W) of the slices, pixels.
        rules: rules of training; by default slices are padded to the network's input. An ensemble
            has those of each network.
    """
    if isinstance(network, Ensemble):
        members = zip(network.networks, network.rules, strict=True)
        return EnsemblePlane([plane_for(one, size, own) for one, own in members])
    if rules and rules.window and max(size) > rules.window:
        return WindowedPlane(network, size, rules)
    frame = (rules.frame if rules else ModelFrame)(size, network.image_size)
    return WholePlane(network, size, frame)
