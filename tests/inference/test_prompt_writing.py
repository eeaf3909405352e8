"""Prompt files that are written: to fill in, or from labels, whose boxes come back exactly."""

from __future__ import annotations

import json
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medsam_tune.errors import DataError
from medsam_tune.inference.prompt_files import (
    objects_of_labels,
    objects_to_fill,
    read_prompts,
    write_prompts,
)
from medsam_tune.inference.simulated import simulated_prompts
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


@pytest.mark.parametrize("axes", ["RAS", "LPS", "PIR", "SLA", "ASL"])
@pytest.mark.parametrize("plane", ["axial", "sagittal"])
def test_boxes_of_labels_come_back_exactly(tmp_path: Path, axes: str, plane: str) -> None:
    array, affine = oriented(axes)
    grid = ScanRules(Window(0, 1), plane).grid(array.shape, affine)
    image = MetaTensor(torch.from_numpy(array.copy()[None]), affine=torch.tensor(affine))
    slices = cut_label(image, grid)[0]
    objects = objects_of_labels(array, LABELS, grid.slice_axis)
    write_prompts(path := tmp_path / "boxes.json", grid, LABELS, objects)
    found, expected = read_prompts(path, grid, LABELS), simulated_prompts(slices, LABELS, "slices")
    for name in ("slices", "boxes", "labels"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    write_prompts(path, grid, LABELS, objects_of_labels(array, LABELS))
    found = read_prompts(path, grid, LABELS)
    for label in LABELS:  # one 3-D box: the same on every slice
        here = slices == label
        z, y, x = (axis.unique() for axis in here.nonzero().unbind(1))
        boxes = found.boxes[found.labels == label]
        assert found.slices[found.labels == label].tolist() == z.tolist()
        box = [x.min(), y.min(), x.max() + 1, y.max() + 1]
        assert (boxes == torch.stack(box)).all()
    assert len(json.loads(path.read_text())["objects"]) == 2


def test_slices_of_the_third_axis_stand_in_one_object() -> None:
    array = np.zeros((6, 5, 4), np.int32)
    array[1:3, 2, 1] = array[4, 0, 3] = 40_000
    (found,) = objects_of_labels(array, {40_000: "", 7: "liver"}, 2)
    boxes = {"1": {"box": [1, 2, 3, 3]}, "3": {"box": [4, 0, 5, 1]}}
    assert found == {"label": 40_000, "slices": boxes}
    assert objects_of_labels(array, {40_000: ""}) == [
        {"label": 40_000, "box3d": [1, 0, 1, 5, 3, 4]}
    ]
    assert objects_of_labels(array, {7: "liver"}) == []


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


def test_time_is_linear() -> None:
    def seconds(count: int) -> float:
        content = {"objects": [{"label": 1, "box3d": [1, 2, 3, 5, 8, 5]}] * count}
        start = time.process_time()
        assert len(read_prompts(content, LPS_GRID, LABELS)) == 2 * count
        return time.process_time() - start

    few = min(seconds(2_000) for _ in range(3))
    assert seconds(20_000) < 40 * few
