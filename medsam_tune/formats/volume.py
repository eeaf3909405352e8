"""A scan in memory: its voxels, where they lie in the world, and whether they fit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import psutil
import torch
from monai.data import MetaTensor
from monai.transforms import EnsureChannelFirst
from numpy.typing import NDArray
from torch import Tensor

from medsam_tune.errors import DataError, warn

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""(4, 4) from DICOM's and ITK's millimetres to nibabel's, and back."""

POSITION_TOLERANCE = 1e-3
"""Largest accepted difference of two affines' origins and spacings, millimetres (or a hundredth of
the smallest spacing, where that is less)."""

DIRECTION_TOLERANCE = 1e-3
"""Largest accepted difference of two affines' unit axis directions, dimensionless.

NIfTI's qform stores a quaternion in float32, which is exact to about 3e-4 for the common 180
degree rotations; a tighter tolerance would refuse sound files.
"""

HIGHEST_ID = 2**31 - 1
"""Highest label id: label maps are int32 in memory."""

LENGTHS = {
    "nm": 1e-6,
    "um": 1e-3,
    "µm": 1e-3,
    "micron": 1e-3,
    "microns": 1e-3,
    "micrometer": 1e-3,
    "mm": 1.0,
    "millimeter": 1.0,
    "millimeters": 1.0,
    "cm": 10.0,
    "m": 1e3,
    "meter": 1e3,
    "meters": 1e3,
}
"""Units of length as headers write them -> millimetres."""

LARGEST_EXTENT = 10_000.0
"""Largest accepted side of a scan, millimetres; what is larger is in another unit than it says."""

BYTES_PER_VOXEL = 16
"""Bytes that reading a scan and its label takes: four times float32 (measured: 15 for a CT window,
19 for percentiles)."""


Region = tuple[int, int, int, int]
"""Part of an image: x0, y0, x1, y1 in pixels of its file, upper bounds exclusive."""


