"""Planes: slices of one size, as a network encodes them and is asked about them."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch.nn.functional as F
from torch import Tensor

from medsam_tune.prompts import Prompts
from medsam_tune.slices.frames import ModelFrame, scaled

FAR_OUTSIDE = 16.0
"""Minus this logit stands for certain background."""


class Asked(NamedTuple):
    """R prompts, each for one slice; in the slice frame.

    Attributes:
        points: (R, N, 2) float32 XY in pixels.
        point_labels: (R, N) int64, 1 = inside, 0 = outside, 2 and 3 = corners of a box, -1 =
            padding; see `Prompts`. A row of padding alone, or N = 0, asks by its class alone.
        classes: (R,) int64, see `Prompts`; None for a network without classes.
        masks: (R, H, W) float32 logits of an earlier mask, or None.
    """

    points: Tensor
    point_labels: Tensor
    classes: Tensor | None = None
    masks: Tensor | None = None

    def rows(self, index: Tensor) -> Asked:
        """Some rows; `index` (M,) int64 or (R,) bool, on any device."""
        given = {name: x for name, x in self._asdict().items() if x is not None}
        return Asked(**{name: x[index.to(x.device)] for name, x in given.items()})


class Answers(NamedTuple):
    """Masks of R prompts, on the network's device.

    Attributes:
        logits: (R, H, W) float32 in the slice frame, > 0 inside.
        quality: (R,) float32, the decoder's estimate of the mask's IoU.
        presence: (R,) float32, logit of the class's presence in the slice; None for a network
            without classes.
    """

    logits: Tensor
    quality: Tensor
    presence: Tensor | None = None


class Plane(Protocol):
    """Slices of one size, whole or in windows, and the network that sees them.

    Attributes:
        size: (H, W) of the slices, pixels.
    """

    size: tuple[int, int]

    def encode(self, slices: Tensor) -> Tensor:
        """Embed slices.

        Args:
            slices: (N, C, H, W) uint8, on any device.

        Returns:
            (N, ...) float embeddings on the network's device, one for each slice.
        """

    def decode(self, embeddings: Tensor, where: Tensor, asked: Asked) -> Answers:
        """Masks of R prompts.

        Args:
            embeddings: (N, ...) float, from `encode`, on any device.
            where: (R,) int64 index of each prompt's slice among the embeddings.
            asked: R prompts in the slice frame.
        """


class WholePlane:
    """Slices that the network sees whole, scaled into its square input.

    Args:
        network: a `PromptableSam`.
        size: (H, W) of the slices, pixels.
        frame: map between such slices and the network's input, as in training.
    """

    def __init__(self, network: Any, size: tuple[int, int], frame: ModelFrame) -> None:
        self.network = network
        self.size = size
        self.frame = frame
        self.device = network.pixel_mean.device

    def encode(self, slices: Tensor) -> Tensor:
        """(N, C, H, W) uint8 slices -> (N, D, G, G) float embeddings."""
        image = self.frame.image(slices.to(self.device).float() / 255)
        return self.network.encode(to_channels(image, self.network.base.in_channels))  # type: ignore[no-any-return]

    def decode(self, embeddings: Tensor, where: Tensor, asked: Asked) -> Answers:
        """Masks of R prompts; see `Plane`."""
        embeddings = embeddings[where.to(embeddings.device)].to(self.device)
        given = {
            name: x[:, None].to(self.device) for name, x in asked._asdict().items() if x is not None
        }
        if asked.points.shape[1]:
            given["points"] = scaled(given["points"], *self.frame.scale)
        else:
            del given["points"], given["point_labels"]
        if asked.masks is not None:  # the padding is background, as what lies outside the slice
            side = 4 * embeddings.shape[-1]
            model = self.frame.image(given["masks"] + FAR_OUTSIDE) - FAR_OUTSIDE
            small = F.interpolate(model, (side, side), mode="bilinear", antialias=True)
            given["masks"] = small
        found = self.network.decode(embeddings, Prompts(**given))
        return Answers(
            self.frame.logits(found.logits.float())[:, 0],
            found.quality[:, 0].float(),
            None if found.presence is None else found.presence[:, 0].float(),
        )


def to_channels(image: Tensor, channels: int) -> Tensor:
    """(N, C, ...) -> (N, channels, ...): one channel is repeated; else C must equal `channels`.

    Raises:
        ValueError: C is neither 1 nor `channels`.
    """
    if image.shape[1] == channels:
        return image
    if image.shape[1] != 1:
        raise ValueError(f"image has {image.shape[1]} channels, the model takes {channels}.")
    return image.expand(-1, channels, *image.shape[2:])
