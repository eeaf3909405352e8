"""Faults of a scan's file that may be mended instead of refused."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from medsam_tune.errors import DataError


@dataclass(frozen=True)
class Mending:
    """Choice of faults to mend; it is made in YAML, recorded, and used at prediction.

    Attributes:
        fill_nan: value for NaN and infinite voxels of an image; None refuses them. Those of a label
            are refused always.
        volume_index: number of the volume to take from a 4-D file, from 0; None refuses 4-D files.
            A 4-D label must have as many volumes as its image; the same is taken of both.
        resample_uneven: interpolate DICOM series with uneven or tilted slices onto an even grid.
        resample_label: bring a label of another grid onto its image's, by the nearest voxel; see
            `cases.labels.grid` for what may be lost.
        strict: refuse a scan or label whose orientation is a guess: NIfTI without qform and sform,
            NRRD and MetaImage without directions.

    Raises:
        DataError: a value of another type.
    """

    fill_nan: float | None = None
    volume_index: int | None = None
    resample_uneven: bool = False
    resample_label: bool = False
    strict: bool = False

    def __post_init__(self) -> None:
        for name in ("resample_uneven", "resample_label", "strict"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise DataError(f"{name} is {value!r}; expected true or false.")
        fill, index = self.fill_nan, self.volume_index
        if not (fill is None or (type(fill) in (int, float) and math.isfinite(fill))):
            raise DataError(f"fill_nan is {fill!r}; expected a finite number, or none.")
        if not (index is None or (type(index) is int and index >= 0)):
            raise DataError(f"volume_index is {index!r}; expected 0, 1, 2, ..., or none.")

    def describe(self) -> dict[str, object]:
        """Return the choices as JSON, from which `Mending(**...)` makes the same again."""
        return asdict(self)
