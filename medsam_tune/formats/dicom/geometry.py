"""Places of the instances of a series, by their positions and orientations alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from medsam_tune.formats.dicom.headers import Instance
from medsam_tune.formats.volume import LPS_TO_RAS


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


def affine_of(first: Instance, positions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Affine of an even, straight stack.

    Args:
        first: instance of the first position.
        positions: (K, 3) LPS millimetres, in order.

    Returns:
        (4, 4) float64 of (column, row, slice) to RAS+ millimetres.
    """
    assert first.orientation is not None
    across, down = first.spacing or (1.0, 1.0)
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
    across, down = one.spacing or (1.0, 1.0)
    return np.diag([-across, -down, 1.0, 1.0])
