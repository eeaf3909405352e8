"""Filled polygons."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from matplotlib.path import Path as Outline

from medsam_tune.cases.labels.polygons import fill
from tests.dicom_series import SIZE
from tests.structure_set import box


def filled(*contours: Sequence[Sequence[float]], size: tuple[int, int] = SIZE) -> np.ndarray:
    """(W, H) with 1 inside, 2 on an edge."""
    plane = np.zeros(size, int)
    window, inside, edge = fill([np.asarray(one, float) for one in contours], size)
    plane[window] = inside + 2 * edge
    return plane


def test_holes_and_keyholes():
    outer, inner = box(0.5, 0.5, 9.5, 9.5), box(3.5, 3.5, 6.5, 6.5)
    expected = np.zeros(SIZE, int)
    expected[1:10, 1:10] = 1
    expected[4:7, 4:7] = 0
    np.testing.assert_array_equal(filled(outer, inner), expected)
    np.testing.assert_array_equal(filled(outer, inner[::-1]), expected)
    keyhole = [*outer, outer[0], *inner, inner[0]]  # and back to the first point
    np.testing.assert_array_equal(filled(keyhole) > 0, expected > 0)
    channel_on_centres = [[0.5, 2], [3.5, 4], *inner[3:0:-1], [3.5, 3.5], [3.5, 4], [0.5, 2]]
    walked = [*outer, outer[0], *channel_on_centres, outer[0]]
    np.testing.assert_array_equal(filled(walked) > 0, expected > 0)


def test_a_closed_rule_on_centres():
    """Contours that tools trace through the outermost voxels' centres give these back."""
    plane = filled(box(2, 3, 5, 7))
    expected = np.zeros(SIZE, int)
    expected[2:6, 3:8] = 2
    expected[3:5, 4:7] = 1
    np.testing.assert_array_equal(plane, expected)
    assert filled([[4, 5]]).sum() == 2
    np.testing.assert_array_equal(
        np.argwhere(filled([[4, 5], [7, 8]])), [[n, n + 1] for n in (4, 5, 6, 7)]
    )
    np.testing.assert_array_equal(filled(box(-4, -4, 40, 40)), np.ones(SIZE))  # beyond the image
    assert not filled(box(-9, 2, -5, 6)).any()


@pytest.mark.parametrize("seed", range(8))
def test_polygons_as_matplotlib_fills_them(seed):
    """Self-crossing ones as well."""
    points = np.random.default_rng(seed).uniform(-4, 44, (17, 2))
    centres = np.stack(np.meshgrid(range(40), range(36), indexing="ij"), -1).reshape(-1, 2)
    expected = Outline([*points, points[0]], closed=True).contains_points(centres).reshape(40, 36)
    np.testing.assert_array_equal(filled(points, size=(40, 36)), expected)
