from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medsam_tune.cases.checks import check_image, check_pair, label_values
from medsam_tune.errors import DataError
from medsam_tune.formats.mending import Mending
from medsam_tune.formats.open import load_image
from medsam_tune.formats.volume import same_affine
from tests.dicom_series import write_series
from tests.scans import LABELS, SHAPE, load_turned, small_scan, write_nifti


def refusal(case, labels=LABELS) -> str:
    with pytest.raises(DataError) as caught:
        load_turned(case, labels)
    return str(caught.value)


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


def test_header_texts_are_left_behind(tmp_path):
    nifti = nib.Nifti1Image(small_scan()[0], np.eye(4))
    nifti.header["descrip"], nifti.header["intent_name"] = b"Doe^Jane", b"MRN123"
    nifti.set_sform(np.eye(4), 1)
    nib.save(nifti, tmp_path / "a.nii.gz")
    image = load_image(tmp_path / "a.nii.gz")
    assert not any("Doe" in str(v) or "MRN" in str(v) for v in image.meta.values())


def test_big_endian_file_is_read(tmp_path):
    nifti = nib.Nifti1Image(small_scan()[0].astype(">f4"), np.diag([2.0, 3, 4, 1]), None)
    swapped = nib.Nifti1Image(
        nifti.get_fdata(dtype=np.float32), nifti.affine, nifti.header.as_byteswapped(">")
    )
    nib.save(swapped, tmp_path / "a.nii.gz")
    assert nib.load(tmp_path / "a.nii.gz").header.endianness == ">"
    np.testing.assert_array_equal(load_image(tmp_path / "a.nii.gz")[0].numpy(), small_scan()[0])


def test_gzip_truncated_in_the_header(make_case):
    case = make_case()
    case.label.write_bytes(case.label.read_bytes()[:60])
    assert f"cannot read {case.label}: " in refusal(case)


def test_missing_file(tmp_path):
    with pytest.raises(DataError, match=r"^no such file: .*a\.nii\.gz\. Correct the path"):
        load_image(tmp_path / "a.nii.gz")


def test_two_dimensions(make_case):
    assert "image has 2 dimensions, shape (10, 12)" in refusal(
        make_case(image=small_scan()[0][..., 0])
    )


