"""A DICOM series becomes a volume, or is refused with what is wrong with it.

Where each slice lies comes from ImagePositionPatient and ImageOrientationPatient alone: numbers of
instances, SliceThickness and SpacingBetweenSlices are wrong too often. Messages name files and
counts, never the text of a tag, as that may tell who the patient is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam_tune.errors import DataError
from medsam_tune.formats.dicom.geometry import affine_of, flat_affine, in_order, normal_of
from medsam_tune.formats.dicom.headers import Instance
from medsam_tune.formats.dicom.multiframe import read_multiframe
from medsam_tune.formats.dicom.pixels import check_grey, check_rescale, read_pixels
from medsam_tune.formats.dicom.series import Series
from medsam_tune.formats.volume import Volume, check_memory

SPACING_TOLERANCE = 0.1
"""Largest accepted deviation of a slice from even spacing and from a straight line, millimetres
(or a fifth of the spacing, where that is less)."""

TILT_TOLERANCE = 0.1
"""Largest accepted angle between the stack of slices and their normal, degrees."""

ORIENTATION_TOLERANCE = 1e-3
"""Largest accepted difference of two slices' direction cosines, dimensionless."""


def read_series(series: Series, resample_uneven: bool = False) -> Volume:
    """Read the volume of a series.

    Args:
        series: one series from `find_series`.
        resample_uneven: interpolate slices that are uneven or tilted onto an even grid, instead of
            refusing them. Missing slices are refused always.

    Returns:
        The volume: HU for CT, padding as air, MONOCHROME1 inverted so that high values are bright.

    Raises:
        DataError: a fault of the checks below; the message names the file, where it is one.
    """
    volume = _read_volume(series, resample_uneven)
    return replace(volume, series=series.uid, frame=series.frame, modality=series.modality)


def _read_volume(series: Series, resample_uneven: bool) -> Volume:
    first = series.instances[0]
    check_memory(first.path.parent, series.shape)
    check_grey(series)
    if len(series.instances) == 1 and first.frames > 1:
        return read_multiframe(series)
    _check_alike(series)
    check_rescale(series)
    instances = [series.instances[i] for i in in_order(series.instances)]
    notes: list[str] = []
    array = read_pixels(instances, series.modality, notes)
    positions = _positions(instances)
    if positions is None:
        return Volume(array, flat_affine(instances[0]), tuple(notes))
    array, positions = _even(array, instances, positions, resample_uneven, notes)
    return Volume(array, affine_of(instances[0], positions), tuple(notes))


def _check_alike(series: Series) -> None:
    """Refuse images of several sizes, orientations or spacings, e.g. a localizer among them."""
    kinds = Counter(_kind(one) for one in series.instances)
    if len(kinds) > 1:
        usual, count = kinds.most_common(1)[0]
        odd = next(one for one in series.instances if _kind(one) != usual)
        raise DataError(
            f"{odd.path}: {odd.size[0]} x {odd.size[1]} pixels"
            f"{'' if odd.orientation is None else f' along {odd.orientation.round(3).tolist()}'}, "
            f"but {count} of {len(series.instances)} images of its series are of another size, "
            "orientation or spacing; expected them alike. Take localizers out of the folder."
        )
    for one in series.instances:
        if len(series.instances) > 1 and (one.position is None or one.orientation is None):
            raise DataError(
                f"{one.path}: has no ImagePositionPatient or ImageOrientationPatient, so that its "
                f"place among {len(series.instances)} images is not known. Export the series again "
                "with its geometry."
            )
        if one.frames > 1:
            raise DataError(
                f"{one.path}: has {one.frames} frames and is one of {len(series.instances)} files; "
                "expected one multi-frame file or single images. Give the file itself."
            )


def _kind(one: Instance) -> tuple[object, ...]:
    def rounded(values: Any) -> object:
        if values is None:
            return None
        steps = np.asarray(values, dtype=np.float64) / ORIENTATION_TOLERANCE
        return tuple(np.round(steps / 2).astype(int).ravel().tolist())

    return one.size, rounded(one.orientation), rounded(one.spacing)


