"""Labels are turned to their image, and resampled where asked."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medsam_tune.cases.labels.grid import placed
from medsam_tune.errors import DataError

PATH = Path("label.nii")


def scan(shape: tuple[int, int, int], affine: np.ndarray, **meta: object) -> MetaTensor:
    values = torch.arange(int(np.prod(shape)), dtype=torch.float32).reshape(1, *shape)
    return MetaTensor(values, meta={"affine": affine, **meta})


def block(shape: tuple[int, int, int], affine: np.ndarray, *bounds: tuple[int, int]) -> MetaTensor:
    """Label 3 in a block of (lower, upper) along each axis, 0 elsewhere."""
    values = torch.zeros(1, *shape)
    values[(0, *(slice(*bound) for bound in bounds))] = 3
    return MetaTensor(values, affine=torch.tensor(affine))


def moved(x: float = 0, y: float = 0, z: float = 0, scale: float = 1.0) -> np.ndarray:
    affine = np.diag([scale, scale, scale, 1.0])
    affine[:3, 3] = x, y, z
    return affine


def test_turned_but_not_resampled():
    image = scan((4, 4, 4), np.diag([-1.0, -1, 1, 1]))
    label = scan((2, 3, 4), np.diag([1.0, 2, 1, 1]))
    found = placed(label, PATH, image, resample=False)
    np.testing.assert_array_equal(found.numpy(), label.numpy()[:, ::-1, ::-1])
    inside = block((4, 4, 4), np.diag([1.0, 1, 1, 1]), (0, 1), (0, 1), (1, 3))
    resampled = placed(inside, PATH, image, resample=True)
    assert resampled.shape == image.shape
    np.testing.assert_allclose(resampled.affine, image.affine)
    assert resampled[0, 0, 0].tolist() == [0, 3, 3, 0]


def test_nothing_lies_outside_of_the_label():
    image = scan((6, 1, 1), np.eye(4))
    shifted = np.eye(4)
    shifted[0, 3] = 2
    label = MetaTensor(torch.full((1, 2, 1, 1), 3.0), affine=torch.tensor(shifted))
    assert placed(label, PATH, image, resample=True).flatten().tolist() == [0, 0, 3, 3, 0, 0]


def test_a_label_without_a_place():
    label = scan((2, 2, 2), np.diag([1.0, 0, 1, 1]))
    with pytest.raises(DataError, match=r"is singular or not finite \(label\.nii\)"):
        placed(label, PATH, scan((2, 2, 2), np.eye(4)), resample=True)


@pytest.mark.parametrize(
    ("shift", "found"),
    [((-5, 0, 0), r"50\.0%"), ((0, 0, 40), r"100\.0%"), ((0, 5.2, 0), r"50\.0%")],
)
def test_row_110_a_label_that_reaches_out_of_the_image(shift, found):
    label = block((20, 20, 20), moved(*shift), (0, 10), (10, 20), (2, 4))
    with pytest.raises(
        DataError, match=rf"^{found} of label 3 lie outside of the image \(label\.nii\); .* most 1%"
    ):
        placed(label, PATH, scan((20, 20, 20), np.eye(4)), resample=True)


def test_row_110_a_little_is_lost_with_a_word():
    label = block((200, 4, 4), moved(), (0, 200), (0, 4), (0, 4))
    image = scan((199, 4, 4), np.eye(4))
    with pytest.warns(UserWarning, match=r"^0\.5% of label 3 lie outside of .* and are lost\."):
        resampled = placed(label, PATH, image, resample=True)
    assert int((resampled > 0).sum()) == 199 * 16


def test_row_110_the_smaller_label_counts():
    """A large label inside does not hide a small one outside."""
    label = block((40, 20, 20), moved(), (0, 30), (0, 20), (0, 20))
    label[0, 38:40, :2, :2] = 5
    with pytest.raises(DataError, match=r"^50\.0% of label 5 lie outside"):
        placed(label, PATH, scan((39, 20, 20), np.eye(4)), resample=True)


def test_row_110_a_label_that_is_thinner_than_the_images_voxels():
    image = scan((8, 8, 8), moved(scale=5.0))
    thin = block((40, 40, 40), moved(), (10, 30), (10, 30), (18, 19))
    with pytest.raises(DataError, match=r"^label 3 resampled from 0\.4 to 0 ml, -100% \(label\.n"):
        placed(thin, PATH, image, resample=True)
    grown = block((40, 40, 40), moved(), (10, 30), (10, 30), (20, 21))
    with pytest.raises(DataError, match=r"^label 3 resampled from 0\.4 to 2 ml, \+400% .*thin"):
        placed(grown, PATH, image, resample=True)


def test_row_110_volumes_before_and_after_are_noted():
    image = scan((20, 20, 20), moved(scale=2.0))
    whole = block((40, 40, 40), moved(-0.5, -0.5, -0.5), (10, 30), (10, 30), (10, 30))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = placed(whole, PATH, image, resample=True)
    assert found.meta["notes"] == ["label 3 resampled from 8 to 8 ml"]
    uneven = block((40, 40, 40), moved(-0.5, -0.5, -0.5), (10, 30), (10, 30), (10, 17))
    with pytest.warns(UserWarning, match=r"^label 3 resampled from 2\.8 to (3\.2|2\.4) ml, .14% "):
        placed(uneven, PATH, image, resample=True)


def guessed(affine: np.ndarray, shape: tuple[int, int, int] = (4, 5, 6)) -> MetaTensor:
    return scan(shape, affine, guess="neither qform nor sform is set")


OTHER = np.diag([-2.0, -3, 4, 1])
OURS = np.diag([2.0, 3, 4, 1])


@pytest.mark.parametrize("resample", [True, False])
@pytest.mark.parametrize("image_is_guessed", [True, False])
def test_row_78_a_guessed_place_is_laid_voxel_for_voxel(resample, image_is_guessed):
    """A position would turn it by half."""
    make = (guessed, scan) if image_is_guessed else (scan, guessed)
    image = make[0](affine=OURS, shape=(4, 5, 6))
    label = make[1](affine=OTHER, shape=(4, 5, 6))
    whose = "image" if image_is_guessed else "label"
    text = rf"^the {whose}'s place is a guess \(neither .* is set\), so .* voxel \("
    with pytest.warns(UserWarning, match=text) as caught:
        found = placed(label, PATH, image, resample)
    assert len(caught) == 1
    np.testing.assert_array_equal(found.numpy(), label.numpy())
    np.testing.assert_array_equal(found.affine, OURS)


def test_row_78_the_image_may_have_been_turned():
    image = guessed(OURS)
    turned = MetaTensor(
        image.as_tensor().flip(1),
        meta={**image.meta, "affine": moved(6) @ np.diag([-2.0, 3, 4, 1])}
        | {"original_affine": OURS, "spatial_shape": [4, 5, 6]},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = placed(scan((4, 5, 6), OTHER), PATH, turned, resample=True)
    np.testing.assert_array_equal(found.numpy(), turned.numpy())


def test_row_78_two_guesses_of_one_place_are_not_worth_a_word():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        placed(guessed(OURS), PATH, guessed(OURS), resample=True)


@pytest.mark.parametrize("resample", [True, False])
def test_row_78_a_guessed_place_is_not_resampled(resample):
    text = r"^label shape \(4, 5, 7\) differs from image shape \(4, 5, 6\) .* place is a guess: nei"
    with pytest.raises(DataError, match=text):
        placed(scan((4, 5, 7), OURS), PATH, guessed(OURS), resample)
    with pytest.raises(DataError, match=r"image's place is a guess|label's place is a guess"):
        placed(guessed(OURS, (5, 4, 6)), PATH, scan((4, 5, 6), OURS), resample)


def test_row_78_spacings_must_agree_where_they_are_said():
    with pytest.raises(DataError, match=r"^label spacing \[2\.0, 3\.0, 5\.0\] differs from im"):
        placed(scan((4, 5, 6), np.diag([2.0, 3, 5, 1])), PATH, guessed(OURS), resample=True)
    with pytest.warns(UserWarning, match="voxel for voxel"):  # nothing was said
        placed(guessed(np.eye(4)), PATH, scan((4, 5, 6), OURS), resample=True)
    with pytest.raises(DataError, match=r"^label spacing \[1\.0, 1\.0, 1\.0\] differs"):
        placed(scan((4, 5, 6), np.eye(4)), PATH, guessed(OURS), resample=True)


def test_a_label_with_other_volumes_than_its_image():
    image = scan((2, 2, 2), np.eye(4), volumes=4)
    one = scan((2, 2, 2), np.eye(4), volumes=3)
    with pytest.raises(DataError, match=r"^label is 4-D, 3 volumes of \(2, 2, 2\), the i.* has 4"):
        placed(one, PATH, image, resample=False)
    placed(scan((2, 2, 2), np.eye(4), volumes=4), PATH, image, resample=False)
    placed(scan((2, 2, 2), np.eye(4)), PATH, image, resample=False)
