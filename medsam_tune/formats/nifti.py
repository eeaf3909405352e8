"""NIfTI, by nibabel."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from medsam_tune.errors import DataError, warn
from medsam_tune.files import written_whole
from medsam_tune.formats.mending import Mending
from medsam_tune.formats.volume import (
    POSITION_TOLERANCE,
    Grid,
    Volume,
    check_memory,
    check_not_empty,
    label_dtype,
    same_affine,
    show_affine,
)

ENDINGS = (".nii", ".nii.gz")
WRITTEN = ENDINGS


def read(path: Path, mending: Mending) -> Volume:
    """Read a file.

    Args:
        path: .nii or .nii.gz file.
        mending: `strict` refuses a file without qform and sform.

    Raises:
        DataError: the file is truncated, damaged or of another kind; its qform and sform differ;
            its values are no real numbers; it does not fit into memory.
    """
    with _reading(path):
        file = _opened(path)
        check_not_empty(path, file.shape)
        check_memory(path, file.shape)
        _check_header(path, file, mending.strict)
        # Not by MONAI's reader: where the sform's spacing is not pixdim's to the last digit, it
        # takes the qform, even one that says nothing.
        values = np.asanyarray(file.dataobj).astype(np.float32)
    if values.ndim > 4:
        values = values.reshape(*values.shape[:3], -1)
    if values.ndim == 4:
        values = values[..., 0] if values.shape[3] == 1 else np.moveaxis(values, 3, 0)
    return Volume(values, np.asarray(file.affine, dtype=np.float64))


def read_grid(path: Path) -> Grid:
    """Size and place by the header; no voxel is read.

    Raises:
        DataError: the header cannot be read.
    """
    with _reading(path):
        file = _opened(path)
    return Grid(file.shape, np.asarray(file.affine, dtype=np.float64))


def write(path: Path, array: NDArray[np.generic], affine: NDArray[np.float64]) -> None:
    """Write a label map, whole or not at all.

    Args:
        path: .nii or .nii.gz file.
        array: (I, J, K) label ids.
        affine: (4, 4) from indices (i, j, k) to RAS+ millimetres.
    """
    image = nib.Nifti1Image(array.astype(label_dtype(array)), affine)
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


def _check_header(path: Path, file: nib.Nifti1Image, strict: bool) -> None:
    """Refuse values that are no numbers, and an affine that the file contradicts."""
    if file.get_data_dtype().kind not in "biuf":
        raise DataError(
            f"its values are colours or complex numbers ({path}); expected a real "
            "number for each voxel. Export it again."
        )
    header = file.header
    qform, sform = header.get_qform(coded=True)[0], header.get_sform(coded=True)[0]
    if qform is None and sform is None:
        found = f"neither qform nor sform is set ({path}); the orientation is a guess"
        if strict:
            raise DataError(f"{found}. Export the scan again from its source.")
        warn(f"{found}.")
    elif qform is not None and sform is not None and not same_affine(qform, sform):
        raise DataError(
            f"qform {show_affine(qform)} and sform {show_affine(sform)} differ "
            f"({path}); which of them places the scan is not known. Remove the wrong one and save "
            "the file."
        )
    elif sform is not None:
        spacing, pixdim = np.linalg.norm(sform[:3, :3], axis=0), header.get_zooms()[:3]
        if len(pixdim) == 3 and np.abs(spacing - pixdim).max() > POSITION_TOLERANCE:
            warn(
                f"pixdim {np.round(pixdim, 4).tolist()} is not the sform's spacing "
                f"{spacing.round(4).tolist()} ({path}); the sform is used."
            )


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
