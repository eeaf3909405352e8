"""Places of the instances of a series."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from medsam_tune.formats.dicom.geometry import affine_of, flat_affine, in_order, normal_of
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
