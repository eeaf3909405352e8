"""Which DICOM series there are, by their headers; pydicom reads them.

Messages name files and counts, never the text of a tag, as that may tell who the patient is.
"""

from __future__ import annotations

import hashlib
import threading
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam_tune.errors import DataError, listed

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""(4, 4) of DICOM's and ITK's millimetres to nibabel's, and back."""

_IMAGE_TAGS = (
    "SOPClassUID",
    "Modality",
    "PatientID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SeriesNumber",
    "FrameOfReferenceUID",
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
)
_QUIET = threading.RLock()
# Objects with pixels that are no scan.
_DERIVED = {"SEG", "RTDOSE", "RTSTRUCT", "PR", "SR", "KO", "REG"}


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
        frame: FrameOfReferenceUID, the coordinate system of its positions; empty where unknown.
    """

    uid: str
    study: str
    patient: str
    modality: str
    number: int | None
    slices: tuple[Slice, ...]
    frame: str = ""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(I, J, K): columns, rows and images."""
        return *self.slices[0].size, sum(one.frames for one in self.slices)

    @property
    def affine(self) -> NDArray[np.float64]:
        """(4, 4) RAS+ millimetres as far as the headers say; gaps and tilt are not looked for."""
        slices = [self.slices[i] for i in in_order(self.slices)]
        positions = [one.position for one in slices if one.position is not None]
        if slices[0].orientation is None or len(positions) < len(slices):
            return flat_affine(slices[0])
        return affine_of(slices[0], np.stack(positions))

    @property
    def files(self) -> list[Path]:
        """Of all slices."""
        return [one.path for one in self.slices]

    def __str__(self) -> str:
        columns, rows, frames = self.shape
        number = "" if self.number is None else f"number {self.number}, "
        what = "image" if frames == 1 else "images"
        uid = self.uid or "without UID"
        return f"{number}{self.modality or '?'}, {columns} x {rows}, {frames} {what}, {uid}"


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
    return find_objects(place)[0]


def find_objects(
    place: Path | Sequence[Path], kinds: Collection[str] = ()
) -> tuple[list[Series], list[Path]]:
    """The image series below a folder, and the files of other kinds.

    Args:
        place: see `find_series`.
        kinds: Modality of the other files that are wanted, e.g. "SEG".

    Returns:
        as `find_series`; and the files of those kinds, by path.

    Raises:
        DataError: nothing there is an image.
    """
    found: dict[str, list[Any]] = {}
    wanted: list[Path] = []
    others: Counter[str] = Counter()
    paths = list(_files(place))
    for path in paths:
        header = read_header(path)
        if header is None:
            others["not DICOM"] += 1
            continue
        with _understood(path):
            kind = str(header.get("Modality") or "")
            if kind in _DERIVED or not ("Rows" in header and "Columns" in header):
                others[kind or "without pixels"] += 1
                if kind in kinds:
                    wanted.append(path)
            else:
                uid = str(header.get("SeriesInstanceUID", ""))
                found.setdefault(uid, []).append((path, header))
    if not found:
        raise _nothing_there(place, len(paths), others)
    series = [_series(uid, members) for uid, members in found.items()]
    return sorted(series, key=lambda s: (s.modality, s.number or 0, s.uid)), wanted


def choose_series(place: Path | Sequence[Path], uid: str | None = None) -> Series:
    """The one series of a folder, or the one that is asked for.

    Args:
        place: see `find_series`.
        uid: SeriesInstanceUID, or its end.

    Raises:
        DataError: several series and no `uid`, or none that ends so.
    """
    series = find_series(place)
    chosen = series
    if uid:
        chosen = [one for one in series if one.uid == uid] or [
            one for one in series if one.uid.endswith(uid)
        ]
    if len(chosen) == 1:
        return chosen[0]
    there = listed(map(str, series), 5, "; ")
    if uid:
        raise DataError(
            f"{_name(place)}: {len(chosen)} series end in {uid!r}; expected one of: {there}."
        )
    raise DataError(
        f"{_name(place)}: {len(series)} series: {there}; expected one, as two cannot be one "
        "volume. Choose by series_uid (predict: --series), or give each a folder of its own."
    )


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


