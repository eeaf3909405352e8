"""Dictionary transforms of slices: the model's input, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.data import MetaTensor, set_track_meta
from monai.transforms import Invertd

from medsam_tune.slices.frames import ModelFrame, scaled
from medsam_tune.slices.intensity import Percentiles, Window, Windows, ZScore
from medsam_tune.slices.store import PreparedCase
from medsam_tune.transforms import (
    LoadSliced,
    ModelFramed,
    Percentilesd,
    ShrinkLongestd,
    Windowd,
    Windowsd,
    ZScored,
)

SCAN = torch.linspace(-1200, 1500, 4 * 5 * 6).view(1, 4, 5, 6)


@pytest.mark.parametrize(
    ("transform", "rule"),
    [
        (Windowd("image"), Window(40, 400)),
        (Windowd("image", center=-600, width=1500), Window(-600, 1500)),
        (Windowsd("image"), Windows(("lung", "abdomen", "bone"))),
        (Windowsd("image", ["liver", (10, 20)]), Windows(("liver", (10, 20)))),
        (Percentilesd("image"), Percentiles(0.5, 99.5)),
        (Percentilesd("image", 5, 95), Percentiles(5, 95)),
        (ZScored("image"), ZScore(3)),
        (ZScored("image", 1), ZScore(1)),
    ],
)
def test_rules_of_intensity(transform: Windowd, rule: Window) -> None:
    found = transform({"image": SCAN, "label": 1})
    assert found["image"].dtype == torch.uint8
    assert torch.equal(torch.as_tensor(found["image"]), rule(SCAN))
    assert torch.equal(torch.as_tensor(transform({"image": SCAN.numpy()})["image"]), rule(SCAN))
    scan = MetaTensor(SCAN, affine=torch.diag(torch.tensor([1.0, 2, 3, 1])))
    torch.testing.assert_close(transform({"image": scan})["image"].affine, scan.affine)
    with pytest.raises(KeyError, match="image"):
        transform({"label": 1})


def test_missing_keys_are_allowed_on_request() -> None:
    for make in (Windowd, Windowsd, Percentilesd, ZScored):
        assert make("image", allow_missing_keys=True)({"label": 1}) == {"label": 1}
    assert ShrinkLongestd("a", 4, allow_missing_keys=True)({}) == {}
    assert ModelFramed("a", 4, allow_missing_keys=True)({}) == {}


def test_a_slice_of_the_store(prepared: list[PreparedCase]) -> None:
    found = LoadSliced()({"case": prepared[0], "slice": 2})
    assert (found["case"], found["slice"]) == ("a", 2)
    np.testing.assert_allclose(found["image"].numpy() * 255, prepared[0].image_slice(2), atol=1e-4)
    np.testing.assert_array_equal(found["label"][0].numpy(), prepared[0].label_slice(2))
    assert found["image"].dtype == found["label"].dtype == torch.float32


def test_only_slices_above_the_limit_are_shrunk() -> None:
    shrink = ShrinkLongestd(["image", "label"], 10, ["bilinear", "nearest"])
    image = torch.rand(3, 12, 16)
    label = torch.zeros(1, 12, 16)
    label[0, 4:8, 4:12] = 3
    found = shrink({"image": image, "label": label})
    assert (found["image"].shape, found["label"].shape) == ((3, 8, 10), (1, 8, 10))
    assert found["label"].unique().tolist() == [0, 3]
    expected = F.interpolate(image[None], (8, 10), mode="bilinear", antialias=True)[0]
    assert torch.equal(torch.as_tensor(found["image"]), expected)
    small = {"image": torch.rand(1, 10, 4), "label": torch.zeros(1, 10, 4)}
    assert shrink(small)["image"] is small["image"]


@pytest.mark.parametrize("squash", [False, True])
def test_everything_goes_into_one_frame(squash: bool) -> None:
    frame = ModelFrame((10, 20), 40, squash)
    mask = torch.zeros(2, 10, 20, dtype=torch.bool)
    mask[0, 2:6, 3:9], mask[1, 7:9, 15:20] = True, True
    item = {
        "image": torch.rand(1, 10, 20),
        "masks": mask,
        "label": mask[:1].to(torch.uint8) * 5,
        "boxes": torch.tensor([[3.0, 2, 9, 6], [15, 7, 20, 9]]),
        "points": torch.tensor([[[4.5, 3.5]], [[16.5, 8.5]]]),
    }
    keys, modes = ["image", "masks", "label"], ["bilinear", "nearest", "nearest"]
    found = ModelFramed(keys, 40, squash, modes)(item)
    assert torch.equal(torch.as_tensor(found["image"]), frame.image(item["image"][None])[0])
    assert torch.equal(torch.as_tensor(found["masks"]), frame.masks(mask[None])[0])
    assert found["label"].unique().tolist() == [0, 5]
    assert (found["label"].dtype, found["masks"].dtype) == (torch.uint8, torch.bool)
    assert torch.equal(found["boxes"], frame.boxes(item["boxes"]))
    assert torch.equal(found["points"], scaled(item["points"], *frame.scale))
    high = 4 if squash else 2
    assert found["points"][0, 0].tolist() == [9, 3.5 * high]
    assert found["boxes"][1].tolist() == [30, 7 * high, 40, 9 * high]
    back = ModelFramed(keys, 40, squash, modes)
    again = back.inverse(back(item))
    assert torch.equal(torch.as_tensor(again["masks"]), mask)
    assert torch.equal(torch.as_tensor(again["label"]), item["label"])
    assert again["image"].shape == (1, 10, 20)


def test_a_volume_is_framed_slice_by_slice() -> None:
    volume = MetaTensor(torch.rand(2, 10, 20, 3), affine=torch.diag(torch.tensor([4.0, 2, 5, 1])))
    framed = ModelFramed("image", 40)
    found = framed({"image": volume})["image"]
    assert found.shape == (2, 40, 40, 3)
    for k in range(3):
        alone = ModelFrame((10, 20), 40).image(volume.as_tensor()[None, ..., k])[0]
        assert torch.equal(found.as_tensor()[..., k], alone)
    spacing = found.affine[:3, :3].diag()
    assert spacing.tolist() == [2, 1, 5]
    assert found.affine[:3, 3].tolist() == [-1, -0.5, 0]  # half an old pixel to half a new one
    assert volume.affine[:3, 3].tolist() == [0, 0, 0]
    assert len(found.applied_operations) == 1
    assert len(volume.applied_operations) == 0
    back = framed.inverse({"image": found})["image"]
    assert back.shape == volume.shape
    torch.testing.assert_close(back.affine, volume.affine)


def test_without_metadata() -> None:
    set_track_meta(False)
    try:
        found = ModelFramed("image", 8)({"image": torch.rand(1, 4, 4)})["image"]
    finally:
        set_track_meta(True)
    assert not isinstance(found, MetaTensor)


@pytest.mark.parametrize("kind", ["int64", "list", "numpy"])
def test_boxes_and_points_of_every_kind(kind: str) -> None:
    boxes: Any = [[2, 2, 8, 6]]
    boxes = {"int64": torch.tensor(boxes), "list": boxes, "numpy": np.array(boxes)}[kind]
    item = {"image": torch.rand(1, 10, 16), "boxes": boxes, "points": None}
    found = ModelFramed("image", 8)(item)
    assert found["boxes"].tolist() == [[1, 1, 4, 3]]
    assert found["boxes"].dtype == torch.float32


def test_boxes_and_points_come_back_with_their_images() -> None:
    framed = ModelFramed(["image", "masks"], 40, mode=["bilinear", "nearest"])
    item = {
        "image": torch.rand(1, 10, 20),
        "masks": torch.zeros(0, 10, 20, dtype=torch.bool),
        "boxes": torch.tensor([[3.0, 2, 9, 6]]),
        "points": torch.tensor([[[4.5, 3.5]]]),
    }
    back = framed.inverse(framed(item))
    assert back["boxes"].tolist() == [[3, 2, 9, 6]]
    assert back["points"].tolist() == [[[4.5, 3.5]]]
    assert back["masks"].shape == (0, 10, 20)


def test_logits_of_another_resolution_come_back() -> None:
    framed = ModelFramed("image", 32)
    item = framed({"image": MetaTensor(torch.rand(1, 12, 16))})
    rows = torch.full((1, 8, 8), -5.0)
    rows[:, :3] = 5.0  # half of the slice: 6 of its 12 rows
    item["image"] = MetaTensor(rows, applied_operations=item["image"].applied_operations)
    back = framed.inverse(item)["image"]
    assert back.shape == (1, 12, 16)
    assert (back[0, :, 8] > 0).tolist() == [True] * 6 + [False] * 6


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64])
def test_masks_inverted_bilinearly_are_not_truncated(dtype: torch.dtype) -> None:
    framed = ModelFramed("mask", 48, mode="nearest")
    mask = torch.zeros(1, 20, 20)
    mask[0, 6:14, 6:14] = 1
    item = framed({"mask": MetaTensor(mask.to(dtype))})
    smooth = Invertd("mask", framed, nearest_interp=False)(framed({"mask": MetaTensor(mask)}))
    item["mask"].applied_operations[-1]["extra_info"]["mode"] = "bilinear"
    found = framed.inverse(item)["mask"]
    assert found.dtype == torch.float32
    assert ((found > 0.5).sum() - 64).abs() <= 4
    assert smooth["mask"].shape == mask.shape


def test_impossible_frames_are_refused() -> None:
    for mode in ("bicubic", "BILINEAR", None, 1):
        with pytest.raises(ValueError, match="expected 'bilinear' or 'nearest'"):
            ModelFramed("image", 8, mode=mode)
        with pytest.raises(ValueError, match="expected 'bilinear' or 'nearest'"):
            ShrinkLongestd("image", 8, mode)
    for size in (0, -1, 8.0, (8, 8)):
        with pytest.raises(ValueError, match=r"image_size is .*; expected pixels"):
            ModelFramed("image", size)
    with pytest.raises(ValueError, match=r"images have the sizes .*; expected one for all"):
        ModelFramed(["a", "b"], 8)({"a": torch.rand(1, 4, 4), "b": torch.rand(1, 4, 5)})


def test_shrunk_slices_keep_their_place() -> None:
    image = MetaTensor(torch.rand(1, 12, 16), affine=torch.diag(torch.tensor([2.0, 3, 1])))
    label = np.zeros((1, 12, 16), np.int64)
    found = ShrinkLongestd(["image", "label"], 8, ["bilinear", "nearest"])(
        {"image": image, "label": label}
    )
    assert found["image"].affine[:2, :2].diag().tolist() == [4, 6]
    assert found["image"].affine[:2, 2].tolist() == [1, 1.5]
    assert (found["label"].shape, found["label"].dtype) == ((1, 6, 8), torch.int64)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int16, torch.float64])
def test_images_of_every_type_are_framed(dtype: torch.dtype) -> None:
    found = ModelFramed("image", 8)({"image": torch.ones(1, 16, 32, dtype=dtype)})["image"]
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert found[:, :4].min() == 1
