"""A few lines of Python fine-tune a model on anybody's batches."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.losses import DiceLoss

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


def one_disc(prompts: dict[str, Any]) -> dict[str, Any]:
    """A batch of two images with the first of their discs."""
    (batch,) = discs(1)
    return {**batch, "masks": batch["masks"][:, :1], "prompts": prompts}


def test_one_object_an_image_as_sam_itself_takes_prompts() -> None:
    """Boxes (B, 4), and points as a pair, also as a list, which a DataLoader makes of it."""
    (batch,) = discs(1)
    boxes = batch["prompts"]["boxes"][:, 0]
    points, labels = boxes.view(2, 2, 2).mean(1, keepdim=True), torch.ones(2, 1, dtype=torch.int64)
    usual = {"points": points[:, None], "point_labels": labels[:, None]}
    for given, same in (
        ({"boxes": boxes, "points": None}, {"boxes": boxes[:, None]}),
        ({"points": (points, labels), "boxes": None}, usual),
        ({"points": [points, labels]}, usual),
        ({"points": points, "point_labels": labels}, usual),
        ({"points": (points, labels), "boxes": boxes}, {**usual, "boxes": boxes[:, None]}),
    ):
        losses = [
            finetune(build_sam("nano", image_size=64), [one_disc(prompts)], epochs=2, lr=1e-3)
            for prompts in (given, same)
        ]
        assert losses[0] == losses[1]
        assert losses[0][1] < losses[0][0]


@pytest.mark.parametrize(
    ("prompts", "error"),
    [
        ({"box": torch.zeros(2, 4)}, "prompts have 'box'; expected some of boxes, points, point_l"),
        ({"boxes": [[0, 0, 9, 9]] * 2}, "boxes are a list; expected a tensor"),
        ({"boxes": torch.zeros(4)}, r"boxes have shape \(4,\); expected \(B, P, 4\)"),
        ({"boxes": torch.zeros(2, 2, 2)}, r"boxes have shape \(2, 2, 2\); expected \(B, P, 4\)"),
        ({"boxes": torch.zeros(3, 4)}, r"prompts \{'boxes': \(3, 1, 4\)\}; expected masks"),
        ({"points": (torch.zeros(2, 1, 2),)}, "points are 1 tensors, with points; expected a pair"),
        (
            {"points": (torch.zeros(2, 1, 2), torch.ones(2, 1)), "point_labels": torch.ones(2, 1)},
            "points are 2 tensors, with points, point_labels; expected a pair",
        ),
        (
            {"points": (torch.zeros(2, 1, 3), torch.ones(2, 1))},
            r"points have shape \(2, 1, 3\); expec",
        ),
        ({"points": (torch.zeros(2, 3, 2), torch.ones(2, 1))}, "expected a label for each point"),
        ({"points": torch.zeros(2, 1, 2)}, "points and point_labels come together"),
        ({"boxes": torch.tensor([[9.0, 0, 2, 9]] * 2)}, "a box ends before it starts"),
        ({"boxes": torch.full((2, 4), float("nan"))}, "boxes hold NaN or infinity"),
        (
            {"points": (torch.zeros(2, 1, 2), torch.full((2, 1), 2))},
            "a point label is none of 1",
        ),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else "",
)
def test_odd_prompts_are_refused(prompts: dict[str, Any], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        finetune(build_sam("nano", image_size=64), [one_disc(prompts)], epochs=1)


def test_the_pages_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Path(__file__).parents[2] / "docs" / "training.md"
    (example,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(example, names)
    assert names["losses"][-1] < names["losses"][0]
    assert (tmp_path / "tuned.safetensors").is_file()


def test_a_method_stays_and_another_can_be_chosen() -> None:
    model = apply_method(build_sam("nano", image_size=64), "lora", rank=2)
    before = model.image_encoder.blocks[0].attn.q_proj.base_layer.weight.clone()
    finetune(model, discs(1), epochs=1)
    assert torch.equal(model.image_encoder.blocks[0].attn.q_proj.base_layer.weight, before)
    model = build_sam("nano", image_size=64)
    finetune(model, discs(1), epochs=1, method="prompt")
    assert model.learned.gates.any()


def test_another_method_than_the_models_is_refused() -> None:
    model = build_sam("nano", image_size=64)
    finetune(model, discs(1), epochs=1)
    finetune(model, discs(1), epochs=1, method="decoder")
    with pytest.raises(ValueError, match="method is 'lora', and the model is tuned by 'decoder'"):
        finetune(model, discs(1), epochs=1, method="lora")


def test_an_interrupted_model_predicts_as_a_trained_one() -> None:
    """Its dropout is off."""

    def interrupted() -> Iterator[dict[str, Any]]:
        yield from discs(1)
        raise KeyboardInterrupt

    model = apply_method(build_sam("nano", image_size=64), "lora", lora_dropout=0.5)
    with pytest.raises(KeyboardInterrupt):
        finetune(model, interrupted(), epochs=1, lr=1e-2)
    (batch,) = discs(1)
    with torch.no_grad():
        one, two = (model(batch["images"], **batch["prompts"]) for _ in range(2))
    assert torch.equal(one, two)
    assert not model.training


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda boxes: boxes / 64, r"boxes are from 0\.\d+ to 0\.\d+; expected pixels, not shares"),
        (lambda boxes: boxes * 4, r"boxes are from .*, outside of the images of 64 x 64; expected"),
        (lambda boxes: boxes - 40, "boxes are from -.*, outside of the images of 64 x 64"),
    ],
    ids=["shares", "large", "negative"],
)
def test_boxes_that_are_no_pixels_of_the_image_are_refused(
    change: Callable[[torch.Tensor], torch.Tensor], error: str
) -> None:
    (batch,) = discs(1)
    prompts = {"boxes": change(batch["prompts"]["boxes"])}
    with pytest.raises(ValueError, match=error):
        finetune(build_sam("nano", image_size=64), [{**batch, "prompts": prompts}], epochs=1)


def test_points_that_are_no_pixels_of_the_image_are_refused() -> None:
    points, labels = torch.full((2, 2, 2), 30.0), torch.ones(2, 2, dtype=torch.int64)
    for value, error in (
        (900.0, "points are from 30 to 900, outside of the images of 64 x 64"),
        (-5.0, "points are from -5 to 30, outside of"),
    ):
        points[0, 1, 0] = value
        with pytest.raises(ValueError, match=error):
            finetune(
                build_sam("nano", image_size=64), [one_disc({"points": (points, labels)})], epochs=1
            )
    labels[0, 1] = -1  # padding may be anywhere
    finetune(build_sam("nano", image_size=64), [one_disc({"points": (points, labels)})], epochs=1)
    shares = (torch.full((2, 2, 2), 0.3), labels)
    with pytest.raises(ValueError, match=r"points are from 0\.3 to 0\.3; expected pixels"):
        finetune(build_sam("nano", image_size=64), [one_disc({"points": shares})], epochs=1)


def test_places_at_the_images_border_are_in_it() -> None:
    (batch,) = discs(1)
    boxes = torch.tensor([0.0, -0.5, 64, 64.5]).expand(2, 2, 4)
    finetune(build_sam("nano", image_size=64), [{**batch, "prompts": {"boxes": boxes}}], epochs=1)


@pytest.mark.parametrize("grid", [(10, 10), (16, 32), (8, 8), (128, 128)])
def test_masks_of_another_grid_are_refused(grid: tuple[int, int]) -> None:
    (batch,) = discs(1)
    masks = torch.ones(2, 2, *grid)
    error = rf"masks are {grid[0]} x {grid[1]}; expected square ones of 64 \(the images'\), 32 \(t"
    with pytest.raises(ValueError, match=error):
        finetune(build_sam("nano", image_size=64), [{**batch, "masks": masks}], epochs=1)
    for side in (64, 32, 16):
        whole = torch.ones(2, 2, side, side)
        finetune(build_sam("nano", image_size=64), [{**batch, "masks": whole}], epochs=1)


def test_a_loss_on_probabilities_is_refused() -> None:
    model = build_sam("nano", image_size=64)
    with pytest.raises(ValueError, match="DiceLoss has no sigmoid, and takes the logits"):
        finetune(model, discs(1), epochs=1, loss=DiceLoss())
    assert model.tuning is None


def test_other_batches_and_places_of_a_call() -> None:
    model = build_sam("nano", image_size=64)
    (batch,) = discs(1)
    for other, error in (
        (tuple(batch.values()), "a batch is a tuple; expected a dict with images, masks and prom"),
        ({**batch, "prompts": batch["prompts"]["boxes"]}, "prompts are a Tensor; expected a dict"),
        ({**batch, "images": batch["images"].numpy()}, "images are a ndarray; expected a tensor"),
    ):
        with pytest.raises(ValueError, match=error):
            finetune(model, [other], epochs=1)
    with torch.no_grad(), pytest.raises(ValueError, match="gradients are off here; call finetune"):
        finetune(model, [batch], epochs=1)
    doubles = {**batch, "images": batch["images"].double()}
    losses = [
        finetune(build_sam("nano", image_size=64), [one], epochs=1) for one in (batch, doubles)
    ]
    assert losses[0] == losses[1]


def test_odd_batches_are_refused() -> None:
    model = build_sam("nano", image_size=64)
    with pytest.raises(ValueError, match="loader gives no batch in epoch 1"):
        finetune(model, [], epochs=1)
    (batch,) = discs(1)
    with pytest.raises(ValueError, match=r"masks have shape \(2, 1, 16, 16\).* same B and P"):
        finetune(model, [{**batch, "masks": batch["masks"][:, :1]}], epochs=1)
    with pytest.raises(ValueError, match="expected images, masks and prompts: prompts is missing"):
        finetune(model, [{key: batch[key] for key in ("images", "masks")}], epochs=1)
    with pytest.raises(ValueError, match=r"prompts \{\}; expected masks \(B, P, h, w\)"):
        finetune(model, [{**batch, "prompts": {}}], epochs=1)  # of one object only
    large = {**batch, "images": 255 * batch["images"]}
    with pytest.raises(
        ValueError, match=r"images are from 2.* to 2.*; expected \[0, 1\], without me"
    ):
        finetune(model, [large], epochs=1)
    bytes_ = (255 * batch["masks"]).to(torch.uint8)
    with pytest.raises(ValueError, match="masks are from 0 to 255; expected 0 and 1"):
        finetune(model, [{**batch, "masks": bytes_}], epochs=1)
    finetune(model, [{**batch, "masks": batch["masks"] > 0}], epochs=1)
    batch["images"][0] = float("nan")
    with pytest.raises(ValueError, match=r"images are from nan to nan; expected \[0, 1\]"):
        finetune(model, [batch], epochs=1)


def test_a_loss_that_is_no_number_ends_it() -> None:
    model = build_sam("nano", image_size=64)
    for weights in model.mask_decoder.parameters():
        weights.data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="loss is nan in epoch 1; lower the learning rate"):
        finetune(model, discs(1), epochs=1)
