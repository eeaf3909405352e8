"""Headers of DICOM files, by pydicom.

A file of a DICOM series is an *instance*. Messages name files and counts, never the text of a tag,
as that may tell who the patient is.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam_tune.errors import DataError

ENDINGS = (".dcm", ".ima", ".dicom")
"""Usual endings; DICOM files may have any or none."""

NO_SCANS = {"SEG", "RTDOSE", "RTSTRUCT", "PR", "SR", "KO", "REG"}
"""Modalities of objects that are no scan, although some have pixels."""

_IMAGE_TAGS = (
    "SOPClassUID",
    "SOPInstanceUID",
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

_SIZE = (0x00280010, 0x00280011)  # Rows, Columns

_QUIET = threading.RLock()


class DamagedFileError(DataError):
    """A DICOM file that is cut off or spoilt.

    Attributes:
        series: SeriesInstanceUID, where the header still says; otherwise empty.
    """

    series = ""


@dataclass(frozen=True)
class Instance:
    """Header of one file or frame, as far as it says what the pixels are and where they lie.

    Attributes:
        path: the file.
        size: (columns, rows).
        frames: number of images; 1 except in a multi-frame file.
        samples: number of values of a pixel; 1 for grey.
        photometric: PhotometricInterpretation.
        position: (3,) float64 centre of the first voxel, LPS millimetres, or None.
        orientation: (2, 3) float64 unit directions along a row and along a column, LPS, or None.
        spacing: millimetres between columns and between rows, or None.
        rescale: slope and intercept, or None where the header has none.
        padding: lowest and highest stored value that stands for no measurement, or None.
        frame: number of the frame from 1, for a frame of a multi-frame file; otherwise 0.
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
    frame: int = 0

    @property
    def name(self) -> str:
        """Name of the file, and number of the frame."""
        return self.path.name + (f" (frame {self.frame})" if self.frame else "")

    def __str__(self) -> str:
        return str(self.path.parent / self.name)


def instance_of(path: Path, header: Any) -> Instance:
    """What a header of `read_header` says.

    Raises:
        DataError: a value that cannot be read, or geometry that is none.
    """
    with understood(path):
        return Instance(
            path=path,
            size=(int(header.Columns), int(header.Rows)),
            frames=int(header.get("NumberOfFrames") or 1),
            samples=int(header.get("SamplesPerPixel") or 1),
            photometric=str(header.get("PhotometricInterpretation", "")),
            position=position_in(header, path),
            orientation=orientation_in(header, path),
            spacing=spacing_in(header, path),
            rescale=rescale_in(header),
            padding=_padding(header),
        )


def read_header(path: Path, tags: tuple[str, ...] = _IMAGE_TAGS) -> Any:
    """A pydicom data set with some of its tags, or None if this is no DICOM file.

    What follows the last group of these tags is not read: scanners' own groups are long.

    Raises:
        DamagedFileError: a DICOM file whose header is damaged, or an image that ends in its header.
        DataError: pydicom is not installed.
    """
    pydicom = import_pydicom()
    wanted = _tags(tags)
    further = False

    def beyond(tag: Any, vr: str | None, length: int) -> bool:
        nonlocal further
        further = bool(tag.group > wanted[-1].group)
        return further

    def read(force: bool) -> Any:
        with path.open("rb") as file:
            return pydicom.filereader.read_partial(
                file, stop_when=beyond, force=force, specific_tags=wanted
            )

    with without_warnings():  # pydicom's own warnings quote values, which may name the patient
        try:
            header = read(force=False)
        except pydicom.errors.InvalidDicomError:
            header = None  # without a preamble, perhaps
        except Exception as error:  # pydicom raises what it likes
            raise DamagedFileError(
                f"{path}: cannot read its DICOM header ({type(error).__name__}). Copy it again."
            ) from error
        if header is None:
            try:
                header = read(force=True)
                if "SOPClassUID" not in header or not ("Rows" in header or "Modality" in header):
                    return None
            except Exception:
                return None  # any bytes may stand in a file that only might be DICOM
        _refuse_cut_off(path, header, wanted, further)
    return header