def _positions(instances: Sequence[Instance]) -> NDArray[np.float64] | None:
    """(K, 3) LPS millimetres of instances in order, or None for one image without a place."""
    if instances[0].position is None or instances[0].orientation is None:
        return None
    positions = np.stack([one.position for one in instances if one.position is not None])
    along = positions @ normal_of(instances[0])
    same = np.diff(along) < 1e-2
    if same.any():
        places = 1 + int((~same).sum())
        raise DataError(
            f"{instances[int(same.argmax())].path}: {len(instances)} images lie at {places} "
            "positions; expected one image at each. Give the times or phases of a scan a folder "
            "each."
        )
    return np.asarray(positions, dtype=np.float64)


def _even(
    array: NDArray[np.float32],
    instances: Sequence[Instance],
    positions: NDArray[np.float64],
    resample: bool,
    notes: list[str],
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Refuse or resample slices that are no even, straight stack."""
    if len(instances) == 1:
        return array, positions
    normal = normal_of(instances[0])
    along = positions @ normal
    steps = np.diff(along)
    usual = float(np.median(steps))
    tolerance = min(SPACING_TOLERANCE, 0.2 * usual)
    whole = np.round(steps / usual)
    gaps = np.abs(steps - usual) > tolerance
    where = int(gaps.argmax())
    between = f"{instances[where].path}, {instances[where + 1].path.name}"
    if gaps.any() and whole.max() > 1 and (np.abs(steps - whole * usual) <= 2 * tolerance).all():
        raise DataError(
            f"{between}: a gap of {steps[where]:.2f} mm between neighbours, {usual:.2f} mm "
            f"elsewhere: {int(whole.sum()) - len(steps)} slices are missing. Export the series "
            "again, whole."
        )
    mean = float(steps.mean())
    uneven = bool((np.abs(steps - mean) > tolerance).any())
    if uneven and not resample:
        raise DataError(
            f"{between}: {steps[where]:.2f} mm between neighbours, {usual:.2f} mm elsewhere; "
            "expected even spacing. To interpolate to an even grid: mending::resample_uneven=true."
        )
    lateral = positions - positions[0] - (along - along[0])[:, None] * normal
    drift = lateral[-1] / (along[-1] - along[0])
    tilt = float(np.degrees(np.arctan(np.linalg.norm(drift))))
    bent = np.abs(lateral - (along - along[0])[:, None] * drift).max() > tolerance
    if (tilt > TILT_TOLERANCE or bent) and not resample:
        raise DataError(
            f"{instances[0].path.parent}: the slices lean by {tilt:.1f} degrees from their normal"
            f"{', not along a line' if bent else ''} (a tilted gantry); expected a straight "
            "stack. To shift them back: mending::resample_uneven=true."
        )
    if tilt > TILT_TOLERANCE or bent:
        array = _upright(array, instances[0], lateral)
        notes.append(f"tilt of {tilt:.1f} degrees resampled")
    if uneven:
        array, along = _respaced(array, along)
        notes.append(f"uneven slices resampled to {along[1] - along[0]:.2f} mm")
    return array, positions[0] + (along - along[0])[:, None] * normal


def _upright(
    array: NDArray[np.float32], first: Instance, lateral: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Shift each slice within its plane back onto the normal of the first slice."""
    from scipy import ndimage

    assert first.orientation is not None
    offsets = lateral @ first.orientation.T / np.asarray(first.spacing or (1.0, 1.0))
    outside = float(array.min())
    moved = [
        ndimage.shift(array[..., k], offset, order=1, mode="constant", cval=outside)
        for k, offset in enumerate(offsets)
    ]
    return np.stack(moved, axis=-1)


def _respaced(
    array: NDArray[np.float32], along: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Interpolate linearly between neighbouring slices, at the smallest spacing there is."""
    count = round((along[-1] - along[0]) / float(np.diff(along).min())) + 1
    even = np.linspace(along[0], along[-1], count)
    upper = np.clip(np.searchsorted(along, even), 1, len(along) - 1)
    share = ((even - along[upper - 1]) / (along[upper] - along[upper - 1])).astype(np.float32)
    return array[..., upper - 1] * (1 - share) + array[..., upper] * share, even
