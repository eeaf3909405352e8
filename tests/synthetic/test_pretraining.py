"""The simulated user and its loss."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from monai.losses import DiceCELoss
from safetensors.torch import load_file

from medsam_tune.methods import apply_method
from medsam_tune.methods.export import export_sam
from medsam_tune.sam.build import build_sam
from medsam_tune.sam.model import PromptableSam
from medsam_tune.sam.prompting import PADDING
from medsam_tune.synthetic.pretraining import (
    Answers,
    Examiner,
    InteractiveLoss,
    MuonAdamW,
    Scenes,
    SimulatedUser,
    _correction,
    _dice_of,
    prepare_scenes,
)
from medsam_tune.training.losses import mask_losses, shares

Build = Callable[..., PromptableSam]


def squares(size: int = 96) -> torch.Tensor:
    """(2, 3, S, S) bool: squares of several sizes."""
    masks = torch.zeros(2, 3, size, size, dtype=torch.bool)
    for b in range(2):
        for p in range(3):
            masks[b, p, 10 + 5 * b : 40 + 8 * p, 20 : 50 + 6 * p] = True
    return masks


def test_first_prompts_are_boxes_points_or_both() -> None:
    masks = squares().repeat(100, 1, 1, 1)
    generator = torch.Generator().manual_seed(0)
    points, labels = SimulatedUser(jitter=0.0, boxes=0.6).first(masks, generator)
    assert points.shape == (200, 3, 5, 2)
    box, inside = (labels[..., 0] == 2) & (labels[..., 1] == 3), (labels[..., 2:] == 1).sum(-1)
    assert float(box.float().mean()) == pytest.approx(0.6, abs=0.05)
    assert float((box & (inside == 1)).float().mean()) == pytest.approx(0.09, abs=0.03)
    assert not (box & (inside > 1)).any()
    for count in (1, 3):
        share = float((~box & (inside == count)).float().mean())
        assert share == pytest.approx(0.2, abs=0.04)
    assert (box | (inside > 0)).all()
    assert set(labels.unique().tolist()) == {PADDING, 1, 2, 3}
    corners = points[:, :, :2]
    assert torch.equal(corners[0, 0], torch.tensor([[20.0, 10.0], [50.0, 40.0]]))
    b, p = torch.arange(200)[:, None, None], torch.arange(3)[None, :, None]
    x, y = points[:, :, 2:].long().unbind(-1)
    assert masks[b, p, y, x].all()


def test_corrections_are_where_the_mask_is_wrong() -> None:
    target = torch.zeros(1, 3, 8, 8)
    target[:, :, 2:6, 2:6] = 1
    logits = torch.full((1, 3, 8, 8), -1.0)
    logits[0, 0] = (target[0, 0] > 0.5) * 2.0 - 1  # right
    logits[0, 1, 2:6, 2:4] = 1  # the right half is missing
    logits[0, 2, :] = 1  # too much
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        points, labels = _correction(logits, target, 32, generator)
        assert labels[0, :, 0].tolist() == [PADDING, 1, 0]
        x, y = points[0, 1, 0].tolist()
        assert 16 <= x <= 24
        assert 8 <= y <= 24
        x, y = (points[0, 2, 0] / 4).long().tolist()
        assert not 2 <= x < 6 or not 2 <= y < 6


def test_rounds(tiny_sam: Build) -> None:
    sam = tiny_sam()
    image, masks = torch.rand(2, 3, 96, 96), squares()
    seen = set()
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        answers = SimulatedUser(corrections=2)(image, sam, masks, generator)
        shapes = [tuple(logits.shape) for logits, _ in answers.rounds]
        assert shapes[0] == (2, 3, 4, 24, 24)
        assert all(shape == (2, 3, 1, 24, 24) for shape in shapes[1:])
        assert answers.unprompted.shape == (2, 1, 24, 24)
        seen.add(len(shapes))
    assert seen == {1, 2, 3}


def test_the_loss_trains_the_best_of_three_and_every_quality() -> None:
    masks = squares()
    everything = masks.any(1, keepdim=True)
    target = shares(masks, torch.zeros(2, 3, 24, 24))
    logits = torch.zeros(2, 3, 4, 24, 24)
    logits[:, :, 2] = target * 8 - 4
    logits.requires_grad_()
    quality = torch.zeros(2, 3, 4, requires_grad=True)
    unprompted = torch.zeros(2, 1, 24, 24, requires_grad=True)
    loss = InteractiveLoss()(Answers([(logits, quality)], unprompted), (masks, everything))
    loss.backward()
    assert logits.grad is not None
    moved = logits.grad.abs().sum((0, 1, 3, 4)) > 0
    assert moved.tolist() == [True, False, True, False]
    assert quality.grad is not None
    assert quality.grad[..., 2].max() < 0  # too low for a good mask
    assert unprompted.grad is not None
    assert unprompted.grad.abs().sum() > 0
    right = InteractiveLoss(quality=0, unprompted=0)(
        Answers([((target * 40 - 20)[:, :, None].expand(-1, -1, 4, -1, -1), quality)], unprompted),
        (masks, everything),
    )
    assert float(right.detach()) < 0.2  # pixels that are partly inside cost a little


def test_mask_losses_are_means_of_monai_s() -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(5, 1, 9, 9), torch.rand(5, 1, 9, 9)
    each = mask_losses(logits[:, 0], target[:, 0])
    assert each.shape == (5,)
    assert torch.allclose(each.mean(), DiceCELoss(sigmoid=True)(logits, target), atol=1e-6)


def test_a_model_learns_to_answer(tiny_sam: Build) -> None:
    torch.manual_seed(0)
    sam = apply_method(tiny_sam(), "full", prompt_encoder=True, multimask=True).train()
    optimizer = torch.optim.AdamW(sam.parameters(), lr=4e-3)
    batch = Scenes(1, 4, 96, 4, difficulty=0.0)[(0, 3)]
    image, truth, args, _ = prepare_scenes(batch, torch.device("cpu"))
    user, loss = SimulatedUser(), InteractiveLoss()
    losses = []
    for _ in range(60):
        value = loss(user(image, sam, *args), truth)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(float(value.detach()))
    assert sum(losses[-5:]) < 0.85 * sum(losses[:5])
    untouched = [n for n, p in sam.named_parameters() if p.grad is None]
    assert not [n for n in untouched if "mask_downscaling" not in n]


def test_the_examiner_asks_the_same_every_time(tiny_sam: Build) -> None:
    sam = tiny_sam().eval()
    batch = Scenes(1, 2, 96, 3)[(0, 1)]
    with torch.no_grad():
        first = Examiner()(batch["image"], sam, batch["masks"])
        torch.rand(3)
        assert torch.equal(Examiner()(batch["image"], sam, batch["masks"]), first)
    assert first.shape == (2, 9, 96, 96)
    output = {"pred": batch["masks"].repeat(1, 3, 1, 1), "label": (batch["masks"], None)}
    assert _dice_of(1, output) == 1
    output["pred"] = first
    assert 0.4 < _dice_of(2, output) < 0.95  # the ellipses


def test_half_precision_weights_are_half_the_size(tiny_sam: Build, tmp_path: Path) -> None:
    sam = tiny_sam()
    for half in (True, False):
        path = export_sam(sam, tmp_path / f"{half}.safetensors", half=half)
        kinds = {v.dtype for v in load_file(path).values()}
        assert kinds == {torch.float16 if half else torch.float32}
    sizes = [(tmp_path / f"{half}.safetensors").stat().st_size for half in (True, False)]
    assert sizes[0] < 0.7 * sizes[1]
    again = build_sam("tiny", checkpoint=tmp_path / "True.safetensors")
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    image = torch.rand(1, 3, 96, 96)
    box = torch.tensor([[[10.0, 10, 60, 60]]])
    with torch.no_grad():
        assert torch.allclose(again(image, box), sam(image, box), atol=0.05)


def test_the_optimizer_moves_everything_once_and_comes_back(tiny_sam: Build) -> None:
    """Muon has the transformers' matrices, AdamW the rest; a scheduler reaches both."""

    def made() -> tuple[PromptableSam, MuonAdamW, torch.optim.lr_scheduler.LRScheduler]:
        model = apply_method(tiny_sam(), "full", prompt_encoder=True)
        optimizer = MuonAdamW(model, lr=1e-3)
        return model, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)

    def steps(count: int) -> None:
        for seed in range(count):
            generator = torch.Generator().manual_seed(seed)
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()
            scheduler.step()

    model, optimizer, scheduler = made()
    trained = [p for p in model.parameters() if p.requires_grad]
    held = [p for part in optimizer.parts for group in part.param_groups for p in group["params"]]
    assert sorted(map(id, held)) == sorted(map(id, trained))
    assert {p.ndim for p in optimizer.parts[0].param_groups[0]["params"]} == {2}
    before = [p.detach().clone() for p in trained]
    steps(2)
    assert all(not torch.equal(p, old) for p, old in zip(trained, before, strict=True))
    assert [group["lr"] for part in optimizer.parts for group in part.param_groups] == [2.5e-4] * 2
    weights, state = model.state_dict(), (optimizer.state_dict(), scheduler.state_dict())
    weights, state = copy.deepcopy((weights, state))
    steps(2)
    expected = [p.detach().clone() for p in trained]

    model, optimizer, scheduler = made()
    model.load_state_dict(weights)
    optimizer.load_state_dict(state[0])
    scheduler.load_state_dict(state[1])
    trained = [p for p in model.parameters() if p.requires_grad]
    steps(2)
    assert all(torch.equal(p, old) for p, old in zip(trained, expected, strict=True))
