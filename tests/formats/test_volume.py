"""Where a volume lies, and whether it fits."""

from __future__ import annotations

from itertools import permutations
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.data import MetaTensor

from medsam_tune.errors import DataError
from medsam_tune.formats.open import load_image
from medsam_tune.formats.volume import (
    Volume,
    check_not_empty,
    every_nth,
    exact,
    image_from,
    in_memory_order,
    same_affine,
)
from tests.dicom_series import write_series
from tests.scans import small_scan, write_nifti


def test_same_affine_sees_direction():
    turned = np.eye(4)
    turned[:2, :2] = [[np.cos(0.01), -np.sin(0.01)], [np.sin(0.01), np.cos(0.01)]]
    assert same_affine(np.eye(4), np.eye(4))
    assert not same_affine(np.eye(4), turned)
    assert not same_affine(np.eye(4), np.full((4, 4), np.nan))


def test_memory_is_asked_before_voxels_are_read(tmp_path, monkeypatch):

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


def test_tolerances_of_place_and_spacing():
    for entry, allowed, refused in (((0, 3), 9e-4, 2e-3), ((2, 2), 9e-4, 2e-3)):
        for shift, same in ((allowed, True), (refused, False)):
            moved = np.diag([1.0, 2, 3, 1])
            moved[entry] += shift
            assert same_affine(np.diag([1.0, 2, 3, 1]), moved) is same


def test_metadata_of_a_volume():
    volume = Volume(np.zeros((2, 3, 4, 5), np.float32), np.eye(4), ("padding",), "1.2", "3.4")
    image = image_from(volume)
    assert tuple(image.shape) == (2, 3, 4, 5)
    assert image.meta["notes"] == ["padding"]
    assert (image.meta["series_uid"], image.meta["frame_uid"]) == ("1.2", "3.4")
    assert list(image.meta["spatial_shape"]) == [3, 4, 5]


def test_no_voxel_along_an_axis(tmp_path):
    with pytest.raises(DataError, match=r"^image of shape \(2, 0, 3\) has an empty dimension \("):
        check_not_empty(tmp_path / "a.nii", (2, 0, 3))
    check_not_empty(tmp_path / "a.nii", (2, 1, 3))


def test_tolerance_of_small_voxels():
    """Half a step of a micrometre is no difference in millimetres, but half a voxel."""
    small = np.diag([1e-3, 1e-3, 1e-3, 1])
    moved = small.copy()
    moved[0, 3] = 5e-4
    assert not same_affine(small, moved)
    moved[0, 3] = 5e-6
    assert same_affine(small, moved)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (np.bool_, np.uint8),
        (np.uint8, np.uint8),
        (np.int8, np.int8),
        (np.uint16, np.int32),
        (np.int16, np.int16),
        (">i4", np.int32),
        (np.uint32, np.int64),
        (np.int64, np.int64),
        (np.uint64, np.float64),
        (np.float16, np.float32),
        (np.float32, np.float32),
        (">f8", np.float64),
        (np.longdouble, np.float64),
    ],
)
def test_exact_types(dtype, expected):
    values = np.array([0, 1, 100], dtype)
    if dtype != np.bool_ and np.dtype(dtype).kind in "ui":
        values[2] = np.iinfo(dtype).max if np.dtype(dtype).itemsize < 8 else 2**50
    found = exact(values)
    assert found.dtype == expected
    assert found.flags.owndata
    assert found.astype(object).tolist() == values.astype(object).tolist()
    torch.from_numpy(found)


@pytest.mark.parametrize("axes", [*permutations(range(3))])
def test_values_as_they_are_stored_are_no_copy(axes: tuple[int, ...]) -> None:
    values = torch.arange(60).reshape(3, 4, 5).permute(axes)[None]
    stored = in_memory_order(MetaTensor(values))
    assert not isinstance(stored, MetaTensor)
    assert stored.data_ptr() == values.data_ptr()
    assert stored.flatten().data_ptr() == values.data_ptr()
    assert stored.flatten().tolist() == list(range(60))
    for step in (1, 7, 60, 100):
        assert torch.equal(every_nth(MetaTensor(values), step), values.flatten()[::step])
