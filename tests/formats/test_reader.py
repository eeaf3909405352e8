"""MONAI loads with our reader."""

from __future__ import annotations

import numpy as np
import pytest
from monai.transforms import LoadImage

from medsam_tune.errors import DataError
from medsam_tune.formats.open import load_image
from medsam_tune.formats.reader import SimpleITKReader
from tests.dicom_series import COUNT, SIZE, stored, write_series
from tests.scans import write_nifti


def test_monai_loads_with_the_reader(tmp_path):
    folder = write_series(tmp_path / "s")
    load = LoadImage(ensure_channel_first=True)
    load.register(SimpleITKReader())
    image = load(folder)
    assert tuple(image.shape) == (1, *SIZE, COUNT)
    ours = load_image(folder)
    assert np.array_equal(image.numpy(), ours.numpy())
    np.testing.assert_allclose(image.affine, ours.affine)
    assert "Doe" not in str(ours.meta)
    files = sorted(folder.iterdir())
    assert np.array_equal(load(files).numpy(), image.numpy())
    files[1].unlink()
    with pytest.raises(DataError, match="slices are missing"):  # and no other reader steps in
        load(folder)
    assert tuple(load(write_nifti(tmp_path / "a.nii", stored())).shape) == (1, COUNT, *SIZE[::-1])
