"""Points that are many become few, which lie far apart."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MOST_POINTS = 16
"""Most points inside, and most outside, that are taken of an object on a slice; of hundreds, the
model makes an empty mask."""


def spread_out(points: NDArray[np.floating]) -> NDArray[np.int64]:
    """Choose at most `MOST_POINTS`: each next is the farthest from those taken.

    The first is the nearest to their mean.

    Args:
        points: (N, 2) XY.

    Returns:
        (n,) indices of the points that are taken; all, in their order, where they are few.
    """
    if len(points) <= MOST_POINTS:
        return np.arange(len(points))
    taken = [int(np.square(points - points.mean(0)).sum(1).argmin())]
    distance = np.full(len(points), np.inf)
    while len(taken) < MOST_POINTS:
        distance = np.minimum(distance, np.square(points - points[taken[-1]]).sum(1))
        taken.append(int(distance.argmax()))
    return np.array(taken)
