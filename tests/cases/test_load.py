"""One case from its files."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch

from medsam_tune.cases.datalist import Case
from medsam_tune.cases.load import load_case
from medsam_tune.errors import DataError
from medsam_tune.formats.mending import Mending
from medsam_tune.formats.open import load_image
from tests.conftest import REAL_DATA
from tests.dicom_series import write_series
from tests.scans import LABELS, SHAPE, load_turned, small_scan


def test_sound_case_is_loaded_in_lps(make_case):
    case = make_case()
    image, label = load_turned(case, LABELS)
    array, ids = small_scan()
    assert image.dtype == torch.float32
    assert label.dtype == torch.int32
    np.testing.assert_array_equal(image[0].numpy(), array[::-1, ::-1])  # RAS file -> LPS
    np.testing.assert_array_equal(label[0].numpy(), ids[::-1, ::-1])
    np.testing.assert_allclose(image.affine[:3, :3], np.diag([-2.0, -3, 4]))
    np.testing.assert_allclose(image.meta["original_affine"], np.diag([2.0, 3, 4, 1]))
    assert list(image.meta["spatial_shape"]) == list(SHAPE)


def test_missing_file(tmp_path):
    with pytest.raises(DataError, match=r"^no such file: .*a\.nii\.gz\. Correct the path"):
        load_image(tmp_path / "a.nii.gz")


def test_gzip_truncated_in_the_header(make_case):
    case = make_case()
    case.label.write_bytes(case.label.read_bytes()[:60])
    with pytest.raises(DataError, match=f"^case case_017: cannot read {case.label}: "):
        load_case(case, LABELS)


def test_bad_voxels_are_filled_where_asked(make_case):
    image, _ = small_scan()
    image[1, 2, 3], image[4, 5, 3] = np.nan, np.inf
    found, _ = load_turned(make_case(image=image), LABELS, Mending(fill_nan=-1024))
    image[1, 2, 3] = image[4, 5, 3] = -1024
    np.testing.assert_array_equal(found[0].numpy(), image[::-1, ::-1])
    assert found.meta["notes"] == ["2 NaN or infinite voxels set to -1024"]


def test_one_volume_of_several(make_case):
    image, _ = small_scan()
    case = make_case(image=np.stack([image, image + 1, image + 2], -1))
    found, _ = load_turned(case, LABELS, Mending(volume_index=1))
    np.testing.assert_array_equal(found[0].numpy(), image[::-1, ::-1] + 1)
    assert found.meta["notes"] == ["volume 1 of 3"]
    first, _ = load_turned(case, LABELS, Mending(volume_index=0))
    np.testing.assert_array_equal(first[0].numpy(), image[::-1, ::-1])
    with pytest.raises(DataError, match=r"no volume 3 \(.*\); it has 3, counted from 0"):
        load_turned(case, LABELS, Mending(volume_index=3))


def test_label_of_another_grid_is_resampled_where_asked(make_case):
    half = np.diag([1.0, 1.5, 4, 1])
    half[:2, 3] = -0.5, -0.75
    label = small_scan()[1].repeat(2, 0).repeat(2, 1)
    case = make_case(label=label, affine=np.diag([2.0, 3, 4, 1]), label_affine=half)
    image, found = load_turned(case, LABELS, Mending(resample_label=True))
    np.testing.assert_array_equal(found[0].numpy(), small_scan()[1][::-1, ::-1])
    np.testing.assert_allclose(found.affine, image.affine)


def test_liver_lies_under_its_label():
    """The label's rows run the other way in storage; by array index it would be at -75 HU."""
    folder = REAL_DATA / "totalseg"
    if not folder.is_dir():
        pytest.skip("real scans are not here: totalseg beside the repository")
    case = Case(folder / "example_ct_dicom", folder / "example_seg_dicom.nii.gz", "p")
    image, label = load_turned(case, {i: str(i) for i in range(1, 118)})
    liver = image[label == 5]
    assert float(liver.mean()) == pytest.approx(89, abs=1)
    assert float(liver.std()) == pytest.approx(22, abs=1)


def test_the_series_that_a_case_names(tmp_path):
    write_series(tmp_path / "a", uid="1.2.3.4")
    write_series(tmp_path / "b", uid="1.2.3.5", count=3)
    image, label = load_case(Case(tmp_path, None, "p", series="3.5"), {})
    assert (image.shape[-1], label) == (3, None)
    assert image.meta["series_uid"] == "1.2.3.5"
    with pytest.raises(DataError, match=r"^case c1: .*: 2 series: .*Choose by series_uid"):
        load_case(Case(tmp_path, None, "p", name="c1"), {})


def test_mending_reaches_the_image(tmp_path):
    nib.save(nib.Nifti1Image(small_scan()[0], None), tmp_path / "a.nii.gz")
    with pytest.raises(DataError, match=r"^case a: neither qform nor sform is set"):
        load_case(Case(tmp_path / "a.nii.gz", None, "p"), {}, Mending(strict=True))


@pytest.mark.parametrize("index", [3, 4])
def test_no_such_volume(make_case, index):
    case = make_case(image=np.stack([small_scan()[0]] * 3, -1))
    with pytest.raises(DataError, match=rf"^case case_017: no volume {index} \("):
        load_case(case, LABELS, Mending(volume_index=index))
