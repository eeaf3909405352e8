"""Labels on the grid of their image."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Orientation, ResampleToMatch
from numpy.typing import NDArray

from medsam_tune.cases.checks import check_affine
from medsam_tune.errors import DataError, warn
from medsam_tune.formats.volume import POSITION_TOLERANCE, same_affine

LOST_TOLERANCE = 0.01
"""Largest accepted share of a label's voxels that lie outside of the image it is resampled to."""

CHANGE_SAID = 0.05
"""Smallest change of a label's volume by resampling that is said, as a share of it."""

CHANGE_TOLERANCE = 0.5
"""Largest accepted change of a label's volume by resampling, as a share of it. The nearest voxel
keeps the volume but for the outline; a label that is thinner than the image's voxels vanishes, or
becomes as thick as one."""


def placed(label: MetaTensor, path: Path, image: MetaTensor, resample: bool) -> MetaTensor:
    """A label map in the orientation of its image.

    A label whose place, or whose image's place, is a guess is neither resampled nor compared by
    position: it is laid on an image of the same shape voxel for voxel, in the order of the files.

    Args:
        label: (1, I, J, K), as its file has it.
        path: file of the label, for messages.
        image: (1, X, Y, Z), from `load_image`, turned or not.
        resample: bring a label of another grid onto the image's, nearest voxel, 0 outside.

    Returns:
        (1, X', Y', Z'): on the image's grid if it lay there, or was resampled.

    Raises:
        DataError: the label's affine is singular or not finite; it has another number of volumes; a
            place is a guess, and shapes or spacings differ; resampling loses more than
            `LOST_TOLERANCE` or changes a label by more than `CHANGE_TOLERANCE`.
    """
    check_affine(label, path)
    _check_volumes(label, path, image)
    if label.meta.get("guess") or image.meta.get("guess"):
        label = _voxel_for_voxel(label, path, image)
    axes = nib.orientations.aff2axcodes(affine_of(image))
    label = cast(MetaTensor, Orientation(axcodes=axes, labels=None)(label))
    same = label.shape[1:] == image.shape[1:] and same_affine(affine_of(label), affine_of(image))
    if same or not resample:
        return label
    _check_inside(label, path, image)
    onto = ResampleToMatch(mode="nearest", padding_mode="zeros", dtype=np.float64)
    moved = cast(MetaTensor, onto(label, image))
    _check_volume(label, moved, path)
    return moved


def of_image(maps: NDArray[np.int32], path: Path, image: MetaTensor) -> MetaTensor:
    """Maps of the pixels of a 2-D image's file, in the orientation of the image.

    Args:
        maps: (C, W, H, 1), of the size that the file has.
        path: file that they are from, for messages.
        image: (C', X, Y, Z), from `load_image`, turned or not.

    Returns:
        (C, X, Y, Z) on the image's grid.
    """
    meta = {"affine": image.meta["original_affine"], "spatial_shape": maps.shape[1:]}
    whole: list[Any] = [
        placed(
            MetaTensor(torch.from_numpy(one[None]), meta=dict(meta)), path, image, resample=False
        )
        for one in maps
    ]
    return MetaTensor(torch.cat(whole), meta=dict(whole[0].meta))


def affine_of(image: MetaTensor) -> NDArray[np.float64]:
    """(4, 4) float64 to RAS+ millimetres."""
    return np.asarray(image.affine, dtype=np.float64)


def _check_volumes(label: MetaTensor, path: Path, image: MetaTensor) -> None:
    """Refuse a 4-D label but that of a 4-D image, of which one volume is chosen."""
    count, expected = label.meta.get("volumes", 1), image.meta.get("volumes", 1)
    if count in (1, expected) and label.shape[0] == 1:
        return
    raise DataError(
        f"label is 4-D, {count} volumes of {tuple(label.shape[1:])}, the image has {expected} "
        f"({path}); expected one label map, or one for each volume of the image. Export the ids as "
        "one 3-D label map."
    )


