"""Enhanced multi-frame DICOM: all slices of a scan in one file, by highdicom."""

from __future__ import annotations

from typing import Any

import numpy as np

from medsam_tune.errors import DataError
from medsam_tune.formats.dicom.headers import import_highdicom, without_warnings
from medsam_tune.formats.dicom.pixels import bright, fill_padding
from medsam_tune.formats.dicom.series import Series
from medsam_tune.formats.volume import LPS_TO_RAS, Volume


def read_multiframe(series: Series) -> Volume:
    """Read an enhanced multi-frame file; its values become those of single images.

    Raises:
        DataError: highdicom is not installed, or the frames are no even, straight stack.
    """
    one = series.instances[0]
    highdicom = import_highdicom(one.path, "a multi-frame file")
    # Neither scanner-specific units nor how a screen would show them.
    raw = {"apply_real_world_transform": False, "apply_presentation_lut": False}
    rescale = True if series.modality == "CT" else None  # None: where there is one
    try:
        with without_warnings():
            image = highdicom.imread(one.path)
            volume = from_highdicom(
                image.get_volume(dtype=np.float32, apply_modality_transform=rescale, **raw)
            )
            stored = volume.array
            if one.padding is not None:
                plain = image.get_volume(apply_modality_transform=False, **raw)
                stored = from_highdicom(plain).array
    except Exception as error:
        raise DataError(
            f"{one.path}: its {one.frames} frames are no volume "
            f"({type(error).__name__}); expected an enhanced multi-frame scan whose frames lie "
            "evenly on a straight stack. Export it as single images."
        ) from error
    notes: list[str] = []
    low, high = one.padding or (np.inf, np.inf)
    array = volume.array
    fill_padding(array, (stored >= low) & (stored <= high), series.modality, notes)
    if one.photometric == "MONOCHROME1":
        array = bright(array, series.modality, notes)
    return Volume(array, volume.affine, tuple(notes))


def from_highdicom(volume: Any) -> Volume:
    """A `Volume` of highdicom's: (slices, rows, columns) in LPS become (I, J, K) in RAS+."""
    array = np.asarray(volume.array, dtype=np.float32)
    affine = np.asarray(volume.affine, dtype=np.float64)[:, [2, 1, 0, 3]]
    return Volume(np.array(array.transpose(2, 1, 0), order="F"), LPS_TO_RAS @ affine)
