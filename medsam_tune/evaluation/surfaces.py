"""Distances between the surfaces of two masks.

A surface is made of elements: one for each corner of voxels around which the mask changes, with the
area (in 2-D the length) that marching cubes give it. So large voxels weigh more than small ones,
and results do not depend on how fine a scan is cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
from monai.metrics.utils import get_code_to_measure_table
from numpy.typing import NDArray
from scipy.spatial import cKDTree

IMPLEMENTATION = (
    f"surface elements of monai {version('monai')} (those of surface-distance), nearest ones by "
    f"scipy {version('scipy')}"
)
"""Who computes the distances; other tools take voxels for the surface, and differ."""

PERCENTILE = 95
"""Percentile of the Hausdorff distance."""


@dataclass(frozen=True)
class SurfaceDistances:
    """Measures of two surfaces, in the unit of the spacing.

    Attributes:
        nsd: share 0..1 of both surfaces that is within the tolerance of the other one.
        hd95: 95th percentile of the distances to the other surface, the larger of both directions.
        mean: mean distance of all elements of both surfaces to the other one.
    """

    nsd: float
    hd95: float
    mean: float


def surface_distances(
    prediction: NDArray[np.bool_],
    truth: NDArray[np.bool_],
    spacing: Sequence[float],
    tolerance: float,
) -> SurfaceDistances:
    """Measures of the surfaces of two masks.

    Args:
        prediction: 2-D or 3-D, not empty. What leaves the array is cut there, and closed.
        truth: the same shape, not empty.
        spacing: distance of two voxels along each axis.
        tolerance: largest distance that counts as none, in the same unit.

    Raises:
        ValueError: an empty mask, which has no surface.

    References:
        Nikolov et al., "Deep learning to achieve clinically applicable segmentation of head and
        neck anatomy for radiotherapy", 2018 (NSD); github.com/google-deepmind/surface-distance.
    """
    (here, area_here), (there, area_there) = (
        _elements(mask, spacing) for mask in (prediction, truth)
    )
    if not len(here) or not len(there):
        raise ValueError("an empty mask has no surface; expected two masks with a voxel each.")
    to_truth, _ = cKDTree(there).query(here)
    to_prediction, _ = cKDTree(here).query(there)
    total = area_here.sum() + area_there.sum()
    near = area_here[to_truth <= tolerance].sum() + area_there[to_prediction <= tolerance].sum()
    far = max(_percentile(to_truth, area_here), _percentile(to_prediction, area_there))
    weighted = (to_truth * area_here).sum() + (to_prediction * area_there).sum()
    return SurfaceDistances(float(near / total), far, float(weighted / total))


def _elements(
    mask: NDArray[np.bool_], spacing: Sequence[float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Places (N, D) and areas (N,) of the elements of a mask's surface."""
    areas, kernel = get_code_to_measure_table([float(step) for step in spacing])
    padded = np.pad(mask, 1).astype(np.uint8)
    code = np.zeros([size - 1 for size in padded.shape], np.uint8)
    for corner in np.ndindex(*(2,) * mask.ndim):
        part = tuple(slice(at, at + size) for at, size in zip(corner, code.shape, strict=True))
        code += padded[part] * np.uint8(int(kernel[(0, 0, *corner)]))
    places = np.nonzero((code != 0) & (code != len(areas) - 1))
    found = np.stack(places, axis=1) * np.asarray(spacing, float)
    return found, areas.numpy().astype(float)[code[places]]


def _percentile(distances: NDArray[np.float64], areas: NDArray[np.float64]) -> float:
    """Distance below which `PERCENTILE` of the area lies."""
    order = np.argsort(distances)
    share = np.cumsum(areas[order]) / areas.sum()
    last = int(np.searchsorted(share, PERCENTILE / 100))
    return float(distances[order][min(last, len(order) - 1)])
