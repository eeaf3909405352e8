"""NRRD and MetaImage."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from medsam_tune.formats.open import load_image
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