@dataclass(frozen=True)
class GeoReference:
    """Place of a 2-D image on the earth.

    Attributes:
        crs: coordinate system as WKT; empty where the file names none.
        transform: (a, b, c, d, e, f) from pixels to its coordinates, x = a * column + b * row + c
            and y = d * column + e * row + f; the corner of the first pixel is (c, f).
    """

    crs: str
    transform: tuple[float, float, float, float, float, float]

    def at(self, column: Any, row: Any) -> tuple[Any, Any]:
        """Coordinates x, y of a place in the image, or of arrays; pixel i covers [i, i + 1]."""
        a, b, c, d, e, f = self.transform
        return a * column + b * row + c, d * column + e * row + f

    @property
    def steps(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(2,) from a pixel to the next one in its row, and in its column, in its coordinates."""
        a, b, _, d, e, _ = self.transform
        return np.array([a, d]), np.array([b, e])

    def moved(self, column: float, row: float) -> GeoReference:
        """That of the part of the image that begins at a column and a row."""
        a, b, _, d, e, _ = self.transform
        x, y = self.at(column, row)
        return GeoReference(self.crs, (a, b, x, d, e, y))


@dataclass(frozen=True)
class Volume:
    """A scan or label map as its file holds it.

    Attributes:
        array: (I, J, K) float32, or (C, I, J, K) where the file holds C volumes or channels; axes
            in the file's own order (DICOM: columns, rows, slices), values in the scanner's unit
            (HU for CT). Label maps may have the type of the file's own numbers.
        affine: (4, 4) float64 of the indices (i, j, k) to nibabel's RAS+ millimetres.
        notes: changes that were made while reading, for the report.
        series: SeriesInstanceUID; empty where it is not DICOM.
        frame: FrameOfReferenceUID; empty where unknown.
        modality: DICOM's Modality, such as "CT"; empty where unknown.
        spacing_known: False if nothing says how large a pixel is, as in many radiographs; the
            affine then has 1 mm for it.
        guess: what the header lacks, where the affine is a guess; empty where the file says it.
        codes: qform_code and sform_code of NIfTI; None of other formats.
        channels: channels of each volume in the array: 3 of a colour image, 1 of all else.
        stored: numpy's name of the type of the file's own numbers, such as "uint8"; empty where
            unknown.
        georeference: place of a 2-D image on the earth; None where it has none.
        gaps: True if NaN in all channels stands for pixels without data.
    """

    array: NDArray[Any]
    affine: NDArray[np.float64]
    notes: tuple[str, ...] = ()
    series: str = ""
    frame: str = ""
    modality: str = ""
    spacing_known: bool = True
    guess: str = ""
    codes: tuple[int, int] | None = None
    channels: int = 1
    stored: str = ""
    georeference: GeoReference | None = None
    gaps: bool = False

    def meta(self) -> dict[str, Any]:
        """MONAI's metadata: the affine in RAS+ millimetres, and what is known of the source."""
        known = {} if self.codes is None else {"codes": self.codes}  # MONAI collates no None
        place = {} if self.georeference is None else {"georeference": self.georeference}
        return {
            "affine": self.affine.copy(),
            "original_affine": self.affine.copy(),
            "spatial_shape": np.asarray(self.array.shape[-3:]),
            "original_channel_dim": 0 if self.array.ndim == 4 else float("nan"),
            "space": "RAS",
            "notes": list(self.notes),
            "series_uid": self.series,
            "frame_uid": self.frame,
            "modality": self.modality,
            "spacing_known": self.spacing_known,
            "guess": self.guess,
            "channels": self.channels,
            "stored": self.stored,
            "gaps": self.gaps,
            **known,
            **place,
        }


@dataclass(frozen=True)
class Grid:
    """Size and place of a scan.

    Attributes:
        shape: (I, J, K) in the file's own axis order, or with the number of volumes behind.
        affine: (4, 4) float64 of the indices (i, j, k) to RAS+ millimetres.
        spacing_known: False if nothing says how large a pixel is, see `Volume`.
        georeference: place of a 2-D image on the earth; None where it has none.
        modality: DICOM's Modality; "" where nothing says it.
    """

    shape: tuple[int, ...]
    affine: NDArray[np.float64]
    spacing_known: bool = True
    georeference: GeoReference | None = None
    modality: str = ""


def image_from(volume: Volume) -> MetaTensor:
    """(C, I, J, K) of a volume, with its metadata; the dtype is the volume's."""
    image = MetaTensor(torch.from_numpy(volume.array), meta=volume.meta())
    return cast(MetaTensor, EnsureChannelFirst()(image))


def with_meta_of(image: Tensor, tensor: Tensor) -> Tensor:
    """A tensor with a copy of an image's metadata and trace, if the image has them."""
    if not isinstance(image, MetaTensor):
        return tensor
    meta, operations = dict(image.meta), list(image.applied_operations)
    return MetaTensor(tensor, meta=meta, applied_operations=operations)


def exact(values: NDArray[Any]) -> NDArray[Any]:
    """A copy of label ids in a type that torch has and that holds each of them.

    Args:
        values: any shape, real numbers or truth values as a file holds them.

    Returns:
        the same shape, of one of torch's integer types, or float32 or float64.
    """
    kind, size = values.dtype.kind, values.dtype.itemsize
    unsigned = {1: np.uint8, 2: np.int32, 4: np.int64}
    if kind == "i":
        return values.astype(values.dtype.newbyteorder("="))
    if kind in "bu" and size in unsigned:
        return values.astype(unsigned[size])
    return values.astype(np.float32 if size <= 4 else np.float64)


def label_dtype(array: NDArray[np.generic]) -> np.dtype[np.integer]:
    """The smallest type of uint8, int16 and int32 that holds the label ids of an array.

    Raises:
        DataError: ids below 0 or above `HIGHEST_ID`.
    """
    lowest, highest = int(array.min(initial=0)), int(array.max(initial=0))
    if lowest < 0 or highest > HIGHEST_ID:
        raise DataError(
            f"label ids from {lowest} to {highest}; expected 0 to {HIGHEST_ID}. Renumber them."
        )
    return np.dtype(next(t for t in (np.uint8, np.int16, np.int32) if highest <= np.iinfo(t).max))


def as_stored(array: NDArray[np.generic]) -> NDArray[np.generic]:
    """An array in the type in which files hold it: label ids in `label_dtype`, others as float32.

    Raises:
        DataError: ids below 0 or above `HIGHEST_ID`.
    """
    return array.astype(np.float32 if array.dtype.kind == "f" else label_dtype(array))


def check_guess(path: Path, guess: str, strict: bool) -> None:
    """Say that the place of a scan is a guess.

    Args:
        path: file of the scan.
        guess: what its header lacks; nothing is said where it is empty.
        strict: refuse instead.

    Raises:
        DataError: the place is a guess, and `strict`.
    """
    if not guess:
        return
    found = f"{guess} ({path}); the orientation is a guess"
    if strict:
        raise DataError(f"{found}. Export the scan again from its source.")
    warn(f"{found}.")


def check_memory(path: Path, shape: Sequence[int]) -> None:
    """Refuse a scan that does not fit into memory, by its header, before a voxel is read.

    Args:
        path: file or folder of the scan.
        shape: number of voxels along each axis, as the header has it.

    Raises:
        DataError: the voxels need more memory, by `BYTES_PER_VOXEL`, than is free.
    """
    needed, free = BYTES_PER_VOXEL * math.prod(map(int, shape)), psutil.virtual_memory().available
    if needed > free:
        raise DataError(
            f"{path}: the header speaks of {' x '.join(map(str, shape))} voxels, "
            f"{needed / 1e9:.1f} GB of memory; {free / 1e9:.1f} GB are free. Crop or resample the "
            "scan, or take a machine with more. Where it is not that large, export it again."
        )


def check_not_empty(path: Path, shape: Sequence[int]) -> None:
    """Refuse a scan without a voxel."""
    if any(size < 1 for size in shape):
        raise DataError(
            f"image of shape {tuple(shape)} has an empty dimension ({path}); "
            "expected at least one voxel along each axis. Export it again."
        )


def same_affine(first: NDArray[np.float64], second: NDArray[np.float64]) -> bool:
    """Whether two (4, 4) affines agree within `POSITION_TOLERANCE` and `DIRECTION_TOLERANCE`."""
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        return False
    spacings = [np.linalg.norm(affine[:3, :3], axis=0) for affine in (first, second)]
    directions = [
        affine[:3, :3] / np.maximum(spacing, 1e-12)
        for affine, spacing in zip((first, second), spacings, strict=True)
    ]
    position = max(
        np.abs(first[:3, 3] - second[:3, 3]).max(), np.abs(spacings[0] - spacings[1]).max()
    )
    direction = np.abs(directions[0] - directions[1]).max()
    near = min(POSITION_TOLERANCE, np.min(spacings) / 100)
    return bool(position <= near and direction <= DIRECTION_TOLERANCE)


def show_affine(affine: NDArray[np.float64]) -> str:
    """The affine's first three rows, rounded, for messages."""
    return str(np.round(affine[:3], 4).tolist())


def check_extent(path: Path, shape: Sequence[int], affine: NDArray[np.float64]) -> None:
    """Refuse a scan that is larger than any: its header has another unit than it says.

    Raises:
        DataError: a side above `LARGEST_EXTENT`.
    """
    spacing = np.linalg.norm(affine[:3, :3], axis=0)[: len(shape)]
    largest = float(np.max(spacing * np.asarray(shape)[: len(spacing)]))
    if largest > LARGEST_EXTENT:
        voxel = " x ".join(f"{side:.6g}" for side in spacing)
        raise DataError(
            f"a side of {largest:.4g} mm, voxels of {voxel} mm ({path}); expected at most "
            f"{LARGEST_EXTENT:g} mm. Correct the unit in the header, or the spacing."
        )


def in_memory_order(values: Tensor) -> Tensor:
    """The same values with their axes in the order of memory, without MONAI's metadata.

    For what depends on no order: torch copies a NIfTI's voxels, whose first axis is the fastest,
    for a minimum, a choice or a flat view, which takes thirty times as long as the work itself.
    """
    values = values.as_tensor() if isinstance(values, MetaTensor) else values
    if values.is_contiguous():
        return values
    return values.permute(sorted(range(values.ndim), key=values.stride, reverse=True))


def every_nth(values: Tensor, step: int) -> Tensor:
    """`values.flatten()[::step]`, (N,), without a copy of them all."""
    values = values.as_tensor() if isinstance(values, MetaTensor) else values
    if values.is_contiguous():
        return values.flatten()[::step]
    places = torch.arange(0, values.numel(), step, device=values.device)
    return values[torch.unravel_index(places, values.shape)]
