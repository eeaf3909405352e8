"""Copies of scans, deformed in three dimensions."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from medsam_tune.cases.datalist import Case, with_copies
from medsam_tune.slices.intensity import Window
from medsam_tune.slices.rules import ScanRules
from medsam_tune.slices.store import SliceStore
from medsam_tune.training.deformation import Deformation
from tests.scans import write_nifti

WINDOW = Window(100, 200)


def test_copies_are_deformed_in_three_dimensions(tmp_path: Path) -> None:
    image = np.zeros((24, 24, 16), np.float32)
    image[6:18, 8:16, 4:12] = 150
    label = (image > 0).astype(np.uint8)
    scan = write_nifti(tmp_path / "image" / "a.nii", image)
    case = Case(scan, write_nifti(tmp_path / "a.nii", label), "p")
    deformation = Deformation(sigma=(3, 3), magnitude=(60, 60))
    store = SliceStore(tmp_path / "s", ScanRules(WINDOW), {1: "it"}, deformation=deformation)
    whole, first, second = store.prepare(with_copies([case], 2), False)
    assert [whole.id, first.id, second.id] == ["a", "a~1", "a~2"]
    assert len({whole.path, first.path, second.path}) == 3
    for one, other in ((whole, first), (whole, second), (first, second)):
        assert one.shape == other.shape
        assert 20 < (one.label() != other.label()).sum() < label.sum()
    bright = first.image()[:, 0] > 95  # image and label move together
    assert (bright != (first.label() == 1)).sum() < 0.1 * label.sum()
    occupied = [len(ids) > 0 for ids in first.labels_in_slice]
    assert occupied != [len(ids) > 0 for ids in whole.labels_in_slice]  # across slices too
    again = SliceStore(tmp_path / "t", ScanRules(WINDOW), {1: "it"}, deformation=deformation)
    _, same = again.prepare(with_copies([case], 1), False)
    np.testing.assert_array_equal(same.label(), first.label())
