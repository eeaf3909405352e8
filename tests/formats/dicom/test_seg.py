"""DICOM SEG, as its file has it."""

from __future__ import annotations

import numpy as np
import pytest

from medsam_tune.errors import DataError
from medsam_tune.formats.dicom.seg import read_segmentation, segment_names
from medsam_tune.formats.volume import image_from
from tests.bad_inputs.calls import same_in_world
from tests.dicom_series import SPACING, STEP, write_series
from tests.segmentation import NAMES, masks, write_seg


def test_segments_are_numbers_at_their_place(tmp_path):
    path = write_seg(tmp_path / "seg.dcm", write_series(tmp_path / "s"), masks())
    assert segment_names(path) == NAMES
    found = image_from(read_segmentation(path))
    assert found.shape[-1] == 6  # without the empty slices
    affine = np.diag([-SPACING[0], -SPACING[1], STEP, 1.0])
    affine[:3, 3] = [3, -4, -50 + 2 * STEP]
    same_in_world(found, masks()[2:8].transpose(2, 1, 0), affine)


def test_segments_that_overlap_or_are_damaged(tmp_path):
    series = write_series(tmp_path / "s")
    both = np.stack([masks() > 0, masks() == 2], -1).astype(np.uint8)
    path = write_seg(tmp_path / "seg.dcm", series, both)
    with pytest.raises(DataError, match=r"seg\.dcm: its segments cannot be one label map \("):
        read_segmentation(path)
    (tmp_path / "a.dcm").write_bytes(path.read_bytes()[:2000])
    for read in (read_segmentation, segment_names):
        with pytest.raises(DataError, match=r"a\.dcm: cannot read this DICOM SEG \(\w+\)\. Export"):
            read(tmp_path / "a.dcm")
