"""Pre-training on synthetic scenes: a simulated user who prompts and corrects, and its loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from ignite.engine import Engine, Events
from ignite.metrics import Average
from monai.inferers import Inferer
from torch import Tensor, nn
from torch.utils.data import Dataset

from medsam_tune.methods.export import export_sam
from medsam_tune.prompts import (
    Prompts,
    boxes_from_masks,
    ellipses_in_boxes,
    jitter_boxes,
    points_in_masks,
)
from medsam_tune.sam.model import PromptableSam
from medsam_tune.sam.prompting import BOTTOM_RIGHT, INSIDE, PADDING, TOP_LEFT
from medsam_tune.synthetic.scenes import draw_scenes
from medsam_tune.training.losses import mask_losses, shares


class Scenes(Dataset[dict[str, Any]]):
    """Batches of new scenes, one for each `(index, seed)` of a `SeededSampler`.

    Args:
        batches: number of batches in an epoch.
        batch_size: B.
        image_size: S, pixels.
        objects: P, number of masks for each image.
        device: device of the model; a GPU needs a loader without workers.
        difficulty: difficulty of the scenes, 0 to 1.
    """

    def __init__(
        self,
        batches: int,
        batch_size: int,
        image_size: int,
        objects: int = 8,
        device: str | torch.device = "cpu",
        difficulty: float = 1.0,
    ) -> None:
        self.difficulty = difficulty
        self.batches = batches
        self.batch_size = batch_size
        self.image_size = image_size
        self.objects = objects
        self.device = device

    def __len__(self) -> int:
        return self.batches

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any]:
        """Scenes of the seed from `draw_scenes`, with `seed`, and with `case` for messages."""
        seed = item[1]
        scenes = draw_scenes(
            seed,
            self.batch_size,
            self.image_size,
            self.objects,
            self.device,
            self.difficulty,
        )
        return {**scenes, "seed": seed, "case": [f"scenes of seed {seed}"]}


def prepare_scenes(
    batch: Mapping[str, Any], device: torch.device, non_blocking: bool = False, **_: Any
) -> tuple[Tensor, tuple[Tensor, Tensor], tuple[Tensor, torch.Generator], dict[str, Any]]:
    """Batch of `Scenes` -> inputs of inferer and loss in MONAI's engines."""
    image, masks, everything = (
        batch[key].to(device, non_blocking=non_blocking) for key in ("image", "masks", "everything")
    )
    generator = torch.Generator(image.device).manual_seed(batch["seed"])
    return image, (masks, everything), (masks, generator), {}


@dataclass(frozen=True)
class Answers:
    """Answers of a model to a simulated user.

    Attributes:
        rounds: logits (B, P, M, h, w) and quality (B, P, M) of each round; M is 4 in the first
            round, whose prompts may be ambiguous, and 1 after a correction.
        unprompted: logits (B, 1, h, w) without a prompt.
    """

    rounds: list[tuple[Tensor, Tensor]]
    unprompted: Tensor


