"""Objects of 2-D images as files: numbers in a PNG, or COCO's JSON."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from medsam_tune.errors import DataError
from medsam_tune.formats import coco
from medsam_tune.formats.open import write_array
from medsam_tune.inference.aftercare import Aftercare
from medsam_tune.inference.canvas import Found
from medsam_tune.inference.output import on_grid
from medsam_tune.slices.frames import ScanGrid
from medsam_tune.slices.objects import numbered, owners

NO_LABEL = 0
"""Label id of objects that are of no label of the run."""


def refuse_volume(slices: Tensor) -> None:
    """Refuse several slices (Z, C, H, W), whose objects would have to be numbered across them.

    Raises:
        DataError: Z is not 1.
    """
    if slices.shape[0] != 1:
        raise DataError(
            f"has {slices.shape[0]} slices; expected a 2-D image, as only its objects are "
            "numbered. Leave --instances and .json out."
        )


def refuse_separate_objects(separate: bool, instances: bool) -> None:
    """Refuse masks by label where objects are wanted.

    Raises:
        ValueError: both.
    """
    if separate and instances:
        raise ValueError(
            "separate and instances are both asked for; expected one of them, as objects do not "
            "overlap."
        )


def write_instances(
    found: Found,
    grid: ScanGrid,
    path: Path,
    image: str,
    labels: Mapping[int, str],
    smallest: int = 1,
    aftercare: Aftercare | None = None,
) -> dict[Path, dict[int, int]]:
    """Write the objects of an image, whole or not at all.

    They are those of the prompts; without prompts, the connected components of each label.

    Args:
        found: answer for one slice, with a label map.
        grid: grid of the image.
        path: .json for COCO's JSON, with the predicted quality as `score` where there were prompts;
            otherwise the numbers of the objects, 1, 2, ..., as `write_array` writes them.
        image: name of the image's file.
        labels: label id -> name.
        smallest: pixels of the smallest component.
        aftercare: what is done to the masks of the labels before.

    Returns:
        the file -> label id -> number of its pixels, of each that has one.

    Raises:
        DataError: another ending; more objects than the format holds.
    """
    assert isinstance(found.labels, Tensor)
    ids = on_grid(found.labels, grid, aftercare)  # (W, H, 1)
    if found.numbers is None:
        numbers = numbered(ids, smallest)
        label_of: NDArray[np.int64] = owners(numbers, ids)
        scores = None
    else:
        label_of = np.array([NO_LABEL, *(one.label for one in found.objects)])
        numbers = on_grid(found.numbers, grid).astype(np.int32)
        own = label_of[numbers]
        # What after-care took from a label, or gave to it, is of no object.
        numbers = np.where((own == ids) | ((own == NO_LABEL) & (ids > 0)), numbers, 0)
        scores = {n: round(one.quality, 4) for n, one in enumerate(found.objects, start=1)}
    if path.name.lower().endswith(coco.ENDING):
        categories = {n: int(label) for n, label in enumerate(label_of) if n}
        names = {NO_LABEL: "object"} if NO_LABEL in categories.values() else dict(labels)
        coco.write_results(path, image, numbers[..., 0].T, categories, names, scores)
    else:
        write_array(path, numbers, grid.affine, grid.codes)
    ids, counts = np.unique(label_of[numbers[numbers > 0]], return_counts=True)
    return {path: dict(zip(ids.tolist(), counts.tolist(), strict=True))}
