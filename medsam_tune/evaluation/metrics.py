"""Dice and IoU per case and label, on whole volumes.

Rules:
    - truth and prediction both empty: the pair is excluded from the mean, and counted.
    - one of them empty: Dice 0 and IoU 0.
    - no other pair is excluded; a mean over no pair is empty, never NaN.
    - voxels that nobody annotated count neither for the truth nor for a prediction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


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


def overlap(prediction: Tensor, truth: Tensor) -> tuple[float | None, float | None]:
    """Dice and IoU of two binary masks of one shape; None for both if both are empty.

    Args:
        prediction: bool, any shape.
        truth: bool, the same shape.
    """
    both = int((prediction & truth).sum())
    total = int(prediction.sum()) + int(truth.sum())
    return (None, None) if total == 0 else (2 * both / total, both / (total - both))


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
    """
    scores = []
    for label, name in labels.items():
        predicted, true = prediction == label, truth == label
        dice, iou = overlap(predicted, true)
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
            )
        )
    return scores
