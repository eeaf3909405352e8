"""Surface distances: known values, and those of the package that defined them."""

from __future__ import annotations

import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from medsam_tune.evaluation.surfaces import surface_distances

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it takes functions of scipy by old names
    import surface_distance


def box(shape: tuple[int, ...], *sides: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(*side) for side in sides)] = True
    return mask


def test_plates_that_are_so_far_apart() -> None:
    """Plates 3 voxels of 2 mm apart: sides that face each other are 4 mm apart, the others 6."""
    truth = box((12, 100, 100), (2, 3), (0, 100), (0, 100))
    found = surface_distances(np.roll(truth, 3, 0), truth, (2.0, 1.0, 1.0), 5.9)
    assert (found.nsd, found.hd95, found.mean) == pytest.approx((0.5, 6, 5))
    assert surface_distances(np.roll(truth, 3, 0), truth, (2.0, 1.0, 1.0), 6).nsd == 1


def test_equal_masks_have_no_distance() -> None:
    mask = box((5, 6, 7), (1, 3), (2, 5), (0, 7))
    found = surface_distances(mask, mask, (1.0, 1.0, 1.0), 0)
    assert (found.nsd, found.hd95, found.mean) == (1, 0, 0)


def test_a_lengthened_square_in_two_dimensions() -> None:
    """One side of a square moves away by 5 pixels."""
    truth, longer = box((30, 30), (5, 9), (5, 9)), box((30, 30), (5, 9), (5, 14))
    found = surface_distances(longer, truth, (1.0, 1.0), 0.5)
    assert found.hd95 == pytest.approx(5)
    assert 0 < found.nsd < 1


def test_an_empty_mask_has_no_surface() -> None:
    mask = box((5, 5), (1, 3), (1, 3))
    with pytest.raises(ValueError, match="an empty mask has no surface"):
        surface_distances(mask & False, mask, (1.0, 1.0), 1)


def _expected(prediction: np.ndarray, truth: np.ndarray, spacing: tuple, tolerance: float):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one = surface_distance.compute_surface_distances(truth, prediction, spacing)
    near = surface_distance.compute_surface_dice_at_tolerance(one, tolerance)
    far = surface_distance.compute_robust_hausdorff(one, 95)
    ways = [
        ("distances_gt_to_pred", "surfel_areas_gt"),
        ("distances_pred_to_gt", "surfel_areas_pred"),
    ]
    total = sum((one[distance] * one[area]).sum() for distance, area in ways)
    return near, far, total / sum(one[area].sum() for _, area in ways)


def _same(prediction: np.ndarray, truth: np.ndarray, spacing: tuple, tolerance: float) -> None:
    found = surface_distances(prediction, truth, spacing, tolerance)
    expected = _expected(prediction, truth, spacing, tolerance)
    assert (found.nsd, found.hd95, found.mean) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.5, 0.7, 0.9), (0.8, 1.3)])
def test_random_shapes_are_those_of_surface_distance(spacing: tuple[float, ...]) -> None:
    rng = np.random.default_rng(0)
    for _ in range(3):
        noise = ndimage.gaussian_filter(rng.normal(size=(2, *(24,) * len(spacing))), 2, axes=(1, 2))
        _same(noise[0] > 0.02, noise[1] > 0, spacing, 1.0)


@pytest.mark.real_data
def test_real_cases_are_those_of_surface_distance(hippocampus: Path) -> None:
    for path in sorted((hippocampus / "labelsTr").glob("h*.nii.gz"))[:5]:
        image = nib.load(path)
        label = np.asarray(image.dataobj)
        for value in (1, 2):
            truth = label == value
            moved = ndimage.binary_dilation(np.roll(truth, (1, 2, 0), (0, 1, 2)))
            _same(moved, truth, tuple(map(float, image.header.get_zooms())), 1.0)
