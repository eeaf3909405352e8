"""Label maps: where a label is, how well two maps agree, and other numbers for the labels.

Work grows with the voxels of the map and of its objects, not with voxels times labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

Mask = NDArray[np.bool_]

_DENSE = 2**16
"""Ids below it are looked up in a table."""


def parts_of(arrays: Sequence[NDArray[Any]], labels: Sequence[int]) -> dict[int, tuple[slice, ...]]:
    """For each label the smallest part that holds it in all maps; an empty one if none has it.

    Args:
        arrays: integer label maps of one shape.
        labels: ids of the labels.
    """
    ids = np.sort(labels)
    dense = bool(len(ids)) and int(ids[-1]) < _DENSE
    found: dict[int, tuple[slice, ...]] = {}
    for array in arrays:
        if dense:
            boxes = ndimage.find_objects(array, int(ids[-1]))
            own = {int(label): boxes[label - 1] for label in ids}
        else:  # a list of 2**31 boxes would not fit
            places = np.clip(np.searchsorted(ids, array), 0, len(ids) - 1)
            boxes = ndimage.find_objects(np.where(ids[places] == array, places + 1, 0), len(ids))
            own = dict(zip(ids.tolist(), boxes, strict=True))
        for label, box in own.items():
            if box is not None:
                before = found.get(label, box)
                found[label] = tuple(
                    slice(min(a.start, b.start), max(a.stop, b.stop))
                    for a, b in zip(before, box, strict=True)
                )
    nowhere = (slice(0, 0),) * arrays[0].ndim
    return {label: found.get(label, nowhere) for label in labels}


def overlap(prediction: Mask | Tensor, truth: Mask | Tensor) -> tuple[float | None, float | None]:
    """Dice and IoU of two binary masks of one shape; None for both if both are empty.

    Args:
        prediction: bool, any shape.
        truth: bool, the same shape.
    """
    both = int((prediction & truth).sum())
    total = int(prediction.sum()) + int(truth.sum())
    return (None, None) if total == 0 else (2 * both / total, both / (total - both))


def overlaps(prediction: Tensor, truth: Tensor, labels: Sequence[int]) -> dict[int, float | None]:
    """Dice of each label, None where neither map has it.

    Args:
        prediction: integer label map.
        truth: integer label map of the same shape.
        labels: ids of the labels.
    """
    arrays = [one.cpu().numpy() for one in (prediction, truth)]
    parts = parts_of(arrays, labels)
    first, second = arrays
    return {k: overlap(first[parts[k]] == k, second[parts[k]] == k)[0] for k in labels}


def renumbered(array: NDArray[Any], numbers: Mapping[int, int]) -> NDArray[Any]:
    """A label map with other ids, itself if none changes; those that `numbers` lacks become 0.

    Args:
        array: integer label map, not negative.
        numbers: id -> id that it becomes.
    """
    highest = int(array.max(initial=0))
    if highest >= _DENSE:  # a table of 2**31 ids would be larger than the map
        found = np.zeros(array.shape, array.dtype)
        for old, new in numbers.items():
            found[array == old] = new
        return found
    table = np.zeros(highest + 1, array.dtype)
    for old, new in numbers.items():
        if old <= highest:
            table[old] = new
    if (table == np.arange(len(table))).all():
        return array
    renumbered: NDArray[Any] = table[array]
    return renumbered


def annotated(*maps: Tensor, truth: Tensor, ignore: int | None) -> tuple[Tensor, ...]:
    """Label maps with 0 wherever the truth says that nobody annotated.

    Args:
        maps: integer label maps of the truth's shape; the truth may be one of them.
        truth: integer label map.
        ignore: id of the voxels that nobody annotated; None if there are none.
    """
    if ignore is None:
        return maps
    return tuple(one.masked_fill((truth == ignore).to(one.device), 0) for one in maps)
