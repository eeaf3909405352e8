"""Images and labels that are refused."""

from __future__ import annotations

import re
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medsam_tune.cases.checks import check_affine, check_image, check_pair, label_values
from medsam_tune.errors import DataError
from tests.scans import LABELS, SHAPE, load_turned, small_scan


def refusal(case, labels=LABELS) -> str:
    with pytest.raises(DataError) as caught:
        load_turned(case, labels)
    return str(caught.value)


@pytest.mark.parametrize("affine", [np.diag([1.0, 0, 1, 1]), np.diag([1.0, np.nan, 1, 1])])
def test_bad_affine(affine):
    image = MetaTensor(torch.ones(1, *SHAPE), affine=torch.tensor(affine))
    with pytest.raises(DataError, match=r"affine .* is singular or not finite \(a\.nii\)"):
        check_image(image, Path("a.nii"))


def test_two_dimensions(make_case):
    assert "image has 2 dimensions, shape (10, 12)" in refusal(
        make_case(image=small_scan()[0][..., 0])
    )


def test_tiny_differences_of_affines_are_accepted(make_case):
    near = np.diag([2.0, 3, 4, 1])
    near[0, 3] = 5e-4
    load_turned(make_case(label_affine=near), LABELS)


def test_negative_values_are_unexpected(make_case):
    label = small_scan()[1].astype(np.int16)
    label[0, 0, 0] = -1
    assert "label has the values -1 (" in refusal(make_case(label=label))


def test_check_pair_directly_on_tensors():
    image = MetaTensor(torch.ones(1, *SHAPE))
    label = MetaTensor(torch.zeros(1, *SHAPE))
    check_pair(image, label, {1}, Path("i"), Path("l"))


def test_label_values():
    values = torch.tensor([0, 300, 2, 2, 0, 1]).reshape(1, 1, 2, 3)
    assert label_values(values) == [0, 1, 2, 300]
    assert label_values(values * 1000 - 5) == [-5, 995, 1995, 299995]


@pytest.mark.parametrize("axes", [*permutations(range(3))])
def test_checks_hold_whatever_the_order_of_the_voxels_in_memory(axes):
    """A NIfTI's first axis is the fastest, a DICOM series' last one."""

    def laid(array: np.ndarray) -> torch.Tensor:
        stored = torch.from_numpy(np.ascontiguousarray(array.transpose(axes)))
        return stored.permute(tuple(np.argsort(axes)))[None]

    label = np.zeros(SHAPE, np.float32)
    label[2, 3, 1], label[-1, 0, 2] = 70_000, 5
    assert label_values(laid(label)) == [0, 5, 70_000]
    image = MetaTensor(laid(np.ones(SHAPE, np.float32)))
    check_pair(image, MetaTensor(laid(label)), {5, 70_000}, Path("i"), Path("l"))
    for odd, said in (
        (0.5, "values that are not integers: 0.5 (l)"),
        (np.nan, "1 NaN or infinite voxels, the first at (1, 2, 0) (l)"),
        (-np.inf, "1 NaN or infinite voxels, the first at (1, 2, 0) (l)"),
    ):
        label[1, 2, 0] = odd
        with pytest.raises(DataError, match=re.escape(said)):
            check_pair(image, MetaTensor(laid(label)), {5, 70_000}, Path("i"), Path("l"))


def test_many_values_are_cut_and_counted(make_case):
    label = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
    assert "3, 4, 5, 6, 7, 8, 9, 10, 11, 12, ... (717 in all)" in refusal(make_case(label=label))


def test_an_image_without_a_voxel():
    with pytest.raises(DataError, match=r"has an empty dimension \(a\.nii\)"):
        check_image(MetaTensor(torch.ones(1, 0, 4, 4)), Path("a.nii"))


def test_voxels_of_a_micrometre_have_a_place():
    for size in (1e-5, 1, 1e3):
        check_affine(MetaTensor(torch.zeros(1, 2, 2, 2), affine=torch.eye(4) * size), Path("a"))
    flat = torch.diag(torch.tensor([1e3, 1e3, 0, 1.0]))
    flat[2, 0] = 1e3
    with pytest.raises(DataError, match="is singular or not finite"):
        check_affine(MetaTensor(torch.zeros(1, 2, 2, 2), affine=flat), Path("a"))
