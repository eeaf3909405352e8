"""Dice and IoU per case and label, on whole volumes; of 2-D images, borders and objects as well.

Rules:
    - truth and prediction both empty: the pair is excluded from the mean, and counted.
    - one of them empty: Dice 0 and IoU 0.
    - no other pair is excluded; a mean over no pair is empty, never NaN.
    - voxels that nobody annotated count neither for the truth nor for a prediction.
    - objects are paired where their IoU is above 0.5, so that each has one partner at most.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

BORDER = 0.02
"""Width of the border that `boundary_iou` compares, as a share of the image's diagonal."""

PAIRED = 0.5
"""IoU above which a predicted object is the one that is there."""


@dataclass(frozen=True)
class Score:
    """Score of one case and label; its fields are the columns of metrics.csv.

    Attributes:
        case: id of the case.
        prompts: kind of prompts that the prediction is by, see `inference.simulated`.
        label: id of the label.
        name: name of the label.
        dice: 2 |P and T| / (|P| + |T|), 0..1; None if both are empty.
        iou: |P and T| / |P or T|, 0..1; None if both are empty.
        truth_voxels: |T|, number of voxels of the truth.
        predicted_voxels: |P|, number of voxels of the prediction.
        ellipse_dice: Dice of the ellipses inscribed in the same boxes; None also where there is no
            box on every slice.
        objects: number of objects that were prompted for; 0 without prompts.
        boundary_iou: see `boundary_iou`; None of scans, and if both are empty.
        true_objects: number of objects of the truth; this and the next are None where a label is
            one object.
        found_objects: number of objects of the prediction.
        paired_objects: number of pairs of them.
        paired_iou: sum of the IoU of the pairs.
    """

    case: str
    prompts: str
    label: int
    name: str
    dice: float | None
    iou: float | None
    truth_voxels: int
    predicted_voxels: int
    ellipse_dice: float | None
    objects: int = 0
    boundary_iou: float | None = None
    true_objects: int | None = None
    found_objects: int | None = None
    paired_objects: int | None = None
    paired_iou: float | None = None


def overlap(prediction: Tensor, truth: Tensor) -> tuple[float | None, float | None]:
    """Dice and IoU of two binary masks of one shape; None for both if both are empty.

    Args:
        prediction: bool, any shape.
        truth: bool, the same shape.
    """
    both = int((prediction & truth).sum())
    total = int(prediction.sum()) + int(truth.sum())
    return (None, None) if total == 0 else (2 * both / total, both / (total - both))


def boundary_iou(prediction: Tensor, truth: Tensor) -> float | None:
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
        depth = ndimage.distance_transform_cdt(np.pad(mask.cpu().numpy(), 1), "chessboard")
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


def score_case(
    case: str,
    prompts: str,
    prediction: Tensor,
    truth: Tensor,
    ellipse: Tensor | None,
    labels: Mapping[int, str],
    objects: Mapping[int, int] | None = None,
    numbers: tuple[NDArray[np.int32], NDArray[np.int32]] | None = None,
) -> list[Score]:
    """One `Score` per label.

    Args:
        case: id of the case.
        prompts: kind of prompts that the prediction is by.
        prediction: (Z, H, W) integer label slices of the model.
        truth: (Z, H, W) integer label slices of the annotator.
        ellipse: (Z, H, W) integer label slices of `EllipseInferer` from the same boxes; None for
            prompts without a box on every slice.
        labels: label id -> name.
        objects: label id -> number of its objects that were prompted for; none by default.
        numbers: (Z, H, W) numbers of objects of the prediction and of the truth; None where a label
            is one object.
    """
    scores = []
    for label, name in labels.items():
        predicted, true = prediction == label, truth == label
        dice, iou = overlap(predicted, true)
        pairs: tuple[int, int, int, float] | tuple[None, ...] = (None,) * 4
        if numbers is not None:
            own = (predicted.cpu().numpy(), true.cpu().numpy())
            pairs = paired(*(np.where(here, n, 0) for here, n in zip(own, numbers, strict=True)))
        scores.append(
            Score(
                case=case,
                prompts=prompts,
                label=label,
                name=name,
                dice=dice,
                iou=iou,
                truth_voxels=int(true.sum()),
                predicted_voxels=int(predicted.sum()),
                ellipse_dice=None if ellipse is None else overlap(ellipse == label, true)[0],
                objects=(objects or {}).get(label, 0),
                boundary_iou=boundary_iou(predicted[0], true[0]) if len(truth) == 1 else None,
                true_objects=pairs[0],
                found_objects=pairs[1],
                paired_objects=pairs[2],
                paired_iou=pairs[3],
            )
        )
    return scores
