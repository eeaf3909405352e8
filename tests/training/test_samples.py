"""Slices become samples, the same whatever the number of workers."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from monai.data import MetaTensor, get_track_meta
from monai.transforms import (
    Compose,
    Lambdad,
    Rand2DElasticd,
    RandFlipd,
    RandGaussianNoised,
    RandScaleCropd,
)
from torch.utils.data import DataLoader

from medsam_tune.cases.folders import find_cases
from medsam_tune.errors import DataError
from medsam_tune.slices.intensity import Percentiles
from medsam_tune.slices.rules import ScanRules
from medsam_tune.slices.store import SliceStore
from medsam_tune.training.samples import SeededSampler, SliceDataset
from tests.scans import LABELS, SHAPE, load_turned


def augmentation() -> Compose:
    return Compose(
        [
            Rand2DElasticd(
                ["image", "label"],
                spacing=(6, 6),
                magnitude_range=(0.2, 0.6),
                prob=1.0,
                rotate_range=0.26,
                scale_range=0.1,
                mode=["bilinear", "nearest"],
                padding_mode="zeros",
            ),
            RandScaleCropd(["image", "label"], roi_scale=0.8, max_roi_scale=1.0, random_size=True),
            RandFlipd(["image", "label"], prob=0.5, spatial_axis=1),
            RandGaussianNoised(["image"], prob=1.0, std=0.3),
        ]
    )


# SliceStore


def test_sample(prepared):
    data = SliceDataset(prepared, LABELS, image_size=32, objects=3, jitter=0)
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


def test_every_class_on_every_slice(prepared):
    data = SliceDataset(prepared, LABELS, image_size=24, objects=None)  # scale 2
    assert len(data) == 12  # empty slices as well
    for index in (0, 2):
        sample = data[index]
        assert "boxes" not in sample
        assert sample["labels"].tolist() == [1, 2]
        ids = torch.from_numpy(prepared[0].label_slice(index).astype(np.int64))
        for mask, label in zip(sample["masks"], (1, 2), strict=True):
            torch.testing.assert_close(mask[::2, ::2][:12, :10], ids == label)
    assert not data[0]["masks"].any()
    turned = SliceDataset(prepared, {2: "spleen", 1: "liver"}, image_size=24, objects=None)
    torch.testing.assert_close(turned[2]["masks"], data[2]["masks"])  # as the inferer orders them
    augmented = SliceDataset(
        prepared, LABELS, 24, objects=None, augment=RandFlipd(["image", "label"], 1.0, 1)
    )
    torch.testing.assert_close(augmented[2]["masks"][..., :20], data[2]["masks"][..., :20].flip(-1))


def test_masks_belong_to_their_labels_and_boxes(prepared):
    data = SliceDataset(prepared, LABELS, image_size=24, objects=8, jitter=0)  # scale 2
    sample = data[1]
    ids = torch.from_numpy(prepared[0].label_slice(2).astype(np.int64))
    assert set(sample["labels"].tolist()) == {1, 2}
    for mask, box, label in zip(sample["masks"], sample["boxes"], sample["labels"], strict=True):
        torch.testing.assert_close(mask[::2, ::2][:12, :10], ids == label)
        rows, columns = mask.nonzero().unbind(1)
        expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert box.tolist() == [float(value) for value in expected]


def test_only_the_wanted_labels(prepared):
    data = SliceDataset(prepared, [2], image_size=32)
    assert len(data) == 4
    assert data[0]["labels"].tolist() == [2] * 4


def test_the_seed_fixes_a_sample(prepared):
    data = SliceDataset(prepared, LABELS, 32, augment=augmentation())
    first, again, other = data[1, 7], data[1, 7], data[1, 8]
    for key in ("image", "masks", "boxes", "labels"):
        assert torch.equal(first[key], again[key])
    assert not torch.equal(first["image"], other["image"])
    assert torch.equal(data[3]["image"], data[3, 3]["image"])


def test_large_slices_are_shrunk_before_they_are_augmented(prepared):
    seen = []

    def look(item):
        seen.append((item["image"].shape, item["label"].unique().tolist()))
        return item

    SliceDataset(prepared, LABELS, 8, augment=look)[0]  # of 12 x 10
    SliceDataset(prepared, LABELS, 10, augment=look)[0]
    assert [tuple(shape) for shape, _ in seen] == [(1, 10, 8), (1, 12, 10)]
    assert seen[0][1] == seen[1][1]


def test_augmented_sample_is_plain_and_in_range(prepared):
    data = SliceDataset(prepared, LABELS, 32, augment=augmentation())
    for seed in range(20):
        sample = data[1, seed]
        assert not any(isinstance(value, MetaTensor) for value in sample.values())
        assert 0 <= sample["image"].min() <= sample["image"].max() <= 1
        assert sample["masks"].flatten(1).any(1).all()
    assert get_track_meta()


def test_the_number_of_workers_changes_nothing(prepared):
    data = SliceDataset(prepared, LABELS, 32, augment=augmentation())
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
    plain = SliceDataset(prepared, LABELS, 32)
    emptied = SliceDataset(
        prepared, LABELS, 32, augment=Compose([Lambdad(["image", "label"], lambda x: x * 0)])
    )
    for key in ("image", "masks", "boxes"):
        assert torch.equal(plain[1][key], emptied[1][key])


def test_object_smaller_than_a_model_pixel_keeps_a_mask(store, make_case):
    image = np.random.default_rng(0).uniform(1, 200, (64, 64, 2)).astype(np.float32)
    label = np.zeros((64, 64, 2), np.uint8)
    label[17, 33, 1] = 2
    cases = store.prepare([make_case(image=image, label=label)], progress=False)
    sample = SliceDataset(cases, LABELS, image_size=16, augment=augmentation())[0]
    assert sample["masks"].flatten(1).sum(1).tolist() == [1] * 4
    # LPS: column 63 - 17 = 46, row 63 - 33 = 30, four slice pixels to a model pixel
    assert sample["masks"][0].nonzero().tolist() == [[7, 11]]


def test_row_52_no_foreground_anywhere(store, make_case):
    cases = store.prepare([make_case(label=np.zeros(SHAPE, np.uint8))], progress=False)
    with pytest.raises(DataError, match="no slice of 1 cases has one of the labels 1, 2"):
        SliceDataset(cases, LABELS, 32)


# SeededSampler


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
    cases = SliceStore(tmp_path, ScanRules(Percentiles()), data.labels).prepare(
        data.training[:4], False
    )
    for case, source in zip(cases, data.training, strict=False):
        _, label = load_turned(source, data.labels)
        np.testing.assert_array_equal(case.label(), label[0].numpy().transpose(2, 1, 0))
        assert case.image().max() == 255
    sample = SliceDataset(cases, data.labels, 128, augment=augmentation())[0]
    assert sample["masks"].any()
