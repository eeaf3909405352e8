from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medsam_tune.data.checks import (
    DataError,
    check_image,
    check_pair,
    label_values,
    same_affine,
)
from medsam_tune.data.readers import load_image
from medsam_tune.data.scans import load_case
from tests.data.conftest import LABELS, SHAPE, small_scan, write_nifti


def refusal(case, labels=LABELS) -> str:
    with pytest.raises(DataError) as caught:
        load_case(case, labels)
    return str(caught.value)


def test_sound_case_is_loaded_in_lps(make_case):
    case = make_case()
    image, label = load_case(case, LABELS)
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
    image = load_image("a", tmp_path / "a.nii.gz")
    assert not any("Doe" in str(v) or "MRN" in str(v) for v in image.meta.values())


def test_big_endian_file_is_read(tmp_path):
    nifti = nib.Nifti1Image(small_scan()[0].astype(">f4"), np.diag([2.0, 3, 4, 1]), None)
    swapped = nib.Nifti1Image(
        nifti.get_fdata(dtype=np.float32), nifti.affine, nifti.header.as_byteswapped(">")
    )
    nib.save(swapped, tmp_path / "a.nii.gz")
    assert nib.load(tmp_path / "a.nii.gz").header.endianness == ">"
    np.testing.assert_array_equal(
        load_image("a", tmp_path / "a.nii.gz")[0].numpy(), small_scan()[0]
    )


def test_row_01_zero_bytes(make_case):
    case = make_case()
    case.image.write_bytes(b"")
    assert refusal(case) == f"case case_017: the file has zero bytes ({case.image}). Copy it again."


def test_row_02_truncated_gzip_names_the_file(make_case):
    case = make_case()
    case.image.write_bytes(case.image.read_bytes()[:-400])
    message = refusal(case)
    assert message.startswith(f"case case_017: truncated or damaged gzip ({case.image})")
    assert message.endswith("Copy the file again.")


def test_row_02_gzip_truncated_in_the_header(make_case):
    case = make_case()
    case.label.write_bytes(case.label.read_bytes()[:60])
    assert f"cannot read {case.label}: " in refusal(case)


def test_row_03_short_nii(tmp_path):
    path = write_nifti(tmp_path / "a.nii", small_scan()[0])
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match=rf"case a: cannot read {path}: Expected .* bytes"):
        load_image("a", path)


def test_row_04_text_renamed(tmp_path):
    path = tmp_path / "a.nii.gz"
    path.write_text("hello")
    with pytest.raises(DataError, match=rf"cannot read {path}: .*not a gzip file"):
        load_image("a", path)


def test_row_05_missing_file(tmp_path):
    with pytest.raises(DataError, match=r"case a: no such file: .*a\.nii\.gz\. Correct the path"):
        load_image("a", tmp_path / "a.nii.gz")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_row_06_nan_and_inf(make_case, value):
    image, _ = small_scan()
    image[1, 2, 3] = image[4, 5, 3] = value
    message = refusal(make_case(image=image))
    assert "2 NaN or infinite voxels, the first at (1, 2, 3)" in message


def test_row_07_four_dimensions(make_case):
    image = np.stack([small_scan()[0]] * 3, axis=-1)
    message = refusal(make_case(image=image))
    assert "image is 4-D, 3 volumes of (10, 12, 6)" in message
    assert "expected one 3-D volume" in message


def test_two_dimensions(make_case):
    assert "image has 2 dimensions, shape (10, 12)" in refusal(
        make_case(image=small_scan()[0][..., 0])
    )


def test_row_08_empty_dimension():
    image = MetaTensor(torch.zeros(1, 8, 8, 0))
    with pytest.raises(DataError, match=r"shape \(8, 8, 0\) has an empty dimension \(a\.nii\)"):
        check_image("a", image, Path("a.nii"))


def test_row_09_no_orientation_warns(tmp_path):
    nifti = nib.Nifti1Image(small_scan()[0], None)
    nib.save(nifti, tmp_path / "a.nii.gz")
    with pytest.warns(UserWarning, match="case a: neither qform nor sform is set"):
        load_image("a", tmp_path / "a.nii.gz")