def _refuse_cut_off(path: Path, header: Any, wanted: list[Any], further: bool) -> None:
    """Refuse an image that lacks its size, or whose reading met the end of the file.

    What is no image may have no pixels, and end anywhere.

    Args:
        path: the file.
        header: what was read of it.
        wanted: tags that were looked for.
        further: whether something follows them, as pixels do in every image.
    """
    with understood(path):
        modality = str(header.get("Modality") or "")
        image = "Rows" in header or is_of_images(header)
        if image and further and all(tag in header for tag in wanted if tag in _SIZE):
            return
        # A class that is cut off has no name, and no Modality follows it.
        told = modality or _classes(header)
        if told and (modality in NO_SCANS or not image):
            return
        series = str(header.get("SeriesInstanceUID") or "")
    error = DamagedFileError(
        f"{path}: its DICOM header is cut off or damaged ({path.stat().st_size} bytes; what an "
        "image needs is not in it). Copy it again, or export the series again."
    )
    error.series = series
    raise error


def is_of_images(header: Any) -> bool:
    """Whether a header's SOPClassUID, or that before the data set, is of images."""
    return any("Image Storage" in name for name in _classes(header))


def _classes(header: Any) -> list[str]:
    """Names of the SOP class as the data set has it, and as what is before it has; if known."""
    said = (header.get("SOPClassUID"), header.file_meta.get("MediaStorageSOPClassUID"))
    uids = [import_pydicom().uid.UID(str(uid)) for uid in said if uid]
    return [str(uid.name) for uid in uids if uid.name != uid]


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
    """Silence warnings, one thread at a time: `catch_warnings` alone is not thread-safe."""
    with _QUIET, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def understood(path: Path) -> Iterator[None]:
    """Refuse a value that pydicom cannot parse, without the value, which pydicom's error holds."""
    try:
        with without_warnings():
            yield
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"{path}: its DICOM header holds a value that cannot be read ({type(error).__name__}). "
            "Copy it again, or export the series again."
        ) from None


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
        path: file that needs it, for the message.
        what: kind of the file, e.g. "a DICOM SEG".

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


@cache
def _tags(names: tuple[str, ...]) -> list[Any]:
    """Tags in order, with those that tell a DICOM file."""
    tag = import_pydicom().tag.Tag
    return sorted({tag(name) for name in ("SOPClassUID", "Modality", "Rows", *names)})


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


def position_in(header: Any, path: Path) -> NDArray[np.float64] | None:
    """ImagePositionPatient of a data set: (3,) float64 LPS millimetres, or None.

    Raises:
        DataError: it is not three finite numbers.
    """
    return _numbers(header, "ImagePositionPatient", 3, path)


def orientation_in(header: Any, path: Path) -> NDArray[np.float64] | None:
    """ImageOrientationPatient of a data set: (2, 3) float64 directions, LPS, or None.

    Raises:
        DataError: it is not two perpendicular unit vectors.
    """
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


def spacing_in(header: Any, path: Path) -> tuple[float, float] | None:
    """PixelSpacing of a data set: millimetres between columns and between rows, or None.

    Raises:
        DataError: it is not two numbers above 0.
    """
    numbers = _numbers(header, "PixelSpacing", 2, path)
    if numbers is None:
        return None
    between_rows, between_columns = numbers.tolist()
    if min(between_rows, between_columns) <= 0:
        raise DataError(f"{path}: PixelSpacing is not above 0. Export the series again.")
    return between_columns, between_rows


def rescale_in(header: Any) -> tuple[float, float] | None:
    """RescaleSlope and RescaleIntercept of a data set, or None."""
    slope, intercept = header.get("RescaleSlope"), header.get("RescaleIntercept")
    return None if slope is None or intercept is None else (float(slope), float(intercept))


def _padding(header: Any) -> tuple[float, float] | None:
    """Range of stored values that are padding; the tag's type may have the wrong sign."""
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
