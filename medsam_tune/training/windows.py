"""MONAI dictionary transform: random windows of slices that are larger than the model's input."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Any

from monai.config import KeysCollection
from monai.transforms import Crop, InvertibleTransform, MapTransform, Randomizable
from torch import Tensor

from medsam_tune.cases.checks import label_values
from medsam_tune.training.prompting import label_map, sorted_ids

Data = Mapping[Hashable, Any]


class RandWindowd(Randomizable, MapTransform, InvertibleTransform):
    """Crop slices to a random window that shows an object, wholly or in part.

    A random pixel of a random object is in the window, and every place of the window around it is
    equally likely. So objects are cut off by its border as often as prediction in windows cuts
    them. A slice without objects gives any window. A side that is not longer than the window stays.

    Args:
        keys: images and label maps (C, H, W), all of one size.
        size: side of the window, pixels.
        label_key: key of the label map (1, H, W).
        labels: ids of the objects; all above 0 if None.
        allow_missing_keys: skip keys that are absent.

    The inverse pads with 0 what was cropped.
    """

    def __init__(
        self,
        keys: KeysCollection,
        size: int,
        label_key: Hashable = "label",
        labels: Iterable[int] | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        if type(size) is not int or size < 1:
            raise ValueError(f"size is {size!r}; expected pixels, at least 1.")
        self.size = size
        self.label_key = label_key
        self.labels = None if labels is None else sorted_ids(labels)
        self.crop = Crop()

    def randomize(self, label: Tensor) -> None:
        """Draw the window's first row and column for a label map (1, H, W)."""
        self._start = [0, 0]
        if max(label.shape[1:]) <= self.size:
            return
        for axis, at in enumerate(self._pixel(label)):
            last = max(0, label.shape[1 + axis] - self.size)
            first = min(max(0, at - self.size + 1), last)
            self._start[axis] = int(self.R.randint(first, min(at, last) + 1))

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        """The dictionary with one window of each slice.

        Raises:
            ValueError: images of other sizes than the label map's.
        """
        found = dict(data)
        label = label_map(found[self.label_key], self.label_key, self.labels)
        sizes = {key: tuple(found[key].shape[1:]) for key in self.key_iterator(found)}
        if {tuple(label.shape[1:])} != {*sizes.values()}:
            raise ValueError(
                f"images have the sizes {sizes}; expected that of {self.label_key!r}, "
                f"{tuple(label.shape[1:])}, (H, W)."
            )
        self.randomize(label)
        window = tuple(slice(start, start + self.size) for start in self._start)
        for key in self.key_iterator(found):
            found[key] = self.crop(found[key], window)
        return found

    def inverse(self, data: Data) -> dict[Hashable, Any]:
        """The dictionary with slices of their size before."""
        found = dict(data)
        for key in self.key_iterator(found):
            found[key] = self.crop.inverse(found[key])
        return found

    def _pixel(self, label: Tensor) -> tuple[int, ...]:
        """Row and column of a pixel of an object; of any pixel where there is none."""
        ids = [
            value
            for value in label_values(label[..., None])
            if value > 0 and (self.labels is None or value in self.labels)
        ]
        if not ids:
            return tuple(int(self.R.randint(side)) for side in label.shape[1:])
        pixels = (label[0] == ids[self.R.randint(len(ids))]).nonzero()
        return tuple(pixels[self.R.randint(len(pixels))].tolist())
