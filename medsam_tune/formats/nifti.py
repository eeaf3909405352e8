"""NIfTI, by nibabel."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from medsam_tune.errors import DataError, warn
from medsam_tune.files import written_whole
from medsam_tune.formats.mending import Mending
from medsam_tune.formats.volume import (
    LENGTHS,
    POSITION_TOLERANCE,
    Grid,
    Volume,
    as_stored,
    check_extent,
    check_guess,
    check_memory,
    check_not_empty,
    exact,
    same_affine,
    show_affine,
)

ENDINGS = (".nii", ".nii.gz")
WRITTEN = ENDINGS

UNIT_TOLERANCE = 0.01
"""Two spacings are the same length in two units if they differ by less than this share."""

_DEFLATE = 1032  # bytes that one byte of gzip holds at most (zlib's technical notes)
_UNITS = {1: "meter", 2: "mm", 3: "micron"}  # of xyzt_units; others, as 0, are read as millimetres


def read(path: Path, mending: Mending, ids: bool = False) -> Volume:
    """Read a file; its coordinates become millimetres.

    Args:
        path: .nii or .nii.gz file.
        mending: `strict` refuses a file without qform and sform.
        ids: keep label ids as they are, instead of float32; see `volume.exact`.

    Raises:
        DataError: the file is truncated, damaged or of another kind; its qform and sform differ;
            it is in another unit than it says; its values are no real numbers; it does not fit into
            memory.
    """
    with _reading(path):
        file = _opened(path)
        check_not_empty(path, file.shape)
        check_memory(path, file.shape)
        _check_size(path, file)
        _check_values(path, file)
        place = _place_of(path, file)
        # Not by MONAI's reader: where the sform's spacing is not pixdim's to the last digit, it
        # takes the qform, even one that says nothing.
        if ids:
            _refuse_scaled(path, file)
        stored = np.asanyarray(file.dataobj)
        values = exact(stored) if ids else stored.astype(np.float32)
    for text in place.said:
        warn(f"{text} ({path}).")
    guess = "" if any(place.codes) else "neither qform nor sform is set"
    check_guess(path, guess, mending.strict)
    if values.ndim > 4:
        values = values.reshape(*values.shape[:3], -1)
    if values.ndim == 4:
        values = values[..., 0] if values.shape[3] == 1 else np.moveaxis(values, 3, 0)
    return Volume(values, place.affine, guess=guess, codes=place.codes)


def read_grid(path: Path) -> Grid:
    """Size and place by the header; no voxel is read.

    Raises:
        DataError: the header cannot be read.
    """
    with _reading(path):
        file = _opened(path)
        return Grid(file.shape, _place_of(path, file).affine)


def write(
    path: Path,
    array: NDArray[np.generic],
    affine: NDArray[np.float64],
    codes: tuple[int, int] | None = None,
) -> None:
    """Write label ids or probabilities in millimetres, whole or not at all.

    Args:
        path: .nii or .nii.gz file.
        array: (I, J, K) label ids, or float.
        affine: (4, 4) from indices (i, j, k) to RAS+ millimetres.
        codes: qform_code and sform_code of the scan, if it is NIfTI. Where both are 0, viewers
            guess one place for scan and mask; the affine then gives the spacing only.

    Raises:
        DataError: ids below 0 or above `volume.HIGHEST_ID`.
    """
    stored = as_stored(array)
    if codes is None:
        image = nib.Nifti1Image(stored, affine)
    elif any(codes):
        image = nib.Nifti1Image(stored, affine)
        image.set_qform(affine if codes[0] else None, codes[0])
        image.set_sform(affine if codes[1] else None, codes[1])
    else:
        image = nib.Nifti1Image(stored, None)
        image.header.set_zooms(np.linalg.norm(affine[:3, :3], axis=0))
    image.header.set_xyzt_units("mm")
    with written_whole(path) as beside:
        nib.save(image, beside)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (EOFError, zlib.error) as error:
        raise DataError(
            f"truncated or damaged gzip ({path}); {error}. Copy the file again."
        ) from error
    except DataError:
        raise
    except (ImageFileError, HeaderDataError, OSError, OverflowError, ValueError) as error:
        raise DataError(
            f"cannot read {path}: {_first_line(error)}. Expected a whole "
            "NIfTI file; copy or export it again."
        ) from error


def _opened(path: Path) -> nib.Nifti1Image:
    """The file, its voxels not read."""
    file = nib.loadsave.load(path)
    if not isinstance(file, nib.Nifti1Image):
        raise ImageFileError(f"it is {type(file).__name__}")
    return file


def _check_size(path: Path, file: nib.Nifti1Image) -> None:
    """Refuse a file that cannot hold its voxels, before memory is taken for them."""
    stored: Any = file.dataobj  # nibabel keeps the offset here only
    needed = stored.offset + math.prod(file.shape) * stored.dtype.itemsize
    size = path.stat().st_size
    if needed > size * (_DEFLATE if path.name.lower().endswith(".gz") else 1):
        raise ImageFileError(f"Expected {needed} bytes, got {size} bytes")


def _check_values(path: Path, file: nib.Nifti1Image) -> None:
    if file.get_data_dtype().kind not in "biuf":
        raise DataError(
            f"its values are colours or complex numbers ({path}); expected a real "
            "number for each voxel. Export it again."
        )


def _refuse_scaled(path: Path, file: nib.Nifti1Image) -> None:
    """Refuse a label map whose header makes other ids of the stored ones."""
    stored: Any = file.dataobj  # nibabel keeps the scaling here only
    if (stored.slope, stored.inter) != (1, 0):
        raise DataError(
            f"its header scales the stored ids by {stored.slope:g} and adds {stored.inter:g} "
            f"({path}); expected label ids as they are (scl_slope 1, scl_inter 0). Save the label "
            "map again."
        )


@dataclass(frozen=True)
class _Place:
    """Where a file lies.

    Attributes:
        affine: (4, 4) float64 to RAS+ millimetres.
        codes: qform_code and sform_code.
        said: what a user should know of it.
    """

    affine: NDArray[np.float64]
    codes: tuple[int, int]
    said: tuple[str, ...]


def _place_of(path: Path, file: nib.Nifti1Image) -> _Place:
    """The sform, the qform, or nibabel's guess, in millimetres.

    Raises:
        DataError: qform and sform differ; a side above `LARGEST_EXTENT`; not finite.
    """
    header = file.header
    with np.errstate(all="ignore"):
        qform, sform = (header.get_qform(coded=True), header.get_sform(coded=True))
    codes = (int(qform[1]), int(sform[1]))
    unit = _UNITS.get(int(header["xyzt_units"]) & 7, "mm")
    scale = np.full(2, LENGTHS[unit])  # of pixdim and qform, and of the sform
    said: list[str] = []
    if codes[1]:
        scale, said = _scales(path, header, sform[0], unit)
    placed = [
        None if form is None else np.diag([mm, mm, mm, 1.0]) @ form
        for form, mm in zip((qform[0], sform[0]), scale, strict=True)
    ]
    if placed[0] is not None and placed[1] is not None and not same_affine(placed[0], placed[1]):
        raise DataError(
            f"qform {show_affine(placed[0])} and sform {show_affine(placed[1])} differ "
            f"({path}); which of them places the scan is not known. Remove the wrong one and save "
            "the file."
        )
    affine = next((form for form in reversed(placed) if form is not None), None)
    if affine is None:
        affine = np.diag([scale[0], scale[0], scale[0], 1.0]) @ header.get_base_affine()
    if not np.isfinite(affine).all():
        raise DataError(
            f"the affine {show_affine(affine)} is singular or not finite ({path}); it must place "
            "each voxel in the world. Export the scan again from its source."
        )
    if not any(codes):
        _refuse_no_spacing(path, file)
    check_extent(path, file.shape, affine)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if unit != "mm":
        said.append(f"coordinates in {unit} are read as voxels of {_show(spacing)} mm")
    return _Place(np.asarray(affine, dtype=np.float64), codes, tuple(said))


def _refuse_no_spacing(path: Path, file: nib.Nifti1Image) -> None:
    """Refuse a spacing of 0, of which nibabel makes 1 as it reads."""
    with nib.openers.Opener(str(path)) as opened:
        pixdim = type(file.header).from_fileobj(opened, check=False)["pixdim"][1:4]
    if (pixdim[: len(file.shape)] <= 0).any():
        raise DataError(
            f"neither qform, sform nor spacing is set: pixdim {_show(pixdim)} ({path}); expected "
            "the size of a voxel. Export the scan again from its source."
        )


def _scales(
    path: Path, header: nib.Nifti1Header, sform: NDArray[np.float64], unit: str
) -> tuple[NDArray[np.float64], list[str]]:
    """Millimetres of a unit of pixdim (and the qform), and of the sform; what is to be said of it.

    Both are in the header's unit. Where they disagree by just that unit, one of them is in
    millimetres already.

    Raises:
        DataError: they disagree by a unit of which the header says nothing.
    """
    spacing = np.linalg.norm(sform[:3, :3], axis=0)
    pixdim = np.asarray(header.get_zooms()[:3], dtype=np.float64)
    mm = LENGTHS[unit]
    if len(pixdim) < 3 or np.abs(spacing - pixdim).max() * mm <= POSITION_TOLERANCE:
        return np.array([mm, mm]), []
    both = f"pixdim {_show(pixdim)} is not the sform's spacing {_show(spacing)}"
    if _alike(spacing, pixdim * mm):
        return np.array([mm, 1.0]), [f"{both}; the sform is in millimetres, not in {unit}"]
    if _alike(spacing * mm, pixdim):
        return np.array([1.0, mm]), [f"{both}; pixdim is in millimetres, not in {unit}"]
    if any(_alike(spacing, pixdim * ratio) for ratio in (1e-6, 1e-3, 1e3, 1e6)):
        raise DataError(
            f"{both} ({path}), but is it in another unit; which is in {unit} is not known. Correct "
            "the wrong one."
        )
    return np.array([mm, mm]), [f"{both}; the sform is used"]


def _alike(first: NDArray[np.float64], second: NDArray[np.float64]) -> bool:
    return bool((np.abs(first - second) < UNIT_TOLERANCE * np.abs(second)).all())


def _show(lengths: NDArray[np.float64]) -> str:
    return " x ".join(f"{length:.4g}" for length in lengths)


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
