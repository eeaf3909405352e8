"""Scores of one case and label, on whole volumes, in the scan's own grid.

Rules:
    - truth and prediction both empty: the pair is excluded from the means, and counted (`empty`
      chooses another rule).
    - one of them empty: Dice, IoU and NSD are 0, and distances the diagonal of the whole volume.
    - no other pair is excluded; a mean over no pair is empty, never NaN.
    - voxels that nobody annotated count neither for the truth nor for a prediction.
    - lesions are connected components, diagonals included; one is found where the prediction has a
      voxel of it.
    - objects of 2-D images are paired where their IoU is above 0.5, so that each has one partner
      at most.
    - distances are in millimetres; in pixels of 2-D images, and where a pixel's size is unknown.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from medsam_tune.errors import warn
from medsam_tune.evaluation.borders import boundary_iou, paired
from medsam_tune.evaluation.label_maps import overlap, parts_of
from medsam_tune.evaluation.surfaces import SurfaceDistances, surface_distances

EMPTY_RULES = {
    "exclude": "excluded from the means, and counted",
    "one": "Dice, IoU and NSD are 1, distances 0",
    "nnunet": "excluded from the means, as nnU-Net does (NaN); there is no distance either where "
    "one of the two is empty",
}
"""What a score is where neither the truth nor the prediction has a voxel of the label."""

_Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Measures:
    """What is measured beside the overlap.

    Attributes:
        tolerance: of NSD, in millimetres (pixels where there are none): one for all labels, or by
            a label's name; those that are not named have `default`.
        default: tolerance of labels that `tolerance` does not name.
        empty: one of `EMPTY_RULES`.

    Raises:
        ValueError: a tolerance below 0, or an unknown rule.
    """

    tolerance: float | Mapping[str, float] = 2.0
    default: float = 2.0
    empty: str = "exclude"

    def __post_init__(self) -> None:
        named = self.tolerance if isinstance(self.tolerance, Mapping) else {"": self.tolerance}
        for name, value in {**named, "default": self.default}.items():
            if type(value) not in (int, float) or not 0 <= value < np.inf:
                place = f"tolerance::{name}" if name else "tolerance"
                raise ValueError(f"{place} is {value!r}; expected millimetres, 0 or more.")
        if self.empty not in EMPTY_RULES:
            known = ", ".join(EMPTY_RULES)
            raise ValueError(f"empty is {self.empty!r}; expected one of {known}.")

    def warn_of_others(self, names: Collection[str]) -> None:
        """Warn of a tolerance of a label that is not scored, such as a misspelt one."""
        if isinstance(self.tolerance, Mapping) and (odd := sorted({*self.tolerance} - {*names})):
            known = ", ".join(names)
            warn(f"tolerance::{odd[0]}: no label of this name is scored; there are {known}.")

    def of(self, name: str) -> float:
        """The tolerance of a label."""
        if isinstance(self.tolerance, Mapping):
            return float(self.tolerance.get(name, self.default))
        return float(self.tolerance)


@dataclass(frozen=True)
class Score:
    """Score of one case and label; its fields are the columns of metrics.csv.

    All below `ellipse_dice` but `objects` is None where it is not measured or has no meaning.

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
        patient: number of the patient in this evaluation, from 1; "" where cases are patients.
        unit: unit of distances, "mm" or "px".
        tolerance: tolerance of `nsd`, in this unit.
        nsd: see `surfaces.SurfaceDistances`, as are the next two.
        hd95: 95th percentile of the surface distances, in this unit.
        surface_distance: mean distance of the surfaces, in this unit.
        truth_volume: volume of the truth: millilitres, or pixels where the unit is px.
        predicted_volume: volume of the prediction.
        volume_difference: predicted minus true volume.
        true_positive: |P and T|, voxels.
        false_positive: |P| - |P and T|.
        false_negative: |T| - |P and T|.
        precision: |P and T| / |P|; None if nothing is predicted.
        recall: |P and T| / |T|; None if there is nothing to find.
        found: whether the prediction has a voxel of the label; None if there is none.
        lesions: number of connected components of the truth.
        lesions_found: number of them that the prediction touches.
        false_lesions: number of components of the prediction that touch no truth.
        truth_slices: number of slices with the truth; None of 2-D images, as are the next two.
        missed_slices: number of them without the prediction.
        added_slices: number of slices with the prediction alone.
        boundary_iou: see `borders.boundary_iou`; None of scans, and if both are empty.
        true_objects: number of objects of the truth; this and the next are None where a label is
            one object.
        found_objects: number of objects of the prediction.
        paired_objects: number of pairs of them.
        paired_iou: sum of the IoU of the pairs.
        quality: the model's own estimate of the IoU, mean over the slices with a mask; None without
            a mask, and of models that give none.
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
    patient: str = ""
    unit: str | None = None
    tolerance: float | None = None
    nsd: float | None = None
    hd95: float | None = None
    surface_distance: float | None = None
    truth_volume: float | None = None
    predicted_volume: float | None = None
    volume_difference: float | None = None
    true_positive: int | None = None
    false_positive: int | None = None
    false_negative: int | None = None
    precision: float | None = None
    recall: float | None = None
    found: bool | None = None
    lesions: int | None = None
    lesions_found: int | None = None
    false_lesions: int | None = None
    truth_slices: int | None = None
    missed_slices: int | None = None
    added_slices: int | None = None
    boundary_iou: float | None = None
    true_objects: int | None = None
    found_objects: int | None = None
    paired_objects: int | None = None
    paired_iou: float | None = None
    quality: float | None = None

    @property
    def empty(self) -> bool:
        """Whether neither the truth nor the prediction has a voxel."""
        return not self.truth_voxels and not self.predicted_voxels

    @property
    def missed(self) -> bool:
        """Whether the truth has voxels, and the prediction none."""
        return self.truth_voxels > 0 and not self.predicted_voxels


