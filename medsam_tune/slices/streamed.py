"""A GeoTIFF of any size as the slice that the model sees, read part by part."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray
from torch import Tensor

from medsam_tune.errors import DataError, warn
from medsam_tune.formats import geotiff, shades
from medsam_tune.formats.open import reader_of
from medsam_tune.slices.colours import Colours
from medsam_tune.slices.cut import seen_by
from medsam_tune.slices.frames import ScanGrid
from medsam_tune.slices.rules import ScanRules

_LARGE = 2  # sides of the images of training: a longer image is another scale
_SAMPLED = 2000  # pixels along the longer side that a scene's range of values is measured on


def is_streamed(path: Path, rules: ScanRules) -> bool:
    """Whether an image can be read part by part: GeoTIFF, axial, in colours, seen in windows."""
    plain = isinstance(rules.intensity, Colours) and rules.plane == "axial"
    seen = plain and rules.window is not None and not rules.neighbours and rules.spacing is None
    return seen and path.is_file() and reader_of(path) is geotiff


def warn_if_shrunk(path: Path, rules: ScanRules, trained_side: int | None) -> None:
    """Warn of a GeoTIFF that is seen whole, much smaller than what the model was trained on.

    Args:
        path: the image.
        rules: rules of prediction.
        trained_side: longest side of the slices of training, pixels; None if unknown.
    """
    if trained_side is None or rules.window is not None or not path.is_file():
        return
    if reader_of(path) is not geotiff:
        return
    place = geotiff.read_grid(path)
    width, height, _ = rules.grid(place.shape, place.affine, place.spacing_known).size
    if max(width, height) > _LARGE * trained_side:
        warn(
            f"its {width} x {height} pixels are shrunk to one input of the model, and the run was "
            f"trained on images of at most {trained_side}. To have it seen in windows of their "
            f"size, and of any size in little memory: --set window={trained_side}; or train with "
            "--overlay scenes."
        )


class StreamedSlice:
    """The slice of a scene, of which any part can be read; `cut` gives the same, whole.

    Args:
        file: the open file, from `geotiff.opened`.
        path: its path, for messages.
        rules: rules of training, which `is_streamed` accepts.

    Attributes:
        grid: grid of the scene and its slice.

    Raises:
        DataError: as by `geotiff.read_grid` and `cut`; also of a part, a band that is declared as
            transparency and holds an image.
    """

    def __init__(self, file: Any, path: Path, rules: ScanRules) -> None:
        self._file, self._path = file, path
        self._bands = geotiff.bands_of(file)
        place = geotiff.read_grid(path)
        width, height, depth = place.shape
        self.grid: ScanGrid = replace(
            rules.grid((width, height, depth), place.affine, place.spacing_known),
            georeference=place.georeference,
        )
        if rules.gsd is not None and rules.pixel is None and not place.spacing_known:
            warn(f"the size of a pixel is unknown: rules::gsd ({rules.gsd:g} m) is left out.")
        self._native = (height, width)
        self._stored = file.dtypes[self._bands[0] - 1]
        self._rules = self._with_range(rules)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the slice, pixels."""
        return self.grid.size[1], self.grid.size[0]

    @property
    def native(self) -> tuple[int, int]:
        """(H, W) of the file, pixels."""
        return self._native

    def part(self, top: int, left: int, height: int, width: int) -> tuple[Tensor, Tensor]:
        """A part of the slice.

        Args:
            top: first row.
            left: first column.
            height: number of rows.
            width: number of columns.

        Returns:
            (C, height, width) uint8, and which of its pixels hold no data, (height, width) bool.
        """
        rows = _weights(top, height, self.size[0], self._native[0])
        columns = _weights(left, width, self.size[1], self._native[1])
        values = self._read((rows[0], columns[0]), (rows[1].shape[1], columns[1].shape[1]))
        gaps = np.isnan(values).any(0)
        resampled = rows[1].shape != (height, height) or columns[1].shape != (width, width)
        if resampled:
            values = rows[1] @ np.nan_to_num(values, nan=0.0) @ columns[1].T
            gaps = (rows[1] @ gaps.astype(np.float32) @ columns[1].T) > 0
        values[:, gaps] = np.nan
        volume = torch.from_numpy(values.astype(np.float32)).transpose(1, 2)[..., None]
        meta = {"stored": self._stored, "gaps": bool(gaps.any())}
        seen = seen_by(self._rules, MetaTensor(volume, meta=meta))  # (C, W, H, 1)
        found = torch.as_tensor(np.asarray(seen))[..., 0].transpose(1, 2).contiguous()
        return found, torch.from_numpy(gaps)

    def _read(self, start: tuple[int, int], size: tuple[int, int]) -> NDArray[np.float32]:
        """(B, h, w) float32 of a part of the file; NaN where there is no data."""
        window = tuple((a, a + n) for a, n in zip(start, size, strict=True))
        geotiff.refuse_hidden_bands(self._file, self._path, window)
        values = shades.shown(self._file, self._file.read(self._bands, window=window))
        valid = self._file.dataset_mask(window=window) > 0
        valid &= ~np.isnan(values).any(0)
        values[:, ~valid] = np.nan
        return values

    def _with_range(self, rules: ScanRules) -> ScanRules:
        """The rules with one range of values for all parts, as `cut` takes it of the whole."""
        rule = rules.intensity
        assert isinstance(rule, Colours)
        if rule.limits is not None or self._stored == "uint8":
            return rules
        share = max(1.0, max(self._native) / _SAMPLED)
        shape = tuple(max(1, round(side / share)) for side in self._native)
        values = self._file.read(self._bands, out_shape=(len(self._bands), *shape))
        values = shades.shown(self._file, values)
        values[:, self._file.dataset_mask(out_shape=shape) == 0] = np.nan
        chosen = np.asarray(rule.chosen(torch.from_numpy(values)))
        limits = []
        for channel in np.broadcast_to(chosen, (rule.channels, *shape)):
            finite = channel[np.isfinite(channel)]
            low, high = np.percentile(finite, [rule.lower, rule.upper]) if finite.size else (0, 1)
            limits.append((float(low), float(max(high, np.nextafter(low, np.inf)))))
        return replace(rules, intensity=replace(rule, limits=limits))


