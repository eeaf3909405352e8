"""DICOM series become volumes, or are refused with what is wrong with them.

Pixels are read by SimpleITK (GDCM), which decodes the compressed syntaxes. Where each slice lies
comes from ImagePositionPatient and ImageOrientationPatient alone: numbers of instances,
SliceThickness and SpacingBetweenSlices are wrong too often. Messages name files and counts, never
the text of a tag, as that may tell who the patient is.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from medsam_tune.errors import DataError
from medsam_tune.formats.dicom.series import (
    LPS_TO_RAS,
    Series,
    Slice,
    affine_of,
    flat_affine,
    import_highdicom,
    import_pydicom,
    in_order,
    normal_of,
    without_warnings,
)
from medsam_tune.formats.volume import check_memory

SPACING_TOLERANCE = 0.1
"""Largest accepted deviation of a slice from even spacing and from a straight line, millimetres
(or a fifth of the spacing, where that is less)."""

TILT_TOLERANCE = 0.1
"""Largest accepted angle between the stack of slices and their normal, degrees."""

ORIENTATION_TOLERANCE = 1e-3
"""Largest accepted difference of two slices' direction cosines, dimensionless."""

AIR = -1024.0
"""What padding in a CT becomes, HU."""


@dataclass(frozen=True)
class Volume:
    """A scan as it came from its files.

    Attributes:
        array: (I, J, K) float32, columns, rows and slices, in the scanner's unit (HU for CT).
        affine: (4, 4) float64 of array indices to nibabel's RAS+ millimetres.
        notes: what was changed on the way, for the report.
        series: SeriesInstanceUID; empty where it is not DICOM.
        frame: FrameOfReferenceUID; empty where unknown.
    """

    array: NDArray[np.float32]
    affine: NDArray[np.float64]
    notes: tuple[str, ...] = ()
    series: str = ""
    frame: str = ""


def read_series(series: Series, resample_uneven: bool = False) -> Volume:
    """The volume of a series.

    Args:
        series: from `find_series`.
        resample_uneven: interpolate slices that are uneven or tilted onto an even grid, instead of
            refusing them. Missing slices are refused always.

    Returns:
        HU for CT; MONOCHROME1 inverted, so that high values are bright; padding as air.

    Raises:
        DataError: see the checks below, each with the file where one is to blame.
    """
    volume = _read_volume(series, resample_uneven)
    return replace(volume, series=series.uid, frame=series.frame)


def _read_volume(series: Series, resample_uneven: bool) -> Volume:
    slices = list(series.slices)
    check_memory(slices[0].path.parent, series.shape)
    _check_grey(series)
    if len(slices) == 1 and slices[0].frames > 1:
        return _read_multiframe(series)
    _check_alike(series)
    _check_rescale(series)
    order = in_order(slices)
    slices = [slices[i] for i in order]
    notes: list[str] = []
    inverted = slices[0].photometric == "MONOCHROME1"
    array = _pixels_as_stored(slices) if inverted else _pixels(slices)
    _set_padding(array, slices, series.modality, notes)
    if inverted:
        array = _bright(array, series.modality, notes)
    positions = _positions(slices)
    if positions is None:
        return Volume(array, flat_affine(slices[0]), tuple(notes))
    array, positions = _even(array, slices, positions, resample_uneven, notes)
    return Volume(array, affine_of(slices[0], positions), tuple(notes))


def _check_grey(series: Series) -> None:
    for one in series.slices:
        if one.samples != 1 or one.photometric.startswith("PALETTE"):
            raise DataError(
                f"{one.path}: is a colour image ({one.photometric}); expected the grey values of "
                f"a {series.modality or 'CT or MR'} scan. Colour images are for the 2-D bundle."
            )


def _check_alike(series: Series) -> None:
    """One size, orientation and spacing; the odd file out is named, e.g. a localizer."""
    kinds = Counter(_kind(one) for one in series.slices)
    if len(kinds) > 1:
        usual, count = kinds.most_common(1)[0]
        odd = next(one for one in series.slices if _kind(one) != usual)
        raise DataError(
            f"{odd.path}: {odd.size[0]} x {odd.size[1]} pixels"
            f"{'' if odd.orientation is None else f' along {odd.orientation.round(3).tolist()}'}, "
            f"but {count} of {len(series.slices)} images of its series are of another size, "
            "orientation or spacing; expected them alike. Take localizers out of the folder."
        )
    for one in series.slices:
        if len(series.slices) > 1 and (one.position is None or one.orientation is None):
            raise DataError(
                f"{one.path}: has no ImagePositionPatient or ImageOrientationPatient, so that its "
                f"place among {len(series.slices)} images is not known. Export the series again "
                "with its geometry."
            )
        if one.frames > 1:
            raise DataError(
                f"{one.path}: has {one.frames} frames and is one of {len(series.slices)} files; "
                "expected one multi-frame file or single images. Give the file itself."
            )


