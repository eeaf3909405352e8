"""MONAI loads with our reader."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import LoadImage

from medsam_tune.errors import DataError
from medsam_tune.formats.mending import Mending
from medsam_tune.formats.open import load_image
from medsam_tune.formats.reader import SimpleITKReader, scan_loader
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


def test_what_the_reader_takes(tmp_path):
    folder = write_series(tmp_path / "s")
    (tmp_path / "notes.txt").write_text("hello")
    bare = next(folder.iterdir()).rename(tmp_path / "IM0001")
    reader = SimpleITKReader()
    assert reader.verify_suffix(tmp_path)
    assert reader.verify_suffix([bare, tmp_path / "a.NRRD", "b.dcm"])
    assert not reader.verify_suffix([bare, tmp_path / "notes.txt"])


def test_the_reader_mends_where_asked(tmp_path):
    def uneven(k, image):
        image.ImagePositionPatient = [0, 0, float(k + 0.4 * k * k)]

    folder = write_series(tmp_path / "s", uneven)
    assert (
        "resampled" in SimpleITKReader(mending=Mending(resample_uneven=True)).read(folder).notes[0]
    )
    with pytest.raises(DataError, match="expected even spacing"):
        SimpleITKReader().read(folder)
    nib.save(nib.Nifti1Image(stored(), None), tmp_path / "nowhere.nii")
    assert SimpleITKReader().read(tmp_path / "nowhere.nii").guess
    with pytest.raises(DataError, match="the orientation is a guess"):
        scan_loader("image", Mending(strict=True))({"image": str(tmp_path / "nowhere.nii")})


def test_files_of_one_grid_are_channels(tmp_path):
    load = LoadImage(ensure_channel_first=True)
    load.register(SimpleITKReader())
    paths = [write_nifti(tmp_path / f"{i}.nii", stored() + i) for i in range(2)]
    image = load(paths)
    assert tuple(image.shape) == (2, COUNT, *SIZE[::-1])
    np.testing.assert_array_equal(image[1].numpy() - image[0].numpy(), 1)
    paths[1] = write_nifti(tmp_path / "b.nii", stored(), np.eye(4))
    with pytest.raises(DataError, match=r"b\.nii does not lie on the grid of .*0\.nii; expected f"):
        load(paths)
