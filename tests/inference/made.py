"""Networks, volumes and prompts that stand for real ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from medsam_tune.formats.mending import Mending
from medsam_tune.methods import apply_method
from medsam_tune.methods.tuned import save_tuned
from medsam_tune.prompts import Prompts, SlicePrompts
from medsam_tune.runs import RunRecord, write_record, write_state
from medsam_tune.sam.build import build_sam
from medsam_tune.sam.model import Masks, PromptableSam
from medsam_tune.slices.frames import ScanGrid
from medsam_tune.slices.rules import ScanRules
from tests.scans import write_nifti

Build = Callable[..., PromptableSam]
LABELS = {1: "liver", 2: "spleen"}


RAS = np.diag([2.0, 3.0, 4.0, 1.0])
SAGITTAL = np.array([[0, 0, 4.0, 5], [-2, 0, 0, 60], [0, -3, 0, 90], [0, 0, 0, 1]])  # P, I, R


class BoxFiller:
    """A network without classes whose masks are its boxes; the smaller, the higher the logit."""

    image_size = 128
    classes = 0

    def __init__(self) -> None:
        self.pixel_mean = torch.zeros(3, 1, 1)
        self.base = SimpleNamespace(in_channels=3)
        self.encoded: list[int] = []  # the slices' grey value, call by call
        self.calls = 0

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        assert image.shape[1:] == (3, 128, 128)
        values = (image[:, 0, 0, 0] * 255).round()
        self.encoded += values.int().tolist()
        self.calls += 1
        return values

    def decode(self, embedding: torch.Tensor, prompts: Prompts) -> Masks:
        boxes = corners_of(prompts)
        assert boxes.shape == (len(embedding), 1, 4)
        x0, y0, x1, y1 = (boxes / 4).unsqueeze(-1).unsqueeze(-1).unbind(2)  # (N, 1, 1, 1)
        n = torch.arange(32) + 0.5
        inside = (n >= x0) & (n < x1) & (n[:, None] >= y0) & (n[:, None] < y1)
        height = 100 / ((x1 - x0) * (y1 - y0)).sqrt()
        return Masks(torch.where(inside, height, -height), torch.ones(len(boxes), 1))


def corners_of(prompts: Prompts) -> torch.Tensor:
    """(B, P, 4) XYXY boxes of prompts that are corners."""
    assert prompts.points is not None
    assert prompts.point_labels is not None
    assert prompts.point_labels[..., :2].flatten(0, 1).tolist() == [[2, 3]] * len(prompts.points)
    return prompts.points[:, :, :2].flatten(2)


def volume(slices: int = 6) -> torch.Tensor:
    """(Z, 1, 24, 32) uint8, slice z is grey of value z + 1; 4 model pixels are one pixel."""
    grey = torch.arange(1, slices + 1, dtype=torch.uint8).view(-1, 1, 1, 1).repeat(1, 1, 24, 32)
    grey[..., -1, -1] = 0  # slices of one value would not be looked at
    return grey


def prompts_of(*rows: tuple[int, int, list[float]]) -> SlicePrompts:
    """From (slice, label, box)."""
    slices, labels, boxes = zip(*rows, strict=True)
    return SlicePrompts.of_boxes(
        torch.tensor(slices), torch.tensor(boxes).float(), torch.tensor(labels)
    )


THREE = prompts_of((1, 1, [2, 3, 12, 9]), (1, 2, [20, 10, 30, 24]), (4, 2, [0, 0, 8, 5]))


def drawn(prompts: SlicePrompts, shape: tuple[int, ...] = (6, 24, 32)) -> torch.Tensor:
    labels = torch.zeros(shape, dtype=torch.int16)
    for z, box, label in zip(prompts.slices, prompts.boxes, prompts.labels, strict=True):
        x0, y0, x1, y1 = box.int().tolist()
        labels[z, y0:y1, x0:x1] = label
    return labels


GRIDS = [
    pytest.param(RAS, (10, 12, 6), id="RAS"),
    pytest.param(SAGITTAL, (12, 6, 10), id="PIR"),
]


# file, box in its voxels, the axis and range of slices that the box takes
SCANS = [
    pytest.param(RAS, (10, 12, 6), [2, 3, 1, 8, 9, 4], (2, 1, 4), id="RAS"),
    pytest.param(SAGITTAL, (12, 6, 10), [3, 2, 2, 9, 5, 8], (1, 2, 5), id="PIR"),
]


LPS_GRID = ScanGrid(np.diag([-2.0, -3.0, 4.0, 1.0]), (10, 12, 6))


def objects(*items: object, **content: object) -> dict[str, Any]:
    return {"objects": list(items), **content}


GOOD = [1, 2, 3, 5, 8, 5]


def scan(folder: Path, affine: np.ndarray, shape: tuple[int, ...]) -> Path:
    array = np.random.default_rng(0).uniform(0, 200, shape).astype(np.float32)
    return write_nifti(folder / "scan.nii.gz", array, affine)


def write_run(
    folder: Path,
    rules: ScanRules,
    mending: Mending | None = None,
    classes: int | None = None,
    mixture: dict[str, int] | None = None,
    seed: int = 0,
    labels: dict[int, str] = LABELS,
) -> PromptableSam:
    """A run folder as training leaves it, and its model."""
    torch.manual_seed(seed)
    sam = apply_method(build_sam("nano", image_size=64), "decoder", num_classes=classes)
    if sam.learned is not None:
        sam.learned.present.data[:, -1] = 1.0
        sam.learned.gates.data.fill_(1)  # untrained, tokens have no say
    with torch.no_grad():  # another seed is another run
        next(p for p in sam.parameters() if p.requires_grad).add_(0.01 * seed)
    save_tuned(sam, folder / "tuned.safetensors", labels)
    mended = (mending or Mending()).describe()
    mixture = mixture or ({"box": 1, "none": 1} if classes else {"box": 1})
    record = RunRecord(
        "d.json", "d.slices", None, rules.describe(), mended, 0.0, 0, mixture=mixture
    )
    write_record(folder, record)
    write_state(folder, "finished")
    return sam