def read_header(path: Path, tags: tuple[str, ...] = _IMAGE_TAGS) -> Any:
    """A pydicom data set with some of its tags, or None if this is no DICOM file.

    What follows the last group of these tags is not read: scanners' own groups are long.

    Raises:
        DataError: a DICOM file whose header is damaged; pydicom is not installed.
    """
    pydicom = import_pydicom()
    wanted = _tags(tags)

    def read(force: bool) -> Any:
        with path.open("rb") as file:
            return pydicom.filereader.read_partial(
                file,
                stop_when=lambda tag, vr, length: tag.group > wanted[-1].group,
                force=force,
                specific_tags=wanted,
            )

    with without_warnings():  # of values that break a rule of their type, with the values
        try:
            return read(force=False)
        except pydicom.errors.InvalidDicomError:
            pass  # without a preamble, perhaps
        except Exception as error:  # pydicom raises what it likes
            raise DataError(
                f"{path}: cannot read its DICOM header ({type(error).__name__}). Copy it again."
            ) from error
        try:
            header = read(force=True)
            known = "SOPClassUID" in header and ("Rows" in header or "Modality" in header)
            return header if known else None
        except Exception:
            return None  # any bytes may stand in a file that only might be DICOM


def object_kind(path: Path) -> str:
    """The Modality of a DICOM file, such as "CT", "SEG" or "RTSTRUCT"; empty for other files."""
    if path.stat().st_size == 0:
        return ""
    try:
        header = read_header(path, ("Modality",))
    except DataError:
        return ""  # the reader of images says what is wrong, or what to install
    return "" if header is None else str(header.get("Modality") or "")


def has_dicom_prefix(path: Path) -> bool:
    """Whether a file begins as DICOM files do; their names have no certain ending."""
    with path.open("rb") as file:
        return file.read(132).endswith(b"DICM")


@contextmanager
def without_warnings() -> Iterator[None]:
    """As `warnings.catch_warnings`, which in two threads at once may not give the warnings back."""
    with _QUIET, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


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


@cache
def _tags(names: tuple[str, ...]) -> list[Any]:
    """In order, with those that tell a DICOM file."""
    tag = import_pydicom().tag.Tag
    return sorted({tag(name) for name in ("SOPClassUID", "Modality", "Rows", *names)})


def import_pydicom() -> Any:
    """The module pydicom.

    Raises:
        DataError: it is not installed.
    """
    try:
        import pydicom
        import pydicom.errors
    except ImportError as error:
        raise DataError(
            "reading DICOM needs pydicom. Install it: pip install 'medsam_tune[dicom]'"
        ) from error
    return pydicom


def import_highdicom(path: Path, what: str) -> Any:
    """The module highdicom.

    Args:
        path: that is to be read, for the message.
        what: this is, e.g. "a DICOM SEG".

    Raises:
        DataError: it is not installed.
    """
    try:
        import highdicom
    except ImportError as error:
        raise DataError(
            f"{path}: {what} needs highdicom. Install it: pip install 'medsam_tune[dicom]'"
        ) from error
    return highdicom


def _nothing_there(place: Path | Sequence[Path], count: int, others: Counter[str]) -> DataError:
    kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(others.items())) or "none"
    return DataError(
        f"no image DICOM in {_name(place)}: {count} files, {kinds}; expected the images of a "
        "series. Give the folder that holds them."
    )


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
            frame=str(first.get("FrameOfReferenceUID") or ""),
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


def in_order(slices: Sequence[Slice]) -> list[int]:
    """Indices of the slices along their normal; the order of the files if they have no place."""
    along = [
        float(np.dot(normal_of(slices[0]), one.position))
        for one in slices
        if one.position is not None and slices[0].orientation is not None
    ]
    return sorted(range(len(along)), key=along.__getitem__) or list(range(len(slices)))


def normal_of(one: Slice) -> NDArray[np.float64]:
    """(3,) unit vector across a slice, LPS."""
    assert one.orientation is not None
    return np.asarray(np.cross(*one.orientation), dtype=np.float64)


def affine_of(first: Slice, positions: NDArray[np.float64]) -> NDArray[np.float64]:
    """(4, 4) of (column, row, slice) to RAS+ millimetres."""
    assert first.orientation is not None
    across, down = first.spacing or (1.0, 1.0)
    step = normal_of(first)
    if len(positions) > 1:
        step = (positions[-1] - positions[0]) / (len(positions) - 1)
    affine = np.eye(4)
    affine[:3, 0] = first.orientation[0] * across
    affine[:3, 1] = first.orientation[1] * down
    affine[:3, 2] = step
    affine[:3, 3] = positions[0]
    return LPS_TO_RAS @ affine


def flat_affine(one: Slice) -> NDArray[np.float64]:
    """Of one image that says nothing of its place."""
    across, down = one.spacing or (1.0, 1.0)
    return np.diag([-across, -down, 1.0, 1.0])
