"""A DICOM series becomes a volume, or is refused with what is wrong with it.

Where each slice lies comes from ImagePositionPatient and ImageOrientationPatient alone: numbers of
instances, SliceThickness and SpacingBetweenSlices are wrong too often. Messages name files and
counts, never the text of a tag, as that may tell who the patient is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from medsam_tune.errors import DataError
from medsam_tune.formats.dicom.geometry import (
    SAME_POSITION,
    affine_of,
    alike,
    flat_affine,
    in_order,
    normal_of,
    pixel_of,
)
from medsam_tune.formats.dicom.headers import Instance
from medsam_tune.formats.dicom.multiframe import frames_of, read_frames
from medsam_tune.formats.dicom.pixels import check_grey, check_rescale, read_pixels
from medsam_tune.formats.dicom.series import Series
from medsam_tune.formats.volume import Grid, Volume, check_memory

SPACING_TOLERANCE = 0.1
"""Largest accepted deviation of a slice from even spacing and from a straight line, millimetres
(or a fifth of the spacing, where that is less)."""

TILT_TOLERANCE = 0.1
"""Largest accepted angle between the stack of slices and their normal, degrees."""

PROJECTIONS = {"CR", "DX", "RG", "RF", "XA", "MG", "PX", "IO", "XR", "US"}
"""Modalities whose images need no millimetres: radiographs, which project what lies at several
distances, and ultrasound. All others are refused without PixelSpacing."""


def read_series(series: Series, resample_uneven: bool = False) -> Volume:
    """Read the volume of a series.

    Args:
        series: one series from `find_objects`.
        resample_uneven: interpolate slices that are uneven or tilted onto an even grid, instead of
            refusing them. Missing slices are refused always.

    Returns:
        The volume: HU for CT, padding as air, MONOCHROME1 inverted so that high values are bright.

    Raises:
        DataError: a fault of the checks below; the message names the file, where it is one.
    """
    instances = _instances(series)
    known = instances[0].spacing is not None
    notes = [f"{series.copies} copies of images left out"] if series.copies else []
    if not known:
        notes.append("spacing unknown: a pixel stands for 1 x 1 mm")
    check_rescale(instances, series.modality)
    read = read_frames if instances[0].frame else read_pixels
    array = read(instances, series.modality, notes)
    positions = _positions(instances)
    if positions is None:
        affine = flat_affine(instances[0])
    else:
        array, positions = _even(array, instances, positions, resample_uneven, notes)
        affine = affine_of(instances[0], positions)
    return Volume(
        array,
        affine,
        tuple(notes),
        series=series.uid,
        frame=series.frame,
        modality=series.modality,
        spacing_known=known,
    )


def frames_as_they_are(series: Series) -> list[Instance]:
    """The images of a series, or the frames of its one file, in the order of the volume's slices.

    Raises:
        DataError: as in `read_series`, which resamples nothing; no pixel is read.
    """
    instances = _instances(series)
    positions = _positions(instances)
    if positions is not None:
        nothing = np.empty((1, 1, len(instances)), np.float32)
        _even(nothing, instances, positions, False, [])
    return instances


def read_series_grid(series: Series) -> Grid:
    """Size and place of a series by its headers; gaps and tilt are not looked for.

    Raises:
        DataError: as in `read_series`, as far as the headers show it.
    """
    instances = _instances(series)
    positions = [one.position for one in instances if one.position is not None]
    if instances[0].orientation is None or not positions:
        return Grid(series.shape, flat_affine(instances[0]), modality=series.modality)
    affine = affine_of(instances[0], np.stack(positions))
    return Grid(series.shape, affine, modality=series.modality)


def _instances(series: Series) -> list[Instance]:
    """The images of a series, or the frames of its one file, in their order in space.

    Raises:
        DataError: images that are damaged, too large, coloured, or not alike.
    """
    if series.fault:
        raise DataError(series.fault)
    first = series.instances[0]
    check_memory(first.path.parent, series.shape)
    check_grey(series)
    instances = list(series.instances)
    if len(instances) == 1 and (first.frames > 1 or first.spacing is None):
        frames = frames_of(first)  # an enhanced file has its geometry there, even of one frame
        if first.frames > 1 or frames[0].spacing is not None:
            instances = frames
    _check_alike(instances)
    _check_places(instances, series.modality)
    return [instances[i] for i in in_order(instances)]


def _check_alike(instances: Sequence[Instance]) -> None:
    """Refuse images of several sizes, orientations or spacings, e.g. a localizer among them."""
    same, usual = alike(instances)
    if not all(same):
        odd = instances[same.index(False)]
        raise DataError(
            f"{odd}: {odd.size[0]} x {odd.size[1]} pixels"
            f"{'' if odd.orientation is None else f' along {odd.orientation.round(3).tolist()}'}, "
            f"but {sum(same)} of {len(same)} images of its series are of another size, "
            "orientation or spacing; expected them alike. Take localizers out of the folder."
        )
    for one in instances:
        if one.photometric != instances[usual].photometric:
            raise DataError(
                f"{one}: its PhotometricInterpretation is another than that of "
                f"{instances[usual].name}; expected one in a series. Export the series again."
            )


def _check_places(instances: Sequence[Instance], modality: str) -> None:
    """Refuse images whose place or size in millimetres is not known but needed."""
    for one in instances:
        if one.spacing is None and modality not in PROJECTIONS:
            raise DataError(
                f"{one}: has no PixelSpacing, so that the size of its pixels in millimetres is not "
                "known. Export the series again with its geometry."
            )
        if len(instances) > 1 and (one.position is None or one.orientation is None):
            raise DataError(
                f"{one}: has no ImagePositionPatient or ImageOrientationPatient, so that its "
                f"place among {len(instances)} images is not known. Export the series again "
                "with its geometry."
            )
        if one.frames > 1:
            raise DataError(
                f"{one}: has {one.frames} frames and is one of {len(instances)} files; "
                "expected one multi-frame file or single images. Give the file itself."
            )


def _positions(instances: Sequence[Instance]) -> NDArray[np.float64] | None:
    """(K, 3) LPS millimetres of instances in order, or None for one image without a place."""
    if instances[0].position is None or instances[0].orientation is None:
        return None
    positions = np.stack([one.position for one in instances if one.position is not None])
    along = positions @ normal_of(instances[0])
    same = np.diff(along) < SAME_POSITION
    if same.any():
        places = 1 + int((~same).sum())
        raise DataError(
            f"{instances[int(same.argmax())]}: {len(instances)} images lie at {places} "
            "positions; expected one image at each. Export each time or phase of a scan into a "
            "folder of its own."
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
    between = f"{instances[where]}, {instances[where + 1].name}"
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
    offsets = lateral @ first.orientation.T / np.asarray(pixel_of(first))
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
