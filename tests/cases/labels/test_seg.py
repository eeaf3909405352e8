"""A DICOM SEG on the grid of its image."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

from medsam_tune.cases.datalist import Case
from medsam_tune.cases.folders import find_cases
from medsam_tune.cases.labels.open import open_label
from medsam_tune.cases.splits import labels_of_patients
from medsam_tune.errors import DataError
from tests.conftest import REAL_DATA
from tests.dicom_series import write_series
from tests.scans import load_turned
from tests.segmentation import NAMES, masks, write_seg


def test_segmentation_lies_on_its_series(tmp_path):
    series = write_series(tmp_path / "images" / "a")
    (tmp_path / "labels").mkdir()
    write_seg(tmp_path / "labels" / "a.dcm", series, masks())
    data = find_cases(tmp_path, modality="CT")
    assert data.labels == NAMES
    image, label = load_turned(data.training[0], data.labels)
    assert label.shape == image.shape
    np.testing.assert_array_equal(label[0].numpy(), masks().transpose(2, 1, 0))
    assert labels_of_patients(data) == {data.training[0].patient: {1, 2}}
    other = write_series(
        tmp_path / "other", lambda k, i: setattr(i, "ImagePositionPatient", [9.0, 4.0, 2.5 * k])
    )
    with pytest.raises(DataError, match="case other: the segmentation's grid is no part of the im"):
        load_turned(Case(other, tmp_path / "labels" / "a.dcm", "p"), NAMES)
    with pytest.raises(DataError, match=r"a\.dcm\); expected only 0, 1\. Add them"):
        load_turned(data.training[0], {1: "liver"})


def test_real_segmentations_equal_their_masks():
    folder = REAL_DATA / "dcmqi_ct3slice"
    if not folder.is_dir():
        pytest.skip("real scans are not here: dcmqi_ct3slice beside the repository")
    for series, segmentation, mask in (
        ("ct-3slice", "liver.dcm", "liver_seg.nrrd"),
        ("24x38x3/image", "24x38x3/seg/label.seg", "24x38x3/nrrd/label.nrrd"),
        ("24x38x3/image", "sparse-labelmap-noppv.dcm", "sparse_labelmap_noppv_seg.nrrd"),
    ):
        names = open_label(folder / segmentation).names()
        found = [
            load_turned(Case(folder / series, folder / file, "p"), {i: str(i) for i in range(9)})[1]
            for file in (segmentation, mask)
        ]
        assert names == {1: "Liver"}
        assert found[0].sum() > 100
        assert np.array_equal(found[0].numpy(), found[1].numpy())
    with pytest.raises(DataError, match="its segments cannot be one label map"):
        load_turned(Case(folder / "ct-3slice", folder / "partial_overlaps.dcm", "p"), {})
    assert sitk.ReadImage(str(folder / "liver_seg.nrrd")).GetSize() == (512, 512, 3)
