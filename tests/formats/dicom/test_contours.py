"""Outlines of masks: just the pixels of the mask are inside."""

from __future__ import annotations

import numpy as np
import pytest

from medsam_tune.cases.labels.polygons import fill
from medsam_tune.formats.dicom.contours import Points, outlines


def filled(contours: list[Points], size: tuple[int, ...]) -> np.ndarray:
    """By centres of pixels, even-odd, as our reader does."""
    found = np.zeros(size, bool)
    if contours:
        window, inside, edge = fill(contours, size)
        found[window] = inside | edge
    return found


def rounded(contours: list[Points], size: tuple[int, ...]) -> np.ndarray:
    """By OpenCV, of points that are rounded to pixels, as rt-utils does."""
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed")
    canvas = np.zeros(size[::-1], np.uint8)
    cv2.fillPoly(canvas, [np.around(points).astype(np.int32) for points in contours], 1)
    return canvas.T.astype(bool)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8, 0.95])
def test_arbitrary_masks_come_back(share: float) -> None:
    """With holes in holes, single pixels, and pixels that touch at corners."""
    rng = np.random.default_rng(int(100 * share))
    for _ in range(100):
        mask = rng.random(rng.integers(1, 14, 2)) < share
        contours = outlines(mask)
        np.testing.assert_array_equal(filled(contours, mask.shape), mask)
        np.testing.assert_array_equal(rounded(contours, mask.shape), mask)


def test_a_hole_is_in_its_outline() -> None:
    mask = np.ones((9, 7), bool)
    mask[2:4, 2:5] = mask[6, 3] = False
    (contour,) = outlines(mask)
    assert (filled([contour], mask.shape) == mask).all()
    channel = [tuple(point) for point in contour.round(2) if point[1] == 3]
    assert len(channel) - len(set(channel)) >= 2  # both channels are walked both ways
    mask[3, 3] = True  # an island in the hole... joined by an edge of it
    assert (filled(outlines(mask), mask.shape) == mask).all()


def test_points_are_few_and_at_the_edges() -> None:
    mask = np.zeros((20, 30), bool)
    mask[4:16, 5:25] = True
    (contour,) = outlines(mask)
    assert len(contour) == 8  # corners are cut
    assert contour.min(axis=0).tolist() == pytest.approx([3.51, 4.51])
    assert contour.max(axis=0).tolist() == pytest.approx([15.49, 24.49])
    x, y = contour.T
    area = abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2
    assert area == pytest.approx(mask.sum(), rel=5e-3)


def test_what_touches_at_a_corner_is_two_pieces() -> None:
    assert len(outlines(np.eye(3, dtype=bool))) == 3


def test_nothing_has_no_outline() -> None:
    assert outlines(np.zeros((4, 5), bool)) == []
