"""Label maps: parts, overlaps and numbers, against what is counted voxel by voxel."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medsam_tune.evaluation import label_maps
from medsam_tune.evaluation.label_maps import annotated, overlap, overlaps, parts_of, renumbered


def mask(*ones: int) -> torch.Tensor:
    flat = torch.zeros(12, dtype=torch.bool)
    flat[list(ones)] = True
    return flat.view(2, 2, 3)


@pytest.mark.parametrize(
    ("prediction", "truth", "dice", "iou"),
    [
        pytest.param(mask(1, 2, 3), mask(1, 2, 3), 1.0, 1.0, id="equal"),
        pytest.param(mask(1, 2, 3), mask(4, 5), 0.0, 0.0, id="apart"),
        pytest.param(mask(1, 2), mask(2, 3, 4, 5), 1 / 3, 1 / 5, id="one-in-common"),
        pytest.param(mask(1), mask(1, 2, 3), 0.5, 1 / 3, id="inside"),
        pytest.param(mask(), mask(1), 0.0, 0.0, id="nothing-found"),
        pytest.param(mask(1), mask(), 0.0, 0.0, id="nothing-there"),
        pytest.param(mask(), mask(), None, None, id="both-empty"),
    ],
)
def test_overlap(
    prediction: torch.Tensor, truth: torch.Tensor, dice: float | None, iou: float | None
) -> None:
    assert overlap(prediction, truth) == pytest.approx((dice, iou))
    assert overlap(truth, prediction) == pytest.approx((dice, iou))


def test_nothing_is_left_where_nobody_annotated() -> None:
    truth, found = torch.tensor([0, 1, 9, 9]), torch.tensor([1, 1, 1, 0])
    assert annotated(truth, found, truth=truth, ignore=None) == (truth, found)
    kept = annotated(truth, found, truth=truth, ignore=9)
    assert [one.tolist() for one in kept] == [[0, 1, 0, 0], [1, 1, 0, 0]]


def test_overlaps_are_those_of_each_label() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randint(0, 5, (2, 4, 6, 7), generator=generator)
    first[:, 4:], second[:, 4:] = 0, 0
    second[second == 4] = 0
    found = overlaps(first, second, [1, 2, 4, 9])
    assert found == {k: overlap(first == k, second == k)[0] for k in (1, 2, 4, 9)}
    assert (found[4], found[9]) == (0.0, None)


@pytest.mark.parametrize("dense", [2**16, 3])
def test_labels_get_other_numbers(dense: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_maps, "_DENSE", dense)
    array = np.array([[0, 1, 2], [7, 7, 3]], np.int32)
    found = renumbered(array, {1: 2, 2: 5, 7: 1, 90: 4})
    assert found.tolist() == [[0, 2, 5], [1, 1, 0]]
    assert found.dtype == np.int32
    assert renumbered(array, {1: 2, 2: 1, 3: 3, 7: 7}).tolist() == [[0, 2, 1], [7, 7, 3]]
    assert renumbered(array, {1: 1, 2: 2, 3: 3}).tolist() == [[0, 1, 2], [0, 0, 3]]
    same = renumbered(array, {k: k for k in range(8)})
    assert same.tolist() == array.tolist()
    assert (same is array) is (dense > 7)  # no copy of a large map


def test_parts_hold_a_label_in_every_map() -> None:
    first, second = np.zeros((2, 3, 8, 9), np.int32)
    first[1, 2:4, 3:5] = 1
    second[0:2, 3:6, 1:4] = 1
    second[2, 7, 8] = 5
    parts = parts_of([first, second], [1, 4, 5])
    assert parts[1] == np.s_[0:2, 2:6, 1:5]
    assert parts[5] == np.s_[2:3, 7:8, 8:9]
    assert first[parts[4]].size == 0
