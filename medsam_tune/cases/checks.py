"""Refusals of scans and labels that would train or evaluate wrongly without a word.

Each refusal is one small function. Messages name the case and its files by path, what was found,
what was expected and what to do, and never text from a file's header.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray
from torch import Tensor

POSITION_TOLERANCE = 1e-3
"""Largest accepted difference of two affines' origins and spacings, millimetres."""

DIRECTION_TOLERANCE = 1e-3
"""Largest accepted difference of two affines' unit axis directions, dimensionless.

NIfTI's qform stores a quaternion in float32, which is exact to about 3e-4 for the common 180
degree rotations; a tighter tolerance would refuse sound files.
"""

BYTES_PER_VOXEL = 16
"""Memory that reading a scan and its label takes: four times float32 (measured: 15 for a CT window,
19 for percentiles)."""


class DataError(ValueError):
    """A fault in the user's data: which file, what was found, what was expected, what to do."""


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        DataError: it is not JSON, or holds something else than an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: is not JSON ({error}). Correct it or make it again.") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: holds a JSON {type(content).__name__}; expected an object.")
    return content


def listed(names: Iterable[str], shown: int = 10, separator: str = ", ") -> str:
    """Names for a message: the first so many, then how many there are."""
    every = list(names)
    rest = f"{separator}... ({len(every)} in all)" if len(every) > shown else ""
    return separator.join(every[:shown]) + rest


def check_memory(source: str, shape: Sequence[int]) -> None:
    """Refuse a scan that would not fit into memory, by its header, before a voxel is read.

    Args:
        source: case and file, for messages.
        shape: of its voxels, as the header has it.

    Raises:
        DataError: `BYTES_PER_VOXEL` for all of them is more than is free.
    """
    needed, free = BYTES_PER_VOXEL * math.prod(map(int, shape)), psutil.virtual_memory().available
    if needed > free:
        raise DataError(
            f"{source}: the header speaks of {' x '.join(map(str, shape))} voxels, "
            f"{needed / 1e9:.1f} GB of memory; {free / 1e9:.1f} GB are free. Crop or resample the "
            "scan, or take a machine with more. Where it is not that large, export it again."
        )


def check_image(case_id: str, image: MetaTensor, path: Path) -> None:
    """Refuse an image that is not one finite 3-D volume with a place in the world.

    Args:
        case_id: for messages.
        image: (C, X, Y, Z), any dtype, as loaded, before orientation.
        path: the file it came from.

    Raises:
        DataError: 4-D or several channels, an empty dimension, NaN or Inf, a bad affine.
    """
    _check_dimensions(case_id, image, path)
    _check_finite(case_id, image, path)
    check_affine(case_id, image, path)


def check_pair(
    case_id: str,
    image: MetaTensor,
    label: MetaTensor,
    labels: Iterable[int],
    image_path: Path,
    label_path: Path,
) -> None:
    """Refuse a label that does not lie on its image's grid or has values that are not labels.

    Args:
        case_id: for messages.
        image: (1, X, Y, Z), checked by `check_image`.
        label: (1, X, Y, Z), its affine checked; both in the same orientation, as files may store
            the same grid in different ways.
        labels: the expected ids; 0 (background) is always allowed.
        image_path: the image's file.
        label_path: the label's file.

    Raises:
        DataError: another shape or affine than the image's, values that are not integers or not
            in `labels`.
    """
    _check_same_shape(case_id, image, label, image_path, label_path)
    _check_finite(case_id, label, label_path)
    _check_same_affine(case_id, image, label, image_path, label_path)
    _check_integers(case_id, label, label_path)
    _check_values(case_id, label, labels, label_path)


def label_values(label: Tensor) -> list[int]:
    """The distinct values of an integer-valued tensor (..., Z), ascending; cheap on large scans."""
    found: set[int] = set()
    countable = label.min() >= 0 and label.max() < 65536
    for part in label.split(1, dim=-1):
        # Counting is ten times faster than the sort in unique().
        values = part.flatten().int().bincount().nonzero() if countable else part.unique()
        found.update(int(value) for value in values)
    return sorted(found)


def _check_dimensions(case_id: str, image: Tensor, path: Path) -> None:
    if image.ndim != 4:
        raise DataError(
            f"case {case_id}: image has {image.ndim - 1} dimensions, shape {tuple(image.shape[1:])}"
            f" ({path}); expected a 3-D volume."
        )
    check_not_empty(case_id, image.shape[1:], path)
    if image.shape[0] != 1:
        raise DataError(
            f"case {case_id}: image is 4-D, {image.shape[0]} volumes of {tuple(image.shape[1:])} "
            f"({path}); expected one 3-D volume. Choose it: reading::volume_index=0."
        )


