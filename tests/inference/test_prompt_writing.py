"""Prompt files that are written: to fill in, or with prompts, which come back exactly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medsam_tune.errors import DataError
from medsam_tune.inference.prompt_files import (
    objects_of,
    objects_to_fill,
    read_prompts,
    write_prompts,
)
from medsam_tune.inference.prompt_files.label_maps import prompts_of_labels
from medsam_tune.slices.cut import cut_label
from medsam_tune.slices.frames import ScanGrid
from medsam_tune.slices.intensity import Window
from medsam_tune.slices.rules import ScanRules
from tests.inference.made import LABELS, LPS_GRID, RAS
from tests.scans import small_scan


def oriented(axes: str) -> tuple[np.ndarray, np.ndarray]:
    """The small scan's label (I, J, K) in a file of the orientation, and its affine."""
    label = small_scan()[1]
    turn = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(RAS), nib.orientations.axcodes2ornt(tuple(axes))
    )
    affine = RAS @ nib.orientations.inv_ornt_aff(turn, label.shape)
    return nib.orientations.apply_orientation(label, turn), affine


KINDS = ("slices", "box3d", "interpolated:3", "middle", "middle-range", "points", "scribbles")


@pytest.mark.parametrize("axes", ["RAS", "LPS", "PIR", "SLA", "ASL"])
@pytest.mark.parametrize("plane", ["axial", "sagittal"])
@pytest.mark.parametrize("kind", KINDS)
def test_prompts_of_labels_come_back_exactly(
    tmp_path: Path, axes: str, plane: str, kind: str
) -> None:
    array, affine = oriented(axes)
    grid = ScanRules(Window(0, 1), plane).grid(array.shape, affine)
    image = MetaTensor(torch.from_numpy(array.copy()[None]), affine=torch.tensor(affine))
    expected = prompts_of_labels(cut_label(image, grid)[0], LABELS, kind)
    write_prompts(path := tmp_path / "boxes.json", grid, LABELS, objects_of(expected, grid, LABELS))
    found = read_prompts(path, grid, LABELS)
    for name in ("slices", "labels", "boxes", "points", "point_labels", "drawn"):
        assert_close(getattr(found, name), getattr(expected, name), name)
    assert found.objects.tolist() == [label - 1 for label in expected.objects.tolist()]
    assert found.spread == {label - 1: known for label, known in expected.spread.items()}
    assert len(json.loads(path.read_text())["objects"]) == 2


def assert_close(found: torch.Tensor, expected: torch.Tensor, name: str) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True, msg=name)


def test_objects_of_a_file() -> None:
    """Each kind in the form that a person would choose."""
    truth = torch.zeros(6, 12, 10, dtype=torch.int32)  # slices of LPS_GRID
    truth[1:4, 2:4, 3:8] = truth[3, 2:7, 3] = 2

    def objects(kind: str) -> list[dict[str, Any]]:
        return objects_of(prompts_of_labels(truth, {2: "", 7: "x"}, kind), LPS_GRID, {2: "spleen"})

    head = {"label": 2, "name": "spleen"}
    box = {"box": [3, 2, 8, 4]}
    largest = {"slices": {"3": {"box": [3, 2, 8, 7]}}}
    assert objects("box3d") == [{**head, "box3d": [3, 2, 1, 8, 7, 4]}]
    assert objects("slices") == [{**head, "slices": {"1": box, "2": box, **largest["slices"]}}]
    between = {"slices": {"1": box, **largest["slices"]}, "interpolate": True}
    assert objects("interpolated:2") == [{**head, **between}]
    assert objects("middle") == [{**head, **largest, "propagate": True}]
    assert objects("middle-range") == [{**head, **largest, "propagate": True, "range": [1, 4]}]
    assert objects("points") == [
        {**head, "slices": {"3": {"points": [[3, 2, 1]]}}, "propagate": True}
    ]
    flat = prompts_of_labels(truth[:2], {2: ""}, "box3d")
    assert objects_of(flat, LPS_GRID, {}) == [{"label": 2, "slices": {"1": box}}]


def test_another_axis_is_said(tmp_path: Path) -> None:
    array, affine = oriented("PIR")
    grid = ScanRules(Window(0, 1), "axial").grid(array.shape, affine)
    write_prompts(path := tmp_path / "boxes.json", grid, LABELS, objects_to_fill(LABELS))
    assert json.loads(path.read_text())["axis"] == "j"
    write_prompts(path, LPS_GRID, LABELS, objects_to_fill(LABELS))
    assert "axis" not in json.loads(path.read_text())


def test_a_file_to_fill_in_is_refused_until_it_is(tmp_path: Path) -> None:
    write_prompts(path := tmp_path / "boxes.json", LPS_GRID, LABELS, objects_to_fill(LABELS))
    with pytest.raises(DataError, match=r"boxes\.json: object 0: box3d is not filled in"):
        read_prompts(path, LPS_GRID, LABELS)
    content = json.loads(path.read_text())
    assert content["scan"] == {
        "size": [10, 12, 6],
        "spacing": [2, 3, 4],
        "orientation": "LPS",
    }
    assert content["labels"] == {"1": "liver", "2": "spleen"}
    assert [(each["label"], each["name"]) for each in content["objects"]] == [*LABELS.items()]
    content["objects"] = [{**content["objects"][0], "box3d": [1, 2, 3, 5, 8, 5]}]
    path.write_text(json.dumps(content))
    assert len(read_prompts(path, LPS_GRID, LABELS)) == 2
    other = ScanGrid(LPS_GRID.affine, (10, 12, 7))
    with pytest.raises(DataError, match=r"a scan with size \[10, 12, 6\], this one has \[10, 12"):
        read_prompts(path, other, LABELS)
    content["space"] = "world"  # millimetres belong to any scan of the patient
    content["objects"][0]["box3d"] = [1.0, 4.5, 10.0, 9.0, 22.5, 18.0]
    path.write_text(json.dumps(content))
    assert len(read_prompts(path, other, LABELS)) == 2


def test_without_labels_one_object_is_to_fill_in(tmp_path: Path) -> None:
    write_prompts(path := tmp_path / "boxes.json", LPS_GRID, {}, objects_to_fill({}))
    content = json.loads(path.read_text())
    assert "labels" not in content
    (item,) = content["objects"]
    assert item["label"] == 1
    assert "name" not in item
