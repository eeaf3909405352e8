"""Probabilities of labels as files in the scan's own grid."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from medsam_tune.formats.open import WRITTEN, write_array
from medsam_tune.inference.canvas import LogitCanvas
from medsam_tune.inference.output import ending_of, mask_paths
from medsam_tune.slices.frames import ScanGrid


def probability_paths(path: str | Path, labels: Mapping[int, str]) -> dict[int, Path]:
    """Label id -> file of its probabilities: `mask.nii.gz` gives `mask_probability_1_liver.nii.gz`.

    A mask of an ending that holds no numbers with a fraction, as of DICOM, gives .nii.gz.
    """
    path = Path(path)
    ending = ending_of(path)
    stem = path.name.removesuffix(ending)
    kept = ending if ending in WRITTEN else ".nii.gz"
    return mask_paths(path.with_name(f"{stem}_probability{kept}"), labels)


def write_probabilities(
    logits: LogitCanvas, grid: ScanGrid, path: str | Path, labels: Mapping[int, str]
) -> dict[int, Path]:
    """Write the probability of each label that was asked for, one label after the other.

    Slices that were resampled come back by the nearest, as masks do: where a label map has a label,
    its probability is above 0.5.

    Args:
        logits: logits of the labels, on slices.
        grid: grid of the scan.
        path: the mask, after which the files are named, see `probability_paths`.
        labels: label id -> name.

    Returns:
        label id -> file of (I, J, K) float32 in [0, 1].
    """
    paths = probability_paths(path, labels)
    for label in logits.labels:
        array = grid.to_file(logits.probabilities(label))
        write_array(paths[label], array, grid.affine, grid.codes, grid.georeference)
    return {label: paths[label] for label in logits.labels}
