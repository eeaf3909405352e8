"""Places of the instances of a series."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from medsam_tune.formats.dicom.geometry import (
    affine_of,
    alike,
    flat_affine,
    in_order,
    normal_of,
    plane_of,
)
from medsam_tune.formats.dicom.series import choose_series
from tests.dicom_series import COUNT, SPACING, STEP, write_series


def test_instances_in_space(tmp_path):
    instances = choose_series(write_series(tmp_path / "s")).instances
    ordered = [instances[i] for i in in_order(instances)]
    heights = [one.position[2] for one in ordered]
    np.testing.assert_allclose(heights, -50 + STEP * np.arange(COUNT))
    np.testing.assert_allclose(normal_of(ordered[0]), [0, 0, 1])
    positions = np.stack([one.position for one in ordered])
    affine = affine_of(ordered[0], positions)
    np.testing.assert_allclose(
        affine @ [1, 2, 3, 1], [3 - SPACING[0], -4 - 2 * SPACING[1], -42.5, 1]
    )
    alone = affine_of(ordered[0], positions[:1])  # 1 mm thick
    np.testing.assert_allclose(alone[:3, 2], [0, 0, 1])
    without = [replace(one, orientation=None, spacing=None) for one in instances]
    assert in_order(without) == list(range(COUNT))
    np.testing.assert_allclose(flat_affine(without[0]), np.diag([-1, -1, 1, 1]))


def with_orientation(one, shift, spacing=SPACING):
    turned = np.array([[1, 0, 0], [0, 1, shift]], dtype=float)
    return replace(one, orientation=turned, spacing=spacing)


def test_row_89_equal_is_by_tolerance(tmp_path):
    """No bins: what rounds up and what rounds down may be as good as equal."""
    (one,) = choose_series(write_series(tmp_path / "s", count=1)).instances
    tiny = [with_orientation(one, 1e-3 + (k - 4) * 1e-7, (0.7 + k * 1e-7, 0.9)) for k in range(9)]
    assert alike(tiny)[0] == [True] * 9
    spread = [with_orientation(one, shift) for shift in (0, 9e-4, 1.8e-3)]
    assert alike(spread) == ([True] * 3, 1)  # compared with the middle one
    for odd in (
        with_orientation(one, 2.1e-3),
        with_orientation(one, 0, (0.7011, 0.9)),
        replace(one, size=(13, 12)),
        replace(one, orientation=None),
        replace(one, spacing=None),
    ):
        same, usual = alike([odd, *[with_orientation(one, 0)] * 3])
        assert same == [False, True, True, True]
        assert usual > 0


def test_where_an_instance_lies(tmp_path):
    instances = choose_series(write_series(tmp_path / "s")).instances
    first = instances[in_order(instances)[0]]
    position, steps = plane_of(first)
    assert position.tolist() == [-3, 4, -50]
    assert steps.tolist() == [[SPACING[0], 0, 0], [0, SPACING[1], 0]]
