"""The parts of scans that a report shows in 3-D: grey values, annotation and prediction."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from medsam_tune.evaluation.label_maps import parts_of, renumbered

PARTS = ("image", "truth", "prediction")
"""Files of a case, each `.nii.gz`, in a folder of its name beside its picture."""

MARGIN = 10.0
"""Millimetres that are shown around the objects."""

MOST_VOXELS = 2**22
"""Voxels of a part, at most: larger ones are thinned, so that a page stays small."""

MOST_LABELS = 255

_Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Part:
    """The part of a scan that holds its objects.

    Attributes:
        image: (Z, H, W) uint8 grey values.
        truth: (Z, H, W) uint8; 1 is the first of `labels`.
        prediction: (Z, H, W) uint8, as the truth.
        labels: ids of the labels that it holds.
        spacing: millimetres between voxels along Z, H and W.
        axes: directions in which columns, rows and slices run, such as "LPS".
        thinned: along Z, H and W, one voxel of so many is kept.
    """

    image: _Bytes
    truth: _Bytes
    prediction: _Bytes
    labels: list[int]
    spacing: tuple[float, float, float]
    axes: str
    thinned: tuple[int, int, int]

    @property
    def affine(self) -> NDArray[np.float64]:
        """(4, 4): columns, rows, slices -> millimetres, RAS, from the part's own corner."""
        steps = np.diag([*self.spacing[::-1], 1.0])
        turn = nib.orientations.axcodes2ornt(self.axes)
        found = np.zeros((4, 4))
        for axis, (world, way) in enumerate(turn):
            found[int(world), axis] = way
        found[3, 3] = 1
        affine: NDArray[np.float64] = found @ steps
        return affine


def part_of(
    image: Tensor,
    truth: Tensor,
    prediction: Tensor,
    labels: Sequence[int],
    spacing: Sequence[float] | None = None,
    axes: str = "",
) -> Part | None:
    """Crop a scan to its objects, annotated or predicted; None where there is none.

    Args:
        image: (Z, C, H, W) uint8 slices; of several channels the middle one is shown.
        truth: (Z, H, W) integer label slices.
        prediction: (Z, H, W) integer label slices.
        labels: ids of the labels; those beyond `MOST_LABELS` in one scan are left out.
        spacing: millimetres between voxels along Z, H and W; None where they are unknown.
        axes: directions in which columns, rows and slices run; "" where they are unknown.
    """
    maps = [one.cpu().numpy() for one in (truth, prediction)]
    parts = {k: one for k, one in parts_of(maps, labels).items() if one[0].stop}
    seen = [label for label in labels if label in parts][:MOST_LABELS]
    if not seen:
        return None
    steps = tuple(float(step) for step in spacing or (1.0, 1.0, 1.0))
    margins = [int(MARGIN / step) + 1 for step in steps]
    wide = [
        slice(max(0, min(one.start for one in own) - margin), max(one.stop for one in own) + margin)
        for own, margin in zip(zip(*(parts[k] for k in seen), strict=True), margins, strict=True)
    ]
    wide = [slice(*one.indices(size)) for one, size in zip(wide, truth.shape, strict=True)]
    thinned = _thinned([one.stop - one.start for one in wide], steps)
    cut = tuple(slice(one.start, one.stop, step) for one, step in zip(wide, thinned, strict=True))
    grey = image[:, image.shape[1] // 2].cpu().numpy()
    numbers = {label: number for number, label in enumerate(seen, 1)}
    numbered = [renumbered(one[cut], numbers) for one in maps]
    shown = [np.ascontiguousarray(one, np.uint8) for one in (grey[cut], *numbered)]
    return Part(
        image=shown[0],
        truth=shown[1],
        prediction=shown[2],
        labels=seen,
        spacing=(steps[0] * thinned[0], steps[1] * thinned[1], steps[2] * thinned[2]),
        axes=axes or "LPS",
        thinned=thinned,
    )


def _thinned(shape: Sequence[int], spacing: Sequence[float]) -> tuple[int, int, int]:
    """Steps that bring a part below `MOST_VOXELS`: the axis with the closest voxels goes first."""
    steps = [1, 1, 1]
    while (
        np.prod([-(-size // step) for size, step in zip(shape, steps, strict=True)]) > MOST_VOXELS
    ):
        steps[int(np.argmin(np.multiply(spacing, steps)))] += 1
    return steps[0], steps[1], steps[2]


def save_part(path: Path, part: Part) -> None:
    """Write a part for the time of an evaluation: quickly, and not compressed."""
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **vars(part))


def load_part(path: Path) -> Part:
    """Read what `save_part` wrote."""
    with np.load(path) as found:
        return Part(
            image=found["image"],
            truth=found["truth"],
            prediction=found["prediction"],
            labels=found["labels"].tolist(),
            spacing=tuple(found["spacing"].tolist()),
            axes=str(found["axes"]),
            thinned=tuple(found["thinned"].tolist()),
        )


def write_part(folder: Path, part: Part) -> None:
    """Write `image.nii.gz`, `truth.nii.gz` and `prediction.nii.gz` into a new folder."""
    folder.mkdir(parents=True)
    for name in PARTS:
        (folder / f"{name}.nii.gz").write_bytes(nifti_bytes(getattr(part, name), part.affine))


def nifti_bytes(array: _Bytes, affine: NDArray[np.float64]) -> bytes:
    """A compressed NIfTI file that says nothing but voxels and their size.

    Args:
        array: (Z, H, W) uint8.
        affine: (4, 4), of columns, rows and slices.
    """
    image = nib.Nifti1Image(array.transpose(2, 1, 0), affine)
    image.header.set_xyzt_units("mm")
    content: bytes = image.to_bytes()
    # Level 9 takes ten times longer, for 3 % less.
    return gzip.compress(content, compresslevel=5, mtime=0)
