"""Slices become samples, the same whatever the number of workers."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor, get_track_meta
from monai.transforms import (
    Compose,
    DeleteItemsd,
    Lambdad,
    Rand2DElasticd,
    RandFlipd,
    RandGaussianNoised,
    RandScaleCropd,
    RepeatChanneld,
    ScaleIntensityRanged,
)
from torch.utils.data import DataLoader

from medsam_tune.cases.folders import find_cases
from medsam_tune.errors import DataError
from medsam_tune.slices.intensity import Percentiles, full_range
from medsam_tune.slices.rules import ScanRules
from medsam_tune.slices.store import SliceStore
from medsam_tune.training.samples import SeededSampler, SliceDataset
from medsam_tune.transforms import (
    BoxPromptsd,
    KeepObjectsd,
    LoadSliced,
    MixedPromptsd,
    ModelFramed,
    ShrinkLongestd,
)
from tests.scans import LABELS, SHAPE, load_turned, small_scan

SPATIAL = ["image", "label", "before"]


def augmentation() -> Compose:
    return Compose(
        [
            Rand2DElasticd(
                SPATIAL,
                spacing=(6, 6),
                magnitude_range=(0.2, 0.6),
                prob=1.0,
                rotate_range=0.26,
                scale_range=0.1,
                mode=["bilinear", "nearest", "nearest"],
                padding_mode="zeros",
            ),
            RandScaleCropd(SPATIAL, roi_scale=0.8, max_roi_scale=1.0, random_size=True),
            RandFlipd(SPATIAL, prob=0.5, spatial_axis=1),
            RandGaussianNoised(["image"], prob=1.0, std=0.3),
            ScaleIntensityRanged(["image"], 0, 1, 0, 1, clip=True),
        ]
    )


def chain(size: int, prompts: Any = None, augment: Any = None, squash: bool = False) -> Compose:
    """The chain of `train.yaml`."""
    return Compose(
        [
            LoadSliced(),
            ShrinkLongestd(SPATIAL, round(1.25 * size), ["bilinear", "nearest", "nearest"]),
            KeepObjectsd("label", augment or Compose([]), LABELS),
            prompts or BoxPromptsd("label", LABELS, count=4, jitter=0.05),
            ModelFramed(
                ["image", "masks", "earlier"],
                size,
                squash,
                ["bilinear", "nearest", "nearest"],
                allow_missing_keys=True,
            ),
            RepeatChanneld("image", 3),
            DeleteItemsd(["label", "before", "extents"]),
        ]
    )


def test_sample(prepared):
    data = SliceDataset(prepared, LABELS, chain(32, BoxPromptsd("label", LABELS, 3, jitter=0)))
    assert len(data) == 8  # four slices with foreground in each case
    sample = data[1]
    assert sample["image"].shape == (3, 32, 32)
    assert sample["image"].dtype == torch.float32
    assert 0 <= sample["image"].min() < sample["image"].max() <= 1
    assert sample["masks"].shape == (3, 32, 32)
    assert sample["masks"].dtype == torch.bool
    assert (sample["boxes"].shape, sample["boxes"].dtype) == ((3, 4), torch.float32)
    assert sample["labels"].dtype == torch.int64
    assert (sample["case"], sample["slice"]) == ("a", 2)
    assert not sample["image"][:, :, 28:].any()  # 10 of 12 columns are the slice
    assert sample.keys() == {"image", "masks", "boxes", "labels", "case", "slice"}


def test_a_sample_of_a_fine_window(tmp_path, make_case):
    """Of float16 in the store: float32 in [0, 1], with more than 256 levels."""
    values = np.linspace(-2000, 4000, np.prod(SHAPE)).reshape(SHAPE)
    store = SliceStore(tmp_path / "s", ScanRules(full_range()), LABELS)
    data = SliceDataset(store.prepare([make_case(image=values)], False), LABELS, chain(32))
    samples = [data[k]["image"] for k in range(len(data))]
    assert {one.dtype for one in samples} == {torch.float32}
    assert min(float(one.min()) for one in samples) == 0
    assert max(float(one.max()) for one in samples) == 1
    k = data[1]["slice"]
    read = LoadSliced()({"case": data.cases[0], "slice": k})["image"]
    lps = torch.from_numpy(values[::-1, ::-1, k].T.copy())
    expected = ((lps + 1024) / 4095).clamp(0, 1)
    assert float((read[0] - expected).abs().max()) < 1 / 4095 + 1e-4
    assert not torch.equal((read * 255).round() / 255, read)  # finer than 8 bits


def test_a_label_that_a_slice_may_lack(prepared):
    prompts = MixedPromptsd("label", LABELS, count=24, mixture={"none": 1})
    data = SliceDataset(prepared, LABELS, chain(24, prompts), empty_slices=1.0)  # scale 2
    assert len(data) == 12  # empty slices as well
    for index in (0, 2):
        sample = data[index]
        assert set(sample["labels"].tolist()) == {1, 2}
        assert torch.equal(sample["classes"], sample["labels"] - 1)  # as the inferer counts them
        assert (sample["point_labels"] == -1).all()
        ids = torch.from_numpy(prepared[0].label_slice(index).astype(np.int64))
        for mask, label in zip(sample["masks"], sample["labels"], strict=True):
            torch.testing.assert_close(mask[::2, ::2][:12, :10], ids == label)
    assert not data[0]["masks"].any()


@pytest.mark.parametrize(("share", "count"), [(0.0, 8), (0.25, 10), (0.4, 11), (9.0, 12)])
def test_so_many_empty_slices(prepared, share, count):
    data = SliceDataset(prepared, LABELS, chain(24), empty_slices=share)
    assert len(data) == count
    assert data.index == sorted(set(data.index))
    assert {(case, k) for case in (0, 1) for k in range(1, 5)} <= set(data.index)


def test_empty_slices_next_to_a_label_come_first(store, make_case):
    volume, label = np.random.default_rng(0).normal(size=(4, 4, 20)), np.zeros((4, 4, 20), np.uint8)
    label[1:3, 1:3, 8:12] = 1
    cases = store.prepare([make_case(image=volume.astype(np.float32), label=label)], False)
    data = SliceDataset(cases, LABELS, chain(24), empty_slices=0.75)
    empty = {k for _, k in data.index} - set(range(8, 12))
    assert len(empty) == 3
    assert {7, 12} < empty


def test_how_much_larger_other_boxes_are(store, make_case):
    """The rectangle of the 3-D box always, and boxes linear between two slices with the label."""
    label = np.zeros((40, 30, 9), np.uint8)
    for k, (x0, x1) in enumerate([(10, 20), (9, 21), (5, 25), (11, 19), (12, 30)], start=2):
        label[x0:x1, 4 : 8 + k, k] = 1
    volume = np.random.default_rng(0).normal(size=label.shape).astype(np.float32)
    (case,) = store.prepare([make_case(image=volume, label=label)], progress=False)
    load = LoadSliced()
    seen = set()
    slices, boxes = case.tight(1)
    for seed in range(200):
        k = 4
        place = slices.tolist().index(k)
        extents = load.set_random_state(seed=seed)({"case": case, "slice": k})["extents"]
        grown = {}
        for kind, of_label in extents.items():
            sides = np.tile(boxes[place][2:] - boxes[place][:2], 2)
            grown[kind] = boxes[place] + of_label[1].numpy() * [-1, -1, 1, 1] * sides
        whole = [*boxes[:, :2].min(0), *boxes[:, 2:].max(0)]
        np.testing.assert_allclose(grown["rectangle"], whole, atol=1e-4)
        pairs = [(a, b) for a in range(place + 1) for b in range(place, 5) if a < b]
        fits = [
            (a, b)
            for a, b in pairs
            if np.allclose(
                [np.interp(k, slices[[a, b]], side[[a, b]]) for side in boxes.T],
                grown["interpolated"],
                atol=1e-3,
            )
        ]
        assert fits or np.allclose(grown["interpolated"], boxes[place], atol=1e-3)
        seen |= set(fits)
    assert {(0, 4), (1, 3), (0, 3), (1, 4)} <= seen


def test_what_an_object_is_followed_from(prepared):
    """The label of a slice beside it, by one of the two sides, through the same augmentation."""
    prompts = MixedPromptsd("label", LABELS, count=8, jitter=0, mixture={"followed": 1})
    data = SliceDataset(prepared, LABELS, chain(24, prompts), empty_slices=9.0)
    labels = [torch.from_numpy(prepared[0].label_slice(k).astype(np.int64)) for k in range(6)]
    sides, ended, hinted = set(), 0, 0
    for seed in range(40):
        sample = data[(4, seed)]  # the last slice with a label
        for row, label in enumerate(sample["labels"]):
            earlier = sample["earlier"][row, ::2, ::2][:12, :10]
            if sample["has_earlier"][row]:
                hinted += 1
                sides |= {k for k in (3, 5) if torch.equal(earlier, labels[k] == label)}
            assert bool(sample["has_earlier"][row]) == bool(earlier.any())
            mask = sample["masks"][row, ::2, ::2][:12, :10]
            assert torch.equal(mask, labels[4] == label)
            ended += not mask.any()
    assert 3 in sides
    assert 40 < hinted < 280
    assert ended


def test_masks_belong_to_their_labels_and_boxes(prepared):
    prompts = BoxPromptsd("label", LABELS, count=8, jitter=0)
    data = SliceDataset(prepared, LABELS, chain(24, prompts))  # scale 2
    sample = data[1]
    ids = torch.from_numpy(prepared[0].label_slice(2).astype(np.int64))
    assert set(sample["labels"].tolist()) == {1, 2}
    for mask, box, label in zip(sample["masks"], sample["boxes"], sample["labels"], strict=True):
        torch.testing.assert_close(mask[::2, ::2][:12, :10], ids == label)
        rows, columns = mask.nonzero().unbind(1)
        expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert box.tolist() == [float(value) for value in expected]


def test_only_the_wanted_labels(prepared):
    data = SliceDataset(prepared, [2], chain(32, BoxPromptsd("label", [2], count=4)))
    assert len(data) == 4
    assert data[0]["labels"].tolist() == [2] * 4


def test_a_transform_that_asks_for_nothing_is_named(prepared):
    data = SliceDataset(prepared, LABELS, chain(32, BoxPromptsd("label", [9])))
    with pytest.raises(DataError, match=r"case a: slice 1 has none of the labels 1, 2 left after"):
        data[0]


def test_the_seed_fixes_a_sample(prepared):
    data = SliceDataset(prepared, LABELS, chain(32, augment=augmentation()))
    first, again, other = data[1, 7], data[1, 7], data[1, 8]
    for key in ("image", "masks", "boxes", "labels"):
        assert torch.equal(first[key], again[key])
    assert not torch.equal(first["image"], other["image"])
    assert torch.equal(data[3]["image"], data[3, 3]["image"])


def test_augmented_sample_is_plain_and_in_range(prepared):
    data = SliceDataset(prepared, LABELS, chain(32, augment=augmentation()))
    for seed in range(20):
        sample = data[1, seed]
        assert not any(isinstance(value, MetaTensor) for value in sample.values())
        assert 0 <= sample["image"].min() <= sample["image"].max() <= 1
        assert sample["masks"].flatten(1).any(1).all()
    assert get_track_meta()


def test_the_number_of_workers_changes_nothing(prepared):
    data = SliceDataset(prepared, LABELS, chain(32, augment=augmentation()))
    prepared[0].image_slice(0)  # arrays that are open when the workers start
    batches = []
    for workers in (0, 2):
        sampler = SeededSampler(len(data), seed=1)
        loader = DataLoader(data, batch_size=4, sampler=sampler, num_workers=workers)
        batches.append(list(loader))
    for one, two in zip(*batches, strict=True):
        assert one["case"] == two["case"]
        for key in ("image", "masks", "boxes", "labels", "slice"):
            assert torch.equal(one[key], two[key])


def test_slice_that_the_augmentation_empties_is_used_as_it_is(prepared):
    plain = SliceDataset(prepared, LABELS, chain(32))
    zero = Compose([Lambdad(["image", "label"], lambda x: x * 0)])
    emptied = SliceDataset(prepared, LABELS, chain(32, augment=zero))
    for key in ("image", "masks", "boxes"):
        assert torch.equal(plain[1][key], emptied[1][key])


def test_object_smaller_than_a_model_pixel_keeps_a_mask(store, make_case):
    image = np.random.default_rng(0).uniform(1, 200, (64, 64, 2)).astype(np.float32)
    label = np.zeros((64, 64, 2), np.uint8)
    label[16:18, 32:34, 1] = 2
    cases = store.prepare([make_case(image=image, label=label)], progress=False)
    prompts = BoxPromptsd("label", LABELS, count=4, jitter=0)
    frame = ModelFramed(["image", "masks"], 8, mode=["bilinear", "nearest"])
    sample = SliceDataset(cases, LABELS, Compose([LoadSliced(), prompts, frame]))[0]
    # LPS: columns 63 - 17 = 46 and 47, rows 30 and 31; eight slice pixels to a model pixel
    assert sample["masks"].flatten(1).sum(1).tolist() == [1] * 4
    assert sample["masks"][0].nonzero().tolist() == [[3, 5]]
    assert sample["boxes"][0].tolist() == [46 / 8, 30 / 8, 6, 4]


def test_slices_of_one_value_are_left_out(store, make_case):
    image, label = small_scan()
    image[..., 2] = 77
    cases = store.prepare([make_case(image=image, label=label)], progress=False)
    with pytest.warns(UserWarning, match=r"1 slices of 1 cases .* left out: case_017 \(1\)"):
        data = SliceDataset(cases, LABELS, chain(32))
    assert [data[i]["slice"] for i in range(len(data))] == [1, 3, 4]


def test_row_52_no_foreground_anywhere(store, make_case):
    cases = store.prepare([make_case(label=np.zeros(SHAPE, np.uint8))], progress=False)
    with pytest.raises(DataError, match="no slice of 1 cases has one of the labels 1, 2"):
        SliceDataset(cases, LABELS, chain(32))


# SeededSampler


def test_each_slice_comes_in_each_view_before_one_comes_again() -> None:
    sampler = SeededSampler(10, seed=3, views=3)
    assert [key[:2] for key in sampler] == list(SeededSampler(10, seed=3))
    passes = []
    for epoch in range(6):
        sampler.set_epoch(epoch)
        passes.append({index: view for index, _, view in sampler})
    for first in range(4):
        for index in range(10):
            assert {one[index] for one in passes[first : first + 3]} == {0, 1, 2}
    assert len({*passes[0].values()}) > 1  # a pass has views of all numbers
    other = SeededSampler(10, seed=4, views=3)
    assert {index: view for index, _, view in other} != passes[0]
    sampler.set_epoch(1, done=4)
    assert {index: view for index, _, view in sampler}.items() < passes[1].items()


def test_sampler_is_a_shuffled_pass():
    sampler = SeededSampler(10, seed=3)
    keys = list(sampler)
    assert len(sampler) == 10
    assert sorted(index for index, _ in keys) == list(range(10))
    assert keys == list(SeededSampler(10, seed=3))
    assert keys != list(SeededSampler(10, seed=4))


def test_sampler_epochs_differ_and_can_be_repeated():
    sampler = SeededSampler(10)
    epochs = []
    for epoch in (1, 2, 1):
        sampler.set_epoch(epoch)
        epochs.append(list(sampler))
    assert epochs[0] == epochs[2]
    assert epochs[0] != epochs[1]
    assert {seed for _, seed in epochs[0]}.isdisjoint(seed for _, seed in epochs[1])


@pytest.mark.parametrize("num_samples", [4, 25])
def test_sampler_draws_each_slice_equally_often(num_samples):
    sampler = SeededSampler(10, num_samples=num_samples)
    drawn: list[int] = []
    for epoch in range(10):
        sampler.set_epoch(epoch)
        keys = list(sampler)
        assert len(keys) == len(sampler) == num_samples
        drawn += [index for index, _ in keys]
    assert set(Counter(drawn).values()) == {num_samples}


@pytest.mark.parametrize(("length", "num_samples"), [(0, None), (10, 0)])
def test_sampler_of_nothing(length, num_samples):
    with pytest.raises(DataError, match="expected at least one of each"):
        SeededSampler(length, num_samples=num_samples)


# real scans


@pytest.mark.real_data
def test_hippocampus(hippocampus, tmp_path):
    data = find_cases(hippocampus)
    cases = SliceStore(tmp_path / "s", ScanRules(Percentiles()), data.labels).prepare(
        data.training[:4], False
    )
    for case, source in zip(cases, data.training, strict=False):
        _, label = load_turned(source, data.labels)
        np.testing.assert_array_equal(case.label(), label[0].numpy().transpose(2, 1, 0))
        assert case.image().max() == 255
    sample = SliceDataset(cases, data.labels, chain(128, augment=augmentation()))[0]
    assert sample["masks"].any()
