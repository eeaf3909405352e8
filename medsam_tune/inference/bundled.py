"""What the config of an exported bundle needs beside transforms and an inferer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medsam_tune.errors import DataError
from medsam_tune.formats.listing import entries_of
from medsam_tune.formats.open import stem_of


def scans_in(folder: str | Path, maps: str | Path | None = None) -> list[dict[str, str]]:
    """The scans of a folder, as MONAI's datasets take them.

    Args:
        folder: folder of scans: files, and a folder for each DICOM series.
        maps: folder of label maps that prompt for them, each named as its scan (but the ending).

    Returns:
        for each scan `image` and, with `maps`, `prompts`: paths.

    Raises:
        DataError: no folder, no scan in it, or a scan without a label map.
    """
    scans, found = _entries(folder), []
    by_stem = {} if maps is None else {stem_of(path): path for path in _entries(maps)}
    for scan in scans:
        item = {"image": str(scan)}
        if maps is not None:
            if stem_of(scan) not in by_stem:
                raise DataError(
                    f"{scan}: no label map {stem_of(scan)} in {maps}; expected one for each scan, "
                    "as the model segments what is prompted. Add it, or take the scan out."
                )
            item["prompts"] = str(by_stem[stem_of(scan)])
        found.append(item)
    return found


def _entries(folder: str | Path) -> list[Path]:
    folder = Path(folder)
    found = entries_of(folder) if folder.is_dir() else []
    if not found:
        raise DataError(f"{folder}: no folder with files in it; correct the path.")
    return found


def prepare_prompted(
    batch: Mapping[str, Tensor], device: torch.device, non_blocking: bool = False, **_: Any
) -> tuple[Tensor, None, tuple[Tensor | None], dict[str, Any]]:
    """`prepare_batch` of an evaluator over scans, some with label maps that prompt for them."""
    image = batch["image"].to(device=device, non_blocking=non_blocking)
    return image, None, (batch.get("prompts"),), {}
