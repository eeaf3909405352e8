"""Random windows of large slices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd, RandFlipd

from medsam_tune.cases.datalist import Datalist
from medsam_tune.slices.intensity import Window
from medsam_tune.slices.rules import ScanRules
from medsam_tune.transforms import BoxPromptsd, ModelFramed, RandWindowd
from tests.training.test_sides import recipe

KEYS = ["image", "label"]


def numbered(height: int, width: int, labels: Mapping[tuple[int, int], int]) -> dict[str, Any]:
    """A slice whose pixels hold their number, and a label map of single pixels."""
    label = torch.zeros(1, height, width)
    for (row, column), value in labels.items():
        label[0, row, column] = value
    return {"image": torch.arange(float(height * width)).view(1, height, width), "label": label}


def starts(item: dict[str, Any], count: int = 400, **options: Any) -> torch.Tensor:
    """(count, 2) first rows and columns of random windows of 32 pixels."""
    window = RandWindowd(KEYS, 32, **options).set_random_state(seed=0)
    first = [int(window(item)["image"][0, 0, 0]) for _ in range(count)]
    return torch.tensor([divmod(number, item["image"].shape[2]) for number in first])


def test_every_place_around_an_object_is_equally_likely() -> None:
    found = starts(numbered(100, 120, {(50, 60): 3}), 600)
    for axis, at in enumerate((50, 60)):
        counts = found[:, axis].bincount(minlength=at + 1)
        assert not counts[: at - 31].any()
        assert counts.shape == (at + 1,)
        assert counts[at - 31 :].min() > 5  # of 600 / 32 = 19
        assert counts[at - 31 :].max() < 40


def test_windows_end_with_the_slice() -> None:
    found = starts(numbered(100, 40, {(99, 2): 1}))
    assert found.amin(0).tolist() == [68, 0]
    assert found.amax(0).tolist() == [68, 2]


def test_image_and_label_stay_together() -> None:
    item = numbered(100, 120, {(50, 60): 3})
    window = RandWindowd(KEYS, 32).set_random_state(seed=1)
    for _ in range(20):
        found = window(item)
        assert found["image"].shape == found["label"].shape == (1, 32, 32)
        assert found["image"][found["label"] == 3].tolist() == [50 * 120 + 60]
    assert item["image"].shape == (1, 100, 120)


def test_a_small_object_is_shown_as_often_as_a_large_one() -> None:
    item = numbered(100, 100, {(90, 90): 2, (0, 99): 9})
    item["label"][0, :50, :50] = 1
    found = starts(item, labels=[1, 2])
    assert 0.4 < (found > 50).all(1).float().mean() < 0.6  # 2 is in them; nothing else is there
    assert not ((found[:, 0] == 0) & (found[:, 1] > 60)).any()  # 9 is nobody's label


def test_a_slice_without_objects_gives_any_window() -> None:
    found = starts(numbered(64, 100, {(1, 1): 7}), labels=[1, 2])
    assert found.amin(0).tolist() == [0, 0]
    assert found.amax(0).tolist() == [32, 68]
    assert found[:, 0].unique().numel() > 20


@pytest.mark.parametrize(("size", "expected"), [((32, 20), (32, 20)), ((20, 100), (20, 32))])
def test_sides_within_the_window_stay(size: tuple[int, int], expected: tuple[int, int]) -> None:
    item = numbered(*size, {(10, 10): 1})
    found = RandWindowd(KEYS, 32).set_random_state(seed=0)(item)
    assert found["image"].shape == (1, *expected)
    if size == expected:
        assert torch.equal(torch.as_tensor(found["image"]), item["image"])


def test_large_ids_of_float32_are_found() -> None:
    label = 2**24 + 1  # 2**24 in float32
    found = starts(numbered(100, 100, {(90, 90): label}), 20, labels=[label])
    assert found.min() > 58


def test_a_plain_pipeline_and_its_inverse() -> None:
    chain = Compose(
        [
            RandWindowd(KEYS, 32),
            RandFlipd(KEYS, prob=0.5, spatial_axis=1),
            BoxPromptsd("label", jitter=0),
            ModelFramed([*KEYS, "masks"], 64, mode=["bilinear", "nearest", "nearest"]),
        ]
    )
    plain = numbered(100, 120, {(50, 60): 3})
    item = {key: MetaTensor(value) for key, value in plain.items()}
    first, again, other = (chain.set_random_state(seed=seed)(item) for seed in (1, 1, 2))
    assert torch.equal(first["image"], again["image"])
    assert not torch.equal(first["image"], other["image"])
    for found in (first, other):
        x0, y0, x1, y1 = found["boxes"][0].int().tolist()
        assert (x1 - x0, y1 - y0) == (2, 2)
        assert found["masks"].shape == (1, 64, 64)
        assert found["masks"][0, y0:y1, x0:x1].all()
        back = Invertd("label", chain, orig_keys="label")(found)["label"]
        assert torch.equal(torch.as_tensor(back), plain["label"])


@pytest.mark.parametrize("size", [0, -1, 32.0, True, None])
def test_impossible_sizes_are_refused(size: Any) -> None:
    with pytest.raises(ValueError, match=rf"size is {size!r}; expected pixels, at least 1\."):
        RandWindowd(KEYS, size)


def test_images_of_another_size_are_refused() -> None:
    item = {**numbered(64, 64, {}), "image": torch.zeros(1, 64, 60)}
    with pytest.raises(
        ValueError, match=r"sizes \{'image': \(64, 60\).*'label', \(64, 64\), \(H, W"
    ):
        RandWindowd(KEYS, 32)(item)
    with pytest.raises(KeyError, match="other"):
        RandWindowd([*KEYS, "other"], 32)(item)
    found = RandWindowd(["label", "other"], 32, allow_missing_keys=True)(item)
    assert found["label"].shape == (1, 32, 32)


@pytest.mark.parametrize("window", [None, 48])
def test_the_recipe_cuts_windows_by_the_rules(window: int | None) -> None:
    data = Datalist("d", "CT", {2: "liver"})
    rules = ScanRules(Window(40, 400), window=window)
    whole = recipe("transform", data=data, base=_Base, rules=rules)
    windows = [one for one in whole.transforms if isinstance(one, RandWindowd)]
    assert len(windows) == (window is not None)
    for one in windows:
        assert whole.transforms.index(one) == 1
        assert (one.keys, one.size, one.labels) == (("image", "label", "before"), window, [2])


class _Base:
    image_size = 64
    in_channels = 3


def test_the_recipes_slices_are_whole() -> None:
    assert recipe("rules", data=Datalist("d", "CT", {2: "liver"})).window is None
