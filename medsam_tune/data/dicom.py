"""DICOM series become volumes, or are refused with what is wrong with them.

Headers are read by pydicom, pixels by SimpleITK (GDCM), which decodes the compressed syntaxes.
Where each slice lies comes from ImagePositionPatient and ImageOrientationPatient alone: numbers of
instances, SliceThickness and SpacingBetweenSlices are wrong too often. Messages name files and
counts, never the text of a tag, as that may tell who the patient is.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from medsam_tune.data.checks import DataError, check_memory

SPACING_TOLERANCE = 0.1
"""Largest accepted deviation of a slice from even spacing and from a straight line, millimetres
(or a fifth of the spacing, where that is less)."""

TILT_TOLERANCE = 0.1
"""Largest accepted angle between the stack of slices and their normal, degrees."""

ORIENTATION_TOLERANCE = 1e-3
"""Largest accepted difference of two slices' direction cosines, dimensionless."""

AIR = -1024.0
"""What padding in a CT becomes, HU."""

_IMAGE_TAGS = (
    "SOPClassUID",
    "Modality",
    "PatientID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SeriesNumber",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PixelRepresentation",
    "BitsAllocated",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "RescaleSlope",
    "RescaleIntercept",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "SharedFunctionalGroupsSequence",
)
# Objects with pixels that are no scan.
_DERIVED = {"SEG", "RTDOSE", "RTSTRUCT", "PR", "SR", "KO", "REG"}
_SHOWN = 5  # files or series that a message lists before it counts the rest


@dataclass(frozen=True)
class Slice:
    """The header of one file, as far as it says what the pixels are and where.

    Attributes:
        path: of the file.
        size: (columns, rows).
        frames: 1 but in a multi-frame file.
        samples: per pixel, 1 for grey.
        photometric: PhotometricInterpretation.
        position: (3,) centre of the first voxel, LPS millimetres, or None.
        orientation: (2, 3) direction along a row and along a column, or None.
        spacing: (between columns, between rows), millimetres, or None.
        rescale: (slope, intercept), or None where the header has none.
        padding: lowest and highest stored value that stands for no measurement, or None.
    """

    path: Path
    size: tuple[int, int]
    frames: int
    samples: int
    photometric: str
    position: NDArray[np.float64] | None
    orientation: NDArray[np.float64] | None
    spacing: tuple[float, float] | None
    rescale: tuple[float, float] | None
    padding: tuple[float, float] | None


@dataclass(frozen=True)
class Series:
    """The files of one series, in the order in which they were found.

    Attributes:
        uid: SeriesInstanceUID.
        study: hash of StudyInstanceUID.
        patient: hash of PatientID, equal for equal patients, and tells nothing else; empty where
            there is none.
        modality: such as "CT"; empty where the header does not say.
        number: SeriesNumber, or None.
        slices: one for each file.
    """

    uid: str
    study: str
    patient: str
    modality: str
    number: int | None
    slices: tuple[Slice, ...]

    @property
    def files(self) -> list[Path]:
        """Of all slices."""
        return [one.path for one in self.slices]

    def __str__(self) -> str:
        columns, rows = self.slices[0].size
        frames = sum(one.frames for one in self.slices)
        number = "" if self.number is None else f"number {self.number}, "
        what = "image" if frames == 1 else "images"
        return f"{number}{self.modality or '?'}, {columns} x {rows}, {frames} {what}, {self.uid}"


@dataclass(frozen=True)
class Volume:
    """A scan as it came from its files.

    Attributes:
        array: (I, J, K) float32, columns, rows and slices, in the scanner's unit (HU for CT).
        affine: (4, 4) float64 of array indices to nibabel's RAS+ millimetres.
        notes: what was changed on the way, for the report.
    """

    array: NDArray[np.float32]
    affine: NDArray[np.float64]
    notes: tuple[str, ...] = ()


def find_series(place: Path | Sequence[Path]) -> list[Series]:
    """The image series below a folder, by modality, number and UID.

    Args:
        place: a folder, searched with its sub-folders, one file, or files.

    Returns:
        at least one series; segmentations, structure sets and other objects without a scan are
        left out, as is DICOMDIR.

    Raises:
        DataError: nothing there is an image, with what there is instead.
    """
    found: dict[str, list[Any]] = {}
    others: Counter[str] = Counter()
    paths = list(_files(place))
    for path in paths:
        header = _read_header(path)
        if header is None:
            others["not DICOM"] += 1
            continue
        with _understood(path):
            modality = str(header.get("Modality", "without pixels"))
            if modality in _DERIVED or not ("Rows" in header and "Columns" in header):
                others[modality] += 1
            else:
                uid = str(header.get("SeriesInstanceUID", ""))
                found.setdefault(uid, []).append((path, header))
    if not found:
        raise _nothing_there(place, len(paths), others)
    series = [_series(uid, members) for uid, members in found.items()]
    return sorted(series, key=lambda s: (s.modality, s.number or 0, s.uid))


