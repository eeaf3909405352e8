"""Scans and their prompts become slices and boxes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from medsam_tune.errors import DataError
from medsam_tune.formats.mending import Mending
from medsam_tune.inference.scans import LoadPromptedScan, prepare_scan
from medsam_tune.slices.intensity import Window
from medsam_tune.slices.rules import ScanRules
from tests.inference.made import LABELS, objects
from tests.scans import small_scan, write_nifti


def test_a_scan_with_its_prompts(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii.gz", small_scan()[0])
    load = LoadPromptedScan(ScanRules(Window(100, 200)), LABELS)
    content = objects({"label": 1, "box3d": [1, 2, 1, 5, 8, 5]})
    item = load({"scan": path, "prompts": content})
    assert (item.case, tuple(item.image.shape)) == ("a", (6, 1, 12, 10))
    assert item.image.dtype == torch.uint8
    assert item.prompts is not None
    assert item.prompts.slices.tolist() == [1, 2, 3, 4]
    assert item.grid.shape == (10, 12, 6)
    assert load({"scan": path, "prompts": None}).prompts is None
    image, target, args, kwargs = prepare_scan(item, torch.device("cpu"))
    assert image is item.image
    assert (target, args, kwargs) == (None, (item.prompts,), {})


def test_scans_are_mended_as_in_training(tmp_path: Path) -> None:
    values = small_scan()[0]
    values[0, 0, 0] = np.nan
    item = {"scan": write_nifti(tmp_path / "a.nii.gz", values), "prompts": None}
    rules = ScanRules(Window(100, 200))
    with pytest.raises(DataError, match="case a: 1 NaN or infinite voxels"):
        LoadPromptedScan(rules, LABELS)(item)
    found = LoadPromptedScan(rules, LABELS, Mending(fill_nan=200.0))(item)
    assert found.image[0, 0, -1, -1] == 255  # LPS: the file's first voxel is the last


def test_a_label_map_in_the_place_of_the_scan_is_said(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii.gz", small_scan()[1].astype(np.float32))
    with pytest.warns(UserWarning, match=r"case a: the scan holds only 3 values, from 0 to 2: "):
        LoadPromptedScan(ScanRules(Window(100, 200)), LABELS)({"scan": path, "prompts": None})
