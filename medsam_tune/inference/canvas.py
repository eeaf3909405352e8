"""Masks on slices become a label map, or a mask or probabilities for each label."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from medsam_tune.inference.planes import FAR_OUTSIDE
from medsam_tune.inference.spool import Spool

Labels = Tensor | dict[int, Tensor]
"""Label map (Z, H, W), or label id -> mask (Z, H, W) bool."""


class Canvas:
    """The label with the highest logit in each pixel; the background's logit is 0.

    The result does not depend on the order of the masks: of equal logits, the lower label wins.
    Logits are kept by slice, until `finish`.

    Args:
        shape: (Z, H, W) of the volume.
        labels: label ids that may come.
        spool: place for the logits.
        device: device of the result.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        labels: Iterable[int],
        spool: Spool,
        device: torch.device | str = "cpu",
    ) -> None:
        self.result = torch.zeros(shape, dtype=smallest_type(labels), device=device)
        self._spool = spool
        self._open: set[int] = set()

    def paint(self, slices: Tensor, labels: Tensor, logits: Tensor) -> None:
        """Lay masks over those so far.

        Args:
            slices: (M,) int64 slice of each mask.
            labels: (M,) int64 label of each mask.
            logits: (M, H, W) float32 on any device, > 0 inside.
        """
        for z in slices.unique().tolist():
            rows = (slices == z).nonzero().flatten()
            rows = rows[labels[rows].argsort()]  # of equal logits, `max` takes the first
            highest, which = logits[rows].max(0)
            own = labels[rows].to(which.device, self.result.dtype)[which]
            own = own.masked_fill(highest <= 0, 0)
            key = (self, z)
            if key in self._spool:
                before = self._spool[key].to(highest.device)
                last = self.result[z].to(own.device)
                kept = (before > highest) | ((before == highest) & (last < own))
                own, highest = own.where(~kept, last), highest.where(~kept, before)
            self.result[z] = own.to(self.result.device)
            self._spool[key] = highest.clamp(min=0)
            self._open.add(z)

    def finish(self) -> None:
        """Forget the logits; slices painted so far get no further mask."""
        for z in self._open:
            self._spool.discard((self, z))
        self._open.clear()


class SeparateCanvas:
    """A mask for each label, which may overlap; the masks of one label are united.

    Args:
        shape: (Z, H, W) of the volume.
        labels: label ids that may come.
        device: device of the result.

    Attributes:
        result: label id -> (Z, H, W) bool.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        labels: Iterable[int],
        device: torch.device | str = "cpu",
    ) -> None:
        self.result = {  # numpy takes memory where it is painted, so that absent labels cost none
            label: torch.from_numpy(np.zeros(shape, dtype=bool)).to(device)
            for label in sorted(labels)
        }

    def paint(self, slices: Tensor, labels: Tensor, logits: Tensor) -> None:
        """Add masks; see `Canvas`."""
        for z, label, mask in zip(slices.tolist(), labels.tolist(), logits, strict=True):
            found = self.result[label]
            found[z] |= (mask > 0).to(found.device)

    def finish(self) -> None:
        """Do nothing; no logits are kept."""


class LogitCanvas:
    """The highest logit of each label in each pixel; -16 where the label was not asked for.

    Logits are kept as float16 by label and slice.

    Args:
        shape: (Z, H, W) of the volume.
        labels: label ids that may come.
        spool: place for the logits.
    """

    def __init__(self, shape: tuple[int, int, int], labels: Iterable[int], spool: Spool) -> None:
        self.shape = shape
        self.labels = sorted(labels)
        self._spool = spool

    def paint(self, slices: Tensor, labels: Tensor, logits: Tensor) -> None:
        """Add masks; see `Canvas`. Logits may be anything."""
        for z, label, mask in zip(slices.tolist(), labels.tolist(), logits, strict=True):
            key, own = (self, label, z), mask.half()
            if key in self._spool:
                own = torch.maximum(own, self._spool[key].to(own.device))
            self._spool[key] = own

    def probabilities(self, label: int) -> Tensor:
        """(Z, H, W) float32 in [0, 1] of one label, on the CPU."""
        found = torch.full(self.shape, torch.tensor(-FAR_OUTSIDE).sigmoid().item())
        for z, plane in enumerate(found):
            if (self, label, z) in self._spool:
                plane.copy_(self._spool[self, label, z].float().sigmoid())
        return found


@dataclass(frozen=True)
class FoundObject:
    """An object that was asked for.

    Attributes:
        label: its label id.
        slices: number of slices with a mask of it.
        quality: mean over these of the network's estimate of the mask's IoU; 0 where there is none.
    """

    label: int
    slices: int
    quality: float


@dataclass(frozen=True)
class Found:
    """The answer to one set of prompts.

    Attributes:
        labels: see `Labels`.
        objects: the objects that were prompted, in their order; without prompts, each label is one.
        logits: logits of each label, if they were asked for.
        numbers: (Z, H, W) of `objects`, counted from 1, where each has the highest logit; 0 for
            none. None if it was not asked for, and without prompts. Objects that are followed have
            numbers on the slices of their prompts only.
    """

    labels: Labels
    objects: tuple[FoundObject, ...]
    logits: LogitCanvas | None = None
    numbers: Tensor | None = None


def labels_of(answer: Labels | Found) -> Labels:
    """The labels of an answer, detailed or not."""
    return answer.labels if isinstance(answer, Found) else answer


def smallest_type(labels: Iterable[int]) -> torch.dtype:
    """The smallest of uint8, int16, int32 and int64 that holds label ids."""
    highest = max(labels, default=0)
    kinds = (torch.uint8, torch.int16, torch.int32, torch.int64)
    return next(kind for kind in kinds if highest <= torch.iinfo(kind).max)