def choose_series(place: Path | Sequence[Path], uid: str | None = None) -> Series:
    """The one series of a folder, or the one that is asked for.

    Args:
        place: see `find_series`.
        uid: SeriesInstanceUID, or its end.

    Raises:
        DataError: several series and no `uid`, or none that ends so.
    """
    series = find_series(place)
    chosen = [one for one in series if one.uid.endswith(uid)] if uid else series
    if len(chosen) == 1:
        return chosen[0]
    listed = "; ".join(map(str, series[:_SHOWN]))
    more = f"; and {len(series) - _SHOWN} more" if len(series) > _SHOWN else ""
    if uid:
        raise DataError(
            f"{_name(place)}: {len(chosen)} series end in {uid!r}; expected one of: {listed}{more}."
        )
    raise DataError(
        f"{_name(place)}: {len(series)} series: {listed}{more}; expected one, as two cannot be one "
        "volume. Choose by series_uid, or give each a folder of its own."
    )


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
    slices = list(series.slices)
    _check_grey(series)
    check_memory(str(slices[0].path), (*slices[0].size, sum(s.frames for s in slices)))
    if len(slices) == 1 and slices[0].frames > 1:
        return _read_multiframe(series)
    _check_alike(series)
    _check_rescale(series)
    order = _order(slices)
    slices = [slices[i] for i in order]
    notes: list[str] = []
    inverted = slices[0].photometric == "MONOCHROME1"
    array = _pixels_as_stored(slices) if inverted else _pixels(slices)
    _set_padding(array, slices, series.modality, notes)
    if inverted and series.modality != "CT":  # HU are what they are, however they are shown
        array = np.asarray(array.max() + array.min() - array, dtype=np.float32)
        notes.append("MONOCHROME1: inverted")
    positions = _positions(slices)
    if positions is None:
        return Volume(array, _flat_affine(slices[0]), tuple(notes))
    array, positions = _even(array, slices, positions, resample_uneven, notes)
    return Volume(array, _affine(slices[0], positions), tuple(notes))


def _files(place: Path | Sequence[Path]) -> Iterator[Path]:
    """All files of a place in a stable order, without DICOMDIR and hidden ones."""
    if not isinstance(place, (str, Path)):
        yield from map(Path, place)
        return
    place = Path(place)
    if not place.exists():
        raise DataError(f"{place}: no such file or folder. Correct the path.")
    if place.is_file():
        yield place
        return
    for path in sorted(place.rglob("*")):
        if path.is_file() and path.name != "DICOMDIR" and not path.name.startswith("."):
            yield path