def _voxel_for_voxel(label: MetaTensor, path: Path, image: MetaTensor) -> MetaTensor:
    """The label with the affine of the image's file."""
    affine = np.asarray(image.meta.get("original_affine", image.affine), dtype=np.float64)
    shape = tuple(map(int, image.meta.get("spatial_shape", image.shape[1:])))
    found = tuple(label.shape[1:])
    guess = label.meta.get("guess") or image.meta.get("guess")
    whose = "label" if label.meta.get("guess") else "image"
    if found != shape:
        raise DataError(
            f"label shape {found} differs from image shape {shape} ({path}), and the {whose}'s "
            f"place is a guess: {guess}. It cannot be brought onto the image's grid by position. "
            "Export both again with their orientation, or the label on the image's grid."
        )
    spacings = [np.linalg.norm(one[:3, :3], axis=0) for one in (affine_of(label), affine)]
    # A file that says nothing has a spacing of 1.
    known = [
        spacing
        for spacing, one in zip(spacings, (label, image), strict=True)
        if not (one.meta.get("guess") and (spacing == 1).all())
    ]
    if len(known) == 2 and np.abs(known[0] - known[1]).max() > POSITION_TOLERANCE:
        raise DataError(
            f"label spacing {known[0].round(4).tolist()} differs from image spacing "
            f"{known[1].round(4).tolist()} ({path}), and the {whose}'s place is a guess: {guess}. "
            "They must come from the same scan. Export the label on the image's grid."
        )
    if not same_affine(affine_of(label), affine):
        warn(
            f"the {whose}'s place is a guess ({guess}), so the label is laid on the image voxel "
            f"for voxel ({path})."
        )
    return MetaTensor(label.as_tensor(), meta={**label.meta, "affine": affine})


def _check_inside(label: MetaTensor, path: Path, image: MetaTensor) -> None:
    """Refuse or say what of a label lies outside of the image."""
    step = np.linalg.inv(affine_of(image)) @ affine_of(label)
    values = label.as_tensor()[0].numpy()
    voxels = np.argwhere(values > 0)
    if not len(voxels):
        return
    corners = np.array(np.meshgrid(*zip(voxels.min(0), voxels.max(0), strict=True)))
    if not _outside(corners.reshape(3, -1).T, step, image).any():
        return
    ids = values[values > 0]
    outside = _outside(voxels, step, image)
    found, counts = np.unique(ids, return_counts=True)
    lost = {i: int((ids[outside] == i).sum()) / n for i, n in zip(found, counts, strict=True)}
    worst = max(lost, key=lambda i: lost[i])
    if not lost[worst]:
        return
    text = f"{lost[worst]:.1%} of label {worst:.10g} lie outside of the image ({path})"
    if lost[worst] > LOST_TOLERANCE:
        raise DataError(
            f"{text}; expected at most {LOST_TOLERANCE:.0%}. They may not come from the same scan. "
            "Take the image that the label was drawn on, or crop the label."
        )
    warn(f"{text} and are lost.")


def _outside(
    voxels: NDArray[Any], step: NDArray[np.float64], image: MetaTensor
) -> NDArray[np.bool_]:
    """Which of the (N, 3) voxels, by their centres, are not in the image: (N,)."""
    there = nib.affines.apply_affine(step, voxels)
    beside = (there < -0.5 - 1e-6) | (there > np.array(image.shape[1:]) - 0.5 + 1e-6)
    return np.asarray(beside.any(1))


def _check_volume(before: MetaTensor, after: MetaTensor, path: Path) -> None:
    """Refuse or say how resampling changed the volume of each label, and note it."""
    volumes = [_volumes(before), _volumes(after)]
    notes = list(before.meta.get("notes", []))
    for i, old in volumes[0].items():
        new = volumes[1].get(i, 0.0)
        change = new / old - 1
        text = f"label {i:.10g} resampled from {old / 1e3:.4g} to {new / 1e3:.4g} ml"
        if abs(change) > CHANGE_TOLERANCE:
            raise DataError(
                f"{text}, {change:+.0%} ({path}); expected at most {CHANGE_TOLERANCE:.0%}. It is "
                "too thin for the image's voxels. Draw it on the image's grid, or take it out."
            )
        if abs(change) > CHANGE_SAID:
            warn(f"{text}, {change:+.0%} ({path}).")
        notes.append(text)
    after.meta["notes"] = notes


def _volumes(label: MetaTensor) -> dict[float, float]:
    """Cubic millimetres of each value above 0."""
    values = label.as_tensor().numpy()
    found, counts = np.unique(values[values > 0], return_counts=True)
    voxel = abs(np.linalg.det(affine_of(label)[:3, :3]))
    return dict(zip(found.tolist(), (counts * voxel).tolist(), strict=True))
