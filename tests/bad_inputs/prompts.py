"""Faults of prompts, and of what a model is given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medsam_tune.inference.inferers import VolumeInferer
from medsam_tune.inference.prompt_files import read_prompts
from medsam_tune.sam.build import build_sam
from medsam_tune.slices.frames import ScanGrid
from tests.bad_inputs.calls import sam_mask
from tests.bad_inputs.table import NO_COUNTERPART, BadInput
from tests.scans import LABELS, SHAPE

GRID = ScanGrid(np.diag([-2.0, -3.0, 4.0, 1.0]), SHAPE)  # type: ignore[arg-type]


def prompts(content: dict[str, Any]) -> Any:
    """Ours, on an axial scan of the shape (10, 12, 6)."""
    return read_prompts(content, GRID, LABELS)


def sam_box(*box: float) -> Callable[[Any], np.ndarray]:
    """For a box."""
    return sam_mask(box=np.array(box))


def is_clipped(found: Any) -> None:
    assert found.boxes.tolist() == [[0, 3, 4, 12]]


def unprompted(_: Any) -> Any:
    """Ours: a model that wants prompts, without any."""
    sam = build_sam("nano", image_size=64)
    return VolumeInferer(LABELS)(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), sam, None)


def encode(image: torch.Tensor) -> torch.Tensor:
    return build_sam("nano", image_size=64).encode(image)


def object_of(**item: Any) -> Callable[[Path], dict[str, Any]]:
    """A prompt file's content with one object."""
    return lambda _: {"objects": [{"label": 1, **item}]}


BOX = [1, 2, 3, 5, 8, 5]


INPUTS: tuple[BadInput, ...] = (
    BadInput(
        45,
        "outside",
        "box outside the scan",
        object_of(box3d=[1, 2, 6, 5, 8, 9]),
        prompts,
        sam_box(40, 40, 60, 60),
        r"object 0: box .* lies outside the scan of shape \(10, 12, 6\)\.",
    ),
    BadInput(
        45,
        "partly-outside",
        "box partly outside",
        object_of(box3d=[-5, 3, -2, 4, 99, 1]),
        prompts,
        sam_box(-5, 3, 4, 99),
        handled="clipped to the scan",
        check=is_clipped,
        warns=r"^prompts: 1 of 1 boxes reach out of the scan .* at its border: object 0$",
    ),
    *(
        BadInput(
            46,
            name,
            f"box, {what}",
            object_of(box3d=box),
            prompts,
            sam_box(*flat),
            rf"^prompts: object 0: {message}",
        )
        for name, what, box, flat, message in (
            ("reversed", "reversed", [5, 2, 3, 1, 8, 5], (5, 2, 1, 8), "box .* has no extent"),
            ("flat", "without extent", [1, 2, 3, 5, 8, 3], (1, 2, 5, 2), "box .* has no extent"),
            (
                "nan",
                "with NaN",
                [*BOX[:5], float("nan")],
                (1, 2, 5, float("nan")),
                "box3d is .*; expected 6 finite numbers",
            ),
            (
                "length",
                "five numbers",
                BOX[:5],
                (1, 2, 5),
                r"box3d is \[1, 2, 3, 5, 8\]; expected 6 finite numbers",
            ),
        )
    ),
    BadInput(
        47,
        "xywh",
        "box as corner and size, where that can be told",
        object_of(box3d=[6, 7, 3, 3, 4, 2]),
        prompts,
        sam_box(6, 7, 3, 4),
        r"^prompts: object 0: box .* has no extent; upper bounds are exclusive and above the lower",
    ),
    BadInput(
        48,
        "point",
        "point in a prompt file, which knows boxes only",
        object_of(slices={"3": {"point": [40, 40], "point_label": 7}}),
        prompts,
        sam_mask(point_coords=np.array([[40, 40]]), point_labels=np.array([7])),
        r"^prompts: object 0: slice 3: expected \{'box': \[i0, j0, i1, j1\]\}",
    ),
    BadInput(
        49,
        "no-prompt",
        "no prompt for a model that needs one",
        lambda folder: None,
        unprompted,
        sam_mask(),
        r"^the model segments what is prompted; give it a prompt file \(--prompts\)",
    ),
    BadInput(
        49,
        "no-objects",
        "prompt file without objects",
        lambda folder: {"objects": []},
        prompts,
        sam_mask(),
        r"^prompts: no objects; expected a list 'objects' with at least one box\.",
    ),
    BadInput(
        50,
        "integers",
        "integer image given to the model",
        lambda folder: torch.zeros(1, 3, 64, 64, dtype=torch.uint8),
        encode,
        NO_COUNTERPART,
        r"^image is torch\.uint8; expected float in \[0, 1\]\. Divide by 255\.",
    ),
    BadInput(
        50,
        "size",
        "image of another size than the model's",
        lambda folder: torch.zeros(1, 3, 10, 12),
        encode,
        NO_COUNTERPART,
        r"^image has shape \(1, 3, 10, 12\); expected \(B, C, 64, 64\)\.",
    ),
    BadInput(
        50,
        "hu",
        "float image in HU given to the model",
        lambda folder: None,
        lambda made: None,
        sam_mask(np.full((12, 10, 3), -900.0, np.float32), box=np.array([1, 2, 5, 8])),
        todo="the model does not look at the range; scans go through an intensity rule before it",
    ),
)
