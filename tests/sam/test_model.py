"""`PromptableSam` equals a loop over the stock decoder, and says what it does not take."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch

from medsam_tune.methods import apply_method
from medsam_tune.prompts import Prompts
from medsam_tune.sam.model import PromptableSam
from tests.conftest import image_and_boxes

Build = Callable[..., PromptableSam]


def stock_loop(sam: PromptableSam, image: torch.Tensor, **prompts: torch.Tensor) -> torch.Tensor:
    """What stock `segment_anything` computes: one image and one prompt at a time."""
    embeddings = sam.encode(image)
    rows = []
    count = next(iter(prompts.values())).shape[1] if prompts else 1
    for b in range(len(image)):
        masks = []
        for p in range(count):
            one = {key: value[b, p][None] for key, value in prompts.items()}
            points = None
            if "points" in one:
                there = one["point_labels"][0] >= 0
                points = (one["points"][:, there], one["point_labels"][:, there])
            mask = one["masks"][None] if "masks" in one else None
            sparse, dense = sam.prompt_encoder(points, one.get("boxes"), mask)
            low, _ = sam.mask_decoder(
                embeddings[b][None], sam.prompt_encoder.get_dense_pe(), sparse, dense, False
            )
            masks.append(low[0, 0])
        rows.append(torch.stack(masks))
    return torch.stack(rows)


@pytest.fixture(autouse=True)
def _same_numbers_in_any_order_of_tests() -> None:
    torch.manual_seed(0)


KINDS = [
    kinds for n in range(4) for kinds in itertools.combinations(("boxes", "points", "masks"), n)
]


@pytest.mark.parametrize("kinds", KINDS, ids="-".join)
def test_batch_equals_loop_over_stock_decoder(tiny_sam: Build, kinds: tuple[str, ...]) -> None:
    sam = tiny_sam()
    image, boxes = image_and_boxes()
    prompts: dict[str, torch.Tensor] = {}
    if "boxes" in kinds:
        prompts["boxes"] = boxes
    if "points" in kinds:  # objects with 4, 3, 2 and 1 points, padding first or last
        prompts["points"] = torch.rand(2, 3, 4, 2) * 96
        prompts["point_labels"] = torch.tensor(
            [[[1, 0, 1, 1], [1, 0, 0, -1], [-1, 1, 0, -1]], [[-1, -1, -1, 1]] * 3]
        )
    if "masks" in kinds:
        prompts["masks"] = torch.randn(2, 3, 24, 24)  # (B, P, S/4, S/4)
    with torch.no_grad():
        found = sam(image, **prompts)
        expected = stock_loop(sam, image, **prompts)
    assert found.shape == (2, 3 if kinds else 1, 24, 24)
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5


def test_some_objects_of_a_batch_have_a_box_and_some_points(tiny_sam: Build) -> None:
    sam = tiny_sam()
    image, boxes = image_and_boxes(prompts=2)
    point = torch.tensor([[[30.0, 40.0]]]).expand(2, 1, -1, -1)  # (B, 1, 1, 2)
    corners = boxes[:, :1].unflatten(-1, (2, 2))  # (B, 1, 2, 2)
    mixed = torch.cat([corners, torch.cat([point, point], 2)], 1)  # (B, 2, 2, 2)
    labels = torch.tensor([[2, 3], [1, -1]]).expand(2, -1, -1)
    with torch.no_grad():
        found = sam(image, points=mixed, point_labels=labels)
        by_box = sam(image, boxes[:, :1])
        by_point = sam(image, points=point, point_labels=torch.ones(2, 1, 1))
    expected = torch.cat([by_box, by_point], 1)
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5


def test_quality_and_halves(tiny_sam: Build) -> None:
    sam = tiny_sam()
    image, boxes = image_and_boxes()
    logits, quality, presence = sam(image, boxes, return_quality=True)
    assert presence is None
    again, *_ = sam.decode(sam.encode(image), Prompts(boxes))
    assert torch.equal(logits, again)
    assert quality.shape == (2, 3)
    assert torch.equal(sam(image, boxes), logits)


def test_gradients_reach_the_encoder(tiny_sam: Build) -> None:
    sam = tiny_sam()
    image, boxes = image_and_boxes()
    sam(image, boxes).square().mean().backward()
    gradient = sam.image_encoder.patch_embed.proj.weight.grad
    assert gradient is not None
    assert float(gradient.abs().sum()) > 0


def test_normalisation_is_sams_or_none(tiny_sam: Build) -> None:
    sam, medsam = tiny_sam(), tiny_sam(normalisation="medsam")
    mean = torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1) / 255
    image = torch.rand(1, 3, 96, 96)
    std = torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1) / 255
    assert torch.allclose(sam.encode(image), medsam.encode((image - mean) / std), atol=1e-5)
    with pytest.raises(ValueError, match="normalisation 'none' is unknown"):
        tiny_sam(normalisation="none")


def test_refuses_what_it_cannot_take(tiny_sam: Build) -> None:
    sam = tiny_sam()
    image, boxes = image_and_boxes()
    with pytest.raises(ValueError, match=r"shape \(2, 3, 64, 64\); expected \(B, C, 96, 96\)"):
        sam(image[..., :64, :64])
    with pytest.raises(ValueError, match=r"torch.uint8; expected float in \[0, 1\]"):
        sam((image * 255).byte())
    with pytest.raises(ValueError, match="every prompt needs the images' B"):
        sam(image, boxes[:1])
    with pytest.raises(ValueError, match="points and point_labels come together"):
        sam(image, points=torch.rand(2, 3, 1, 2))
    with pytest.raises(ValueError, match="points and point_labels come together"):
        sam(image, point_labels=torch.ones(2, 3, 1))
    with pytest.raises(ValueError, match=r"shape \(3, 96, 96\); expected \(B, C, 96, 96\)"):
        sam(image[0])
    both = r"\(B, P\) = \{'boxes': \(2, 3\), 'masks': \(2, 2\)\}, the embedding holds 2 images"
    with pytest.raises(ValueError, match=both):
        sam(image, boxes, masks=torch.zeros(2, 2, 24, 24))


@pytest.mark.parametrize(
    ("channels", "mean", "std"),
    [
        (1, [114.495], [57.63]),
        (2, [114.495] * 2, [57.63] * 2),
        (3, [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]),
        (5, [123.675, 116.28, 103.53] + [114.495] * 2, [58.395, 57.12, 57.375] + [57.63] * 2),
    ],
)
def test_statistics_of_any_channels(
    tiny_sam: Build, channels: int, mean: list[float], std: list[float]
) -> None:
    sam = tiny_sam(in_channels=channels)
    assert (sam.pixel_mean * 255).flatten().tolist() == pytest.approx(mean, abs=1e-3)
    assert (sam.pixel_std * 255).flatten().tolist() == pytest.approx(std, abs=1e-3)
    assert not {"pixel_mean", "pixel_std"} & sam.state_dict().keys()
    plain = tiny_sam(in_channels=channels, normalisation="medsam")
    assert not plain.pixel_mean.any()
    assert torch.equal(plain.pixel_std, torch.ones(channels, 1, 1))


def test_what_training_leaves_of_the_encoder(tiny_sam: Build) -> None:
    """Blocks before the first that is tuned; their tokens give the embedding, to the bit."""
    image, _ = image_and_boxes()
    for method, options, blocks in (
        ("full", {}, 0),
        ("decoder", {}, None),
        ("lora", {"rank": 2, "where": "decoder"}, None),
        ("lora", {"rank": 2}, 0),
        ("lora", {"rank": 2, "last_blocks": 1}, 2),
        ("adapter", {"bottleneck": 4, "last_blocks": 2}, 1),
    ):
        sam = apply_method(tiny_sam(), method, **options)
        assert sam.frozen_blocks == blocks, method
        if blocks == 0:
            with pytest.raises(ValueError, match="trained from its first block on"):
                sam.encode_frozen(image)
            continue
        frozen = sam.encode_frozen(image)
        assert not frozen.requires_grad
        assert torch.equal(sam.encode_rest(frozen.clone()), sam.encode(image))
