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

from medsam_tune.errors import DataError

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""(4, 4) from DICOM's and ITK's millimetres to nibabel's, and back."""

POSITION_TOLERANCE = 1e-3
"""Largest accepted difference of two affines' origins and spacings, millimetres."""

DIRECTION_TOLERANCE = 1e-3
"""Largest accepted difference of two affines' unit axis directions, dimensionless.

NIfTI's qform stores a quaternion in float32, which is exact to about 3e-4 for the common 180
degree rotations; a tighter tolerance would refuse sound files.
"""

BYTES_PER_VOXEL = 16
"""Bytes that reading a scan and its label takes: four times float32 (measured: 15 for a CT window,
19 for percentiles)."""


@dataclass(frozen=True)
class Volume:
    """A scan or label map as its file holds it.

    Attributes:
        array: (I, J, K) float32, or (C, I, J, K) where the file holds C volumes or channels; axes
            in the file's own order (DICOM: columns, rows, slices), values in the scanner's unit
            (HU for CT).
        affine: (4, 4) float64 of the indices (i, j, k) to nibabel's RAS+ millimetres.
        notes: changes that were made while reading, for the report.
        series: SeriesInstanceUID; empty where it is not DICOM.
        frame: FrameOfReferenceUID; empty where unknown.
        modality: DICOM's Modality, such as "CT"; empty where it is not DICOM, or does not say.
    """

    array: NDArray[np.float32]
    affine: NDArray[np.float64]
    notes: tuple[str, ...] = ()
    series: str = ""
    frame: str = ""
    modality: str = ""

    def meta(self) -> dict[str, Any]:
        """MONAI's metadata: the affine in RAS+ millimetres, and what is known of the source."""
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
        }


@dataclass(frozen=True)
class Grid:
    """Size and place of a scan.

    Attributes:
        shape: (I, J, K) in the file's own axis order, or with the number of volumes behind.
        affine: (4, 4) float64 of the indices (i, j, k) to RAS+ millimetres.
    """

    shape: tuple[int, ...]
    affine: NDArray[np.float64]


def image_from(volume: Volume) -> MetaTensor:
    """(C, I, J, K) float32 of a volume, with its metadata."""
    image = MetaTensor(torch.from_numpy(volume.array), meta=volume.meta())
    return cast(MetaTensor, EnsureChannelFirst()(image))


def with_meta_of(image: Tensor, tensor: Tensor) -> Tensor:
    """A tensor with a copy of an image's metadata and trace, if the image has them."""
    if not isinstance(image, MetaTensor):
        return tensor
    meta, operations = dict(image.meta), list(image.applied_operations)
    return MetaTensor(tensor, meta=meta, applied_operations=operations)


def label_dtype(array: NDArray[np.generic]) -> np.dtype[np.integer]:
    """The smallest type of uint8, int16 and int32 that holds the label ids of an array."""
    highest = int(array.max(initial=0))
    return np.dtype(next(t for t in (np.uint8, np.int16, np.int32) if highest <= np.iinfo(t).max))


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
    if 0 in shape:
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
    return bool(position <= POSITION_TOLERANCE and direction <= DIRECTION_TOLERANCE)


def show_affine(affine: NDArray[np.float64]) -> str:
    """The affine's first three rows, rounded, for messages."""
    return str(np.round(affine[:3], 4).tolist())
