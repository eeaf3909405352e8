"""Objects of a label: separate pieces, or those that a label map tells apart."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage


def numbered(
    label: NDArray[Any], smallest: int = 1, objects: NDArray[Any] | None = None
) -> NDArray[np.int32]:
    """Number the objects of each label.

    An object is a connected component of a label, diagonals included; or, where `objects` is given,
    all pixels of a label that have one number there.

    Args:
        label: (..., H, W) integer label ids, 0 for the background.
        smallest: pixels of the smallest object; smaller ones get 0.
        objects: numbers of the same shape; pixels with 0 are of no object.

    Returns:
        the same shape: 1, 2, ... by ascending label, each number in one label only; 0 where there
        is no object.
    """
    found = np.zeros(label.shape, np.int32)
    count = 0
    for value in np.unique(label):
        if value == 0:
            continue
        mask = label == value
        if objects is None:
            own, most = ndimage.label(mask, np.ones((3,) * label.ndim))
        else:
            given, own = np.unique(np.where(mask, objects, 0), return_inverse=True)
            own, most = own.reshape(label.shape), len(given) - 1
            if given[0] != 0:  # objects fill the whole map
                own, most = own + 1, len(given)
        sizes = np.bincount(own.ravel(), minlength=most + 1)
        kept = sizes >= smallest
        kept[0] = False
        numbers = np.where(kept, np.cumsum(kept) + count, 0).astype(np.int32)
        found += numbers[own]
        count += int(kept.sum())
    return found


def owners(numbers: NDArray[np.int32], label: NDArray[Any]) -> NDArray[np.int64]:
    """Label id of each number from `numbered`: (N + 1,), the first 0."""
    found = np.zeros(int(numbers.max(initial=0)) + 1, np.int64)
    found[numbers.ravel()] = label.ravel()
    found[0] = 0
    return found
