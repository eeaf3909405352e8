"""Scans and their prompts, ready for an inferer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medsam_tune.cases.datalist import Case
from medsam_tune.cases.load import load_case
from medsam_tune.errors import DataError, about, warn
from medsam_tune.formats.mending import Mending
from medsam_tune.inference.prompt_files import read_prompts
from medsam_tune.inference.requests import NEEDS_PROMPTS
from medsam_tune.prompts import SlicePrompts
from medsam_tune.slices.cut import cut
from medsam_tune.slices.frames import ScanGrid
from medsam_tune.slices.rules import ScanRules

_FEW = 8  # different values of a label map; scanners make more


@dataclass(frozen=True)
class PromptedScan:
    """A scan ready for the inferer, and the grid that leads back to it.

    Attributes:
        case: id of the scan.
        image: (Z, C, H, W) uint8 slices.
        prompts: boxes in the slice frame; None for models that need no prompt.
        grid: grid of the file and of its slices.
    """

    case: str
    image: Tensor
    prompts: SlicePrompts | None
    grid: ScanGrid


class LoadPromptedScan:
    """Transform: paths of a scan and of its prompts -> `PromptedScan`.

    Args:
        rules: rules from scans to slices, as in training.
        labels: label id -> name; prompts may use these.
        mending: choice of faults to mend, as in training; by default all are refused.
        prompted: True if the model needs prompts, False if it takes none, None if either may come.
        reading: how a label map among the prompts is read: `prompts_as`, `jitter` and `seed` of
            `read_prompts`.
    """

    def __init__(
        self,
        rules: ScanRules,
        labels: Mapping[int, str],
        mending: Mending | None = None,
        prompted: bool | None = None,
        reading: Mapping[str, Any] | None = None,
    ) -> None:
        self.rules = rules
        self.labels = labels
        self.mending = mending
        self.prompted = prompted
        self.reading = dict(reading or {})

    def __call__(self, item: Mapping[str, Any]) -> PromptedScan:
        """Read one scan.

        Args:
            item: `scan`, a file or a DICOM folder; `series`, the SeriesInstanceUID (or its end) if
                the folder holds several; `prompts`, a prompt file, its content (`read_prompts`), or
                None.

        Raises:
            DataError: an unusable scan or unusable prompts; before the scan is read, prompts that
                are missing, or that the model does not take.
        """
        if self.prompted and item["prompts"] is None:
            raise DataError(NEEDS_PROMPTS)
        if self.prompted is False and item["prompts"] is not None:
            given = item["prompts"]
            raise DataError(
                f"{'prompts' if isinstance(given, Mapping) else given}: the model was trained "
                "without prompts and finds every label itself; leave --prompts out."
            )
        path = Path(item["scan"])
        case = Case(path, None, "", item.get("series"))
        prompts = item["prompts"]
        image, _ = load_case(case, self.labels, self.mending, self.rules.expected)
        with about(f"case {case.id}"):
            _warn_of_a_label_map(image)
            slices, grid = cut(image, self.rules)
        return PromptedScan(
            case=case.id,
            image=slices,
            prompts=None
            if prompts is None
            else read_prompts(prompts, grid, self.labels, **self.reading),
            grid=grid,
        )


def _warn_of_a_label_map(image: Tensor) -> None:
    """Warn of whole values so few that the scan is rather a label map that was taken for it."""
    found = image.unique()
    if len(found) <= _FEW and bool((found == found.round()).all()):
        warn(
            f"the scan holds only {len(found)} values, from {float(found.min()):g} to "
            f"{float(found.max()):g}: it looks like a label map."
        )


def prepare_scan(
    item: PromptedScan, device: torch.device, non_blocking: bool = False, **_: Any
) -> tuple[Tensor, None, tuple[SlicePrompts | None], dict[str, Any]]:
    """`prepare_batch` of an evaluator over `PromptedScan`s; volumes stay where they are loaded."""
    return item.image, None, (item.prompts,), {}
