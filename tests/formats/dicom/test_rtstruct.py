"""Contours of an RTSTRUCT, as its file has them."""

from __future__ import annotations

import pytest

from medsam_tune.formats.dicom.rtstruct import read_regions
from medsam_tune.formats.open import dicom_modality
from tests.conftest import REAL_DATA


def test_without_a_preamble():
    file = REAL_DATA / "odd_inputs" / "pydicom" / "rtstruct.dcm"
    if not file.is_file():
        pytest.skip("real scans are not here: odd_inputs beside the repository")
    assert dicom_modality(file) == "RTSTRUCT"
    (region,) = read_regions(file)
    assert [len(points) for points in region.contours] == [5, 6, 6]