class SimulatedUser(Inferer):
    """Inferer that prompts with each object's box, points, or both, then corrects errors.

    A correction is a point from the wrong pixels, together with the logits of the round before.

    Args:
        corrections: largest number of rounds after the first; the number is random in each batch.
        jitter: largest standard deviation of a box side's shift, as a share of the side.
        boxes: share of the objects with a box; half of the others get one point.

    References:
        Kirillov et al., "Segment Anything", ICCV 2023, appendix A.
    """

    def __init__(self, corrections: int = 1, jitter: float = 0.1, boxes: float = 0.65) -> None:
        self.corrections = corrections
        self.jitter = jitter
        self.boxes = boxes

    def __call__(
        self,
        inputs: Tensor,
        network: Any,
        masks: Tensor,
        generator: torch.Generator,
        *_: Any,
        **__: Any,
    ) -> Answers:
        """Prompt for `masks` (B, P, S, S) bool on `inputs` (B, 3, S, S)."""
        embedding = network.encode(inputs)
        points, labels = self.first(masks, generator)
        asked = Prompts(points=points, point_labels=labels)
        logits, quality, _ = network.decode_masks(embedding, asked, which=slice(0, 4))
        rounds = [(logits, quality)]
        target = shares(masks, logits)
        rounds_more = generator.initial_seed() % (self.corrections + 1)  # no wait for a GPU
        for _round in range(rounds_more):
            before = rounds[-1][0][:, :, 0].detach()
            point, label = _correction(before, target, masks.shape[-1], generator)
            points, labels = torch.cat([points, point], 2), torch.cat([labels, label], 2)
            asked = Prompts(points=points, point_labels=labels, masks=before)
            rounds.append(network.decode_masks(embedding, asked, which=slice(0, 1))[:2])
        return Answers(rounds, network.decode(embedding).logits)

    def first(self, masks: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """First prompt of each object: points (B, P, 5, 2) and their labels (B, P, 5)."""
        objects = masks.shape[:2]
        spread = torch.rand(*objects, 1, generator=generator, device=masks.device) * self.jitter
        size = (masks.shape[-2], masks.shape[-1])
        boxes = jitter_boxes(boxes_from_masks(masks), size, spread, generator)
        points = torch.cat(
            [boxes.unflatten(-1, (2, 2)), points_in_masks(masks, 3, generator=generator)], 2
        )
        kinds = [TOP_LEFT, BOTTOM_RIGHT, INSIDE, INSIDE, INSIDE]
        labels = torch.tensor(kinds, device=masks.device).expand(*objects, -1)
        draw = torch.rand(*objects, 1, generator=generator, device=masks.device)
        by_box = draw < self.boxes
        both = draw < 0.15 * self.boxes
        few = (draw > self.boxes) & (draw < (1 + self.boxes) / 2)  # one point
        slot = torch.arange(5, device=masks.device)
        asked = torch.where(by_box, (slot < 2) | (both & (slot == 2)), slot >= 2)
        asked = asked & ~(few & (slot > 2))
        return points, labels.where(asked, PADDING)


def _correction(
    logits: Tensor, target: Tensor, size: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A point where a mask is wrong: (B, P, 1, 2) XY in the model frame, and its label (B, P, 1).

    A mask without a wrong pixel gets no point.
    """
    truth = target > 0.5
    wrong = (logits > 0) != truth
    right = ~wrong.flatten(2).any(2)
    place = points_in_masks(wrong | right[..., None, None], generator=generator)  # (B, P, 1, 2)
    x, y = place.long().unbind(-1)
    label = truth.flatten(2).gather(2, y * truth.shape[-1] + x).long()
    return place * (size / logits.shape[-1]), label.where(~right[..., None], PADDING)


class InteractiveLoss(nn.Module):
    """Loss of all rounds: the single mask, the best of the others, and the estimated quality.

    Only the best of the three masks for ambiguous prompts is trained, so that each learns another
    meaning. The quality learns each mask's IoU.

    Args:
        ambiguous: weight of the best of the three masks.
        quality: weight of the squared error of the estimated IoU.
        unprompted: weight of the mask without a prompt, whose target is the whole foreground.

    References:
        Kirillov et al., "Segment Anything", ICCV 2023, section 3 and appendix A.
    """

    def __init__(
        self, ambiguous: float = 0.5, quality: float = 1.0, unprompted: float = 0.1
    ) -> None:
        super().__init__()
        self.ambiguous = ambiguous
        self.quality = quality
        self.unprompted = unprompted

    def forward(self, answers: Answers, truth: tuple[Tensor, Tensor]) -> Tensor:
        """Answers, and (masks (B, P, S, S) bool, everything (B, 1, S, S) bool) -> scalar."""
        masks, everything = truth
        target = shares(masks, answers.unprompted)[:, :, None]  # (B, P, 1, h, w)
        loss = (
            self.unprompted
            * mask_losses(answers.unprompted, shares(everything, answers.unprompted)).mean()
        )
        for logits, quality in answers.rounds:
            each = mask_losses(logits, target)  # (B, P, M)
            loss = loss + each[:, :, 0].mean()
            if each.shape[2] > 1:
                loss = loss + self.ambiguous * each[:, :, 1:].amin(2).mean()
            found = _iou(logits.detach() > 0, target > 0.5)
            loss = loss + self.quality * F.mse_loss(quality.float(), found)
        return loss / len(answers.rounds)


def _iou(masks: Tensor, truth: Tensor) -> Tensor:
    """IoU (...) float of two (..., h, w) bool; 1 where both are empty."""
    both = (masks & truth).sum((-1, -2))
    either = (masks | truth).sum((-1, -2))
    return torch.where(either > 0, both / either.clamp(min=1), 1.0)


class Examiner(Inferer):
    """Inferer that prompts for each object twice: by a box with 5 % jitter, and by one point.

    The jitter and the points depend on the scenes only, so epochs can be compared.
    """

    def __call__(self, inputs: Tensor, network: Any, masks: Tensor, *_: Any, **__: Any) -> Tensor:
        """(B, 3 P, S, S) bool: masks from boxes, masks from points, ellipses in the boxes.

        A point is ambiguous, so the mask of highest quality among its three is taken.
        """
        generator = torch.Generator(masks.device).manual_seed(0)
        boxes = boxes_from_masks(masks, jitter=0.05, generator=generator)
        points = points_in_masks(masks, generator=generator)
        embedding = network.encode(inputs)
        by_box = network.decode(embedding, Prompts(boxes=boxes)).logits
        labels = torch.ones_like(points[..., 0]).long()
        asked = Prompts(points=points, point_labels=labels)
        three, quality, _ = network.decode_masks(embedding, asked)
        best = quality.argmax(2)[..., None, None, None].expand(-1, -1, 1, *three.shape[-2:])
        logits = torch.cat([by_box, three.gather(2, best)[:, :, 0]], 1)
        logits = F.interpolate(logits.float(), masks.shape[-2:], mode="bilinear")
        return (
            torch.cat([logits, ellipses_in_boxes(boxes, (masks.shape[-2], masks.shape[-1]))], 1) > 0
        )


class ExamResults:
    """Handler of a validator: mean Dice by box, by point, and of the box-only baseline."""

    def attach(self, engine: Engine) -> None:
        """Attach to an engine; MONAI calls it."""
        for number, name in enumerate(("dice_box", "dice_point", "dice_ellipse")):
            Average(output_transform=partial(_dice_of, number)).attach(engine, name)
        engine.add_event_handler(Events.COMPLETED, self._log)

    @staticmethod
    def _log(engine: Engine) -> None:
        metrics = engine.state.metrics
        engine.logger.info(", ".join(f"{name} {value:.4f}" for name, value in metrics.items()))


def _dice_of(number: int, output: Mapping[str, Any]) -> float:
    """Mean Dice of the first, second or third P masks of an `Examiner`."""
    truth = output["label"][0]
    masks = output["pred"].unflatten(1, (3, -1))[:, number]
    both, sizes = (masks & truth).sum((-1, -2)), masks.sum((-1, -2)) + truth.sum((-1, -2))
    return float((2 * both / sizes).mean())


class MuonAdamW(torch.optim.Optimizer):
    """Muon for the matrices of the transformers, AdamW for all else, as one optimizer.

    Both take the same learning rate; Muon's steps are scaled to the size of AdamW's.

    Args:
        model: model to train.
        lr: learning rate.
        weight_decay: decoupled weight decay.

    References:
        Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024; Liu et al.,
        "Muon is scalable for LLM training", 2025 (the scale).
    """

    def __init__(self, model: PromptableSam, lr: float, weight_decay: float = 0.05) -> None:
        matrices = [
            layer.weight
            for name in ("image_encoder", "mask_decoder.transformer")
            for layer in model.get_submodule(name).modules()
            if isinstance(layer, nn.Linear)
        ]
        known = {id(matrix) for matrix in matrices}
        others = [p for p in model.parameters() if p.requires_grad and id(p) not in known]
        self.parts = (
            torch.optim.Muon(
                matrices, lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
            ),
            torch.optim.AdamW(others, lr, betas=(0.9, 0.98), weight_decay=weight_decay),
        )
        super().__init__([group for part in self.parts for group in part.param_groups], {})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Do one step of both; a closure is not supported."""
        for part in self.parts:
            part.step()  # type: ignore[no-untyped-call]

    def state_dict(self) -> dict[str, Any]:
        """Return the states of both."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the states of both."""
        for part, of_part in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(of_part)
        self.param_groups = [group for part in self.parts for group in part.param_groups]


class KeepWeights:
    """Handler of a trainer: writes a plain SAM checkpoint in float16 after each epoch.

    Args:
        model: model to save.
        path: .safetensors file, replaced whole.
    """

    def __init__(self, model: PromptableSam, path: str | Path) -> None:
        self.model = model
        self.path = Path(path)

    def attach(self, engine: Engine) -> None:
        """Attach to an engine; MONAI calls it."""
        engine.add_event_handler(
            Events.EPOCH_COMPLETED, lambda _: export_sam(self.model, self.path, half=True)
        )