@contextmanager
def streamed(path: Path, rules: ScanRules) -> Iterator[StreamedSlice]:
    """The slice of a scene, open for reading.

    Raises:
        DataError: here, and while it is read: the file is damaged; see `StreamedSlice`.
    """
    with geotiff.opened(path) as file:
        if geotiff.palette_of(path) is not None:
            raise DataError(
                f"{path}: has a colour table; expected bands. Expand it, e.g. by gdal_translate "
                "-expand rgb."
            )
        yield StreamedSlice(file, path, rules)


def _weights(start: int, count: int, size: int, native: int) -> tuple[int, NDArray[np.float32]]:
    """Weights of the file's pixels in those of the slice, along one axis.

    They are those that torch's `interpolate` has for a whole image: bilinear, smoothed where it
    shrinks.

    Args:
        start: first pixel of the slice.
        count: number of its pixels, n.
        size: pixels of the whole slice.
        native: pixels of the file.

    Returns:
        the first of m pixels of the file, and (n, m) their weights.
    """
    if size == native:
        return start, np.eye(count, dtype=np.float32)
    scale = native / size
    reach = max(scale, 1.0)
    centres = (np.arange(start, start + count) + 0.5) * scale
    first = max(0, int(np.floor(centres[0] - reach)))
    last = min(native, int(np.ceil(centres[-1] + reach)))
    places = np.arange(first, last) + 0.5
    weights = np.clip(1 - np.abs(places - centres[:, None]) / reach, 0, None)
    return first, (weights / weights.sum(1, keepdims=True)).astype(np.float32)
