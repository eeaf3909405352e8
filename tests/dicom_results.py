"""Scans to draw on, masks, and the programs of others that look at a DICOM result."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import Dataset

from medsam_tune.formats.dicom.codes import structures
from medsam_tune.formats.dicom.sources import Algorithm
from medsam_tune.formats.volume import LPS_TO_RAS
from tests.bad_inputs.dicom import enhanced
from tests.conftest import REAL_DATA
from tests.dicom_series import stored, write_series

LABELS = {1: "liver", 5: "kidney_left", 7: "spleen"}  # the last has no voxel
NUMBERS = {1: 1, 5: 2, 7: 3}  # of binary segments
DRAWN_BY = Algorithm("medsam_tune", "0.1.0", {"tuned_sha256": "a" * 64}, "a" * 64)
SEEN = structures(LABELS)


def _turned(
    right: list[float], down: list[float], step: float = 2.5
) -> Callable[[int, Dataset], None]:
    """A change of `write_series`: slices along these directions."""

    def change(k: int, image: Dataset) -> None:
        place = np.array([5.5, -7.25, 9]) + np.cross(right, down) * step * k
        image.ImageOrientationPatient = [f"{value:.10f}" for value in (*right, *down)]
        image.ImagePositionPatient = [f"{value:.6f}" for value in place]

    return change


def _thick(k: int, image: Dataset) -> None:
    _turned([1, 0, 0], [0, 1, 0], 8.0)(k, image)
    image.PixelSpacing = [0.31, 0.47]


def _square(k: int, image: Dataset) -> None:
    """rt-utils mistakes columns for rows, which shows where pixels or slices are not square."""
    image.PixelSpacing = [0.8, 0.8]
    image.Columns = image.Rows
    image.PixelData = np.ascontiguousarray(stored()[k][:, : image.Rows]).tobytes()


C, S = np.cos(0.4), np.sin(0.4)
CHANGES: dict[str, Callable[[int, Dataset], None] | None] = {
    "straight": None,
    "flipped": _turned([-1, 0, 0], [0, 1, 0]),
    "coronal": _turned([1, 0, 0], [0, 0, -1]),
    "oblique": _turned([C, S * S, S * C], [0, C, -S]),
    "thick": _thick,
    "square": _square,
}
SCANS = (*CHANGES, "enhanced")


def scan(kind: str, folder: Path) -> Path:
    """A series of a kind of `SCANS`, or the real one ("real")."""
    if kind == "real":
        real = REAL_DATA / "dcmqi_ct3slice" / "ct-3slice"
        if not real.is_dir():
            pytest.skip(f"real scans are not here: {real.name} beside the repository")
        return real
    if kind == "enhanced":
        folder.mkdir(exist_ok=True)
        return _backwards(enhanced(folder).image)
    return write_series(folder / "series", CHANGES[kind])


def _backwards(path: Path) -> Path:
    """A multi-frame file whose frames run the other way than the slices of its volume."""
    image = pydicom.dcmread(path)
    image.PixelData = np.ascontiguousarray(image.pixel_array[::-1]).tobytes()
    frames = list(image.PerFrameFunctionalGroupsSequence)
    image.PerFrameFunctionalGroupsSequence = frames[::-1]
    image.save_as(path)
    return path


def drawn(shape: tuple[int, ...]) -> np.ndarray:
    """(I, J, K) ids with holes, an island, pixels that touch at corners, and voxels at the ends."""
    ids = np.zeros(shape, np.int16)
    middle = ids[..., 1:] if shape[2] == 3 else ids[..., 2:6]
    middle[1:10, 1:10] = 1
    middle[2:8, 2:8] = 0
    middle[4:6, 4:6] = 5
    middle[3, 3], middle[6, 6] = 1, 1
    middle[8, 8, 0] = 0
    ids[-1, -1, 0], ids[0, 0, -1], ids[-2, -2, 0] = 5, 1, 5
    return ids


def numbered(ids: np.ndarray) -> np.ndarray:
    """Ids as numbers of binary segments."""
    found = np.zeros_like(ids)
    for label, number in NUMBERS.items():
        found[ids == label] = number
    return found


def onto(
    array: np.ndarray, affine: np.ndarray, shape: tuple[int, ...], ras: np.ndarray
) -> np.ndarray:
    """An (A, B, C) array of an affine to LPS, on a grid of a shape and an affine to RAS."""
    found = np.zeros(shape, np.int64)
    index = np.argwhere(array)
    world = index @ affine[:3, :3].T + affine[:3, 3]
    inverse = np.linalg.inv(LPS_TO_RAS @ ras)
    place = world @ inverse[:3, :3].T + inverse[:3, 3]
    assert np.abs(place - np.round(place)).max(initial=0) < 1e-2
    found[tuple(np.round(place).astype(int).T)] = array[tuple(index.T)]
    return found


def tool(name: str, *words: object) -> str:
    """What a program of the development environment prints."""
    program = Path(sys.executable).parent / name
    if not program.exists():
        pytest.skip(f"{name} is not installed: pip install 'medsam_tune[dev]'")
    done = subprocess.run([program, *map(str, words)], capture_output=True, check=False)
    return (done.stdout + done.stderr).decode(errors="replace")


def errors(name: str, *files: Path) -> list[str]:
    """Errors that dciodvfy or dcentvfy finds in files."""
    printed = tool(name, *files)
    assert printed or name == "dcentvfy"
    return [line for line in printed.splitlines() if line.startswith(("Error", "Abort"))]


def by_dcmqi(path: Path, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Numbers and affine to LPS of a SEG, by segimage2itkimage."""
    folder.mkdir()
    options = ("--outputDirectory", folder, "--mergeSegments", "-t", "nrrd")
    printed = tool("segimage2itkimage", "--inputDICOM", path, *options)
    (file,) = folder.glob("*.nrrd")
    assert "ERROR" not in printed, printed
    image = sitk.ReadImage(file)
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image).transpose(2, 1, 0), affine
