"""Label maps on the grid of their image."""

from __future__ import annotations

import numpy as np
import pytest

from medsam_tune.cases.labels.maps import LabelMap
from medsam_tune.errors import DataError
from tests.scans import LABELS, load_turned, small_scan, write_nifti


@pytest.mark.parametrize("value", [0.5, -1])
def test_values_that_are_no_ids(tmp_path, value):
    label = small_scan()[1].astype(np.float32)
    label[0, 0, 0] = value
    path = write_nifti(tmp_path / "a.nii.gz", label)
    with pytest.raises(DataError, match=rf"^label map holds values that are no ids: \[{value}"):
        LabelMap(path).names()


def test_a_label_stored_along_other_axes(make_case, tmp_path):
    """It is the image's grid, whatever the order and the direction of the axes."""
    case = make_case()
    expected = load_turned(case, LABELS)[1]
    turned = np.array([[0, 0, 2.0, 0], [0, -3, 0, 33], [4, 0, 0, 0], [0, 0, 0, 1]])
    write_nifti(case.label, small_scan()[1].transpose(2, 1, 0)[:, ::-1], turned)
    np.testing.assert_array_equal(load_turned(case, LABELS)[1].numpy(), expected.numpy())
