"""Cases are loaded as their files have them, and mended on request."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medsam_tune.cases.datalist import Case
from medsam_tune.errors import DataError
from medsam_tune.formats.mending import Mending
from tests.scans import LABELS, SHAPE, load_turned, small_scan, write_nifti


def test_nan_is_filled_on_request(tmp_path: Path) -> None:
    values = small_scan()[0]
    values[1, 2, 3], values[0, 0, 0] = np.nan, np.inf
    case = Case(write_nifti(tmp_path / "a.nii", values), None, "")
    with pytest.raises(DataError, match=r"2 NaN or infinite voxels.*mending::fill_nan"):
        load_turned(case, {})
    image, _ = load_turned(case, {}, Mending(fill_nan=-5))
    assert (image == -5).sum() == 2
    assert image.meta["notes"] == ["2 NaN or infinite voxels set to -5"]


def test_a_volume_of_a_4d_file_is_chosen(tmp_path: Path) -> None:
    values = np.stack([small_scan(seed)[0] for seed in range(3)], -1)
    case = Case(write_nifti(tmp_path / "a.nii", values), None, "")
    with pytest.raises(DataError, match=r"4-D, 3 volumes.*mending::volume_index=0"):
        load_turned(case, {})
    image, _ = load_turned(case, {}, Mending(volume_index=2))
    assert tuple(image.shape) == (1, *SHAPE)
    np.testing.assert_array_equal(image.numpy()[0, ::-1, ::-1], values[..., 2])
    with pytest.raises(DataError, match=r"no volume 3 .*it has 3, counted from 0"):
        load_turned(case, {}, Mending(volume_index=3))


def test_label_of_another_grid_is_resampled_on_request(tmp_path: Path) -> None:
    image, label = small_scan()
    coarse = label[::2, ::2, ::2]
    affine = np.diag([4.0, 6.0, 8.0, 1.0])
    case = Case(
        write_nifti(tmp_path / "a.nii", image), write_nifti(tmp_path / "b.nii", coarse, affine), ""
    )
    with pytest.raises(DataError, match="mending::resample_label=true"):
        load_turned(case, LABELS)
    scan, found = load_turned(case, LABELS, Mending(resample_label=True))
    assert found is not None
    np.testing.assert_allclose(found.affine, scan.affine)
    array = found.numpy()[0, ::-1, ::-1]
    np.testing.assert_array_equal(array[::2, ::2, ::2], coarse)  # where the grids meet
    assert set(np.unique(array)) == {0, 1, 2}


def test_guessed_orientation_is_refused_when_strict(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(small_scan()[0], None), tmp_path / "a.nii")
    case = Case(tmp_path / "a.nii", None, "")
    with pytest.raises(DataError, match=r"orientation is a guess. Export"):
        load_turned(case, {}, Mending(strict=True))
