"""Labels are turned to their image, and resampled where asked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medsam_tune.cases.labels.grid import placed
from medsam_tune.errors import DataError

PATH = Path("label.nii")


def scan(shape: tuple[int, int, int], affine: np.ndarray) -> MetaTensor:
    values = torch.arange(int(np.prod(shape)), dtype=torch.float32).reshape(1, *shape)
    return MetaTensor(values, affine=torch.tensor(affine))


def test_turned_but_not_resampled():
    image = scan((4, 4, 4), np.diag([-1.0, -1, 1, 1]))
    label = scan((2, 3, 4), np.diag([1.0, 2, 1, 1]))
    found = placed(label, PATH, image, resample=False)
    np.testing.assert_array_equal(found.numpy(), label.numpy()[:, ::-1, ::-1])
    resampled = placed(label, PATH, image, resample=True)
    assert resampled.shape == image.shape
    np.testing.assert_allclose(resampled.affine, image.affine)


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
