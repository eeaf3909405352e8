"""NRRD and MetaImage, by SimpleITK."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from medsam_tune.errors import DataError
from medsam_tune.files import written_whole
from medsam_tune.formats.mending import Mending
from medsam_tune.formats.volume import LPS_TO_RAS, Grid, Volume, check_memory, label_dtype

ENDINGS = (".nrrd", ".nhdr", ".mha", ".mhd")
WRITTEN = (".nrrd", ".mha")
"""Endings without .nhdr and .mhd, which are two files and cannot be replaced in one step."""


def read(path: Path, mending: Mending) -> Volume:
    """Read a file.

    Args:
        path: .nrrd, .nhdr, .mha or .mhd file, of two dimensions or more.
        mending: not used; the protocol has it.

    Raises:
        DataError: the file is truncated, damaged or of another kind, or does not fit into memory.
    """
    reader = _header(path)
    check_memory(path, (*reader.GetSize(), reader.GetNumberOfComponents()))
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise _unreadable(path, error) from error
    array = sitk.GetArrayFromImage(image).astype(np.float32)
    if image.GetNumberOfComponentsPerPixel() > 1:
        array = np.moveaxis(array, -1, 0)
    dimension = min(image.GetDimension(), 3)
    if dimension < 3:
        array = array[..., None, :, :]
    axes = (*range(array.ndim - 3), *range(array.ndim - 1, array.ndim - 4, -1))
    return Volume(np.ascontiguousarray(array.transpose(axes)), _affine(image))


def read_grid(path: Path) -> Grid:
    """Size and place by the header; no voxel is read.

    Raises:
        DataError: the header cannot be read.
    """
    header = _header(path)
    size = header.GetSize()
    return Grid((*size, 1) if len(size) == 2 else tuple(size), _affine(header))


def write(path: Path, array: NDArray[np.generic], affine: NDArray[np.float64]) -> None:
    """Write a label map, whole or not at all.

    Args:
        path: .nrrd or .mha file.
        array: (I, J, K) label ids.
        affine: (4, 4) from indices (i, j, k) to RAS+ millimetres.
    """
    ids = array.astype(label_dtype(array))
    image = sitk.GetImageFromArray(np.ascontiguousarray(ids.transpose(2, 1, 0)))
    to_lps = LPS_TO_RAS @ affine
    spacing = np.linalg.norm(to_lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((to_lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(to_lps[:3, 3].tolist())
    with written_whole(path) as beside:
        sitk.WriteImage(image, str(beside), useCompression=True)


def _header(path: Path) -> sitk.ImageFileReader:
    """A reader that knows the file's size and place."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise _unreadable(path, error) from error
    return reader


def _unreadable(path: Path, error: RuntimeError) -> DataError:
    return DataError(
        f"cannot read {path}: {reason_of(error)}. Expected a whole NRRD or MetaImage; copy or "
        "export it again."
    )


def _affine(image: Any) -> NDArray[np.float64]:
    """(4, 4) of an image's or a header's first three axes to RAS+ millimetres."""
    size = image.GetDimension()
    dimension = min(size, 3)
    direction = np.asarray(image.GetDirection()).reshape(size, size)[:dimension, :dimension]
    affine = np.eye(4)
    affine[:dimension, :dimension] = direction * np.asarray(image.GetSpacing())[:dimension]
    affine[:dimension, 3] = image.GetOrigin()[:dimension]
    return np.asarray(LPS_TO_RAS @ affine)


def reason_of(error: BaseException) -> str:
    """The message of an exception of SimpleITK, without the place in its source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return re.sub(r"\w+ ?\(0x[0-9a-f]+\): ", "", lines[-1].split("ERROR: ")[-1]).rstrip(".")
