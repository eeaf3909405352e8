"""MONAI dictionary transform: stronger and weaker colours of 2-D images."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform

_BRIGHTNESS = (0.299, 0.587, 0.114)
"""Share of red, green and blue in the brightness of a pixel (ITU-R BT.601)."""


class RandSaturationd(RandomizableTransform, MapTransform):
    """Scale how far the colours of images are from grey, by a random factor of 1 - f to 1 + f.

    The first three channels are red, green and blue; further ones, and images of fewer, stay. It is
    the saturation of torchvision's `ColorJitter`, whose randomness MONAI cannot set, without its
    clipping.

    Args:
        keys: images (C, H, W) float.
        prob: probability of a change.
        factors: f, from 0 (no change) to 1 (up to grey, and to double).
        allow_missing_keys: skip keys that are absent.

    Raises:
        ValueError: f outside 0..1.
    """

    def __init__(
        self,
        keys: KeysCollection,
        prob: float = 0.1,
        factors: float = 0.3,
        allow_missing_keys: bool = False,
    ) -> None:
        if not 0 <= factors <= 1:
            raise ValueError(f"factors is {factors}; expected 0 to 1.")
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        self.factors = factors

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The dictionary, its images with one factor in common."""
        found = dict(data)
        self.randomize(None)
        if not self._do_transform:
            return found
        factor = self.R.uniform(1 - self.factors, 1 + self.factors)
        for key in self.key_iterator(found):
            image = found[key]
            if len(image) >= 3:
                colours = image[:3]
                grey = sum(share * one for share, one in zip(_BRIGHTNESS, colours, strict=True))
                found[key] = image.clone()
                found[key][:3] = grey + factor * (colours - grey)
        return found
