"""Labels on the grid of their image."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import nibabel as nib
import numpy as np
from monai.data import MetaTensor
from monai.transforms import Orientation, ResampleToMatch
from numpy.typing import NDArray

from medsam_tune.cases.checks import check_affine
from medsam_tune.formats.volume import same_affine


def placed(label: MetaTensor, path: Path, image: MetaTensor, resample: bool) -> MetaTensor:
    """A label map in the orientation of its image.

    Args:
        label: (1, I, J, K), as its file has it.
        path: file of the label, for messages.
        image: (1, X, Y, Z).
        resample: bring a label of another grid onto the image's, nearest voxel, 0 outside.

    Returns:
        (1, X', Y', Z'): on the image's grid if it lay there, or was resampled.

    Raises:
        DataError: the label's affine is singular or not finite.
    """
    check_affine(label, path)
    axes = nib.orientations.aff2axcodes(affine_of(image))
    label = cast(MetaTensor, Orientation(axcodes=axes, labels=None)(label))
    same = label.shape[1:] == image.shape[1:] and same_affine(affine_of(label), affine_of(image))
    if same or not resample:
        return label
    onto = ResampleToMatch(mode="nearest", padding_mode="zeros", dtype=np.float64)
    return cast(MetaTensor, onto(label, image))


def affine_of(image: MetaTensor) -> NDArray[np.float64]:
    """(4, 4) float64 to RAS+ millimetres."""
    return np.asarray(image.affine, dtype=np.float64)
