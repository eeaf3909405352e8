"""NRRD and MetaImage."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from medsam_tune.formats import itk
from medsam_tune.formats.open import load_image, read_grid
from tests.dicom_series import COUNT, SIZE, SPACING, STEP, refusal, stored


def test_other_formats(tmp_path):

    array = stored().astype(np.float32)  # (K, J, I)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((*SPACING, STEP))
    image.SetOrigin((-3.0, 4.0, -50.0))
    for ending in ("nrrd", "mha", "mhd"):
        sitk.WriteImage(image, str(tmp_path / f"a.{ending}"))
        loaded = load_image(tmp_path / f"a.{ending}")
        np.testing.assert_array_equal(loaded[0].numpy(), array.transpose(2, 1, 0))
        expected = np.diag([-SPACING[0], -SPACING[1], STEP, 1.0])
        expected[:3, 3] = [3.0, -4.0, -50.0]
        np.testing.assert_allclose(loaded.affine, expected)
    (tmp_path / "b.nrrd").write_text("hello")
    assert f"cannot read {tmp_path / 'b.nrrd'}" in refusal(tmp_path / "b.nrrd")
    vector = sitk.GetImageFromArray(np.stack([array] * 3, -1), isVector=True)
    sitk.WriteImage(vector, str(tmp_path / "c.nrrd"))
    assert tuple(load_image(tmp_path / "c.nrrd").shape) == (3, *SIZE, COUNT)


def test_flat_and_moving_images(tmp_path):
    flat = np.arange(12, dtype=np.int16).reshape(3, 4)
    image = sitk.GetImageFromArray(flat)
    image.SetSpacing((0.5, 2.0))
    sitk.WriteImage(image, str(tmp_path / "flat.mha"))
    found = load_image(tmp_path / "flat.mha")
    np.testing.assert_array_equal(found[0, ..., 0].numpy(), flat.T)
    np.testing.assert_allclose(found.affine, np.diag([-0.5, -2, 1, 1]))
    moving = np.arange(2 * 3 * 4 * 5, dtype=np.int16).reshape(2, 3, 4, 5)
    sitk.WriteImage(sitk.GetImageFromArray(moving, isVector=False), str(tmp_path / "moving.nrrd"))
    found = load_image(tmp_path / "moving.nrrd")
    np.testing.assert_array_equal(found.numpy(), moving.transpose(0, 3, 2, 1))
    assert read_grid(tmp_path / "moving.nrrd").shape == (5, 4, 3, 2)


def test_truncated_voxels(tmp_path):
    path = tmp_path / "a.mha"
    sitk.WriteImage(sitk.GetImageFromArray(stored()), str(path))
    path.write_bytes(path.read_bytes()[:-100])
    message = refusal(path)
    assert f"cannot read {path}: " in message
    assert "0x" not in message
    assert message.endswith("Expected a whole NRRD or MetaImage; copy or export it again.")


def test_what_an_exception_says():
    error = RuntimeError("a\nsitk::ERROR: ITK ERROR: MetaImageIO(0x5581): file is short.\n")
    assert itk.reason_of(error) == "file is short"
    assert itk.reason_of(RuntimeError()) == "RuntimeError"
