"""nano's embedded weights: what the model card says of them, on scenes that training never drew."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from medsam_tune.methods import apply_method
from medsam_tune.prompts import Prompts, boxes_from_masks, ellipses_in_boxes, points_in_masks
from medsam_tune.sam.build import EMBEDDED, build_sam
from medsam_tune.sam.model import PromptableSam
from medsam_tune.synthetic.scenes import draw_scenes

SIZE = 128
# No epoch's seed comes near it, nor does the exam's.
UNSEEN = 2**40


@pytest.fixture(scope="module")
def nano() -> PromptableSam:
    return build_sam("nano", image_size=SIZE)


@pytest.fixture(scope="module")
def scenes() -> Mapping[str, Tensor]:
    return draw_scenes(UNSEEN, 24, SIZE, 4, difficulty=0.5)


def dice(masks: Tensor, truth: Tensor) -> float:
    """(B, P, S, S) bool, twice -> the mean."""
    return float(
        (2 * (masks & truth).sum((-1, -2)) / (masks.sum((-1, -2)) + truth.sum((-1, -2)))).mean()
    )


@torch.inference_mode()
def by_boxes(nano: PromptableSam, image: Tensor, boxes: Tensor) -> Tensor:
    logits = nano.decode(nano.encode(image), Prompts(boxes)).logits
    return torch.nn.functional.interpolate(logits, (SIZE, SIZE), mode="bilinear") > 0


def test_card_and_file_agree() -> None:
    card = (EMBEDDED.parent / "README.md").read_text()
    assert hashlib.sha256(EMBEDDED.read_bytes()).hexdigest() in card
    assert f"{sum(parameter.numel() for parameter in build_sam('nano').parameters()):,}" in card
    assert EMBEDDED.stat().st_size < 12 * 2**20
    assert {tensor.dtype for tensor in load_file(EMBEDDED).values()} == {torch.float16}


def test_it_is_what_nano_is_without_a_checkpoint() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nano = build_sam("nano")
        assert nano.image_size == 256
        assert not nano.random_weights
        apply_method(nano, "lora")
    stored = load_file(EMBEDDED)
    fresh = build_sam("nano")
    assert torch.equal(
        fresh.mask_decoder.iou_token.weight, stored["mask_decoder.iou_token.weight"].float()
    )
    assert fresh.base.sha256 != build_sam("nano", "random").base.sha256


def test_boxes_beat_their_ellipses(nano: PromptableSam, scenes: Mapping[str, Tensor]) -> None:
    boxes = boxes_from_masks(
        scenes["masks"], jitter=0.05, generator=torch.Generator().manual_seed(0)
    )
    ellipse = dice(ellipses_in_boxes(boxes, (SIZE, SIZE)) > 0, scenes["masks"])
    found = by_boxes(nano, scenes["image"], boxes)
    assert dice(found, scenes["masks"]) > ellipse + 0.02
    elsewhere = by_boxes(nano, scenes["image"].flip(0), boxes)  # it is the image that says so
    assert dice(elsewhere, scenes["masks"]) < dice(found, scenes["masks"]) - 0.1


@pytest.mark.parametrize("change", ["moved", "grown", "shrunk"])
def test_boxes_need_not_be_exact(
    nano: PromptableSam, scenes: Mapping[str, Tensor], change: str
) -> None:
    boxes = boxes_from_masks(scenes["masks"])
    side = (boxes[..., 2:] - boxes[..., :2]) * {"moved": 0.1, "grown": 0.05, "shrunk": -0.05}[
        change
    ]
    other = boxes + torch.cat([side if change == "moved" else -side, side], -1)
    exact = dice(by_boxes(nano, scenes["image"], boxes), scenes["masks"])
    assert dice(by_boxes(nano, scenes["image"], other), scenes["masks"]) > exact - 0.08


def test_masks_hold_their_points(nano: PromptableSam, scenes: Mapping[str, Tensor]) -> None:
    points = points_in_masks(scenes["masks"], generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        embedding = nano.encode(scenes["image"])
        labels = torch.ones(points.shape[:3]).long()
        masks, quality, _ = nano.decode_masks(
            embedding, Prompts(points=points, point_labels=labels)
        )
    best = quality.argmax(2)[..., None, None, None].expand(-1, -1, 1, *masks.shape[-2:])
    chosen = torch.nn.functional.interpolate(
        masks.gather(2, best)[:, :, 0], (SIZE, SIZE), mode="bilinear"
    )
    x, y = points[:, :, 0].long().unbind(-1)
    held = chosen.flatten(2).gather(2, (y * SIZE + x)[..., None]) > 0
    assert float(held.float().mean()) > 0.9
    assert dice(chosen > 0, scenes["masks"]) > 0.35
