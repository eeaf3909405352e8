"""What a reader may do with a scan that is not as it should be, and how it is cut into slices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from medsam_tune.errors import DataError

PLANES = {"axial": "LPS", "coronal": "LIP", "sagittal": "PIL"}
"""Plane -> where the columns, the rows and the slices of its volume run to, as nibabel's codes."""

_NORMALS = ("sagittal", "coronal", "axial")  # planes by the axis across them: R-L, A-P, I-S
_TIE = 0.99  # spacings of a share above this are the same


@dataclass(frozen=True)
class Reading:
    """From a scan's file to its slices: chosen in YAML, recorded in the run, used at prediction.

    Attributes:
        plane: of the slices: "axial", "coronal", "sagittal", or "finest", the one with the smallest
            pixels, which is chosen for each scan (axial where they are equal).
        spacing: millimetres along columns, rows and slices that the volume is resampled to; 0 keeps
            an axis as it is. None keeps all.
        neighbours: the slice before, the slice and the slice after as the three channels.
        fill_nan: value for NaN and infinite voxels; None refuses them.
        volume_index: which volume of a 4-D file; None refuses those.
        resample_uneven: interpolate DICOM series with uneven or tilted slices; else refused.
        resample_label: bring a label of another grid onto its image's, nearest voxel; else refused.
        strict: refuse a NIfTI file without qform and sform, whose orientation is a guess.

    Raises:
        DataError: an unknown plane, or a spacing that is not three numbers.
    """

    plane: str = "axial"
    spacing: Sequence[float] | None = None
    neighbours: bool = False
    fill_nan: float | None = None
    volume_index: int | None = None
    resample_uneven: bool = False
    resample_label: bool = False
    strict: bool = False

    def __post_init__(self) -> None:
        if self.plane not in (*PLANES, "finest"):
            raise DataError(
                f"plane is {self.plane!r}; expected one of {', '.join((*PLANES, 'finest'))}."
            )
        if self.spacing is not None:
            spacing = tuple(float(mm) for mm in self.spacing)
            if len(spacing) != 3 or not all(0 <= mm < np.inf for mm in spacing):
                raise DataError(
                    f"spacing is {list(self.spacing)}; expected millimetres along columns, rows "
                    "and slices, 0 to keep an axis."
                )
            object.__setattr__(self, "spacing", spacing)

    def describe(self) -> dict[str, object]:
        """The choices as JSON, from which `Reading(**...)` makes the same again."""
        return asdict(self)

    def axes(self, affine: NDArray[np.float64]) -> str:
        """Orientation of the volume (W, H, K) whose slices are those of the plane.

        Args:
            affine: (4, 4) of the file's array, RAS+ millimetres.
        """
        return PLANES[_finest(affine) if self.plane == "finest" else self.plane]

    def stored(self, shape: Sequence[int], affine: NDArray[np.float64]) -> tuple[int, int, int]:
        """Voxels along (W, H, K) of the slices of a scan.

        Args:
            shape: (I, J, K) of the file's array.
            affine: (4, 4) of it, RAS+ millimetres.
        """
        wanted = nib.orientations.axcodes2ornt(tuple(self.axes(affine)))
        turn = nib.orientations.ornt_transform(nib.orientations.io_orientation(affine), wanted)
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        order = np.argsort(turn[:, 0])
        wanted_spacing = self.spacing or (0.0, 0.0, 0.0)
        w, h, k = (
            max(1, round(int(shape[i]) * float(spacing[i]) / to)) if to else int(shape[i])
            for i, to in zip(order, wanted_spacing, strict=True)
        )
        return w, h, k


def _finest(affine: NDArray[np.float64]) -> str:
    """The plane across the axis with the largest spacing."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    by_axis = np.zeros(3)
    for file_axis, (axis, _flip) in enumerate(nib.orientations.io_orientation(affine)):
        by_axis[int(axis)] = spacing[file_axis]
    coarse = [n for n, mm in zip(_NORMALS, by_axis, strict=True) if mm >= _TIE * by_axis.max()]
    return coarse[-1]  # axial comes last
