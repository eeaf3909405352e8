"""Label maps on the grid of their image."""

from __future__ import annotations

import numpy as np
import pytest

from medsam_tune.cases.labels.maps import LabelMap
from medsam_tune.cases.load import load_case
from medsam_tune.errors import DataError
from medsam_tune.formats.mending import Mending
from medsam_tune.formats.open import load_label
from tests.dicom_series import write_series
from tests.scans import LABELS, load_turned, small_scan, write_nifti


@pytest.mark.parametrize("value", [0.5, -1, 2**31])
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


@pytest.mark.parametrize("ids", [(315, 40_000), (16_777_217, 2**31 - 1)])
def test_row_76_ids_are_exact(tmp_path, make_case, ids):
    label = np.array([0, *ids], np.uint32)[small_scan()[1]]
    case = make_case(label=label)
    assert LabelMap(case.label).names() == {i: f"label {i}" for i in ids}
    assert LabelMap(case.label).present({ids[1]: "b"}) == {ids[1]}


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_label_is_not_filled(make_case, value):
    """What is good for an image is no id."""
    label = small_scan()[1].astype(np.float32)
    label[0, 0, 0] = value
    text = r"^case case_017: 1 NaN or infinite voxels, .*labels.*; expected .* Export the label"
    with pytest.raises(DataError, match=text):
        load_case(make_case(label=label), LABELS, Mending(fill_nan=0))


@pytest.mark.parametrize("index", [None, 1])
def test_the_label_of_one_volume(make_case, index):
    """A 4-D label of a 4-D image: the same volume of both."""
    image, ids = small_scan()
    case = make_case(image=np.stack([image] * 3, -1), label=np.stack([0 * ids, ids, 2 * ids], -1))
    if index is None:
        with pytest.raises(DataError, match="image is 4-D, 3 volumes"):
            load_case(case, LABELS)
        return
    _, label = load_case(case, LABELS, Mending(volume_index=index))
    np.testing.assert_array_equal(label[0].numpy(), ids)
    flat = make_case(label=np.stack([0 * ids, ids], -1))
    with pytest.raises(
        DataError, match=r"label is 4-D, 2 volumes of .*, the image has 1 \(.*label"
    ):
        load_case(flat, LABELS, Mending(volume_index=index))


def test_volumes_of_a_label_without_a_choice(make_case):
    ids = small_scan()[1]
    with pytest.raises(DataError, match=r"label is 4-D, 2 volumes of .*, the image has 1"):
        load_case(make_case(label=np.stack([ids, ids], -1)), LABELS)


def test_a_series_of_label_images_is_not_interpolated(tmp_path):
    def uneven(k, image):
        image.ImagePositionPatient = [0, 0, float(k + 0.4 * k * k)]

    folder = write_series(tmp_path / "s", uneven)
    with pytest.raises(DataError, match="expected even spacing"):
        load_label(folder, Mending(resample_uneven=True))
