"""After-care: each step alone, on masks whose result is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from medsam_tune.inference.aftercare import Aftercare


def pieces() -> np.ndarray:
    """A block of 64 voxels with a hole of one, and a piece of 8."""
    mask = np.zeros((12, 10, 8), bool)
    mask[1:5, 1:5, 1:5] = True
    mask[2, 2, 2] = False
    mask[8:10, 6:8, 3:5] = True
    return mask


def test_nothing_is_done_by_default() -> None:
    labels = pieces().astype(np.int16) * 3
    assert Aftercare().does_nothing
    assert Aftercare().labels(labels, 1.0) is labels


def test_the_largest_piece_stays() -> None:
    found = Aftercare(largest_component=True).mask(pieces(), 1.0)
    assert found.sum() == 63
    assert not found[8:].any()
    assert not Aftercare(largest_component=True).mask(np.zeros((3, 3, 3), bool), 1.0).any()


def test_pieces_that_touch_at_a_corner_are_one() -> None:
    mask = np.zeros((6, 6, 6), bool)
    mask[1:3, 1:3, 1:3] = mask[3, 3, 3] = True
    assert Aftercare(largest_component=True).mask(mask, 1.0).sum() == 9


@pytest.mark.parametrize(("volume", "left"), [(0.8, 71), (0.81, 63), (6.3, 63), (6.31, 0)])
def test_small_pieces_go_by_their_volume(volume: float, left: int) -> None:
    assert Aftercare(min_volume_ml=volume).mask(pieces(), 0.1).sum() == left


def test_holes_are_filled() -> None:
    found = Aftercare(fill_holes=True).mask(pieces(), 1.0)
    assert found.sum() == 64 + 8


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_smoothing_is_across_slices_alone(axis: int) -> None:
    mask = np.zeros((9, 9, 9), bool)
    mask[2:7, 3:6, 2:7] = True
    mask[2:7, 3:6, 4] = False  # lost on one slice
    mask[8, 8, 4] = True  # on one slice only
    moved = np.moveaxis(mask, 2, axis)
    found = np.moveaxis(Aftercare(smooth_slices=1.0).mask(moved, 1.0, axis), axis, 2)
    assert found[2:7, 3:6, 4].all()
    assert not found[8, 8].any()
    assert set(np.argwhere(found.any(2))[:, 0]) == set(range(2, 7))


def test_no_label_grows_over_another() -> None:
    labels = np.zeros((9, 9, 9), np.int16)
    labels[1:8, 1:8, 1:8] = 5
    labels[4, 4, 4] = 2
    labels[0, 0, 0] = 2
    found = Aftercare(fill_holes=True, largest_component=True).labels(labels, 1.0)
    assert found[4, 4, 4] in (2, 0)
    assert found.dtype == np.int16
    assert ((found == labels) | (found == 0)).all()
    swapped = np.where(labels == 5, 1, labels)  # the larger one has the lower id
    found = Aftercare(fill_holes=True).labels(swapped, 1.0)
    assert found[4, 4, 4] == 2


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"smooth_slices": -1.0}, "smooth_slices is -1.0; expected a number, 0 or more"),
        ({"min_volume_ml": True}, "min_volume_ml is True"),
        ({"min_volume_ml": float("nan")}, "min_volume_ml is nan"),
        ({"fill_holes": 1}, "fill_holes is 1; expected true or false"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Aftercare(**settings)
