"""Prompts for objects of label maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Lambdad, RandFlipd

from medsam_tune.transforms import BoxPromptsd, ClassMasksd, KeepObjectsd, PointPromptsd


def label_map() -> torch.Tensor:
    """(1, 10, 12) with labels 1, 2 and 7."""
    label = torch.zeros(1, 10, 12)
    label[0, 2:5, 1:7] = 1
    label[0, 6:8, 8:11] = 2
    label[0, 9, 0] = 7
    return label


def test_every_object_has_its_tight_box() -> None:
    found = BoxPromptsd("label", jitter=0)({"label": label_map(), "other": 5})
    assert found["labels"].tolist() == [1, 2, 7]
    assert found["boxes"].tolist() == [[1, 2, 7, 5], [8, 6, 11, 8], [0, 9, 1, 10]]
    assert (found["boxes"].dtype, found["masks"].dtype) == (torch.float32, torch.bool)
    for mask, label in zip(found["masks"], (1, 2, 7), strict=True):
        assert torch.equal(mask, label_map()[0] == label)
    assert "slices" not in found
    assert found["other"] == 5


def test_objects_are_of_the_wanted_labels_and_drawn_with_replacement() -> None:
    prompts = BoxPromptsd("label", labels=[2, 7, 9], count=20, jitter=0).set_random_state(seed=0)
    found = prompts({"label": label_map()})
    assert found["boxes"].shape == (20, 4)
    assert set(found["labels"].tolist()) == {2, 7}


def test_jitter_is_a_share_of_the_side() -> None:
    label = torch.zeros(1, 200, 400)
    label[0, 50:100, 100:300] = 1  # 200 wide, 50 high
    prompts = BoxPromptsd("label", count=500, jitter=0.05).set_random_state(seed=0)
    off = prompts({"label": label})["boxes"] - torch.tensor([100.0, 50, 300, 100])
    spread = off.std(0)
    torch.testing.assert_close(spread, torch.tensor([10.0, 2.5, 10, 2.5]), atol=0.0, rtol=0.15)
    assert off.mean(0).abs().max() < 1.5


def test_a_slice_without_objects_gives_no_prompt() -> None:
    empty = {"label": torch.zeros(1, 6, 8)}
    found = BoxPromptsd("label", count=4)(empty)
    assert (found["boxes"].shape, found["masks"].shape) == ((0, 4), (0, 6, 8))
    assert found["labels"].tolist() == []
    points = PointPromptsd("label", inside=2)(empty)
    assert points["points"].shape == (0, 2, 2)
    assert points["point_labels"].shape == (0, 2)


def test_slices_of_a_volume() -> None:
    volume = torch.zeros(1, 10, 12, 3)
    volume[..., 2] = label_map()
    volume[0, 1, 1, 0] = 2
    found = BoxPromptsd("label", labels=[1, 2], jitter=0)({"label": volume})
    assert found["slices"].tolist() == [0, 2, 2]
    assert found["labels"].tolist() == [2, 1, 2]
    assert found["boxes"].tolist() == [[1, 1, 2, 2], [1, 2, 7, 5], [8, 6, 11, 8]]
    assert found["masks"].shape == (3, 10, 12)


def test_points_inside_and_around() -> None:
    prompts = PointPromptsd("label", labels=[1, 2], inside=3, outside=5).set_random_state(seed=0)
    found = prompts({"label": label_map()})
    assert found["point_labels"].tolist() == [[1] * 3 + [0] * 5] * 2
    for points, mask in zip(found["points"], found["masks"], strict=True):
        assert (points % 1 == 0.5).all()  # the middles of pixels
        inside = [bool(mask[int(y), int(x)]) for x, y in points.tolist()]
        assert inside == [True] * 3 + [False] * 5
    away = found["points"][0, 3:] - torch.tensor([4.0, 3.5])  # middle of a box of 6 x 3
    assert (away.abs() <= torch.tensor([6.0, 3.0])).all()


def test_an_object_that_fills_everything_has_no_point_outside() -> None:
    found = PointPromptsd("label", inside=1, outside=2)({"label": torch.ones(1, 4, 4)})
    assert found["point_labels"].tolist() == [[1, -1, -1]]


def test_the_objects_are_chosen_once() -> None:
    chain = Compose([BoxPromptsd("label", count=6, jitter=0), PointPromptsd("label", inside=1)])
    found = chain.set_random_state(seed=1)({"label": label_map()})
    for (x, y), (x0, y0, x1, y1) in zip(
        found["points"][:, 0].tolist(), found["boxes"].tolist(), strict=True
    ):
        assert x0 < x < x1
        assert y0 < y < y1


@pytest.mark.parametrize("prompts", [BoxPromptsd, PointPromptsd])
def test_the_seed_fixes_everything(prompts: type) -> None:
    transform = prompts("label", count=8)
    key = "boxes" if prompts is BoxPromptsd else "points"
    first, again, other = (
        transform.set_random_state(seed=seed)({"label": label_map()})[key] for seed in (5, 5, 6)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_metadata_of_a_label_map_stays_with_its_masks() -> None:
    label = MetaTensor(label_map(), affine=torch.diag(torch.tensor([2.0, 3, 4, 1])))
    found = BoxPromptsd("label")({"label": label})
    torch.testing.assert_close(found["masks"].affine, label.affine)
    assert not isinstance(found["boxes"], MetaTensor)


def test_every_class_there_or_not() -> None:
    found = ClassMasksd("label", [9, 2, 1])({"label": label_map()})
    assert found["labels"].tolist() == [1, 2, 9]
    assert found["masks"].flatten(1).sum(1).tolist() == [18, 6, 0]


@pytest.mark.parametrize("keys", [[], ["a", "b"]])
def test_one_label_map_is_expected(keys: list[str]) -> None:
    for make in (BoxPromptsd, lambda k: ClassMasksd(k, [1]), lambda k: KeepObjectsd(k, Compose())):
        with pytest.raises(ValueError, match="keys"):
            make(keys)


def test_an_augmentation_that_loses_the_objects_is_undone() -> None:
    gone = Lambdad("label", lambda label: label * 0)
    item = {"label": label_map(), "image": torch.ones(1, 10, 12)}
    assert torch.equal(KeepObjectsd("label", gone)(item)["label"], label_map())
    seven = Lambdad("label", lambda label: label * (label == 7))
    assert KeepObjectsd("label", seven)(item)["label"].max() == 7
    assert torch.equal(KeepObjectsd("label", seven, labels=[1, 2])(item)["label"], label_map())
    empty = {"label": torch.zeros(1, 4, 4), "image": torch.zeros(1, 4, 4)}
    bright = Lambdad("image", lambda image: image + 1)
    assert KeepObjectsd("label", bright)(empty)["image"].min() == 1


def test_the_seed_reaches_the_augmentation() -> None:
    item = {"label": label_map()}
    keep = KeepObjectsd("label", Compose([RandFlipd("label", prob=0.5, spatial_axis=1)]))
    moved = [
        not torch.equal(keep.set_random_state(seed=seed)(item)["label"], label_map())
        for seed in [*range(8), *range(8)]
    ]
    assert moved[:8] == moved[8:]
    assert 0 < sum(moved[:8]) < 8
    state = np.random.RandomState(3)
    assert keep.set_random_state(state=state) is keep
