"""NRRD and MetaImage, by SimpleITK, which is imported where it is used: it takes long."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam_tune.errors import DataError, warn
from medsam_tune.files import written_whole
from medsam_tune.formats.mending import Mending
from medsam_tune.formats.volume import (
    LENGTHS,
    LPS_TO_RAS,
    Grid,
    Volume,
    as_stored,
    check_extent,
    check_guess,
    check_memory,
    exact,
)

ENDINGS = (".nrrd", ".nhdr", ".mha", ".mhd")
WRITTEN = (".nrrd", ".mha")
"""Endings without .nhdr and .mhd, which are two files and cannot be replaced in one step."""

_SPACES = ("right-anterior-superior", "left-anterior-superior", "left-posterior-superior")
_PATIENT = {*_SPACES, "ras", "las", "lps", *(f"{space}-time" for space in _SPACES)}
_NUMBERED = re.compile(r"^[^%]*%\d*d[^%]*$")  # names of numbered files, as C writes them
_DIRECTIONS = ("transformmatrix", "rotation", "orientation")  # MetaImage's names for one thing


def read(path: Path, mending: Mending, ids: bool = False) -> Volume:
    """Read a file; its coordinates become millimetres.

    Args:
        path: .nrrd, .nhdr, .mha or .mhd file, of two dimensions or more.
        mending: `strict` refuses a file without directions.
        ids: keep label ids as they are, instead of float32; see `volume.exact`.

    Raises:
        DataError: the file is truncated, damaged or of another kind, or does not fit into memory.
    """
    import SimpleITK as sitk

    reader = _header(path)
    check_memory(path, (*reader.GetSize(), reader.GetNumberOfComponents()))
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise _unreadable(path, error) from error
    fields = _fields(path)
    unit = _unit_of(path, fields)
    if unit != "mm":
        spacing = " x ".join(f"{LENGTHS[unit] * step:.4g}" for step in image.GetSpacing())
        warn(f"coordinates in {unit} are read as voxels of {spacing} mm ({path}).")
    guess = _lacks(fields, image.GetDimension())
    check_guess(path, guess, mending.strict)
    stored = sitk.GetArrayViewFromImage(image)
    array = exact(stored) if ids else stored.astype(np.float32)
    if image.GetNumberOfComponentsPerPixel() > 1:
        array = np.moveaxis(array, -1, 0)
    dimension = min(image.GetDimension(), 3)
    if dimension < 3:
        array = array[..., None, :, :]
    axes = (*range(array.ndim - 3), *range(array.ndim - 1, array.ndim - 4, -1))
    values = np.ascontiguousarray(array.transpose(axes))
    affine = _affine(image, LENGTHS[unit])
    check_extent(path, image.GetSize(), affine)
    return Volume(values, affine, guess=guess)


def read_grid(path: Path) -> Grid:
    """Size and place by the header; no voxel is read.

    Raises:
        DataError: the header cannot be read.
    """
    header = _header(path)
    size = header.GetSize()
    affine = _affine(header, LENGTHS[_unit_of(path, _fields(path))])
    return Grid((*size, 1) if len(size) == 2 else tuple(size), affine)


def data_files(path: Path) -> list[Path]:
    """The files beside a header (.nhdr, .mhd) that hold its voxels, of those that are there.

    A header names one, or says LIST and names one a line, or gives a pattern and its numbers, such
    as `s%03d.raw 1 40 1`.
    """
    if not path.name.lower().endswith((".nhdr", ".mhd")):
        return []
    fields = _fields(path)
    names = (fields.get(key) for key in ("elementdatafile", "data file", "datafile"))
    named = next((name for name in names if name), "")
    word, *numbers = named.split() or [""]
    if word.upper() == "LIST":
        text = path.read_bytes().decode("utf-8", "replace")
        _, _, after = re.split(
            r"(?im)^((?:element)?data ?file)\s*:?[:=]\s*LIST.*$", text, maxsplit=1
        )
        several = [line.strip() for line in after.splitlines() if line.strip()]
    elif _NUMBERED.search(word) and len(numbers) >= 2 and all(map(str.isdecimal, numbers[:3])):
        low, high, step = (*map(int, numbers[:3]), 1)[:3]
        several = [word % number for number in range(low, high + 1, step or 1)]
    else:
        several = [named]
    return [beside for name in several if name and (beside := path.parent / name).is_file()]


def write(
    path: Path,
    array: NDArray[np.generic],
    affine: NDArray[np.float64],
    codes: tuple[int, int] | None = None,
) -> None:
    """Write label ids or probabilities, whole or not at all.

    Args:
        path: .nrrd or .mha file.
        array: (I, J, K) label ids, or float.
        affine: (4, 4) from indices (i, j, k) to RAS+ millimetres.
        codes: of NIfTI; these formats have no place for them.

    Raises:
        DataError: ids below 0 or above `volume.HIGHEST_ID`.
        OSError: the file cannot be written whole, as on a full disk.
    """
    import SimpleITK as sitk

    stored = as_stored(array)
    image = sitk.GetImageFromArray(np.ascontiguousarray(stored.transpose(2, 1, 0)))
    to_lps = LPS_TO_RAS @ affine
    spacing = np.linalg.norm(to_lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((to_lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(to_lps[:3, 3].tolist())
    with written_whole(path) as beside:
        try:
            sitk.WriteImage(image, itk_name(beside), useCompression=True)
            # ITK says nothing of an NRRD that the disk had no room for.
            written = sitk.GetArrayFromImage(sitk.ReadImage(str(beside)))
        except RuntimeError as error:
            raise OSError(f"{path}: cannot be written: {reason_of(error)}.") from error
        if not np.array_equal(written, stored.transpose(2, 1, 0)):
            raise OSError(f"{path}: cannot be written whole; the disk may be full.")


def _header(path: Path) -> Any:
    """A reader that knows the file's size and place."""
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(itk_name(path))
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


