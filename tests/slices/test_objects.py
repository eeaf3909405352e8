"""Pieces of a label, and objects that a mask tells apart."""

from __future__ import annotations

import numpy as np

from medsam_tune.slices.objects import numbered, owners

LABEL = np.zeros((6, 8), np.uint8)
LABEL[0:2, 0:2] = 1  # two squares that touch by a corner are one piece
LABEL[2:4, 2:4] = 1
LABEL[5, 7] = 1
LABEL[0:3, 5:8] = 2


def test_each_piece_of_each_label_has_a_number():
    found = numbered(LABEL)
    expected = np.zeros_like(LABEL)
    expected[LABEL == 1] = 1
    expected[5, 7], expected[LABEL == 2] = 2, 3
    np.testing.assert_array_equal(found, expected)
    assert owners(found, LABEL).tolist() == [0, 1, 1, 2]


def test_small_pieces_are_no_objects():
    found = numbered(LABEL, 2)
    assert found[5, 7] == 0
    assert owners(found, LABEL).tolist() == [0, 1, 2]
    assert not numbered(LABEL, 10).any()
    assert owners(numbered(LABEL, 10), LABEL).tolist() == [0]


def test_objects_that_touch_stay_apart():
    objects = np.zeros((6, 8), np.int32)
    objects[0:2, 0:2], objects[2:4, 2:4], objects[0:3, 5:8] = 70000, 3, 3
    found = numbered(LABEL, 1, objects)
    assert found[0, 0] != found[3, 3] != found[0, 5]
    assert found[5, 7] == 0
    assert owners(found, LABEL).tolist() == [0, 1, 1, 2]
    whole = numbered(np.ones((2, 2), np.uint8), 1, np.array([[5, 5], [9, 9]]))
    assert whole.tolist() == [[1, 1], [2, 2]]


def test_a_volume_has_pieces_across_slices():
    volume = np.zeros((3, 4, 4), np.uint8)
    volume[0:2, 0, 0], volume[2, 3, 3] = 1, 1
    assert numbered(volume)[:2, 0, 0].tolist() == [1, 1]
    assert numbered(volume)[2, 3, 3] == 2
