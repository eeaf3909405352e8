"""NIfTI: read as its header says, or refused."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from medsam_tune.cases.datalist import Case
from medsam_tune.cases.load import load_case
from medsam_tune.errors import DataError
from medsam_tune.formats import nifti
from medsam_tune.formats.mending import Mending
from medsam_tune.formats.open import load_image
from tests.scans import small_scan, write_nifti


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


def test_guessed_orientation_is_refused_where_asked(tmp_path):
    nib.save(nib.Nifti1Image(small_scan()[0], None), tmp_path / "a.nii.gz")
    with pytest.raises(DataError, match=r"neither qform nor sform is set .*; the orientation"):
        load_image(tmp_path / "a.nii.gz", Mending(strict=True))


def test_pixdim_that_is_far_from_the_sform_is_said(tmp_path):
    nifti = nib.Nifti1Image(small_scan()[0], np.diag([2.0, 3, 4, 1]))
    nifti.header.set_zooms((1, 1, 1))
    nib.save(nifti, tmp_path / "a.nii.gz")
    with pytest.warns(UserWarning, match=r"pixdim 1 x 1 x 1 is not the sform's spacing 2 x 3 x 4"):
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


def test_files_of_another_kind(tmp_path):
    axes = (
        nib.cifti2.ScalarAxis(["a"]),
        nib.cifti2.BrainModelAxis.from_mask(np.ones((2, 2, 2)), affine=np.eye(4)),
    )
    nib.save(nib.Cifti2Image(np.zeros((1, 8), np.float32), axes), tmp_path / "a.dscalar.nii")
    with pytest.raises(DataError, match=r"a\.dscalar\.nii: it is Cifti2Image\. Expected a whole N"):
        load_image(tmp_path / "a.dscalar.nii")


@pytest.mark.parametrize("shape", [(1,), (3,), (1, 1), (2, 3)])
def test_volumes_become_channels(tmp_path, shape):
    values = np.arange(2 * 3 * 4 * np.prod(shape), dtype=np.float32).reshape(2, 3, 4, *shape)
    image = load_image(write_nifti(tmp_path / "a.nii.gz", values))
    expected = values.reshape(2, 3, 4, -1).transpose(3, 0, 1, 2)
    np.testing.assert_array_equal(image.numpy(), expected)
    assert list(image.meta["spatial_shape"]) == [2, 3, 4]


def test_warnings_name_the_case(tmp_path):
    nib.save(nib.Nifti1Image(small_scan()[0], None), tmp_path / "a.nii.gz")
    with pytest.warns(UserWarning, match=r"^case c7: neither qform nor sform is set \("):
        load_case(Case(tmp_path / "a.nii.gz", None, "p", name="c7"), {})


def test_millimetres_are_written(tmp_path):
    nifti.write(tmp_path / "a.nii", small_scan()[1], np.eye(4))
    written = nib.load(tmp_path / "a.nii")
    assert written.header.get_xyzt_units()[0] == "mm"
    assert written.get_data_dtype() == np.uint8


@pytest.mark.parametrize("shape", [(6, 5, 1, 3), (6, 5, 4, 1), (6, 5, 1, 1), (6, 5, 1, 1, 3)])
def test_flat_scans_and_several_volumes(tmp_path, shape):
    values = np.random.default_rng(0).uniform(1, 9, shape).astype(np.float32)
    image = load_image(write_nifti(tmp_path / "a.nii", values))
    volumes = values.reshape(*shape[:3], -1)
    assert tuple(image.shape) == (volumes.shape[3], *shape[:3])
    np.testing.assert_array_equal(image.numpy(), np.moveaxis(volumes, 3, 0))