def _kind(one: Slice) -> tuple[object, ...]:
    def rounded(values: Any) -> object:
        if values is None:
            return None
        steps = np.asarray(values, dtype=np.float64) / ORIENTATION_TOLERANCE
        return tuple(np.round(steps / 2).astype(int).ravel().tolist())

    return one.size, rounded(one.orientation), rounded(one.spacing)


def _check_rescale(series: Series) -> None:
    without = [one for one in series.slices if one.rescale is None]
    if without and len(without) < len(series.slices):
        raise DataError(
            f"{without[0].path}: has no RescaleSlope and RescaleIntercept, but "
            f"{len(series.slices) - len(without)} other images of its series have; their values "
            "are not in one unit. Export the series again."
        )
    if without and series.modality == "CT":
        raise DataError(
            f"{without[0].path}: is CT without RescaleSlope and RescaleIntercept, so that its "
            "values are not known to be HU. Export the series again."
        )


def _positions(slices: Sequence[Slice]) -> NDArray[np.float64] | None:
    """(K, 3) of slices in order, or None for one image without a place."""
    if slices[0].position is None or slices[0].orientation is None:
        return None
    positions = np.stack([one.position for one in slices if one.position is not None])
    along = positions @ normal_of(slices[0])
    same = np.diff(along) < 1e-2
    if same.any():
        places = 1 + int((~same).sum())
        raise DataError(
            f"{slices[int(same.argmax())].path}: {len(slices)} images lie at {places} positions; "
            "expected one image at each. Give the times or phases of a scan a folder each."
        )
    return np.asarray(positions, dtype=np.float64)


def _pixels(slices: Sequence[Slice]) -> NDArray[np.float32]:
    """(I, J, K) float32, each slice by its own rescale."""
    reader = sitk.ImageSeriesReader()
    reader.SetOutputPixelType(sitk.sitkFloat32)
    reader.SetFileNames([str(one.path) for one in slices])
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise _undecodable(slices) from error
    array = sitk.GetArrayViewFromImage(image)  # (K, J, I)
    if array.ndim != 3:
        raise DataError(
            f"{slices[0].path}: decodes to {array.ndim} dimensions; expected grey slices."
        )
    return np.array(array.transpose(2, 1, 0), order="F")


def _pixels_as_stored(slices: Sequence[Slice]) -> NDArray[np.float32]:
    """As `_pixels`, by pydicom: GDCM turns MONOCHROME1 over by its bits, or fails at that."""
    planes = []
    for one in slices:
        try:
            pixels = import_pydicom().dcmread(one.path, force=True).pixel_array
        except (ValueError, RuntimeError, AttributeError, NotImplementedError) as error:
            raise DataError(
                f"{one.path}: its pixels cannot be read ({reason_of(error)}). Copy it again, or "
                "install its codec: pip install 'medsam_tune[dicom]'"
            ) from error
        slope, intercept = one.rescale or (1.0, 0.0)
        planes.append(pixels.astype(np.float32).T * np.float32(slope) + np.float32(intercept))
    return np.stack(planes, axis=-1)


def _undecodable(slices: Sequence[Slice]) -> DataError:
    """Which file it is, as the series' own message does not always say."""
    for one in slices:
        try:
            sitk.ReadImage(str(one.path))
        except RuntimeError as error:
            return DataError(
                f"{one.path}: its pixels cannot be read ({_syntax(one.path)}; {reason_of(error)}). "
                "A truncated file: copy it again. A compression that is not known here: convert "
                "it, e.g. with dcmdjpeg or gdcmconv --raw."
            )
    return DataError(f"{slices[0].path}: the series cannot be read as one volume.")


def _syntax(path: Path) -> str:
    """Name of a file's transfer syntax, such as "JPEG 2000 Image Compression"."""
    header = import_pydicom().dcmread(path, force=True, specific_tags=[], stop_before_pixels=True)
    uid = header.file_meta.get("TransferSyntaxUID")
    return "no transfer syntax" if uid is None else str(uid.name)


def reason_of(error: BaseException) -> str:
    """What an exception of SimpleITK says, without where in its source it says so."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return re.sub(r"\w+ ?\(0x[0-9a-f]+\): ", "", lines[-1].split("ERROR: ")[-1]).rstrip(".")


def _set_padding(
    array: NDArray[np.float32], slices: Sequence[Slice], modality: str, notes: list[str]
) -> None:
    """Find padding by each slice's own rescale, see `_fill_padding`; in place."""
    padded = np.zeros(array.shape, dtype=bool) if any(s.padding for s in slices) else None
    if padded is not None:
        for k, one in enumerate(slices):
            if one.padding is not None:
                slope, intercept = one.rescale or (1.0, 0.0)
                low, high = sorted(end * slope + intercept for end in one.padding)
                padded[..., k] = (array[..., k] >= low - 1e-3) & (array[..., k] <= high + 1e-3)
    _fill_padding(array, padded, modality, notes)


