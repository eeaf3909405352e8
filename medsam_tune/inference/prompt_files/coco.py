"""COCO's JSON as prompts of 2-D images: the box of each object, or of its outline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from medsam_tune.errors import DataError, about, warn
from medsam_tune.formats import coco
from medsam_tune.inference.prompt_files.given import GivenObject, refuse_too_many
from medsam_tune.inference.prompt_files.values import known_labels, same_name
from medsam_tune.slices.frames import ScanGrid


def read_coco(
    path: Path, grid: ScanGrid, labels: Mapping[int, str], scan: Path | None
) -> list[GivenObject]:
    """The objects of one image in a COCO file, see `read_prompts`.

    Args:
        path: the file.
        grid: grid of the image.
        labels: label id -> name; categories are found by their names.
        scan: file of the image, by whose name the file speaks of it.

    Returns:
        objects in voxels of the image's file, a box each.

    Raises:
        DataError: the file is refused, see `formats.coco.read`; it does not speak of the image, or
            of another size; no object of it; a category that is no label; a box or an outline that
            is none.
    """
    if scan is None or grid.shape[2] != 1:
        raise DataError(
            f"{path}: COCO's files are of 2-D images, by the name of each; expected the file of "
            f"one, and this is {scan or 'in memory'}. Give boxes as a prompt file."
        )
    picture = coco.read(path).picture_of(scan)
    names = coco.read(path).categories
    if (picture.width, picture.height) != grid.shape[:2]:
        raise DataError(
            f"{path}: {picture.file_name} has {picture.width} x {picture.height} pixels, the image "
            f"{grid.shape[0]} x {grid.shape[1]} ({scan}); expected the same size. Give the "
            "prompts of this image."
        )
    crowds = sum(one.crowd for one in picture.objects)
    if crowds:
        warn(f"{path}: {crowds} crowds of {picture.file_name} left out, as they are no objects.")
    given = []
    for one in picture.objects:
        if one.crowd:
            continue
        name, where = names[one.category], f"{path}: annotation {one.id}"
        label = next((key for key, known in labels.items() if same_name(name, known)), None)
        if label is None:
            raise DataError(
                f"{where}: its category is {name!r}; known: {known_labels(labels)}. Rename the "
                "category, or take the annotation out."
            )
        with about(str(path)):
            x0, y0, x1, y1 = _box_of(one, picture)
        given.append(GivenObject(label, where, [(where, (x0, y0, 0.0, x1, y1, 1.0))]))
    if not given:
        raise DataError(
            f"{path}: no object of {picture.file_name}; expected one at least. Leave the image out."
        )
    refuse_too_many(len(given), str(path))
    return given


def _box_of(one: coco.Annotation, picture: coco.Picture) -> tuple[float, float, float, float]:
    """The box of an object, XYXY in pixels; without one, that of the pixels of its outline."""
    if one.box is None:
        mask = coco.mask_of(one, picture)
        if not mask.any():
            raise DataError(
                f"annotation {one.id}: its outline has no pixel; expected one at least. Correct or "
                "remove it."
            )
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        low, high = (columns[0], rows[0]), (columns[-1] + 1, rows[-1] + 1)
        return float(low[0]), float(low[1]), float(high[0]), float(high[1])
    coco.mask_of(replace(one, segmentation=None), picture)  # refuses a box that is none
    left, top, width, height = (float(side) for side in one.box)
    return left, top, left + width, top + height
