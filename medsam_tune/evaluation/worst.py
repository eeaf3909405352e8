"""The worst masks of an evaluation, each with the reason that its numbers show."""

from __future__ import annotations

from collections.abc import Sequence

from medsam_tune.evaluation.metrics import Score

SHOWN = 5
"""Masks that are listed."""
TOO_LARGE, TOO_SMALL = 1.5, 2 / 3
"""Predicted volume as a share of the true one beyond which the volume is the reason."""
SLICES = 0.2
"""Missed and added slices as a share of the true ones from which they are the reason."""


def worst_masks(scores: Sequence[Score], shown: int = SHOWN) -> list[str]:
    """Lines on the masks with the lowest Dice, such as "case_3 spleen 0.412: 2.1 times too large".

    Args:
        scores: scores of one kind of prompts; those without a fault are left out.
        shown: number of lines at most.
    """
    scored = sorted(
        (score for score in scores if score.dice is not None and score.dice < 1),
        key=lambda score: (score.dice, score.case, score.label),
    )
    return [f"{one.case} {one.name} {one.dice:.3f}: {reason(one)}" for one in scored[:shown]]


def reason(score: Score) -> str:
    """Why a mask is worse than others, as far as its numbers show it."""
    true, predicted = _volume(score, score.truth_voxels), _volume(score, score.predicted_voxels)
    if score.missed:
        return f"nothing predicted, {true} are annotated"
    if not score.truth_voxels:
        return f"nothing is annotated, {predicted} are predicted"
    share, slices = score.predicted_voxels / score.truth_voxels, _slices(score)
    as_well = f"; {slices}" if slices else ""
    if share > TOO_LARGE:
        return f"{share:.1f} times too large, {predicted} for {true}{as_well}"
    if share < TOO_SMALL:
        return f"{share:.0%} of the size, {predicted} for {true}{as_well}"
    if slices:
        return slices
    if score.lesions and score.lesions_found is not None and score.lesions_found < score.lesions:
        return f"{score.lesions_found} of {score.lesions} pieces found"
    if score.hd95 is not None:
        return f"the size is right, the outline is off (HD95 {score.hd95:.1f} {score.unit})"
    return "the size is right, its place is not"


def _slices(score: Score) -> str:
    """Slices that are missed or added, if many: "3 of 9 slices missed, 1 added"."""
    true, missed, added = score.truth_slices, score.missed_slices or 0, score.added_slices or 0
    if not true or missed + added < SLICES * true:
        return ""
    if not missed:
        return f"{added} slices added to {true}"
    return f"{missed} of {true} slices missed" + (f", {added} added" if added else "")


def _volume(score: Score, voxels: int) -> str:
    """A number of voxels in millilitres, where they are known."""
    whole = score.truth_volume if score.truth_voxels else score.predicted_volume
    count = score.truth_voxels or score.predicted_voxels
    if score.unit != "mm" or not whole or not count:
        return f"{voxels:,} pixels" if score.unit == "px" else f"{voxels:,} voxels"
    return f"{whole / count * voxels:.3g} ml"
