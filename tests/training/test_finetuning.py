"""A few lines of Python fine-tune a model on anybody's batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import medsam_tune
from medsam_tune.methods import apply_method
from medsam_tune.sam.build import build_sam
from medsam_tune.training.finetuning import finetune


def discs(count: int, side: int = 64) -> list[dict[str, Any]]:
    """Batches of two images with two discs each, masks at the logits' resolution, and boxes."""
    generator = torch.Generator().manual_seed(0)
    grid = torch.arange(side) + 0.5
    batches = []
    for _ in range(count):
        centre = 16 + torch.rand(2, 2, 2, generator=generator) * (side - 32)
        radius = 6 + torch.rand(2, 2, 1, generator=generator) * 8
        x, y = (centre[..., i, None, None] for i in (0, 1))
        inside = (grid - x) ** 2 + (grid[:, None] - y) ** 2 < radius[..., None] ** 2
        image = 0.2 + 0.6 * inside.any(1, keepdim=True).float()
        image = image + 0.05 * torch.randn(2, 3, side, side, generator=generator)
        boxes = torch.cat([centre - radius, centre + radius], -1)
        masks = inside[..., 2::4, 2::4].float()
        batches.append({"images": image.clamp(0, 1), "masks": masks, "prompts": {"boxes": boxes}})
    return batches


@pytest.mark.parametrize("loss", [None, torch.nn.BCEWithLogitsLoss()], ids=["usual", "bce"])
def test_loss_falls_on_discs(loss: torch.nn.Module | None) -> None:
    model = build_sam("nano", image_size=64)
    losses = medsam_tune.finetune(model, discs(3), epochs=4, lr=1e-3, loss=loss)
    assert len(losses) == 4
    assert losses[-1] < 0.8 * losses[0]
    assert model.tuning.method == "decoder"
    assert not model.training


def test_a_method_stays_and_another_can_be_chosen() -> None:
    model = apply_method(build_sam("nano", image_size=64), "lora", rank=2)
    before = model.image_encoder.blocks[0].attn.q_proj.base_layer.weight.clone()
    finetune(model, discs(1), epochs=1)
    assert torch.equal(model.image_encoder.blocks[0].attn.q_proj.base_layer.weight, before)
    model = build_sam("nano", image_size=64)
    finetune(model, discs(1), epochs=1, method="prompt")
    assert model.learned.gates.any()


def test_odd_batches_are_refused() -> None:
    model = build_sam("nano", image_size=64)
    with pytest.raises(ValueError, match="loader gives no batch in epoch 1"):
        finetune(model, [], epochs=1)
    (batch,) = discs(1)
    with pytest.raises(ValueError, match=r"masks have shape \(2, 1, 16, 16\).* same B and P"):
        finetune(model, [{**batch, "masks": batch["masks"][:, :1]}], epochs=1)
    with pytest.raises(ValueError, match="expected images, masks and prompts: prompts is missing"):
        finetune(model, [{key: batch[key] for key in ("images", "masks")}], epochs=1)
    batch["images"][0] = float("nan")
    with pytest.raises(FloatingPointError, match="loss is nan in epoch 1; lower the learning rate"):
        finetune(model, [batch], epochs=1)
