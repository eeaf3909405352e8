"""What a reader may mend in a file that is not as it should be."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Mending:
    """Faults that are mended instead of refused: chosen in YAML, recorded, used at prediction.

    Attributes:
        fill_nan: value for NaN and infinite voxels; None refuses them.
        volume_index: which volume of a 4-D file; None refuses those.
        resample_uneven: interpolate DICOM series with uneven or tilted slices; else refused.
        resample_label: bring a label of another grid onto its image's, nearest voxel; else refused.
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
