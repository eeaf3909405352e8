"""Prompt files become boxes on slices, or are refused by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medsam_tune.errors import DataError
from medsam_tune.inference.prompt_files import read_prompts
from medsam_tune.slices.frames import ScanGrid
from tests.inference.made import GOOD, LABELS, LPS_GRID, RAS, SAGITTAL, objects


def test_box_in_voxels() -> None:
    found = read_prompts(
        objects(
            {"label": 2, "box3d": [1, 2, 3, 5, 8, 5]}, {"label": 1, "box3d": [0, 0, 4, 4, 4, 6]}
        ),
        LPS_GRID,
        LABELS,
    )
    assert found.slices.tolist() == [3, 4, 4, 5]
    assert found.labels.tolist() == [2, 1, 2, 1]
    assert found.boxes.tolist() == [[1, 2, 5, 8], [0, 0, 4, 4], [1, 2, 5, 8], [0, 0, 4, 4]]
    assert found.boxes.dtype == torch.float32
    assert found.slices.dtype == found.labels.dtype == torch.int64


def test_row_78_world_of_a_guessed_place_is_refused() -> None:
    guessed = replace(LPS_GRID, guess="no qform and no sform")
    item = {"label": 1, "box3d": [0, 0, 4, 4, 4, 6]}
    with pytest.raises(DataError, match="place is a guess: no qform and no sform"):
        read_prompts(objects(item, space="world"), guessed, LABELS)
    assert len(read_prompts(objects(item), guessed, LABELS)) == 2


def test_box_of_a_turned_file() -> None:
    ras = ScanGrid(RAS, (10, 12, 6))
    found = read_prompts(objects({"label": 1, "box3d": [1, 2, 3, 5, 8, 5]}), ras, LABELS)
    assert found.slices.tolist() == [3, 4]
    assert found.boxes[0].tolist() == [5, 4, 9, 10]
    sagittal = ScanGrid(SAGITTAL, (12, 6, 10))  # stored P, I, R
    found = read_prompts(objects({"label": 1, "box3d": [2, 1, 1, 8, 3, 5]}), sagittal, LABELS)
    assert found.slices.tolist() == [3, 4]
    assert found.boxes[0].tolist() == [5, 2, 9, 8]


def test_box_in_the_world() -> None:
    # voxel (1, 2, 3) to (5, 8, 5) of the file: LPS millimetres, half a voxel before the centre
    world = [1.0, 4.5, 10.0, 9.0, 22.5, 18.0]
    voxel = read_prompts(objects({"label": 1, "box3d": [1, 2, 3, 5, 8, 5]}), LPS_GRID, LABELS)
    for corners in (world, world[3:] + world[:3]):
        item = {"label": 1, "box3d": corners}
        found = read_prompts(objects(item, space="world"), LPS_GRID, LABELS)
        assert torch.allclose(found.boxes, voxel.boxes, atol=1e-4)
        assert torch.equal(found.slices, voxel.slices)


@pytest.mark.parametrize(
    ("low", "high", "slices"),
    [
        pytest.param(2.0, 4.0, [2, 3], id="whole"),
        pytest.param(1.6, 4.4, [2, 3], id="centres"),
        pytest.param(1.4, 4.6, [1, 2, 3, 4], id="over-the-centres"),
        pytest.param(2.6, 2.9, [2], id="thin-above-the-centre"),
        pytest.param(2.1, 2.4, [2], id="thin-below-the-centre"),
        pytest.param(5.7, 6.0, [5], id="thin-at-the-end"),
        pytest.param(0.5, 2.5, [0, 1], id="two-thick"),
    ],
)
def test_box_reaches_slices_by_their_centres(low: float, high: float, slices: list[int]) -> None:
    item = {"label": 1, "box3d": [0, 0, low, 5, 5, high]}
    assert read_prompts(objects(item), LPS_GRID, LABELS).slices.tolist() == slices


def test_boxes_of_single_slices(tmp_path: Path) -> None:
    path = tmp_path / "prompts.json"
    boxes = {"4": {"box": [1, 2, 5, 8]}, "2": {"box": [0, 0, 3.5, 4]}}
    path.write_text(json.dumps(objects({"label": 1, "slices": boxes}, space="voxel")))
    found = read_prompts(path, LPS_GRID, LABELS)
    assert found.slices.tolist() == [2, 4]
    assert found.boxes.tolist() == [[0, 0, 3.5, 4], [1, 2, 5, 8]]
    flipped = ScanGrid(np.diag([2.0, 3.0, -4.0, 1.0]), (10, 12, 6))
    found = read_prompts(path, flipped, LABELS)
    assert found.slices.tolist() == [1, 3]
    assert found.boxes.tolist() == [[5, 4, 9, 10], [6.5, 8, 10, 12]]


REFUSED = [
    pytest.param(
        objects({"label": 1, "box3d": GOOD}, space="mm"),
        "space is 'mm'; expected 'voxel' or 'world'",
        id="space",
    ),
    pytest.param({}, "no objects; expected a list 'objects'", id="nothing"),
    pytest.param({"objects": {"label": 1}}, "no objects; expected a list", id="no-list"),
    pytest.param(
        objects({"label": 1, "box3d": GOOD}, {"label": 3, "box3d": GOOD}),
        r"object 1: label 3 is not there; known: 1 \(liver\), 2 \(spleen\)",
        id="label",
    ),
    pytest.param(objects({"box3d": GOOD}), "object 0: label None is not there", id="no-label"),
    pytest.param(
        objects({"label": [1], "box3d": GOOD}), r"label \[1\] is not there", id="label-list"
    ),
    pytest.param(objects([1, 2]), "object 0: label None is not there", id="no-object"),
    pytest.param(
        objects({"label": 1}), "object 0: neither 'box3d' nor 'slices' in it", id="no-box"
    ),
    pytest.param(
        objects({"label": 1, "slices": {}}), "neither 'box3d' nor 'slices'", id="no-slices"
    ),
    pytest.param(objects({"label": 1, "slices": {}, "box3d": GOOD}), "has both 'box3d'", id="both"),
    pytest.param(objects({"label": True, "box3d": GOOD}), "label True is not there", id="true"),
    pytest.param(
        objects({"label": 1, "box3d": [*GOOD[:5], 10**400]}), "expected 6 finite", id="huge"
    ),
    pytest.param(objects({"label": 1, "box3d": "all"}), "is 'all'; expected 6", id="text"),
    pytest.param(
        objects({"label": 1, "box3d": [-9, 2, 1, 0, 8, 3]}), "lies outside", id="outside-low"
    ),
    pytest.param(
        objects({"label": 1, "slices": {"top": {"box": [1, 2, 5, 8]}}}),
        "slice 'top' is no index; expected 0, 1, 2",
        id="slice-key",
    ),
    pytest.param(
        objects({"label": 1, "slices": {"-1": {"box": [1, 2, 5, 8]}}}),
        "slice '-1' is no index",
        id="slice-negative",
    ),
    pytest.param(
        objects({"label": 1, "slices": {"²": {"box": [1, 2, 5, 8]}}}),
        "slice '²' is no index",
        id="slice-superscript",
    ),
    pytest.param(
        objects({"label": 1, "slices": {"9": {"box": [1, 2, 5, 8]}}}),
        "lies outside the scan",
        id="slice-outside",
    ),
    pytest.param(
        objects({"label": 1, "slices": {"3": [1, 2, 5, 8]}}),
        r"slice 3: expected \{'box': \[i0, j0, i1, j1\]\}",
        id="slice-content",
    ),
    pytest.param(
        objects({"label": 1, "slices": {"3": {"box": GOOD}}}),
        "slice 3: box is .*; expected 4 finite numbers",
        id="slice-length",
    ),
    pytest.param(
        objects({"label": 1, "slices": {"3": {"box": [1, 2, 5, 8]}}}, space="world"),
        "stacked along axis 3 in voxels; give a 'box3d'",
        id="slice-world",
    ),
]


@pytest.mark.parametrize(("content", "message"), REFUSED)
def test_refused_prompts(content: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_prompts(content, LPS_GRID, LABELS)


def test_slices_of_another_axis_are_refused() -> None:
    content = objects({"label": 1, "slices": {"3": {"box": [1, 2, 5, 8]}}})
    with pytest.raises(DataError, match=r"along the third axis .* stacked along axis 2; give a"):
        read_prompts(content, ScanGrid(SAGITTAL, (12, 6, 10)), LABELS)


def test_refused_prompt_files(tmp_path: Path) -> None:
    path = tmp_path / "prompts.json"
    with pytest.raises(DataError, match=r"prompts\.json: no such prompt file; expected JSON"):
        read_prompts(path, LPS_GRID, LABELS)
    for content, message in (
        (b"{'space': ", "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b"[1, 2]", "holds a JSON list; expected an object"),
        (b"{}", "no objects"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"prompts\.json: {message}"):
            read_prompts(path, LPS_GRID, LABELS)
