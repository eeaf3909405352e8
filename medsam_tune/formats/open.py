"""Scans and label maps from files of any format, found by the file's ending."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from monai.data import MetaTensor
from numpy.typing import NDArray

from medsam_tune.errors import DataError
from medsam_tune.formats import itk, nifti
from medsam_tune.formats.dicom import headers
from medsam_tune.formats.dicom.series import choose_series
from medsam_tune.formats.dicom.stack import read_series
from medsam_tune.formats.mending import Mending
from medsam_tune.formats.volume import Grid, Volume, image_from


class Format(Protocol):
    """What the module of a format offers."""

    @property
    def ENDINGS(self) -> tuple[str, ...]:
        """Endings of the files that it reads, in lower case."""

    @property
    def WRITTEN(self) -> tuple[str, ...]:
        """Endings of the files that it writes."""

    def read(self, path: Path, mending: Mending) -> Volume:
        """Read a file."""

    def read_grid(self, path: Path) -> Grid:
        """Size and place by the header; no voxel is read."""

    def write(self, path: Path, array: NDArray[np.generic], affine: NDArray[np.float64]) -> None:
        """Write label ids (I, J, K), whole or not at all; the affine is in RAS+ millimetres."""


FORMATS: tuple[Format, ...] = (nifti, itk)
"""All formats except DICOM, which has no fixed ending: every other file is read as DICOM."""

ENDINGS = tuple(ending for one in FORMATS for ending in one.ENDINGS)
WRITTEN = tuple(ending for one in FORMATS for ending in one.WRITTEN)


def load_image(
    path: Path, mending: Mending | None = None, series_uid: str | None = None
) -> MetaTensor:
    """Read one scan or label map; every failure names the file.

    Texts of the header, which may name the patient, are not kept.

    Args:
        path: file of one of `ENDINGS`, or DICOM: a file, or a folder with one series in it.
        mending: choice of faults to mend; by default all are refused.
        series_uid: SeriesInstanceUID (or its end) where a folder holds several.

    Returns:
        (C, I, J, K) float32 in the file's own axis order (DICOM: columns, rows, slices), affine in
        nibabel's RAS+ millimetres; `meta["notes"]` says what was changed on the way, and for DICOM
        `meta["series_uid"]`, `meta["frame_uid"]` and `meta["modality"]` which series, frame of
        reference and modality it is.

    Raises:
        DataError: the file is missing, empty, truncated, or of another kind; it does not fit into
            memory; a refusal of the format's own `read`, or of `dicom.stack.read_series`.
    """
    mending = mending or Mending()
    if not path.exists():
        raise DataError(f"no such file: {path}. Correct the path in the datalist.")
    if path.is_file() and path.stat().st_size == 0:
        raise DataError(f"the file has zero bytes ({path}). Copy it again.")
    found = _format_of(path)
    if found is not None:
        return image_from(found.read(path, mending))
    return image_from(read_series(choose_series(path, series_uid), mending.resample_uneven))


def read_grid(path: Path, series_uid: str | None = None) -> Grid:
    """Size and place of what `load_image` would read, by the header; no voxel is read.

    Args:
        path: file or folder of the scan.
        series_uid: SeriesInstanceUID (or its end) where a folder holds several.

    Raises:
        DataError: the file cannot be read.
    """
    found = _format_of(path)
    if found is not None:
        return found.read_grid(path)
    series = choose_series(path, series_uid)
    return Grid(series.shape, series.affine)


def write_array(path: Path, array: NDArray[np.generic], affine: NDArray[np.float64]) -> None:
    """Write a label map in the format that the file's ending says, whole or not at all.

    Args:
        path: file of one of `WRITTEN`.
        array: (I, J, K) label ids.
        affine: (4, 4) from indices (i, j, k) to RAS+ millimetres.

    Raises:
        DataError: another ending.
    """
    found = _format_of(path)
    if found is None or not path.name.lower().endswith(found.WRITTEN):
        raise DataError(f"{path}: expected a name that ends in {', '.join(WRITTEN)}.")
    found.write(path, array, affine)


def case_id(path: Path) -> str:
    """A file's name without its ending, or a folder's name."""
    known = (*ENDINGS, *headers.ENDINGS)
    ending = next((e for e in known if path.name.lower().endswith(e)), "")
    return path.name[: len(path.name) - len(ending)]


def dicom_modality(path: Path) -> str:
    """Modality of a DICOM file, such as "CT" or "SEG"; empty for other files and for folders."""
    if not path.is_file() or _format_of(path) is not None:
        return ""
    return headers.object_kind(path)


def files_of(path: Path) -> Sequence[Path]:
    """The files that a scan is made of: itself, or all below a folder of DICOM."""
    return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]


def _format_of(path: Path) -> Format | None:
    name = path.name.lower()
    return next((one for one in FORMATS if name.endswith(one.ENDINGS)), None)
