"""Rule from the colours of 2-D images to the 8 bits of SAM's input; see `slices.intensity`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Transform
from torch import Tensor

from medsam_tune.errors import DataError
from medsam_tune.formats.volume import with_meta_of
from medsam_tune.slices.contrast import check_percentiles, plain, to_bytes


@dataclass(frozen=True)
class Colours(Transform):
    """Images: 8 bits as they are, other depths by percentiles of each channel; grey is repeated.

    Values are 8 bits where the file's own numbers were (`meta["stored"]` is "uint8"), or, where
    that is not known, where all are whole numbers from 0 to 255.

    Attributes:
        channels: number of channels C of the result.
        bands: numbers of the image's bands, from 1, that become the channels, such as [4, 1, 2] for
            near infrared, red and green. None takes all bands.
        lower: percentile that becomes 0.
        upper: percentile that becomes 255.
        limits: for each channel, the values that become 0 and 255, instead of percentiles of each
            image; they are for images of one sensor, and hold for 8 bits too.

    Raises:
        DataError: no channel, bands that are none or another number of them, percentiles out of
            order or outside 0..100, limits out of order or of
            another number than the channels.
    """

    channels: int = 3
    lower: float = 0.5
    upper: float = 99.5
    limits: Sequence[Sequence[float]] | None = None
    bands: Sequence[int] | None = None
    hounsfield: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if type(self.channels) is not int or self.channels < 1:
            raise DataError(f"channels is {self.channels!r}; expected a whole number, 1 or more.")
        check_percentiles(self.lower, self.upper)
        if self.bands is not None:
            bands: list[Any] = [*self.bands]
            if len(bands) != self.channels or not all(type(n) is int and n > 0 for n in bands):
                raise DataError(
                    f"bands are {self.bands!r}; expected {self.channels} numbers from 1, one for "
                    "each channel."
                )
            object.__setattr__(self, "bands", tuple(bands))
        if self.limits is None:
            return
        pairs = tuple((float(low), float(high)) for low, high in self.limits)
        if len(pairs) != self.channels or not all(low < high < np.inf for low, high in pairs):
            raise DataError(
                f"limits are {self.limits}; expected for each of {self.channels} channels the "
                "values that become 0 and 255, in this order."
            )
        object.__setattr__(self, "limits", pairs)

    def __call__(self, image: Tensor) -> Tensor:
        """(1, ...) or (C, ...) float -> (C, ...) uint8.

        Raises:
            DataError: another number of channels, or a band that the image lacks.
        """
        image = self.chosen(image)
        if self.limits is None and _is_8_bit(image):
            found = with_meta_of(image, plain(image).round().clamp(0, 255).to(torch.uint8))
        else:
            limits = self.limits or [self._limits(one) for one in plain(image)]
            every = plain(image).expand(max(image.shape[0], len(limits)), *image.shape[1:])
            scaled = [to_bytes(c[None], *pair) for c, pair in zip(every, limits, strict=True)]
            found = with_meta_of(image, torch.cat(scaled))
        return found.expand(self.channels, *image.shape[1:])

    def chosen(self, image: Tensor) -> Tensor:
        """(B, ...) float of all bands -> (1, ...) or (C, ...) of those that become channels.

        Raises:
            DataError: as by `__call__`.
        """
        if self.bands is not None:
            if max(self.bands) > image.shape[0]:
                raise DataError(
                    f"an image of {image.shape[0]} bands; expected {max(self.bands)}, as bands are "
                    f"{[*self.bands]}. Correct the rule's bands."
                )
            image = image[[n - 1 for n in self.bands]]
        if image.shape[0] not in (1, self.channels):
            raise DataError(
                f"an image of {image.shape[0]} channels; expected {self.channels}, or grey. Choose "
                "bands by the rule's bands, such as [1, 2, 3], or set in_channels and the rule's "
                "channels."
            )
        return image

    def _limits(self, channel: Tensor) -> tuple[float, float]:
        finite = channel[channel.isfinite()]
        if not finite.numel():
            return 0.0, 0.0
        low, high = np.percentile(finite.cpu().numpy(), [self.lower, self.upper])
        return float(low), float(high)

    @property
    def words(self) -> str:
        """Such as "8 bits as they are, other depths by percentiles 0.5 to 99.5 of each channel"."""
        if self.limits is not None:
            return ", ".join(f"{low:g} to {high:g}" for low, high in self.limits) + " by channel"
        share = f"percentiles {self.lower:g} to {self.upper:g} of each channel"
        return f"8 bits as they are, other depths by {share}"

    def describe(self) -> dict[str, object]:
        """`{"name": "colours", "channels", "lower", "upper", "limits", "bands"}`."""
        return {
            "name": "colours",
            "channels": self.channels,
            "lower": float(self.lower),
            "upper": float(self.upper),
            "limits": None if self.limits is None else [list(pair) for pair in self.limits],
            "bands": None if self.bands is None else list(self.bands),
        }


def _is_8_bit(image: Tensor) -> bool:
    """Whether values are those of 8 bits: as the file says, or by themselves."""
    stored = image.meta.get("stored") if isinstance(image, MetaTensor) else None
    if stored:
        return bool(stored == "uint8")
    values = plain(image)
    low, high = (float(one) for one in values.aminmax())
    return low >= 0 and high <= 255 and bool((values == values.round()).all())
