"""Outlines of masks, by contourpy."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.51
"""Height between the pixels outside (0) and inside (1) at which an outline crosses.

It runs through the middle of a pixel's edge, and a hundredth of a pixel inside of it: programs that
round points to pixels, as rt-utils does, so meet those that are inside.
"""

Points = NDArray[np.float64]


def outlines(mask: NDArray[np.bool_]) -> list[Points]:
    """Outlines of the pieces of a mask.

    A hole is joined to the outline around it by a channel that is walked both ways (a keyhole): one
    outline without holes is what every reader of CLOSED_PLANAR contours understands alike. Pixels
    that touch at a corner are two pieces.

    Args:
        mask: (W, H) bool.

    Returns:
        (N, 2) float64 points each, in pixels, centres at whole numbers; the last point is joined to
        the first. Just the centres of the mask's pixels are inside or on a channel.
    """
    import contourpy

    columns, rows = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(columns):
        return []
    low = np.array([columns[0], rows[0]])
    part = mask[low[0] : columns[-1] + 1, low[1] : rows[-1] + 1]
    heights = np.pad(part, 1).T.astype(np.float64)  # (rows, columns), as contourpy has it
    lines = contourpy.contour_generator(z=heights, fill_type="OuterOffset")
    found = []
    for points, offsets in zip(*lines.filled(LEVEL, 2.0), strict=True):
        rings = [points[a : b - 1] for a, b in pairwise(offsets)]
        found.append(_without_needless(_joined(rings[0], rings[1:])) + (low - 1))
    return found


def _joined(outer: Points, holes: Sequence[Points]) -> Points:
    """One ring of an outer one and its holes, each joined to what is next on its right.

    Each hole's rightmost point lies on a row of pixel centres, as do the points where that row
    meets other rings; so the channel runs along the centres of pixels that are inside.
    """
    ring = outer
    for hole in sorted(holes, key=lambda points: -float(points[:, 0].max())):
        start = int(hole[:, 0].argmax())
        x, y = hole[start]
        right = np.where((ring[:, 1] == y) & (ring[:, 0] > x), ring[:, 0], np.inf)
        end = int(right.argmin())
        turned = np.roll(hole, -start, axis=0)
        ring = np.concatenate([ring[: end + 1], turned, turned[:1], ring[end:]])
    return ring


def _without_needless(ring: Points) -> Points:
    """A ring without points in the middle of a straight line."""
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    turn = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]
    ahead = (before * after).sum(axis=1) > 0
    kept: Points = ring[~((np.abs(turn) < 1e-9) & ahead)]
    return kept