def _read_header(path: Path) -> Any:
    """A pydicom data set with the tags of `_IMAGE_TAGS`, or None if this is no DICOM file."""
    pydicom = _pydicom()
    options = {"stop_before_pixels": True, "specific_tags": list(_IMAGE_TAGS)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # values that break a rule of their type, with the values
        try:
            return pydicom.dcmread(path, **options)
        except pydicom.errors.InvalidDicomError:
            pass  # without a preamble, perhaps
        except Exception as error:  # pydicom raises what it likes
            raise DataError(
                f"{path}: cannot read its DICOM header ({type(error).__name__}). Copy it again."
            ) from error
        try:
            header = pydicom.dcmread(path, force=True, **options)
            known = "SOPClassUID" in header and ("Rows" in header or "Modality" in header)
            return header if known else None
        except Exception:
            return None  # any bytes may stand in a file that only might be DICOM


@contextmanager
def _understood(path: Path) -> Iterator[None]:
    """pydicom parses a value when it is asked for, and raises what it likes, with the value."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"{path}: its DICOM header holds a value that cannot be read ({type(error).__name__}). "
            "Copy it again, or export the series again."
        ) from None


def _pydicom() -> Any:
    try:
        import pydicom
        import pydicom.errors
    except ImportError as error:
        raise DataError(
            "reading DICOM needs pydicom. Install it: pip install 'medsam_tune[dicom]'"
        ) from error
    return pydicom


def _nothing_there(place: Path | Sequence[Path], count: int, others: Counter[str]) -> DataError:
    listed = ", ".join(f"{n} {kind}" for kind, n in sorted(others.items())) or "none"
    return DataError(
        f"no image DICOM in {_name(place)}: {count} files, {listed}; expected the images of a "
        "series. Give the folder that holds them."
    )


def has_dicom_prefix(path: Path) -> bool:
    """Whether a file begins as DICOM files do; their names have no certain ending."""
    with path.open("rb") as file:
        return file.read(132).endswith(b"DICM")


def _name(place: Path | Sequence[Path]) -> str:
    if isinstance(place, (str, Path)):
        return str(place)
    files = list(place)
    return f"{len(files)} files ({files[0]}, ...)" if files else "no file"


def _series(uid: str, members: Sequence[tuple[Path, Any]]) -> Series:
    path, first = members[0]
    with _understood(path):
        number = first.get("SeriesNumber")
        return Series(
            uid=uid,
            study=_hash(first.get("StudyInstanceUID")),
            patient=_hash(first.get("PatientID")),
            modality=str(first.get("Modality") or ""),
            number=None if number is None else int(number),
            slices=tuple(_slice(path, header) for path, header in members),
        )


def _hash(value: object) -> str:
    return hashlib.sha256(str(value).encode()).hexdigest()[:12] if value else ""


def _slice(path: Path, header: Any) -> Slice:
    with _understood(path):
        return Slice(
            path=path,
            size=(int(header.Columns), int(header.Rows)),
            frames=int(header.get("NumberOfFrames") or 1),
            samples=int(header.get("SamplesPerPixel") or 1),
            photometric=str(header.get("PhotometricInterpretation", "")),
            position=_numbers(header, "ImagePositionPatient", 3, path),
            orientation=_cosines(header, path),
            spacing=_spacing(header, path),
            rescale=_rescale(header),
            padding=_padding(header),
        )


def _numbers(header: Any, tag: str, count: int, path: Path) -> NDArray[np.float64] | None:
    value = header.get(tag)
    if value is None or (hasattr(value, "__len__") and len(value) == 0):
        return None
    try:
        numbers = np.asarray(list(value), dtype=np.float64)
    except (TypeError, ValueError):
        numbers = np.empty(0)
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        raise DataError(f"{path}: {tag} is not {count} finite numbers. Export the series again.")
    return numbers


def _cosines(header: Any, path: Path) -> NDArray[np.float64] | None:
    numbers = _numbers(header, "ImageOrientationPatient", 6, path)
    if numbers is None:
        return None
    rows = numbers.reshape(2, 3)
    if np.abs(rows @ rows.T - np.eye(2)).max() > 1e-2:
        raise DataError(
            f"{path}: ImageOrientationPatient is not two perpendicular unit vectors. Export the "
            "series again."
        )
    return rows


def _spacing(header: Any, path: Path) -> tuple[float, float] | None:
    numbers = _numbers(header, "PixelSpacing", 2, path)
    if numbers is None:
        return None
    between_rows, between_columns = numbers.tolist()
    if min(between_rows, between_columns) <= 0:
        raise DataError(f"{path}: PixelSpacing is not above 0. Export the series again.")
    return between_columns, between_rows


def _rescale(header: Any) -> tuple[float, float] | None:
    slope, intercept = header.get("RescaleSlope"), header.get("RescaleIntercept")
    return None if slope is None or intercept is None else (float(slope), float(intercept))


def _padding(header: Any) -> tuple[float, float] | None:
    """The range of stored values that are padding; the tag's type may say the wrong sign."""
    value = header.get("PixelPaddingValue")
    if value is None:
        return None
    limit = header.get("PixelPaddingRangeLimit")
    ends = [int(value), int(value if limit is None else limit)]
    bits = int(header.get("BitsAllocated") or 16)
    if int(header.get("PixelRepresentation") or 0):
        ends = [end - (1 << bits) if end >= 1 << (bits - 1) else end for end in ends]
    else:
        ends = [end + (1 << bits) if end < 0 else end for end in ends]
    return float(min(ends)), float(max(ends))


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


def _order(slices: Sequence[Slice]) -> list[int]:
    """Indices of the slices along their normal; the order of the files if they have no place."""
    along = [
        float(np.dot(_normal(slices[0]), one.position))
        for one in slices
        if one.position is not None and slices[0].orientation is not None
    ]
    return sorted(range(len(along)), key=along.__getitem__) or list(range(len(slices)))


def _normal(one: Slice) -> NDArray[np.float64]:
    assert one.orientation is not None
    return np.asarray(np.cross(*one.orientation), dtype=np.float64)


def _positions(slices: Sequence[Slice]) -> NDArray[np.float64] | None:
    """(K, 3) of slices in order, or None for one image without a place."""
    if slices[0].position is None or slices[0].orientation is None:
        return None
    positions = np.stack([one.position for one in slices if one.position is not None])
    along = positions @ _normal(slices[0])
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
            pixels = _pydicom().dcmread(one.path, force=True).pixel_array
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
    header = _pydicom().dcmread(path, force=True, specific_tags=[], stop_before_pixels=True)
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
    """Padding becomes air in CT, the lowest measured value elsewhere; in place."""
    padded = np.zeros(array.shape, dtype=bool) if any(s.padding for s in slices) else None
    if padded is not None:
        for k, one in enumerate(slices):
            if one.padding is not None:
                slope, intercept = one.rescale or (1.0, 0.0)
                low, high = sorted(end * slope + intercept for end in one.padding)
                padded[..., k] = (array[..., k] >= low - 1e-3) & (array[..., k] <= high + 1e-3)
        if padded.any() and not padded.all():
            value = AIR if modality == "CT" else float(array[~padded].min())
            array[padded] = value
            notes.append(f"padding set to {value:g} in {padded.mean():.1%} of the voxels")
    if modality == "CT" and array.min() < AIR:
        notes.append(f"{(array < AIR).mean():.1%} of the voxels below {AIR:g} HU set to that")
        np.maximum(array, AIR, out=array)


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
    normal = _normal(slices[0])
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
            "expected even spacing. To interpolate to an even grid: reading::resample_uneven=true."
        )
    lateral = positions - positions[0] - (along - along[0])[:, None] * normal
    drift = lateral[-1] / (along[-1] - along[0])
    tilt = float(np.degrees(np.arctan(np.linalg.norm(drift))))
    bent = np.abs(lateral - (along - along[0])[:, None] * drift).max() > tolerance
    if (tilt > TILT_TOLERANCE or bent) and not resample:
        raise DataError(
            f"{slices[0].path.parent}: the slices lean by {tilt:.1f} degrees from their normal"
            f"{', not along a line' if bent else ''} (a tilted gantry); expected a straight "
            "stack. To shift them back: reading::resample_uneven=true."
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


def _affine(first: Slice, positions: NDArray[np.float64]) -> NDArray[np.float64]:
    """(4, 4) of (column, row, slice) to RAS+ millimetres."""
    assert first.orientation is not None
    across, down = first.spacing or (1.0, 1.0)
    step = _normal(first)
    if len(positions) > 1:
        step = (positions[-1] - positions[0]) / (len(positions) - 1)
    affine = np.eye(4)
    affine[:3, 0] = first.orientation[0] * across
    affine[:3, 1] = first.orientation[1] * down
    affine[:3, 2] = step
    affine[:3, 3] = positions[0]
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def _flat_affine(one: Slice) -> NDArray[np.float64]:
    """Of one image that says nothing of its place."""
    across, down = one.spacing or (1.0, 1.0)
    return np.diag([-across, -down, 1.0, 1.0])


def _read_multiframe(series: Series) -> Volume:
    """An enhanced multi-frame file, by highdicom."""
    path = series.slices[0].path
    try:
        import highdicom
    except ImportError as error:
        raise DataError(
            f"{path}: a multi-frame file needs highdicom. Install it: pip install "
            "'medsam_tune[dicom]'"
        ) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            volume = highdicom.imread(path).get_volume(dtype=np.float32)
    except Exception as error:
        raise DataError(
            f"{path}: its {series.slices[0].frames} frames are no volume "
            f"({type(error).__name__}); expected an enhanced multi-frame scan whose frames lie "
            "evenly on a straight stack. Export it as single images."
        ) from error
    return from_highdicom(volume)


def from_highdicom(volume: Any) -> Volume:
    """highdicom's volume of (slices, rows, columns) in LPS as one of ours."""
    array = np.asarray(volume.array, dtype=np.float32)
    affine = np.asarray(volume.affine, dtype=np.float64)[:, [2, 1, 0, 3]]
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    return Volume(np.array(array.transpose(2, 1, 0), order="F"), affine)
