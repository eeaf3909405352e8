"""Masks as files in the scan's own grid."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from numpy.typing import NDArray
from torch import Tensor

from medsam_tune.errors import DataError
from medsam_tune.files import refuse_taken
from medsam_tune.formats import nifti
from medsam_tune.inference.aftercare import Aftercare
from medsam_tune.slices.frames import ScanGrid

_ENDINGS = (".nii.gz", ".nii")
_ODD = re.compile(r"[^\w.+-]+")


class WriteMask:
    """Handler of an evaluator over `PromptedScan`s: writes the masks in the scan's own grid.

    Args:
        path: mask to write, .nii or .nii.gz; of masks that may overlap, the files are named after
            it and their labels, see `mask_paths`.
        labels: label id -> name.
        aftercare: what is done to the masks; nothing by default.
    """

    def __init__(
        self, path: str | Path, labels: Mapping[int, str], aftercare: Aftercare | None = None
    ) -> None:
        self.path = path
        self.labels = labels
        self.aftercare = aftercare

    def attach(self, engine: Engine) -> None:
        """Attach to an engine; MONAI calls it."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write the mask after each scan."""
        state: Any = engine.state
        found = state.output["pred"]
        for path, voxels in write_masks(
            found, state.batch.grid, self.path, self.labels, self.aftercare
        ).items():
            engine.logger.info(f"{path}: {voxels} voxels of the scan are in the mask")


def write_masks(
    found: Tensor | Mapping[int, Tensor],
    grid: ScanGrid,
    path: str | Path,
    labels: Mapping[int, str],
    aftercare: Aftercare | None = None,
) -> dict[Path, int]:
    """Write a label map, or a mask for each label; see `write_mask`.

    Args:
        found: (Z, H, W) integer label slices, or label id -> (Z, H, W) bool.
        grid: grid of the scan.
        path: file to write; of masks by label, see `mask_paths`.
        labels: label id -> name.
        aftercare: what is done to the masks; nothing by default.

    Returns:
        file -> number of its voxels that are not 0.
    """
    if isinstance(found, Tensor):
        return {Path(path): write_mask(found, grid, path, aftercare)}
    paths = mask_paths(path, labels)
    return {paths[k]: write_mask(mask, grid, paths[k], aftercare) for k, mask in found.items()}


def mask_paths(path: str | Path, labels: Mapping[int, str]) -> dict[int, Path]:
    """Label id -> file of its own mask: `mask.nii.gz` becomes `mask_1_liver.nii.gz`.

    Signs of a name that files should not have become "_".
    """
    path = Path(path)
    ending = next((end for end in _ENDINGS if path.name.endswith(end)), "")
    stem = path.name.removesuffix(ending)
    return {
        label: path.with_name(f"{stem}_{label}_{_ODD.sub('_', name)[:64]}{ending}")
        for label, name in labels.items()
    }


def refuse_taken_masks(
    path: str | Path,
    labels: Mapping[int, str],
    separate: bool = False,
    overwrite: bool = False,
    inputs: Iterable[str | Path | None] = (),
) -> None:
    """Refuse masks that are there already, another ending, and an input as output.

    Args:
        path: mask to write.
        labels: label id -> name.
        separate: one file for each label is written instead.
        overwrite: replace files that are there.
        inputs: files that are read.

    Raises:
        DataError: see above.
    """
    if not str(path).endswith(_ENDINGS):
        raise DataError(f"{path}: expected a name that ends in .nii or .nii.gz.")
    given = [*inputs]
    for each in mask_paths(path, labels).values() if separate else [path]:
        refuse_taken(each, overwrite, given)


def write_mask(
    labels: Tensor, grid: ScanGrid, path: str | Path, aftercare: Aftercare | None = None
) -> int:
    """Write label slices as NIfTI in the scan's own grid, whole or not at all.

    The mask has the qform_code and sform_code of a NIfTI scan, and lies in millimetres.

    Args:
        labels: (Z, H, W) integer label slices, or bool.
        grid: grid of the scan.
        path: file to write, .nii or .nii.gz.
        aftercare: what is done to the masks; nothing by default.

    Returns:
        Number of voxels that are not 0, in the scan's own grid.

    Raises:
        DataError: another ending, or ids of `nifti.write` that are none.
    """
    path = Path(path)
    if not path.name.endswith(_ENDINGS):
        raise DataError(f"{path}: expected a name that ends in .nii or .nii.gz.")
    array = on_grid(labels, grid, aftercare)
    nifti.write(path, array, grid.affine, grid.codes)
    return int(np.count_nonzero(array))


def on_grid(
    labels: Tensor, grid: ScanGrid, aftercare: Aftercare | None = None
) -> NDArray[np.integer]:
    """Label slices (Z, H, W), integer or bool -> (I, J, K) ids in the scan's own grid."""
    array: Any = grid.to_file(labels)
    if array.dtype == bool:
        array = array.astype(np.uint8)
    if aftercare is not None:
        array = aftercare.labels(array, grid.voxel_ml, grid.slice_axis)
    return array  # type: ignore[no-any-return]
