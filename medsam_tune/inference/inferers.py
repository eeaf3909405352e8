"""Inferers: label slices of a volume from prompts or classes, each slice encoded once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from monai.inferers import Inferer
from torch import Tensor

from medsam_tune.console import tracked
from medsam_tune.errors import DataError
from medsam_tune.prompts import Prompts, SlicePrompts, ellipses_in_boxes
from medsam_tune.sam.model import PromptableSam
from medsam_tune.slices.frames import ModelFrame

Framing = Callable[[tuple[int, int], int], ModelFrame]
"""Function from (H, W) of slices and the side S of the model's input to the map between them."""

NEEDS_PROMPTS = (
    "the model segments what is prompted; give it a prompt file (--prompts), which `medsam-tune "
    "prompts` writes, or train one that needs none (train --no-prompt)."
)
"""Refusal of a scan without prompts."""


class PromptedSliceInferer(Inferer):
    """Segment a volume slice by slice from boxes; MONAI's `SliceInferer` cannot carry prompts.

    Each slice is encoded once, for any number of boxes. Slices without a box are skipped, and so
    are slices without content (one value in all pixels). Where masks overlap, the label with the
    higher logit wins.

    Args:
        slice_batch: number of slices encoded at once.
        prompt_batch: number of boxes decoded at once.
        frame: map between slices and the model's input, as in training; `ScanRules.frame`.
        progress: show it on standard error.
    """

    def __init__(
        self,
        slice_batch: int = 8,
        prompt_batch: int = 64,
        frame: Framing = ModelFrame,
        progress: bool = False,
    ) -> None:
        self.slice_batch = slice_batch
        self.prompt_batch = prompt_batch
        self.frame = frame
        self.progress = progress

    def __call__(
        self, inputs: Tensor, network: Any, prompts: SlicePrompts | None, *_: Any, **__: Any
    ) -> Tensor:
        """Label slices for a volume.

        Args:
            inputs: (Z, C, H, W) uint8 slices, on any device.
            network: a `PromptableSam`.
            prompts: boxes in the slice frame.

        Returns:
            (Z, H, W) int32 label slices, 0 = background, on the device of `inputs`.

        Raises:
            DataError: no prompts.
        """
        if prompts is None:
            raise DataError(NEEDS_PROMPTS)
        device = network.pixel_mean.device
        frame = self.frame((inputs.shape[-2], inputs.shape[-1]), network.image_size)
        canvas = _Canvas(inputs)
        which = prompts.slices.unique()
        for chunk in _chunks(which, inputs, self.slice_batch, self.progress):
            embedding = _encode(inputs[chunk.to(inputs.device)], network, frame)
            here = torch.isin(prompts.slices, chunk).nonzero().flatten()
            for part in here.split(self.prompt_batch):
                where = torch.searchsorted(chunk, prompts.slices[part]).to(device)
                boxes = frame.boxes(prompts.boxes[part]).to(device)
                found = network.decode(embedding[where], Prompts(boxes=boxes[:, None]))
                logits = frame.logits(found.logits.float())[:, 0]
                canvas.paint(logits, prompts.slices[part], prompts.labels[part])
        return canvas.labels


class ClassSliceInferer(Inferer):
    """Segment a volume slice by slice with a model that needs no prompt.

    A class gets a mask only if its presence score is above 0. Slices without content (one value in
    all pixels) stay empty. Where masks overlap, the label with the higher logit wins.

    Args:
        labels: label id of each of the model's K classes.
        slice_batch: number of slices encoded at once.
        frame: map between slices and the model's input, as in training; `ScanRules.frame`.
        progress: show it on standard error.
    """

    def __init__(
        self,
        labels: Iterable[int],
        slice_batch: int = 8,
        frame: Framing = ModelFrame,
        progress: bool = False,
    ) -> None:
        self.labels = torch.tensor(list(labels))
        self.slice_batch = slice_batch
        self.frame = frame
        self.progress = progress

    def __call__(self, inputs: Tensor, network: Any, *_: Any, **__: Any) -> Tensor:
        """(Z, C, H, W) uint8 slices -> (Z, H, W) int32 label slices; prompts are ignored."""
        frame = self.frame((inputs.shape[-2], inputs.shape[-1]), network.image_size)
        canvas = _Canvas(inputs)
        which = torch.arange(len(inputs))
        for chunk in _chunks(which, inputs, self.slice_batch, self.progress):
            embedding = _encode(inputs[chunk.to(inputs.device)], network, frame)
            logits, _, presence = network.decode(embedding)
            rows, classes = (presence > 0).nonzero().unbind(1)
            if len(rows):
                found = frame.logits(logits[rows, classes][:, None].float())[:, 0]
                canvas.paint(found, chunk[rows.cpu()], self.labels[classes.cpu()])
        return canvas.labels


