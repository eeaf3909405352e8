"""Prompts for objects of label maps."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Flipd, Invertd, Lambdad, RandAffined, RandFlipd, Rotate90d

from medsam_tune.transforms import (
    BoxPromptsd,
    IgnoredPixelsd,
    KeepObjectsd,
    MixedPromptsd,
    PointPromptsd,
)


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


@pytest.mark.parametrize("keys", [[], ["a", "b"]])
def test_one_label_map_is_expected(keys: list[str]) -> None:
    for make in (
        BoxPromptsd,
        lambda k: MixedPromptsd(k, [1], 1),
        lambda k: KeepObjectsd(k, Compose()),
    ):
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


@pytest.mark.parametrize("values", [0.5, 1.5, float("nan")])
@pytest.mark.parametrize(
    "transform",
    [
        BoxPromptsd("label"),
        PointPromptsd("label"),
        MixedPromptsd("label", [1], 1),
        KeepObjectsd("label", Compose([])),
    ],
)
def test_interpolated_label_maps_are_refused(transform: Callable, values: float) -> None:
    label = label_map()
    label[0, 0, 0] = values
    with pytest.raises(ValueError, match=r"'label' has values that are not whole numbers.*nearest"):
        transform({"label": label})


@pytest.mark.parametrize("shape", [(4, 4), (3, 4, 4), (2, 4, 4, 4)])
def test_label_maps_have_one_channel(shape: tuple[int, ...]) -> None:
    for transform in (BoxPromptsd("label"), MixedPromptsd("label", [1], 1)):
        with pytest.raises(ValueError, match=r"'label' has shape .*; expected a label map of one"):
            transform({"label": torch.zeros(shape)})
    with pytest.raises(ValueError, match="'label' is a volume"):
        MixedPromptsd("label", [1], 1)({"label": torch.zeros(1, 4, 4, 4)})


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.int64, np.float32, bool])
def test_label_maps_of_every_type(dtype: type) -> None:
    label = (label_map().numpy() == 1).astype(dtype)
    assert BoxPromptsd("label", jitter=0)({"label": label})["boxes"].tolist() == [[1, 2, 7, 5]]
    gone = Lambdad("label", lambda x: x * 0 > 1)
    assert KeepObjectsd("label", gone, labels=[1])({"label": label})["label"].sum() == 18
    assert not KeepObjectsd("label", gone, labels=[256])({"label": label})["label"].any()


def test_negative_ids_are_no_objects() -> None:
    label = label_map()
    label[label == 7] = -1
    assert BoxPromptsd("label")({"label": label})["labels"].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: BoxPromptsd("masks"),
            "prompts are written to 'masks'; give the label map another",
        ),
        (
            lambda: BoxPromptsd("label", labels={"liver": 1}),
            r"labels are \['liver'\]; expected label",
        ),
        (lambda: BoxPromptsd("label", count=0), "count is 0; expected at least 1, or None"),
        (
            lambda: PointPromptsd("label", inside=0),
            "points: 0 inside, 0 outside; expected at least",
        ),
    ],
)
def test_impossible_prompts_are_refused(make: Callable, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_an_augmentation_that_writes_into_its_input_does_no_harm() -> None:
    def erase(data: dict) -> dict:
        data["label"][:] = 0
        return data

    for label in (label_map(), label_map().numpy(), MetaTensor(label_map())):
        found = KeepObjectsd("label", erase)({"label": label})["label"]
        assert (torch.as_tensor(found) == label_map()).all()


def test_augmentations_that_cannot_be_judged_are_refused() -> None:
    item = {"label": MetaTensor(label_map())}
    with pytest.raises(TypeError, match="function gives a list; expected one dictionary"):
        KeepObjectsd("label", lambda data: [data])(item)
    lazy = RandAffined("label", prob=1.0, translate_range=(100, 100), mode="nearest", lazy=True)
    with pytest.raises(ValueError, match=r"the augmentation is lazy; put it into a Compose"):
        KeepObjectsd("label", lazy)(item)


@pytest.mark.parametrize("lost", [False, True])
def test_the_augmentation_is_inverted_where_it_was_kept(lost: bool) -> None:
    keys = ["image", "label"]
    item = {"image": MetaTensor(torch.rand(1, 10, 12)), "label": MetaTensor(label_map())}
    inner = [RandFlipd(keys, prob=1.0, spatial_axis=0)]
    inner += [Lambdad("label", lambda label: label * 0, track_meta=False)] if lost else []
    chain = Compose([Flipd(keys, 1), KeepObjectsd("label", Compose(inner)), Rotate90d(keys)])
    found = chain(item)
    back = chain.inverse(dict(found))
    for key in keys:
        torch.testing.assert_close(back[key].as_tensor(), item[key].as_tensor())
        assert not back[key].applied_operations
    found = chain(item)
    found["mask"] = found["image"].clone()
    only = Invertd("mask", chain, orig_keys="image")(found)["mask"]
    torch.testing.assert_close(only.as_tensor(), item["image"].as_tensor())


def test_row_76_ids_that_float32_rounds_are_found() -> None:
    """MONAI's transforms make float32 of a label map."""
    ids = [3, 614_454_277, 2**31 - 1]
    label = torch.zeros(1, 6, 6, dtype=torch.int64)
    label[0, :2], label[0, 2:4, :3], label[0, 4:, 3:] = torch.tensor(ids)[:, None, None]
    held = label.float()
    found = BoxPromptsd("label", ids)({"label": held})
    assert found["labels"].tolist() == ids
    for mask, i in zip(found["masks"], ids, strict=True):
        assert torch.equal(mask, label[0] == i)
    kept = KeepObjectsd("label", Lambdad("label", torch.zeros_like), ids)({"label": held})
    assert torch.equal(kept["label"], held)


def test_row_76_ids_that_float32_makes_one_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^labels 16777216 and 16777217 are one number in flo"):
        BoxPromptsd("label", [16_777_217, 1, 16_777_216])


def test_pixels_that_nobody_annotated() -> None:
    label = torch.zeros(1, 6, 6)
    label[0, :2], label[0, 4:] = 1, 9
    data = {"label": label}
    assert IgnoredPixelsd("label", None)(data).keys() == {"label"}
    assert torch.equal(IgnoredPixelsd("label", 9)(data)["ignored"], label == 9)
