"""NIfTI: read as its header says, or refused."""

from __future__ import annotations

import warnings

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import LoadImage

from medsam_tune.cases.datalist import Case
from medsam_tune.cases.load import load_case
from medsam_tune.errors import DataError
from medsam_tune.formats import nifti
from medsam_tune.formats.mending import Mending
from medsam_tune.formats.open import load_image, read_grid
from medsam_tune.formats.reader import SimpleITKReader
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


def in_unit(path, unit, per_mm, **header):
    """A scan of 2 x 3 x 4 mm voxels, its coordinates in a unit."""
    affine = np.diag([*[per_mm] * 3, 1]) @ AFFINE
    image = nib.Nifti1Image(small_scan()[0], affine)
    image.set_qform(affine, 1)
    image.header["xyzt_units"] = unit
    for field, value in header.items():
        image.header[field] = value
    nib.save(image, path)
    return path


AFFINE = np.array([[0, 3.0, 0, 5], [-2, 0, 0, -7], [0, 0, 4, 9], [0, 0, 0, 1]])


@pytest.mark.parametrize(
    ("unit", "per_mm"),
    # The upper bits are the unit of time, the lower three that of space; 5 is none.
    [(0, 1), (2, 1), (2 + 8, 1), (3, 1e3), (3 + 16, 1e3), (1, 1e-3), (1 + 24, 1e-3), (5, 1)],
)
def test_row_75_every_way_to_read_is_in_millimetres(tmp_path, unit, per_mm):
    path = in_unit(tmp_path / "a.nii", unit, per_mm)
    load = LoadImage(ensure_channel_first=True)
    load.register(SimpleITKReader())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        image = load_image(path)
    assert [str(one.message) for one in caught] == (
        []
        if per_mm == 1
        else [
            f"coordinates in {'micron' if per_mm > 1 else 'meter'} are read as voxels of "
            f"2 x 3 x 4 mm ({path})."
        ]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for found in (image, load(path)):
            np.testing.assert_allclose(found.affine, AFFINE, rtol=1e-5)
    np.testing.assert_allclose(read_grid(path).affine, AFFINE, rtol=1e-5)


def test_row_75_guessed_places_are_scaled_too(tmp_path):
    image = nib.Nifti1Image(small_scan()[0], None)
    image.header.set_zooms((2000, 3000, 4000))
    image.header.set_xyzt_units("micron")
    nib.save(image, tmp_path / "a.nii")
    with pytest.warns(UserWarning, match=r"in micron are read as voxels of 2 x 3 x 4 mm"):
        found = load_image(tmp_path / "a.nii")
    image.header.set_zooms((2, 3, 4))
    np.testing.assert_allclose(found.affine, image.header.get_base_affine(), rtol=1e-5)


def test_row_75_pixdim_and_qform_may_lag_behind_the_sform(tmp_path):
    """The sform in millimetres, the qform in micrometres."""
    path = in_unit(tmp_path / "a.nii", 3, 1e3)
    image = nib.load(path)
    image.set_sform(AFFINE, 1)
    nib.save(image, path)
    assert nib.load(path).header["pixdim"][1] == 2000
    with pytest.warns(UserWarning, match="the sform is in millimetres, not in micron"):
        np.testing.assert_allclose(load_image(path).affine, AFFINE, rtol=1e-5)


def test_row_75_a_spacing_that_nobody_set(tmp_path):
    affine = np.diag([1e3, 1e3, 1e3, 1]) @ AFFINE
    image = nib.Nifti1Image(small_scan()[0], affine)
    image.header.set_zooms((1, 1, 1))
    image.header.set_xyzt_units("micron")
    nib.save(image, tmp_path / "a.nii")
    with pytest.warns(UserWarning, match=r"pixdim 1 x 1 x 1 is not .* the sform is used") as caught:
        np.testing.assert_allclose(load_image(tmp_path / "a.nii").affine, AFFINE, rtol=1e-5)
    assert len(caught) == 2


@pytest.mark.parametrize(("side", "refused"), [(9_999, False), (10_100, True)])
def test_row_75_the_largest_side(tmp_path, side, refused):
    write_nifti(tmp_path / "a.nii", np.ones((10, 1, 1), np.uint8), np.diag([side / 10, 1, 1, 1]))
    if refused:
        with pytest.raises(DataError, match=r"^a side of 1\.01e\+04 mm, voxels of 1010 x 1 x 1 mm"):
            load_image(tmp_path / "a.nii")
    else:
        load_image(tmp_path / "a.nii")


@pytest.mark.parametrize("codes", [(0, 0), (1, 0), (0, 2), (1, 1), (1, 4), (2, 5)])
def test_row_78_a_mask_has_the_codes_of_its_scan(tmp_path, codes):
    affine = AFFINE
    if codes == (0, 0):
        guess = nib.Nifti1Header()
        guess.set_data_shape(small_scan()[1].shape)
        guess.set_zooms((2, 3, 4))
        affine = guess.get_base_affine()
    nifti.write(tmp_path / "a.nii", small_scan()[1], affine, codes)
    found = nib.load(tmp_path / "a.nii")
    assert (int(found.header["qform_code"]), int(found.header["sform_code"])) == codes
    np.testing.assert_allclose(found.affine, affine, atol=1e-5)
    np.testing.assert_allclose(
        found.header.get_zooms(), np.linalg.norm(affine[:3, :3], axis=0), rtol=1e-6
    )
    np.testing.assert_array_equal(found.get_fdata(), small_scan()[1])
    assert found.header.get_xyzt_units()[0] == "mm"


@pytest.mark.parametrize(("slope", "inter"), [(1, 1), (2, 0), (0.5, 0)])
def test_row_76_a_label_whose_header_makes_other_ids(tmp_path, slope, inter):
    image = nib.Nifti1Image(small_scan()[1].astype(np.int16), np.diag([2.0, 3, 4, 1]))
    image.header.set_slope_inter(slope, inter)
    nib.save(image, tmp_path / "a.nii")
    with pytest.raises(DataError, match=f"scales the stored ids by {slope:g} and adds {inter:g}"):
        nifti.read(tmp_path / "a.nii", Mending(), ids=True)
    assert nifti.read(tmp_path / "a.nii", Mending()).array.any()  # as an image it is fine


def test_row_78_a_size_of_voxels_that_nobody_set(tmp_path):
    image = nib.Nifti1Image(small_scan()[0], None)
    image.header["pixdim"][3] = 0
    nib.save(image, tmp_path / "a.nii")
    with pytest.raises(DataError, match="neither qform, sform nor spacing is set: pixdim"):
        nifti.read(tmp_path / "a.nii", Mending())