def _fill_padding(
    array: NDArray[np.float32],
    padded: NDArray[np.bool_] | None,
    modality: str,
    notes: list[str],
) -> None:
    """Padding becomes air in CT, the lowest measured value elsewhere; in place."""
    if padded is not None and padded.any() and not padded.all():
        value = AIR if modality == "CT" else float(array[~padded].min())
        array[padded] = value
        notes.append(f"padding set to {value:g} in {padded.mean():.1%} of the voxels")
    if modality == "CT" and array.min() < AIR:
        notes.append(f"{(array < AIR).mean():.1%} of the voxels below {AIR:g} HU set to that")
        np.maximum(array, AIR, out=array)


def _bright(array: NDArray[np.float32], modality: str, notes: list[str]) -> NDArray[np.float32]:
    """MONOCHROME1 turned over; HU are what they are, however they are shown."""
    if modality == "CT":
        return array
    notes.append("MONOCHROME1: inverted")
    return np.asarray(array.max() + array.min() - array, dtype=np.float32)


def _even(
    array: NDArray[np.float32],
    slices: Sequence[Slice],
    positions: NDArray[np.float64],
    resample: bool,
    notes: list[str],
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """The slices as an even, straight stack, refused or resampled where they are not."""
    if len(slices) == 1:
        return array, positions
    normal = normal_of(slices[0])
    along = positions @ normal
    steps = np.diff(along)
    usual = float(np.median(steps))
    tolerance = min(SPACING_TOLERANCE, 0.2 * usual)
    whole = np.round(steps / usual)
    gaps = np.abs(steps - usual) > tolerance
    where = int(gaps.argmax())
    between = f"{slices[where].path}, {slices[where + 1].path.name}"
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
            f"{slices[0].path.parent}: the slices lean by {tilt:.1f} degrees from their normal"
            f"{', not along a line' if bent else ''} (a tilted gantry); expected a straight "
            "stack. To shift them back: mending::resample_uneven=true."
        )
    if tilt > TILT_TOLERANCE or bent:
        array = _upright(array, slices[0], lateral)
        notes.append(f"tilt of {tilt:.1f} degrees resampled")
    if uneven:
        array, along = _respaced(array, along)
        notes.append(f"uneven slices resampled to {along[1] - along[0]:.2f} mm")
    return array, positions[0] + (along - along[0])[:, None] * normal


def _upright(
    array: NDArray[np.float32], first: Slice, lateral: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Shift each slice within its plane by where it lies beside the first one's normal."""
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
    """Linear between the neighbouring slices, at the smallest spacing there is."""
    count = round((along[-1] - along[0]) / float(np.diff(along).min())) + 1
    even = np.linspace(along[0], along[-1], count)
    upper = np.clip(np.searchsorted(along, even), 1, len(along) - 1)
    share = ((even - along[upper - 1]) / (along[upper] - along[upper - 1])).astype(np.float32)
    return array[..., upper - 1] * (1 - share) + array[..., upper] * share, even


def _read_multiframe(series: Series) -> Volume:
    """An enhanced multi-frame file, by highdicom; its values as those of single images."""
    one = series.slices[0]
    highdicom = import_highdicom(one.path, "a multi-frame file")
    # Neither scanner-specific units nor how a screen would show them.
    raw = {"apply_real_world_transform": False, "apply_presentation_lut": False}
    rescale = True if series.modality == "CT" else None  # None: where there is one
    try:
        with without_warnings():
            image = highdicom.imread(one.path)
            volume = from_highdicom(
                image.get_volume(dtype=np.float32, apply_modality_transform=rescale, **raw)
            )
            stored = volume.array
            if one.padding is not None:
                plain = image.get_volume(apply_modality_transform=False, **raw)
                stored = from_highdicom(plain).array
    except Exception as error:
        raise DataError(
            f"{one.path}: its {one.frames} frames are no volume "
            f"({type(error).__name__}); expected an enhanced multi-frame scan whose frames lie "
            "evenly on a straight stack. Export it as single images."
        ) from error
    notes: list[str] = []
    low, high = one.padding or (np.inf, np.inf)
    array = volume.array
    _fill_padding(array, (stored >= low) & (stored <= high), series.modality, notes)
    if one.photometric == "MONOCHROME1":
        array = _bright(array, series.modality, notes)
    return Volume(array, volume.affine, tuple(notes))


def from_highdicom(volume: Any) -> Volume:
    """highdicom's volume of (slices, rows, columns) in LPS as one of ours."""
    array = np.asarray(volume.array, dtype=np.float32)
    affine = np.asarray(volume.affine, dtype=np.float64)[:, [2, 1, 0, 3]]
    return Volume(np.array(array.transpose(2, 1, 0), order="F"), LPS_TO_RAS @ affine)
