"""Borders and objects of 2-D images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

BORDER = 0.02
"""Width of the border that `boundary_iou` compares, as a share of the image's diagonal."""

PAIRED = 0.5
"""IoU above which a predicted object is the one that is there."""


def boundary_iou(prediction: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float | None:
    """IoU of what lies near the borders of two masks, on their inner side; None if both are empty.

    Near is at most `BORDER` of the image's diagonal, in steps to any of the eight neighbours; the
    image's own edge is a border too.

    Args:
        prediction: (H, W) bool.
        truth: (H, W) bool.

    References:
        Cheng et al., "Boundary IoU", CVPR 2021.
    """
    steps = max(1, round(BORDER * float(np.hypot(*truth.shape))))
    rims = []
    for mask in (prediction, truth):
        depth = ndimage.distance_transform_cdt(np.pad(mask, 1), "chessboard")
        rims.append((depth > 0) & (depth <= steps))
    both, either = (int(f(*rims).sum()) for f in (np.logical_and, np.logical_or))
    return both / either if either else None


def paired(prediction: NDArray[np.int32], truth: NDArray[np.int32]) -> tuple[int, int, int, float]:
    """Objects of a truth that a prediction has.

    MONAI's `compute_panoptic_quality` gives the same, and holds a map of the image for each object.

    Args:
        prediction: numbers of objects, any shape, 0 for none.
        truth: numbers of objects, the same shape.

    Returns:
        number of objects of the truth and of the prediction, number of pairs with an IoU above
        `PAIRED`, and the sum of their IoU.

    References:
        Kirillov et al., "Panoptic Segmentation", CVPR 2019.
    """
    found, inverse = np.unique(prediction, return_inverse=True)
    there, other = np.unique(truth, return_inverse=True)
    joint = np.zeros((len(there), len(found)), np.int64)
    np.add.at(joint, (other.ravel(), inverse.ravel()), 1)
    either = joint.sum(1, keepdims=True) + joint.sum(0, keepdims=True) - joint
    iou = (joint / either)[there != 0][:, found != 0]
    pairs = iou[iou > PAIRED]
    return *iou.shape, len(pairs), float(pairs.sum())