@dataclass(frozen=True)
class Answer:
    """What is scored: a prediction beside its truth.

    Attributes:
        case: id of the case.
        prompts: kind of prompts that the prediction is by.
        prediction: (Z, H, W) integer label slices.
        truth: (Z, H, W) integer label slices of the annotator.
        ellipse: (Z, H, W) integer label slices of `EllipseInferer` from the same boxes; None for
            prompts without a box on every slice.
        objects: label id -> number of its objects that were prompted for.
        numbers: (Z, H, W) numbers of objects of the prediction and of the truth; None where a label
            is one object.
        spacing: millimetres between voxels along Z, H and W; None where they are unknown.
        patient: see `Score`.
        qualities: label id -> predicted quality, see `Score`.
    """

    case: str
    prompts: str
    prediction: Tensor
    truth: Tensor
    ellipse: Tensor | None = None
    objects: Mapping[int, int] = field(default_factory=dict)
    numbers: tuple[NDArray[np.int32], NDArray[np.int32]] | None = None
    spacing: Sequence[float] | None = None
    patient: str = ""
    qualities: Mapping[int, float] = field(default_factory=dict)


def score_case(
    answer: Answer, labels: Mapping[int, str], measures: Measures | None = None
) -> list[Score]:
    """One `Score` for each label, in the parts of the volume where the label is.

    Args:
        answer: prediction and truth.
        labels: label id -> name.
        measures: what is measured beside the overlap and objects; None for nothing, as in a
            training, where surfaces would take longer than the model.
    """
    maps = [answer.prediction, answer.truth, *([] if answer.ellipse is None else [answer.ellipse])]
    arrays = [one.cpu().numpy() for one in maps]
    parts = parts_of(arrays, [*labels])
    return [
        _score(answer, arrays, parts[label], label, name, measures)
        for label, name in labels.items()
    ]