def volume_inferer(
    network: PromptableSam,
    labels: Iterable[int],
    slice_batch: int = 8,
    frame: Framing = ModelFrame,
    progress: bool = False,
) -> PromptedSliceInferer | ClassSliceInferer:
    """The inferer for a model: from prompts, or from its classes.

    Args:
        network: model of either kind.
        labels: label ids that it was tuned for; the K-th class is the K-th in ascending order.
        slice_batch: number of slices encoded at once.
        frame: map between slices of a size and the model's input, as in training.
        progress: show the progress within a volume on standard error.

    Raises:
        DataError: the number of labels differs from the model's number of classes.
    """
    if not network.classes:
        return PromptedSliceInferer(slice_batch, frame=frame, progress=progress)
    ids = sorted(labels)
    if len(ids) != network.classes:
        raise DataError(
            f"the model has {network.classes} classes, but {len(ids)} labels are given "
            f"({', '.join(map(str, ids))}); expected those it was tuned for."
        )
    return ClassSliceInferer(ids, slice_batch, frame, progress)


class EllipseInferer(Inferer):
    """Box-only baseline: each box filled with its inscribed ellipse. It needs no network."""

    def __call__(
        self, inputs: Tensor, network: Any, prompts: SlicePrompts, *_: Any, **__: Any
    ) -> Tensor:
        """(Z, C, H, W) slices and prompts -> (Z, H, W) int32 label slices."""
        canvas = _Canvas(inputs)
        size = (inputs.shape[-2], inputs.shape[-1])
        for part in torch.arange(len(prompts)).split(64):
            ellipses = ellipses_in_boxes(prompts.boxes[part], size)
            canvas.paint(ellipses, prompts.slices[part], prompts.labels[part])
        return canvas.labels


class _Canvas:
    """Label slices of the highest logit so far; the background's logit is 0."""

    def __init__(self, inputs: Tensor) -> None:
        shape = (inputs.shape[0], *inputs.shape[-2:])
        self.labels = torch.zeros(shape, dtype=torch.int32, device=inputs.device)
        self._highest = torch.zeros(shape, device=inputs.device)

    def paint(self, logits: Tensor, slices: Tensor, labels: Tensor) -> None:
        """Lay (M, H, W) logits over the labels so far; slice (M,) and label (M,) of each."""
        logits = logits.to(self.labels.device)
        for mask, z, label in zip(logits, slices.tolist(), labels.tolist(), strict=True):
            wins = mask > self._highest[z]
            self.labels[z][wins] = label
            self._highest[z][wins] = mask[wins]


def _chunks(which: Tensor, inputs: Tensor, size: int, progress: bool) -> Iterator[Tensor]:
    """Indices of slices with content, so many at once; none of a volume without such a slice."""
    which = _with_content(which, inputs)
    if len(which):
        yield from tracked(which.split(size), "segment", len(which), "slice", progress, size=len)


def _with_content(which: Tensor, inputs: Tensor) -> Tensor:
    """Indices of slices (Z, C, H, W) that hold more than one value."""
    slices = inputs[which.to(inputs.device)].flatten(2)
    if not len(slices):
        return which
    return which[(slices.amax(2) > slices.amin(2)).any(1).to(which.device)]


def _encode(slices: Tensor, network: Any, frame: ModelFrame) -> Tensor:
    """(N, C, H, W) uint8 slices -> their embeddings, on the network's device."""
    image = frame.image(slices.to(network.pixel_mean.device).float() / 255)
    return network.encode(to_channels(image, network.base.in_channels))  # type: ignore[no-any-return]


def to_channels(image: Tensor, channels: int) -> Tensor:
    """(N, C, ...) -> (N, channels, ...): one channel is repeated; else C must equal `channels`."""
    if image.shape[1] == channels:
        return image
    if image.shape[1] != 1:
        raise ValueError(f"image has {image.shape[1]} channels, the model takes {channels}.")
    return image.expand(-1, channels, *image.shape[2:])
