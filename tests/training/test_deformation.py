"""Copies of scans, deformed in three dimensions."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medsam_tune.cases.datalist import Case, with_copies
from medsam_tune.slices.intensity import Window
from medsam_tune.slices.rules import ScanRules
from medsam_tune.slices.store import SliceStore
from medsam_tune.training.deformation import Deformation
from tests.scans import LABELS, write_nifti

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


def test_another_deformation_is_another_copy(
    tmp_path: Path, make_case: Callable[..., Case]
) -> None:
    copies = with_copies([make_case()], 1)
    paths = [
        [
            one.path
            for one in store_with(tmp_path, Deformation(rotation=angle)).prepare(copies, False)
        ]
        for angle in (0.1, 0.2)
    ]
    assert paths[0][0] == paths[1][0]  # the scan itself
    assert paths[0][1] != paths[1][1]


def test_a_copy_needs_a_deformation(tmp_path: Path, make_case: Callable[..., Case]) -> None:
    with pytest.raises(
        ValueError, match=r"case case_017~1 is a copy; the store has no deformation"
    ):
        store_with(tmp_path, None).prepare(with_copies([make_case()], 1), False)


def store_with(folder: Path, deformation: Deformation | None) -> SliceStore:
    return SliceStore(folder / "store", ScanRules(WINDOW), LABELS, deformation=deformation)


def test_row_76_copies_keep_every_id(tmp_path: Path) -> None:
    """As float32 they would be one; and what moves in from outside is background."""
    ids = (16_777_216, 16_777_217)
    label = np.full((12, 12, 8), ids[0], np.int32)
    label[6:] = ids[1]
    case = Case(
        write_nifti(tmp_path / "image" / "a.nii", np.ones(label.shape, np.float32)),
        write_nifti(tmp_path / "a.nii", label),
        "p",
    )
    store = SliceStore(
        tmp_path / "s",
        ScanRules(WINDOW),
        dict(zip(ids, "ab", strict=True)),
        deformation=Deformation(sigma=(3, 3), magnitude=(60, 60)),
    )
    _, copy = store.prepare(with_copies([case], 1), False)
    assert set(np.unique(copy.label())) == {0, *ids}


def test_the_memory_of_a_copy() -> None:
    code = """
import resource, torch
from monai.data import MetaTensor
from medsam_tune.training.deformation import Deformation
image = MetaTensor(torch.rand(1, 256, 256, 16))
Deformation()(image[:, :8, :8], image[:, :8, :8], 0)  # what libraries take once
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
Deformation()(image, image.round(), 0)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / image.numel())
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(found.stdout) < 250  # bytes for each voxel
