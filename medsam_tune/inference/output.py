"""Masks as files in the scan's own grid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from torch import Tensor

from medsam_tune.errors import DataError
from medsam_tune.formats import nifti
from medsam_tune.slices.frames import ScanGrid


class WriteMask:
    """Handler of an evaluator over `PromptedScan`s: writes the mask in the scan's own grid.

    Args:
        path: mask to write, .nii or .nii.gz.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = path

    def attach(self, engine: Engine) -> None:
        """Attach to an engine; MONAI calls it."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write the mask after each scan."""
        state: Any = engine.state
        labels = state.output["pred"]
        voxels = write_mask(labels, state.batch.grid, self.path)
        engine.logger.info(f"{self.path}: {voxels} voxels of the scan are in the mask")


def write_mask(labels: Tensor, grid: ScanGrid, path: str | Path) -> int:
    """Write label slices as NIfTI in the scan's own grid, whole or not at all.

    The mask has the qform_code and sform_code of a NIfTI scan, and lies in millimetres.

    Args:
        labels: (Z, H, W) integer label slices.
        grid: grid of the scan.
        path: file to write, .nii or .nii.gz.

    Returns:
        Number of voxels that are not 0, in the scan's own grid.

    Raises:
        DataError: another ending, or ids of `nifti.write` that are none.
    """
    path = Path(path)
    if not path.name.endswith((".nii", ".nii.gz")):
        raise DataError(f"{path}: expected a name that ends in .nii or .nii.gz.")
    array = grid.to_file(labels)
    nifti.write(path, array, grid.affine, grid.codes)
    return int(np.count_nonzero(array))