def _fields(path: Path) -> dict[str, str]:
    """Fields of the header, which is text in both formats; names in lower case."""
    fields: dict[str, str] = {}
    with path.open("rb") as file:
        while line := file.readline(1 << 16).decode("utf-8", "replace").strip():
            if found := re.match(r"([^:=]+?)\s*:?[:=]\s*(.*)", line):
                fields[found[1].lower()] = found[2]
            if "elementdatafile" in fields:
                break
    return fields


def _lacks(fields: Mapping[str, str], dimension: int) -> str:
    """What a header lacks to place the scan in the patient; empty where it is complete."""
    if "ndims" in fields:
        there = any(name in fields for name in _DIRECTIONS)
        return "" if there else "TransformMatrix is not set"
    if "space directions" not in fields:
        return "space directions are not set"
    # ITK itself names no space for other than three dimensions.
    named = dimension != 3 or fields.get("space", "").lower() in _PATIENT
    return "" if named else "no space of the patient is named"


def _unit_of(path: Path, fields: Mapping[str, str]) -> str:
    """The unit of the coordinates; ITK does not look at it. It is mm where nothing is said.

    Raises:
        DataError: several units of length.
    """
    said = (fields.get(key, "") for key in ("distanceunits", "space units", "units"))
    words = [word.lower() for text in said for word in re.split(r'["\s]+', text)]
    units = {word for word in words if word in LENGTHS}
    if len(units) > 1:
        raise DataError(
            f"coordinates in {' and '.join(sorted(units))} ({path}); expected one unit of length. "
            "Correct the header."
        )
    return next(iter(units), "mm")


def _affine(image: Any, millimetres: float) -> NDArray[np.float64]:
    """(4, 4) of an image's or a header's first three axes to RAS+ millimetres.

    Args:
        image: image or header of SimpleITK.
        millimetres: length of its unit.
    """
    size = image.GetDimension()
    dimension = min(size, 3)
    direction = np.asarray(image.GetDirection()).reshape(size, size)[:dimension, :dimension]
    affine = np.eye(4)
    affine[:dimension, :dimension] = direction * np.asarray(image.GetSpacing())[:dimension]
    affine[:dimension, 3] = image.GetOrigin()[:dimension]
    return np.asarray(LPS_TO_RAS @ np.diag([*[millimetres] * 3, 1.0]) @ affine)


def itk_name(path: Path) -> str:
    """A path for SimpleITK, which ends the process at a name that is not UTF-8.

    Raises:
        DataError: such a name.
    """
    name = str(path)
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{name.encode(errors='backslashreplace').decode()}: the name is not UTF-8, and ITK "
            "cannot open it. Rename the file or its folder."
        ) from error
    return name


def reason_of(error: BaseException) -> str:
    """The message of an exception of SimpleITK, without the place in its source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return re.sub(r"\w+ ?\(0x[0-9a-f]+\): ", "", lines[-1].split("ERROR: ")[-1]).rstrip(".")
