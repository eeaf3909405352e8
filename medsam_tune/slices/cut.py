"""Scan to slices, in one place for training and prediction."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Orientation
from monai.utils import convert_to_tensor
from torch import Tensor

from medsam_tune.cases.checks import without_data
from medsam_tune.errors import DataError, warn
from medsam_tune.formats.volume import with_meta_of
from medsam_tune.slices.frames import (
    ScanGrid,
    resized,
    slices_from_volume,
    with_neighbours,
)
from medsam_tune.slices.rules import ScanRules


def cut(image: MetaTensor, rules: ScanRules) -> tuple[Tensor, ScanGrid]:
    """Cut a scan into the slices that the model sees.

    Args:
        image: (1, X, Y, Z) float32 in the scanner's unit, or the channels of a colour image, in any
            orientation, from `load_case`.
        rules: plane, spacing, intensity and neighbours.

    Returns:
        (Z, C, H, W) uint8 slices (float16 in 0..255 of a rule that is `fine`), 0 where pixels hold
        no data, and the grid that leads back to the scan.

    Raises:
        DataError: the rule of intensity takes another number of channels; `ScanRules.gsd` enlarges
            pixels too much.
    """
    grid = grid_of(image, rules)
    said = image.meta.get("spacing_known", True) or rules.pixel is not None
    if rules.gsd is not None and not said:
        warn(
            f"the size of a pixel is unknown: rules::gsd ({rules.gsd:g} m) is left out. "
            "rules::pixel gives it, in metres."
        )
    volume = turned(image, grid)
    seen = seen_by(rules, with_meta_of(volume, resized(volume.as_tensor(), grid.size)))
    if seen.shape[0] != rules.intensity.channels:
        raise DataError(
            f"an image of {image.shape[0]} channels; the rule of intensity takes one. Colours are "
            "of the modality RGB: medsam-tune split --modality RGB. To take the grey values, save "
            "it as grey."
        )
    slices = slices_from_volume(convert_to_tensor(seen, track_meta=False))
    return (with_neighbours(slices) if rules.neighbours else slices), grid


def seen_by(rules: ScanRules, volume: Tensor) -> Tensor:
    """(C, X, Y, Z) in the scanner's unit -> what `cut` gives, (C', X, Y, Z); 0 without data."""
    seen = rules.intensity(volume)
    gaps = without_data(volume)
    return seen if gaps is None else seen * ~gaps


def cut_label(label: MetaTensor, grid: ScanGrid) -> tuple[Tensor, Tensor | None]:
    """Cut a label map into slices that lie on those of its image.

    Args:
        label: (C, X, Y, Z) integer, on the image's grid; its first channel is cut.
        grid: grid from `cut`.

    Returns:
        (Z, H, W) label ids, nearest voxel; and if slices are resampled, the original (Z, H, W) ids,
        which scores compare a prediction with.
    """
    whole = turned(label, grid).as_tensor()
    stored = resized(whole, grid.size, nearest=True)
    own = None if stored is whole else slices_from_volume(whole)[:, 0]
    return slices_from_volume(stored)[:, 0], own


def turned(volume: MetaTensor, grid: ScanGrid) -> MetaTensor:
    """Turn a volume (C, X, Y, Z) so that its axes run along columns, rows and slices."""
    return cast(MetaTensor, Orientation(axcodes=grid.axes, labels=None)(volume))


def grid_of(image: MetaTensor, rules: ScanRules) -> ScanGrid:
    """The grid of the file that an image was loaded from.

    Args:
        image: (C, X, Y, Z); its meta gives the file's `original_affine` and `spatial_shape`, else
            its own affine and shape are used.
        rules: plane and spacing.
    """
    affine = np.asarray(image.meta.get("original_affine", image.affine), dtype=np.float64)
    shape = torch.as_tensor(image.meta.get("spatial_shape", image.shape[1:])).tolist()
    return replace(
        rules.grid(shape, affine, bool(image.meta.get("spacing_known", True))),
        codes=image.meta.get("codes"),
        guess=image.meta.get("guess", ""),
        series=image.meta.get("series_uid", ""),
        frame=image.meta.get("frame_uid", ""),
        georeference=image.meta.get("georeference"),
    )