def _score(
    answer: Answer,
    arrays: Sequence[NDArray[Any]],
    part: tuple[slice, ...],
    label: int,
    name: str,
    measures: Measures | None,
) -> Score:
    predicted, true, *ellipse = (one[part] == label for one in arrays)
    dice, iou = overlap(predicted, true)
    own: dict[str, Any] = {}
    if answer.truth.shape[0] == 1:
        whole = (arrays[0][0] == label, arrays[1][0] == label)
        own["boundary_iou"] = boundary_iou(*whole)
    if answer.numbers is not None:
        masks = (predicted, true)
        pairs = paired(
            *(np.where(m, n[part], 0) for m, n in zip(masks, answer.numbers, strict=True))
        )
        keys = ("true_objects", "found_objects", "paired_objects", "paired_iou")
        own |= dict(zip(keys, pairs, strict=True))
    if measures is not None:
        shape = answer.truth.shape
        own |= _measured(predicted, true, shape, answer.spacing, measures.of(name), measures.empty)
        if measures.empty == "one" and dice is None:
            dice = iou = 1.0
    return Score(
        case=answer.case,
        prompts=answer.prompts,
        label=label,
        name=name,
        dice=dice,
        iou=iou,
        truth_voxels=int(true.sum()),
        predicted_voxels=int(predicted.sum()),
        ellipse_dice=overlap(ellipse[0], true)[0] if ellipse else None,
        objects=answer.objects.get(label, 0),
        patient=answer.patient,
        quality=answer.qualities.get(label),
        **own,
    )


def _measured(
    predicted: _Mask,
    true: _Mask,
    shape: Sequence[int],
    spacing: Sequence[float] | None,
    tolerance: float,
    empty: str,
) -> dict[str, Any]:
    """What is measured beside the overlap: column -> value."""
    flat = shape[0] == 1
    steps = (1.0, 1.0, 1.0) if flat or spacing is None else tuple(float(step) for step in spacing)
    unit = "px" if flat or spacing is None else "mm"
    voxel = float(np.prod(steps)) / (1000 if unit == "mm" else 1)  # millilitres
    both, p, t = (int(one.sum()) for one in (predicted & true, predicted, true))
    diagonal = float(np.linalg.norm(np.multiply(shape, steps)[flat:]))
    distances: SurfaceDistances | None = None
    if p and t:
        first, second = (predicted[0], true[0]) if flat else (predicted, true)
        distances = surface_distances(first, second, steps[flat:], tolerance)
    elif p or t:
        distances = None if empty == "nnunet" else SurfaceDistances(0.0, diagonal, diagonal)
    elif empty == "one":
        distances = SurfaceDistances(1.0, 0.0, 0.0)
    lesions, found, false = _lesions(predicted, true)
    return {
        **({} if flat else _slices(predicted, true)),
        "unit": unit,
        "tolerance": tolerance,
        "nsd": distances and distances.nsd,
        "hd95": distances and distances.hd95,
        "surface_distance": distances and distances.mean,
        "truth_volume": t * voxel,
        "predicted_volume": p * voxel,
        "volume_difference": (p - t) * voxel,
        "true_positive": both,
        "false_positive": p - both,
        "false_negative": t - both,
        "precision": both / p if p else None,
        "recall": both / t if t else None,
        "found": bool(both) if t else None,
        "lesions": lesions,
        "lesions_found": found,
        "false_lesions": false,
    }


def _slices(predicted: _Mask, true: _Mask) -> dict[str, int]:
    """Slices with the truth, those of them that the prediction misses, and those it adds."""
    there, here = true.any((1, 2)), predicted.any((1, 2))
    return {
        "truth_slices": int(there.sum()),
        "missed_slices": int((there & ~here).sum()),
        "added_slices": int((here & ~there).sum()),
    }


def _lesions(predicted: _Mask, true: _Mask) -> tuple[int, int, int]:
    """Components of the truth, those that the prediction touches, and those it has for itself."""
    around = np.ones((3,) * true.ndim)
    there, count = ndimage.label(true, around)
    here, own = ndimage.label(predicted, around)
    both = predicted & true
    found, hits = len(np.unique(there[both])), len(np.unique(here[both]))
    return count, found, own - hits
