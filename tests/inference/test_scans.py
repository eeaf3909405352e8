"""Scans and their prompts become slices and boxes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medsam_tune.errors import DataError
from medsam_tune.formats.mending import Mending
from medsam_tune.formats.volume import LPS_TO_RAS
from medsam_tune.inference.scans import LoadPromptedScan, prepare_scan
from medsam_tune.slices.intensity import WINDOWS, Window
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


VALUES = small_scan()[0]
AFFINE = np.array([[0, 0, 4.0, 5], [-2, 0, 0, 60], [0, -3, 0, 90], [0, 0, 0, 1]])  # P, I, R
RULES = ScanRules(Window(100, 200))


@pytest.mark.parametrize(
    ("scan", "affine"),
    [
        (VALUES, AFFINE),
        (VALUES[None].astype(np.float64), torch.from_numpy(AFFINE)),
        (torch.from_numpy(VALUES), AFFINE),
        (MetaTensor(torch.from_numpy(VALUES)[None], affine=AFFINE), None),
        (MetaTensor(VALUES, affine=LPS_TO_RAS @ AFFINE, meta={"space": "LPS"}), None),
    ],
)
def test_an_image_in_memory_is_the_scan_in_its_file(tmp_path: Path, scan: Any, affine: Any) -> None:
    path = write_nifti(tmp_path / "a.nii.gz", VALUES, AFFINE)
    load = LoadPromptedScan(RULES, LABELS)
    _, slices, grid = load.opened(path)
    case, found, other = load.opened(scan, affine)
    assert case == "image in memory"
    assert torch.equal(found, slices)
    np.testing.assert_allclose(other.affine, grid.affine)
    assert (other.shape, other.axes, other.size) == (grid.shape, grid.axes, grid.size)


def test_an_image_that_was_transformed_lies_where_it_is_now() -> None:
    image = MetaTensor(torch.from_numpy(VALUES)[None], affine=AFFINE)
    image.meta["original_affine"], image.meta["spatial_shape"] = np.eye(4), (99, 99, 99)
    _, _, grid = LoadPromptedScan(RULES, LABELS).opened(image)
    np.testing.assert_allclose(grid.affine, AFFINE)
    assert grid.shape == VALUES.shape


def test_an_image_in_memory_is_left_as_it_is() -> None:
    values = VALUES.copy()
    values[0, 0, 0] = np.nan
    LoadPromptedScan(RULES, LABELS, Mending(fill_nan=1.0)).opened(values, AFFINE)
    assert np.isnan(values[0, 0, 0])
    values.flags.writeable = False
    LoadPromptedScan(RULES, LABELS, Mending(fill_nan=1.0)).opened(values, AFFINE)


@pytest.mark.parametrize(
    ("scan", "affine", "message"),
    [
        (VALUES[0], AFFINE, "image has 2 dimensions"),
        (np.stack([VALUES] * 2), AFFINE, "image is 4-D, 2 volumes"),
        (np.where(VALUES < 9, np.inf, VALUES), AFFINE, r"NaN or infinite voxels"),
        (VALUES[:0], AFFINE, "has an empty dimension"),
        (VALUES, AFFINE * [[1], [1], [0], [1]], "is singular or not finite"),
        (VALUES, AFFINE * 1000, "a side of .* mm, voxels of"),
    ],
)
def test_an_image_in_memory_is_checked_as_a_file_is(
    scan: Any, affine: np.ndarray, message: str
) -> None:
    with pytest.raises(DataError, match=rf"^case image in memory: .*{message}"):
        LoadPromptedScan(RULES, LABELS).opened(scan, affine)


def test_ct_in_memory_has_the_unit_and_modality_of_the_run() -> None:
    shifted = np.where(VALUES < 100, 0, 1000 + VALUES / 10).astype(np.float32)
    load = LoadPromptedScan(ScanRules(WINDOWS["abdomen"], modality="CT"), LABELS)
    with pytest.raises(DataError, match="cannot be Hounsfield units"):
        load.opened(shifted, AFFINE)
    image = MetaTensor(torch.from_numpy(VALUES), affine=AFFINE, meta={"modality": "MR"})
    with pytest.raises(DataError, match="the Modality of the DICOM series is MR"):
        load.opened(image)


def test_an_array_needs_one_affine() -> None:
    load = LoadPromptedScan(RULES, LABELS)
    with pytest.raises(ValueError, match=r"^affine is missing; an array needs the \(4, 4\) from"):
        load.opened(VALUES)
    with pytest.raises(ValueError, match=r"^affine is given, but the image has its own"):
        load.opened(MetaTensor(VALUES), AFFINE)
    with pytest.raises(ValueError, match=r"^affine has shape \(3, 4\); expected \(4, 4\)"):
        load.opened(VALUES, AFFINE[:3])


def test_prompts_are_refused_before_the_scan_is_read(tmp_path: Path) -> None:
    gone = {"scan": tmp_path / "gone.nii", "prompts": None}
    with pytest.raises(DataError, match="segments what is prompted; give it a prompt file"):
        LoadPromptedScan(RULES, LABELS, prompted=True)(gone)
    with pytest.raises(DataError, match=r"^boxes\.json: the model was trained without prompts"):
        LoadPromptedScan(RULES, LABELS, prompted=False)({**gone, "prompts": "boxes.json"})


@pytest.mark.parametrize(("kind", "rows"), [("slices", 6), ("middle", 2), ("scribbles", 6)])
def test_a_label_map_stands_for_prompts(tmp_path: Path, kind: str, rows: int) -> None:
    values, label = small_scan()
    path = write_nifti(tmp_path / "a.nii.gz", values)
    drawn = write_nifti(tmp_path / "drawn.nii.gz", label)
    load = LoadPromptedScan(RULES, LABELS, reading={"prompts_as": kind})
    prompts = load({"scan": path, "prompts": drawn}).prompts
    assert prompts is not None
    assert len(prompts) == rows
