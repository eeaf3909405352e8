"""Faults of a scan's file that may be mended instead of refused."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Mending:
    """Choice of faults to mend; it is made in YAML, recorded, and used at prediction.

    Attributes:
        fill_nan: value for NaN and infinite voxels; None refuses them.
        volume_index: number of the volume to take from a 4-D file, from 0; None refuses 4-D files.
        resample_uneven: interpolate DICOM series with uneven or tilted slices onto an even grid.
        resample_label: bring a label of another grid onto its image's, by the nearest voxel.
        strict: refuse a NIfTI file without qform and sform, whose orientation is a guess.
    """

    fill_nan: float | None = None
    volume_index: int | None = None
    resample_uneven: bool = False
    resample_label: bool = False
    strict: bool = False

    def describe(self) -> dict[str, object]:
        """Return the choices as JSON, from which `Mending(**...)` makes the same again."""
        return asdict(self)
