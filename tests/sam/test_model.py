"""`PromptableSam` equals a loop over the stock decoder, and says what it does not take."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

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
            points = (one["points"], one["point_labels"]) if "points" in one else None
            mask = one["masks"][None] if "masks" in one else None
            sparse, dense = sam.prompt_encoder(points, one.get("boxes"), mask)
            low, _ = sam.mask_decoder(
                embeddings[b][None], sam.prompt_encoder.get_dense_pe(), sparse, dense, False
            )
            masks.append(low[0, 0])
        rows.append(torch.stack(masks))
    return torch.stack(rows)


@pytest.mark.parametrize("kind", ["boxes", "points", "both", "masks", "nothing"])
def test_batch_equals_loop_over_stock_decoder(tiny_sam: Build, kind: str) -> None:
    sam = tiny_sam()
    image, boxes = image_and_boxes()
    prompts: dict[str, torch.Tensor] = {}
    if kind in ("boxes", "both"):
        prompts["boxes"] = boxes
    if kind in ("points", "both"):
        prompts["points"] = torch.rand(2, 3, 4, 2) * 96
        prompts["point_labels"] = torch.tensor([1, 0, -1, 1]).expand(2, 3, 4)
    if kind == "masks":
        prompts["masks"] = torch.randn(2, 3, 24, 24)  # (B, P, S/4, S/4)
    with torch.no_grad():
        found = sam(image, **prompts)
        expected = stock_loop(sam, image, **prompts)
    assert found.shape == (2, 1 if kind == "nothing" else 3, 24, 24)
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5


def test_quality_and_halves(tiny_sam: Build) -> None:
    sam = tiny_sam()
    image, boxes = image_and_boxes()
    logits, quality = sam(image, boxes, return_quality=True)
    again, _ = sam.decode(sam.encode(image), boxes)
    assert torch.equal(logits, again)
    assert quality.shape == (2, 3)


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