def test_row_10_sform_and_qform_differ(tmp_path):
    nifti = nib.Nifti1Image(small_scan()[0], np.eye(4))
    nifti.set_sform(np.eye(4), 1)
    nifti.set_qform(np.diag([-2.0, 2, 2, 1]), 1)
    nib.save(nifti, tmp_path / "a.nii.gz")
    with pytest.raises(DataError, match=r"qform \[\[-2\.0.* and sform \[\[1\.0.* differ"):
        load_image("a", tmp_path / "a.nii.gz")


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
    load_image("a", tmp_path / "a.nii.gz")


@pytest.mark.parametrize("affine", [np.diag([1.0, 0, 1, 1]), np.diag([1.0, np.nan, 1, 1])])
def test_row_13_bad_affine(affine):
    image = MetaTensor(torch.ones(1, *SHAPE), affine=torch.tensor(affine))
    with pytest.raises(DataError, match=r"affine .* is singular or not finite \(a\.nii\)"):
        check_image("a", image, Path("a.nii"))


def test_row_14_odd_names(tmp_path):
    path = write_nifti(tmp_path / "Größe 5 – é" / "scan ü.nii.gz", small_scan()[0])
    assert load_image("a", path).shape == (1, *SHAPE)


def test_row_18_shapes(make_case):
    case = make_case("017", label=np.zeros((10, 12, 5), np.uint8))
    assert refusal(case) == (
        "case 017: label shape (10, 12, 5) differs from image shape (10, 12, 6) "
        f"({case.label}, {case.image}); they must come from the same scan. "
        "Re-export the label on the image's grid, or choose reading::resample_label=true."
    )


def test_row_19_affines(make_case):
    shifted = np.diag([2.0, 3, 4, 1])
    shifted[0, 3] = 0.5
    message = refusal(make_case(label_affine=shifted))
    assert "label affine [[-2.0, 0.0, 0.0, 18.5]" in message
    assert "differs from image affine [[-2.0, 0.0, 0.0, 18.0]" in message
    assert "more than 0.001 mm or 0.001 in direction" in message
    assert "choose reading::resample_label=true" in message


def test_tiny_differences_of_affines_are_accepted(make_case):
    near = np.diag([2.0, 3, 4, 1])
    near[0, 3] = 5e-4
    load_case(make_case(label_affine=near), LABELS)


def test_same_affine_sees_direction():
    turned = np.eye(4)
    turned[:2, :2] = [[np.cos(0.01), -np.sin(0.01)], [np.sin(0.01), np.cos(0.01)]]
    assert same_affine(np.eye(4), np.eye(4))
    assert not same_affine(np.eye(4), turned)
    assert not same_affine(np.eye(4), np.full((4, 4), np.nan))


def test_row_20_fractions(make_case):
    label = small_scan()[1].astype(np.float32)
    label[0, 0, 0], label[0, 0, 1] = 0.5, 1.25
    message = refusal(make_case(label=label))
    assert "values that are not integers: 0.5, 1.25" in message
    assert "nearest-neighbour" in message


def test_row_21_unexpected_values(make_case):
    label = small_scan()[1]
    label[0, 0, 0], label[0, 0, 1] = 7, 9
    message = refusal(make_case(label=label))
    assert "label has the values 7, 9 (" in message
    assert "expected only 0, 1, 2." in message


def test_negative_values_are_unexpected(make_case):
    label = small_scan()[1].astype(np.int16)
    label[0, 0, 0] = -1
    assert "label has the values -1 (" in refusal(make_case(label=label))


def test_row_22_empty_label_is_allowed(make_case):
    _, label = load_case(make_case(label=np.zeros(SHAPE, np.uint8)), LABELS)
    assert not label.any()


def test_check_pair_directly_on_tensors():
    image = MetaTensor(torch.ones(1, *SHAPE))
    label = MetaTensor(torch.zeros(1, *SHAPE))
    check_pair("a", image, label, {1}, Path("i"), Path("l"))


def test_label_values():
    values = torch.tensor([0, 300, 2, 2, 0, 1]).reshape(1, 1, 2, 3)
    assert label_values(values) == [0, 1, 2, 300]
    assert label_values(values * 1000 - 5) == [-5, 995, 1995, 299995]


def test_many_values_are_cut_and_counted(make_case):
    label = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
    assert "3, 4, 5, 6, 7, 8, 9, 10, 11, 12, ... (717 in all)" in refusal(make_case(label=label))
