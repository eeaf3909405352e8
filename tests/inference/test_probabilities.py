"""Probabilities of labels in the scan's own grid."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from medsam_tune.formats.open import load_image
from medsam_tune.inference.canvas import LogitCanvas
from medsam_tune.inference.probabilities import probability_paths, write_probabilities
from medsam_tune.inference.spool import Spool
from medsam_tune.slices.frames import ScanGrid
from tests.inference.made import GRIDS, LABELS


def painted(*size: int, memory: int = 2**20) -> LogitCanvas:
    """Logits of labels 1 and 2; of 1, two objects on one slice."""
    canvas = LogitCanvas((6, *size), [2, 1], Spool(memory))
    low, high = torch.full(size, -1.0), torch.full(size, -2.0)
    low[2, 3], high[4, 5] = 2.0, 3.0
    canvas.paint(torch.tensor([3]), torch.tensor([1]), low[None])
    canvas.paint(torch.tensor([3, 5]), torch.tensor([1, 2]), torch.stack([high, low]))
    return canvas


@pytest.mark.parametrize("memory", [2**20, 0])
def test_the_highest_logit_of_a_label_counts(memory: int) -> None:
    found = painted(12, 10, memory=memory).probabilities(1)
    assert (found.shape, found.dtype) == ((6, 12, 10), torch.float32)
    assert torch.equal(found[3] > 0.5, painted(12, 10).probabilities(1)[3] > 0.5)
    values = {(2, 3): 2.0, (4, 5): 3.0, (0, 0): -1.0}
    for place, logit in values.items():
        assert float(found[3][place]) == pytest.approx(float(torch.tensor(logit).sigmoid()))
    assert 0 < float(found[[0, 1, 2, 4, 5]].max()) < 1e-6  # not asked for


@pytest.mark.parametrize(("affine", "shape"), GRIDS)
@pytest.mark.parametrize("name", ["m.nii.gz", "m.nrrd", "m.mha"])
def test_files_lie_in_the_scans_grid(
    tmp_path: Path, affine: np.ndarray, shape: tuple[int, ...], name: str
) -> None:
    grid, canvas = ScanGrid(affine, shape), painted(12, 10)  # type: ignore[arg-type]
    paths = write_probabilities(canvas, grid, tmp_path / name, LABELS)
    assert paths.keys() == {1, 2}
    for label, path in paths.items():
        found = load_image(path)
        expected = grid.to_file(canvas.probabilities(label))
        np.testing.assert_array_equal(found[0].numpy(), expected)
        np.testing.assert_allclose(found.affine, affine, atol=1e-5)
    if name.endswith("gz"):
        assert nib.load(paths[1]).get_data_dtype() == np.float32


def test_names() -> None:
    for mask, expected in (
        ("a.b.nii.gz", "a.b_probability_1_liver.nii.gz"),
        ("a.nii", "a_probability_1_liver.nii"),
    ):
        assert probability_paths(Path("x") / mask, LABELS)[1] == Path("x") / expected
