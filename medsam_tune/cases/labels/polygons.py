"""Filled polygons."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]


def fill(
    contours: Sequence[Points], size: tuple[int, ...]
) -> tuple[tuple[slice, slice], NDArray[np.bool_], NDArray[np.bool_]]:
    """Pixels of one object in one slice, by the outlines around it.

    A pixel is inside where its centre is, by the even-odd rule over all contours: a contour within
    another is a hole, and a keyhole contour, whose channel is walked both ways, encloses what it
    should.

    Args:
        contours: (N, 2) float64 points each, in pixels, centres at whole numbers.
        size: (W, H) of the slice.

    Returns:
        The window of the slice that holds the contours; and of that window two (w, h) bool masks:
        centres inside by the even-odd rule, and centres on a contour, which are not in the first.
    """
    every = np.concatenate(contours)
    low = np.clip(np.floor(every.min(axis=0)), 0, size).astype(int)
    high = np.clip(np.floor(every.max(axis=0)) + 1, low, size).astype(int)
    width, height = (high - low).tolist()
    flips = np.zeros((width + 1, height), dtype=np.int64)
    edge = np.zeros((width, height), dtype=bool)
    for contour in contours:
        starts = contour - low
        ends = np.roll(starts, -1, axis=0)
        _mark(edge, starts)
        for axis in (0, 1):
            edges, across, along = _crossings(starts, ends, axis)
            at = np.stack([across, along] if axis == 0 else [along, across], axis=1)
            _mark(edge, np.where(np.abs(at - np.round(at)) < 1e-6, np.round(at), at))
        # Of the last turn, along rows: each row is entered and left at its crossings.
        once = across < np.maximum(starts[:, 1], ends[:, 1])[edges]
        here = once & (across >= 0) & (across < height)
        columns = np.clip(np.ceil(along[here] - 1e-9), 0, width).astype(int)
        np.add.at(flips, (columns, across[here].astype(int)), 1)
    inside = np.cumsum(flips[:-1], axis=0) % 2 == 1
    window = (slice(low[0], high[0]), slice(low[1], high[1]))
    return window, inside & ~edge, edge


def _crossings(
    starts: Points, ends: Points, axis: int
) -> tuple[NDArray[np.intp], NDArray[np.float64], NDArray[np.float64]]:
    """Points where edges (N, 2) -> (N, 2) meet the whole numbers of an axis.

    Returns:
        Of each of the M crossings: index of the edge, whole number on this axis, and place along
        the other axis.
    """
    a, b = starts[:, axis], ends[:, axis]
    low, high = np.ceil(np.minimum(a, b)), np.floor(np.maximum(a, b))
    count = np.where(a == b, 0, np.maximum(high - low + 1, 0)).astype(int)
    edges = np.repeat(np.arange(len(a)), count)
    at = low[edges] + np.arange(len(edges)) - np.repeat(np.cumsum(count) - count, count)
    share = (at - a[edges]) / (b - a)[edges]
    other = starts[edges, 1 - axis] + share * (ends - starts)[edges, 1 - axis]
    return edges, at, other


def _mark(pixels: NDArray[np.bool_], points: Points) -> None:
    """Set the pixels (W, H) whose centre is one of the points (N, 2)."""
    whole = points[(points == np.round(points)).all(axis=1)].astype(int)
    whole = whole[((whole >= 0) & (whole < pixels.shape)).all(axis=1)]
    pixels[whole[:, 0], whole[:, 1]] = True
