"""Places of the instances of a series, by their positions and orientations alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from medsam_tune.formats.dicom.headers import Instance
from medsam_tune.formats.volume import LPS_TO_RAS

ORIENTATION_TOLERANCE = 1e-3
"""Largest accepted difference of two slices' direction cosines, dimensionless."""

PIXEL_TOLERANCE = 1e-3
"""Largest accepted difference of two slices' PixelSpacing, millimetres."""

SAME_POSITION = 1e-2
"""Slices nearer than this lie at one position, millimetres."""


def in_order(instances: Sequence[Instance]) -> list[int]:
    """Indices of instances along their normal; the order of the files if they have no place."""
    along = [
        float(np.dot(normal_of(instances[0]), one.position))
        for one in instances
        if one.position is not None and instances[0].orientation is not None
    ]
    return sorted(range(len(along)), key=along.__getitem__) or list(range(len(instances)))


def normal_of(one: Instance) -> NDArray[np.float64]:
    """(3,) float64 unit vector across an instance, LPS."""
    assert one.orientation is not None
    return np.asarray(np.cross(*one.orientation), dtype=np.float64)


def plane_of(one: Instance) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where an instance lies that has a place.

    Returns:
        (3,) float64 centre of its first pixel; and (2, 3) float64 steps to the next column and to
        the next row; LPS millimetres.
    """
    assert one.position is not None
    assert one.orientation is not None
    return one.position, one.orientation * np.array(pixel_of(one))[:, None]


def pixel_of(one: Instance) -> tuple[float, float]:
    """Millimetres between columns and between rows; 1 and 1 where the header does not say."""
    return one.spacing or (1.0, 1.0)


def alike(instances: Sequence[Instance]) -> tuple[list[bool], int]:
    """Which instances have the size, orientation and spacing that most of them have.

    Numbers are compared by tolerance with those of the instance in the middle, never rounded: two
    that are as good as equal may round differently. What a header lacks differs from any value.

    Args:
        instances: at least one.

    Returns:
        For each instance, whether it is like the usual one; and the index of the usual one.
    """
    absent = np.full((2, 3), 9.0), (0.0, 0.0)  # what no header says
    values = np.array(
        [
            (
                *one.size,
                *(absent[0] if one.orientation is None else one.orientation).ravel(),
                *(absent[1] if one.spacing is None else one.spacing),
            )
            for one in instances
        ]
    )  # (N, 10)
    allowed = np.array([0.0] * 2 + [ORIENTATION_TOLERANCE] * 6 + [PIXEL_TOLERANCE] * 2)
    usual = int(np.abs(values - np.median(values, axis=0)).sum(axis=1).argmin())
    return (np.abs(values - values[usual]) <= allowed).all(axis=1).tolist(), usual


def affine_of(first: Instance, positions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Affine of an even, straight stack.

    Args:
        first: instance of the first position.
        positions: (K, 3) LPS millimetres, in order.

    Returns:
        (4, 4) float64 of (column, row, slice) to RAS+ millimetres.
    """
    assert first.orientation is not None
    across, down = pixel_of(first)
    step = normal_of(first)
    if len(positions) > 1:
        step = (positions[-1] - positions[0]) / (len(positions) - 1)
    affine = np.eye(4)
    affine[:3, 0] = first.orientation[0] * across
    affine[:3, 1] = first.orientation[1] * down
    affine[:3, 2] = step
    affine[:3, 3] = positions[0]
    return LPS_TO_RAS @ affine


def flat_affine(one: Instance) -> NDArray[np.float64]:
    """(4, 4) float64 of one instance that says nothing of its place."""
    across, down = pixel_of(one)
    return np.diag([-across, -down, 1.0, 1.0])