def _check_finite(case_id: str, image: Tensor, path: Path) -> None:
    finite = torch.isfinite(image.as_tensor() if isinstance(image, MetaTensor) else image)
    if finite.all():
        return
    bad = (~finite).nonzero()
    first = tuple(bad[0, 1:].tolist())
    raise DataError(
        f"case {case_id}: {len(bad)} NaN or infinite voxels, the first at {first} ({path}); "
        "expected finite values. Mend the file, or fill them in: reading::fill_nan=-1024."
    )


def check_not_empty(case_id: str, shape: Sequence[int], path: Path) -> None:
    """Refuse a scan without a voxel."""
    if 0 in shape:
        raise DataError(
            f"case {case_id}: image of shape {tuple(shape)} has an empty dimension ({path}); "
            "expected at least one voxel along each axis. Export it again."
        )


def check_affine(case_id: str, image: MetaTensor, path: Path) -> None:
    """Refuse an affine that is singular or not finite."""
    affine = np.asarray(image.affine, dtype=np.float64)
    if np.isfinite(affine).all() and abs(np.linalg.det(affine[:3, :3])) > 1e-9:
        return
    raise DataError(
        f"case {case_id}: the affine {show_affine(affine)} is singular or not finite ({path}); it "
        "must place each voxel in the world. Export the scan again from its source."
    )


def _check_same_shape(
    case_id: str, image: Tensor, label: Tensor, image_path: Path, label_path: Path
) -> None:
    found = _shape(label)
    if found == _shape(image):
        return
    raise DataError(
        f"case {case_id}: label shape {found} differs from image shape {_shape(image)} "
        f"({label_path}, {image_path}); they must come from the same scan. "
        "Re-export the label on the image's grid, or choose reading::resample_label=true."
    )


def _check_same_affine(
    case_id: str, image: MetaTensor, label: MetaTensor, image_path: Path, label_path: Path
) -> None:
    expected = np.asarray(image.affine, dtype=np.float64)
    found = np.asarray(label.affine, dtype=np.float64)
    if same_affine(found, expected):
        return
    raise DataError(
        f"case {case_id}: label affine {show_affine(found)} differs from image affine "
        f"{show_affine(expected)} ({label_path}, {image_path}) by more than "
        f"{POSITION_TOLERANCE} mm or {DIRECTION_TOLERANCE} in direction; they must lie on the same "
        "grid. Re-export the label, or choose reading::resample_label=true."
    )


def _check_integers(case_id: str, label: Tensor, path: Path) -> None:
    values = label.as_tensor() if isinstance(label, MetaTensor) else label
    fractions = values[values != values.round()]
    if len(fractions) == 0:
        return
    raise DataError(
        f"case {case_id}: label has values that are not integers: {_some(fractions.unique())} "
        f"({path}); expected label ids. If it was resampled, use nearest-neighbour interpolation."
    )


def _check_values(case_id: str, label: Tensor, labels: Iterable[int], path: Path) -> None:
    expected = sorted({0, *labels})
    values = label.as_tensor() if isinstance(label, MetaTensor) else label
    unexpected = [value for value in label_values(values) if value not in expected]
    if unexpected:
        raise DataError(
            f"case {case_id}: label has the values {_some(unexpected)} ({path}); expected only "
            f"{', '.join(map(str, expected))}. Add them to the datalist's labels or remove them."
        )


def same_affine(first: NDArray[np.float64], second: NDArray[np.float64]) -> bool:
    """Whether two (4, 4) affines agree within `POSITION_TOLERANCE` and `DIRECTION_TOLERANCE`."""
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        return False
    spacings = [np.linalg.norm(affine[:3, :3], axis=0) for affine in (first, second)]
    directions = [
        affine[:3, :3] / np.maximum(spacing, 1e-12)
        for affine, spacing in zip((first, second), spacings, strict=True)
    ]
    position = max(
        np.abs(first[:3, 3] - second[:3, 3]).max(), np.abs(spacings[0] - spacings[1]).max()
    )
    direction = np.abs(directions[0] - directions[1]).max()
    return bool(position <= POSITION_TOLERANCE and direction <= DIRECTION_TOLERANCE)


def _shape(image: Tensor) -> tuple[int, ...]:
    """(1, X, Y, Z) -> (X, Y, Z); several volumes keep their count at the end, as in the file."""
    volumes, *shape = image.shape
    return tuple(shape) if volumes == 1 else (*shape, volumes)


def show_affine(affine: NDArray[np.float64]) -> str:
    """For messages."""
    return str(np.round(affine[:3], 4).tolist())


def _some(values: Iterable[float] | Tensor) -> str:
    return listed(f"{float(value):g}" for value in values)