def test_qform_of_a_half_turn_is_accepted(tmp_path):
    turn = np.radians(179.98)
    affine = np.eye(4)
    affine[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    affine = affine @ np.diag([0.8, 0.8, 5, 1])
    affine[:3, 3] = [210.5, -180.25, 900]
    nifti = nib.Nifti1Image(small_scan()[0], affine)
    nifti.set_sform(affine, 1)
    nifti.set_qform(affine, 1)
    nib.save(nifti, tmp_path / "a.nii.gz")
    load_image(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("affine", [np.diag([1.0, 0, 1, 1]), np.diag([1.0, np.nan, 1, 1])])
def test_bad_affine(affine):
    image = MetaTensor(torch.ones(1, *SHAPE), affine=torch.tensor(affine))
    with pytest.raises(DataError, match=r"affine .* is singular or not finite \(a\.nii\)"):
        check_image(image, Path("a.nii"))


def test_tiny_differences_of_affines_are_accepted(make_case):
    near = np.diag([2.0, 3, 4, 1])
    near[0, 3] = 5e-4
    load_turned(make_case(label_affine=near), LABELS)


def test_same_affine_sees_direction():
    turned = np.eye(4)
    turned[:2, :2] = [[np.cos(0.01), -np.sin(0.01)], [np.sin(0.01), np.cos(0.01)]]
    assert same_affine(np.eye(4), np.eye(4))
    assert not same_affine(np.eye(4), turned)
    assert not same_affine(np.eye(4), np.full((4, 4), np.nan))


def test_negative_values_are_unexpected(make_case):
    label = small_scan()[1].astype(np.int16)
    label[0, 0, 0] = -1
    assert "label has the values -1 (" in refusal(make_case(label=label))


def test_check_pair_directly_on_tensors():
    image = MetaTensor(torch.ones(1, *SHAPE))
    label = MetaTensor(torch.zeros(1, *SHAPE))
    check_pair(image, label, {1}, Path("i"), Path("l"))


def test_label_values():
    values = torch.tensor([0, 300, 2, 2, 0, 1]).reshape(1, 1, 2, 3)
    assert label_values(values) == [0, 1, 2, 300]
    assert label_values(values * 1000 - 5) == [-5, 995, 1995, 299995]


def test_many_values_are_cut_and_counted(make_case):
    label = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
    assert "3, 4, 5, 6, 7, 8, 9, 10, 11, 12, ... (717 in all)" in refusal(make_case(label=label))


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
    with pytest.raises(DataError, match=r"no volume 3 \(.*\); it has 3, counted from 0"):
        load_turned(case, LABELS, Mending(volume_index=3))


def test_guessed_orientation_is_refused_where_asked(tmp_path):
    nib.save(nib.Nifti1Image(small_scan()[0], None), tmp_path / "a.nii.gz")
    with pytest.raises(DataError, match=r"neither qform nor sform is set .*; the orientation"):
        load_image(tmp_path / "a.nii.gz", Mending(strict=True))


def test_label_of_another_grid_is_resampled_where_asked(make_case):
    half = np.diag([1.0, 1.5, 4, 1])
    half[:2, 3] = -0.5, -0.75
    label = small_scan()[1].repeat(2, 0).repeat(2, 1)
    case = make_case(label=label, affine=np.diag([2.0, 3, 4, 1]), label_affine=half)
    image, found = load_turned(case, LABELS, Mending(resample_label=True))
    np.testing.assert_array_equal(found[0].numpy(), small_scan()[1][::-1, ::-1])
    np.testing.assert_allclose(found.affine, image.affine)


def test_pixdim_that_is_far_from_the_sform_is_said(tmp_path):
    nifti = nib.Nifti1Image(small_scan()[0], np.diag([2.0, 3, 4, 1]))
    nifti.header.set_zooms((1, 1, 1))
    nib.save(nifti, tmp_path / "a.nii.gz")
    with pytest.warns(UserWarning, match=r"pixdim \[1.0, 1.0, 1.0\] is not the sform's spacing"):
        image = load_image(tmp_path / "a.nii.gz")
    np.testing.assert_allclose(image.affine, np.diag([2.0, 3, 4, 1]))


@pytest.mark.parametrize("dtype", [np.complex64, np.dtype([(c, "u1") for c in "RGB"])])
def test_values_that_are_no_numbers(tmp_path, dtype):
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 2), dtype), np.eye(4)), tmp_path / "a.nii.gz")
    with pytest.raises(DataError, match=r"^its values are colours or complex numbers"):
        load_image(tmp_path / "a.nii.gz")


def test_header_that_is_damaged(tmp_path):
    path = write_nifti(tmp_path / "a.nii", small_scan()[0])
    content = bytearray(path.read_bytes())
    content[70:72] = b"\xff\x0f"  # the type of the values
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"cannot read {path}: data code 4095 not recognized"):
        load_image(path)


def test_memory_is_asked_before_voxels_are_read(tmp_path, monkeypatch):
    import SimpleITK as sitk

    files = [write_nifti(tmp_path / "a.nii.gz", small_scan()[0]), tmp_path / "a.nrrd"]
    sitk.WriteImage(sitk.GetImageFromArray(small_scan()[0]), str(files[1]))
    files.append(write_series(tmp_path / "series"))
    for file in files:
        load_image(file)
    free = SimpleNamespace(available=1000)
    monkeypatch.setattr("psutil.virtual_memory", lambda: free)
    for file in files:
        with pytest.raises(
            DataError,
            match=r"^\S*(a\.nii\.gz|a\.nrrd|series): .* voxels, 0\.0 GB of memory; 0\.0 GB are",
        ):
            load_image(file)
