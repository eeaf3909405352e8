"""Contours of an RTSTRUCT, as its file has them."""

from __future__ import annotations

import numpy as np
import pytest

from medsam_tune.errors import DataError
from medsam_tune.formats.dicom.rtstruct import organ_regions, read_regions
from medsam_tune.formats.open import dicom_modality
from tests.conftest import REAL_DATA
from tests.dicom_series import write_series
from tests.structure_set import box, placed, write_structure_set


def test_without_a_preamble():
    file = REAL_DATA / "odd_inputs" / "pydicom" / "rtstruct.dcm"
    if not file.is_file():
        pytest.skip("real scans are not here: odd_inputs beside the repository")
    assert dicom_modality(file) == "RTSTRUCT"
    (region,) = read_regions(file)
    assert [len(points) for points in region.contours] == [5, 6, 6]


def test_regions_of_a_structure_set(tmp_path):
    series = write_series(tmp_path / "s")
    square = placed(box(1, 1, 4, 4), 2)
    regions = {" liver ": [square], "BODY": [square], "Couch": [square], "": [square], "no": []}
    kinds = {"BODY": "EXTERNAL", "Couch": "SUPPORT"}
    file = write_structure_set(tmp_path / "r.dcm", series, regions, kinds)
    found = read_regions(file)
    assert [(one.number, one.name, one.kind) for one in found] == [
        (11, "liver", "ORGAN"),
        (12, "BODY", "EXTERNAL"),
        (13, "Couch", "SUPPORT"),
        (14, "", "ORGAN"),
    ]
    np.testing.assert_allclose(found[0].contours[0], square, atol=1e-4)
    assert [one.number for one in organ_regions(file)] == [11]


@pytest.mark.parametrize("text", ["nan", "x"])
def test_contours_that_are_no_points(tmp_path, text):
    series = write_series(tmp_path / "s")

    def spoil(content):
        contour = content.ROIContourSequence[0].ContourSequence[0]
        contour.ContourData[0] = "77.125"

    square = {"liver": [placed(box(1, 1, 4, 4), 2)]}
    file = write_structure_set(tmp_path / "r.dcm", series, square, change=spoil)
    file.write_bytes(file.read_bytes().replace(b"77.125", text.ljust(6).encode()))
    with pytest.raises(DataError, match=r"r\.dcm: cannot read this RTSTRUCT \(ValueError\)"):
        read_regions(file)
