"""Where a volume's voxels lie in the world, and whether they fit into memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil
from numpy.typing import NDArray

from medsam_tune.errors import DataError

POSITION_TOLERANCE = 1e-3
"""Largest accepted difference of two affines' origins and spacings, millimetres."""

DIRECTION_TOLERANCE = 1e-3
"""Largest accepted difference of two affines' unit axis directions, dimensionless.

NIfTI's qform stores a quaternion in float32, which is exact to about 3e-4 for the common 180
degree rotations; a tighter tolerance would refuse sound files.
"""

BYTES_PER_VOXEL = 16
"""Memory that reading a scan and its label takes: four times float32 (measured: 15 for a CT window,
19 for percentiles)."""


def check_memory(path: Path, shape: Sequence[int]) -> None:
    """Refuse a scan that would not fit into memory, by its header, before a voxel is read.

    Args:
        path: file or folder of the scan.
        shape: number of voxels along each axis, as the header has it.

    Raises:
        DataError: `BYTES_PER_VOXEL` for all of them is more than is free.
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
    """For messages."""
    return str(np.round(affine[:3], 4).tolist())
