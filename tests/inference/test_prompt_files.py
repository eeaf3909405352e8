"""Prompt files of our own become prompts on slices, or are refused by name."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medsam_tune.errors import DataError
from medsam_tune.inference.prompt_files import given, read_prompts
from medsam_tune.prompts import SlicePrompts
from medsam_tune.slices.cut import cut_label
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
    assert found.objects.tolist() == [0, 1, 0, 1]
    assert found.points.shape == (4, 0, 2)
    assert found.spread == {}
    assert not found.drawn.any()  # one box in three dimensions
    assert found.boxes.dtype == found.points.dtype == torch.float32
    assert found.slices.dtype == found.labels.dtype == found.objects.dtype == torch.int64
    assert found.point_labels.dtype == torch.int64


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
    boxes = {"4": {"box": [1, 2, 5, 8]}, "3": {"box": [0, 0, 3.5, 4]}}
    path.write_text(json.dumps(objects({"label": 1, "slices": boxes}, space="voxel")))
    found = read_prompts(path, LPS_GRID, LABELS)
    assert found.slices.tolist() == [3, 4]
    assert found.drawn.all()
    assert found.boxes.tolist() == [[0, 0, 3.5, 4], [1, 2, 5, 8]]
    flipped = ScanGrid(np.diag([2.0, 3.0, -4.0, 1.0]), (10, 12, 6))
    found = read_prompts(path, flipped, LABELS)
    assert found.slices.tolist() == [1, 2]
    assert found.boxes.tolist() == [[5, 4, 9, 10], [6.5, 8, 10, 12]]


@pytest.mark.parametrize("high", [4, 5])
def test_a_box_of_one_slice_is_drawn_there(high: int) -> None:
    found = read_prompts(objects({"label": 1, "box3d": [1, 2, 3, 5, 8, high]}), LPS_GRID, LABELS)
    assert found.drawn.tolist() == [high == 4] * (high - 3)


def test_points_join_the_box_of_their_slice() -> None:
    """An index of a point is the centre of its voxel; bounds of a box are sides of voxels."""
    slices = {
        "3": {"box": [1, 2, 5, 8], "points": [[1, 2, 1], [5, 8, 0]]},
        "4": {"points": [[9, 0, 1]]},
    }
    found = read_prompts(objects({"label": 1, "slices": slices}), LPS_GRID, LABELS)
    assert found.slices.tolist() == [3, 4]
    assert found.points.tolist() == [[[1.5, 2.5], [5.5, 8.5]], [[9.5, 0.5], [0, 0]]]
    assert found.point_labels.tolist() == [[1, 0], [1, -1]]
    assert found.boxes[0].tolist() == [1, 2, 5, 8]
    assert found.boxed.tolist() == [True, False]
    assert found.drawn.all()
    flipped = ScanGrid(np.diag([2.0, 3.0, -4.0, 1.0]), (10, 12, 6))
    turned = read_prompts(objects({"label": 1, "slices": slices}), flipped, LABELS)
    assert turned.slices.tolist() == [1, 2]
    assert turned.boxes[1].tolist() == [5, 4, 9, 10]
    assert turned.points[1].tolist() == [[8.5, 9.5], [4.5, 3.5]]


@pytest.mark.parametrize("grid", [LPS_GRID, ScanGrid(SAGITTAL, (12, 6, 10))], ids=["LPS", "PIR"])
def test_points_of_an_object_lie_on_slices_of_any_plane(grid: ScanGrid) -> None:
    voxel = [2, 1, 3]
    found = read_prompts(objects({"label": 2, "points": [[*voxel, 1]]}), grid, LABELS)
    volume = np.zeros(grid.shape)
    volume[tuple(voxel)] = 1
    affine = torch.from_numpy(grid.affine)
    slices = cut_label(MetaTensor(torch.from_numpy(volume)[None], affine=affine), grid)[0]
    z, y, x = slices.nonzero()[0].tolist()
    assert found.slices.tolist() == [z]
    assert found.points.tolist() == [[[x + 0.5, y + 0.5]]]
    ras = grid.affine @ [*voxel, 1]  # the voxel's centre
    lps = [-ras[0], -ras[1], ras[2]]
    item = {"label": 2, "points": [[*lps, 1]]}
    there = read_prompts(objects(item, space="world"), grid, LABELS)
    assert there.slices.tolist() == [z]
    torch.testing.assert_close(there.points, found.points)


def test_of_many_points_on_a_slice_few_are_taken() -> None:
    """The same of each object, inside and outside, wherever they stand in the file."""
    inside = [[i, j, 2, 1] for i in range(5) for j in range(8)]
    outside = [[9, j, 2, 0] for j in range(12)] + [[8, j, 2, 0] for j in range(8)]
    few = [[i, 3, 3, 1] for i in range(10)]
    content = objects(
        {"label": 2, "points": few, "slices": {"2": {"points": [p[:2] + p[3:] for p in inside]}}},
        {"label": 1, "points": [*outside, *inside, *few]},
    )
    with pytest.warns(UserWarning, match="left out") as caught:
        found = read_prompts(content, LPS_GRID, LABELS)
    # Python itself may warn of what another test left, whenever it collects it.
    assert [str(one.message) for one in caught if one.category is UserWarning] == [
        "prompts: 52 of 120 points are left out; the model takes 16 inside and 16 outside of an "
        "object on a slice, and those that lie far apart are kept"
    ]
    assert (found.point_labels == 1).sum(1).tolist() == [16, 16, 10, 10]
    assert (found.point_labels == 0).sum(1).tolist() == [16, 0, 0, 0]
    taken = {tuple(p) for p in found.points[1][found.point_labels[1] == 1].tolist()}
    assert len(taken) == 16
    assert {(0.5, 0.5), (0.5, 7.5), (4.5, 0.5), (4.5, 7.5)} <= taken  # the corners
    assert taken <= {(i + 0.5, j + 0.5) for i, j, *_ in inside}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_prompts(
            objects({"label": 1, "points": [*outside[:16], *inside[:16]]}), LPS_GRID, LABELS
        )


def test_points_on_the_border_are_inside() -> None:
    """Millimetres are rounded."""
    low, high = [-1.001, -1.501, -2.001], [19.001, 34.501, 22.001]  # mm, of LPS_GRID's outer faces
    items = [{"label": 1, "points": [[*corner, 1]]} for corner in (low, high)]
    found = read_prompts(objects(*items, space="world"), LPS_GRID, LABELS)
    assert found.slices.tolist() == [0, 5]
    assert found.points.tolist() == [[[0, 0]], [[10, 12]]]


def test_points_beside_a_box_in_three_dimensions() -> None:
    item = {"label": 1, "box3d": GOOD, "points": [[2, 3, 3, 0], [2, 3, 4, 1]]}
    found = read_prompts(objects(item), LPS_GRID, LABELS)
    assert found.slices.tolist() == [3, 4]
    assert found.boxes.tolist() == [[1, 2, 5, 8]] * 2
    assert found.point_labels.tolist() == [[0], [1]]
    assert found.drawn.tolist() == [False, True]  # a point outside does not say that it is there


def test_objects_of_one_label_are_several() -> None:
    items = [{"label": label, "box3d": GOOD} for label in (2, 1, 2)]
    found = read_prompts(objects(*items), LPS_GRID, LABELS)
    assert found.slices.tolist() == [3, 3, 3, 4, 4, 4]
    assert found.labels.tolist() == [1, 2, 2] * 2
    assert found.objects.tolist() == [1, 0, 2] * 2


def test_slices_along_another_axis_of_the_file() -> None:
    grid = ScanGrid(SAGITTAL, (12, 6, 10))
    slices = {"1": {"box": [2, 1, 8, 5], "points": [[2, 1, 1]]}}
    content = objects({"label": 1, "slices": slices}, axis="j")
    found = read_prompts(content, grid, LABELS)
    expected = read_prompts(objects({"label": 1, "box3d": [2, 1, 1, 8, 2, 5]}), grid, LABELS)
    assert torch.equal(found.boxes, expected.boxes)
    assert torch.equal(found.slices, expected.slices)
    point = read_prompts(objects({"label": 1, "points": [[2, 1, 1, 1]]}), grid, LABELS)
    assert torch.equal(found.points, point.points)


FOLLOWED = {"label": 1, "slices": {"3": {"box": [1, 2, 5, 8]}}, "propagate": True}
FLIPPED = ScanGrid(np.diag([-2.0, -3.0, -4.0, 1.0]), (10, 12, 6))


def test_an_object_is_followed_within_its_range() -> None:
    assert read_prompts(objects(FOLLOWED), LPS_GRID, LABELS).spread == {0: None}
    one, two = {"label": 2, "box3d": GOOD}, {**FOLLOWED, "range": [2, 6]}
    assert read_prompts(objects(one, two), LPS_GRID, LABELS).spread == {1: (2, 6)}
    assert read_prompts(objects(two), FLIPPED, LABELS).spread == {0: (0, 4)}
    halved = replace(LPS_GRID, size=(10, 12, 3))
    assert read_prompts(objects(two), halved, LABELS).spread == {0: (1, 3)}
    ends = [[0.0, 0.0, 4 * 5.4], [9.0, 3.0, 4 * 2.4]]  # on slices 5 and 2, in any order
    item = {"label": 1, "points": [[2.0, 3.0, 12.0, 1]], "propagate": True, "range": ends}
    assert read_prompts(objects(item, space="world"), LPS_GRID, LABELS).spread == {0: (2, 6)}
    flat = {"label": 1, "box3d": [1, 2, 3, 5, 8, 4], "propagate": True}
    assert read_prompts(objects(flat), LPS_GRID, LABELS).spread == {0: None}


def test_boxes_between_boxes() -> None:
    slices = {"1": {"box": [0, 0, 4, 4]}, "5": {"box": [4, 2, 8, 12]}}
    points = [[1, 1, 3, 0]]  # outside, where a box comes to lie
    item = {"label": 1, "slices": slices, "points": points, "interpolate": True}
    found = read_prompts(objects(item), LPS_GRID, LABELS)
    assert found.slices.tolist() == [1, 2, 3, 4, 5]
    assert found.boxes[:3].tolist() == [[0, 0, 4, 4], [1, 0.5, 5, 6], [2, 1, 6, 8]]
    assert found.drawn.tolist() == [True, False, False, False, True]
    assert found.point_labels.flatten().tolist() == [-1, -1, 0, -1, -1]
    assert found.spread == {}


@pytest.mark.parametrize("key", ["propagate", "interpolate", None])
def test_slices_between_prompts_stay_empty(key: str | None) -> None:
    slices = {"1": {"box": [0, 0, 4, 4]}, "3": {"box": [0, 0, 4, 4]}}
    item = {"label": 1, "slices": slices, **({key: True} if key else {})}
    content = objects({"label": 2, "box3d": GOOD}, item)
    if key is None:
        said = r"1 objects stay empty: object 1\. 'propagate': true follows .* 'interpolate': true"
        with pytest.warns(UserWarning, match=said):
            read_prompts(content, LPS_GRID, LABELS)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_prompts(content, LPS_GRID, LABELS)


def test_resampled_slices() -> None:
    slices = {"2": {"box": [1, 2, 5, 8]}, "3": {"box": [2, 1, 6, 7], "points": [[0, 0, 0]]}}
    content = objects({"label": 1, "slices": slices})
    fewer = read_prompts(content, replace(LPS_GRID, size=(5, 12, 3)), LABELS)
    assert fewer.slices.tolist() == [1]  # one row: the box around both
    assert fewer.boxes.tolist() == [[0.5, 1, 3, 8]]
    assert fewer.points.tolist() == [[[0.25, 0.5]]]
    box = read_prompts(
        objects({"label": 1, "box3d": [1, 2, 2, 5, 8, 4]}),
        replace(LPS_GRID, size=(10, 12, 3)),
        LABELS,
    )
    assert box.drawn.tolist() == [True]  # it lies on one slice alone
    more = read_prompts(content, replace(LPS_GRID, size=(10, 12, 12)), LABELS)
    assert more.slices.tolist() == [4, 5, 6, 7]
    assert more.point_labels.flatten().tolist() == [-1, -1, -1, 0]
    assert more.drawn.all()


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
        objects({"label": 1}),
        "object 0: none of 'box3d', 'slices' and 'points' in it",
        id="nothing-of-it",
    ),
    pytest.param(
        objects({"label": 1, "points": [], "slices": {"3": {"points": []}}}),
        "none of 'box3d', 'slices' and 'points' in it",
        id="empty-lists",
    ),
    pytest.param(objects({"label": 1, "slices": {}}), r"slices is \{\}; expected", id="no-slices"),
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
        r"slice 3: expected \{'box': \[i0, j0, i1, j1\]\}, 'points': \[\[i, j, 1\]\], or both",
        id="slice-content",
    ),
    pytest.param(
        objects({"label": 1, "slices": {"3": {"box": GOOD}}}),
        "slice 3: box is .*; expected 4 finite numbers",
        id="slice-length",
    ),
    pytest.param(
        objects({"label": 1, "slices": {"3": {"box": [1, 2, 5, 8], "point": [1, 2]}}}),
        "slice 3: unknown key 'point'; .* Did you mean 'points'",
        id="slice-key-mistyped",
    ),
    pytest.param(
        objects({"label": 1, "slices": {"3": {"box": [1, 2, 5, 8]}}}, space="world"),
        "^prompts: object 0: 'slices' are indices of voxels, and space is 'world'; give a 'box3d'",
        id="slice-world",
    ),
    pytest.param(
        objects({"label": 1, "slices": {"3": {"box": [1, 2, 5, 8]}, "03": {"box": [2, 2, 5, 8]}}}),
        "object 0: slices '3' and '03' are one; give it once",
        id="slice-twice",
    ),
    pytest.param(
        objects({"label": 1, "points": [[2, 3, 12, 1]]}, space="world", scan={"sizes": [1]}),
        "scan: unknown key 'sizes'; known: size, .* Did you mean 'size'",
        id="scan-in-the-world",
    ),
    pytest.param(objects(FOLLOWED, axis=2), "axis is 2; expected 'i', 'j' or 'k'", id="axis"),
    pytest.param(
        objects({"label": 1, "points": [[1, 2, 3]]}),
        r"object 0: point 0 is \[1, 2, 3\]; expected 4 finite numbers",
        id="point-length",
    ),
    pytest.param(
        objects({"label": 1, "slices": {"3": {"points": [[1, 2, 1], [3, 4, 2]]}}}),
        "slice 3: point 1: its label, the last number, is 2; expected 1 .* 0 for one outside",
        id="point-label",
    ),
    pytest.param(
        objects({"label": 1, "points": {"0": [1, 2, 3, 1]}}),
        "points is .*; expected a list",
        id="map",
    ),
    pytest.param(
        objects({"label": 1, "points": [[1, 2, 3, 1], [9.6, 2, 3, 1]]}),
        r"object 0: point 1: point at voxel \[9\.6, 2\.0, 3\.0\] lies outside the scan",
        id="point-outside",
    ),
    pytest.param(
        objects({"label": 1, "points": [[900.0, 2, 3, 1]]}, space="world"),
        "object 0: point 0: point at voxel .* lies outside the scan of shape",
        id="point-outside-in-mm",
    ),
    pytest.param(
        objects({"label": 2, "box3d": GOOD}, {"label": 1, "points": [[1, 2, 3, 0]]}),
        "object 1: on slice 3 it has only points outside of it",
        id="only-outside",
    ),
    pytest.param(
        objects({**FOLLOWED, "points": [[1, 2, 4, 0]]}),
        "object 0: on slice 4 it has only points outside of it",
        id="only-outside-on-a-slice",
    ),
    pytest.param(
        objects({**FOLLOWED, "propagate": 1}), "propagate is 1; expected true or false", id="switch"
    ),
    pytest.param(
        objects({**FOLLOWED, "interpolate": True}), "both 'propagate' and 'interpolate'", id="ways"
    ),
    pytest.param(
        objects({"label": 1, "box3d": GOOD, "propagate": True}),
        "object 0: 'propagate' with a box3d of several slices",
        id="propagate-box3d",
    ),
    pytest.param(
        objects({"label": 1, "box3d": GOOD, "interpolate": True}),
        "object 0: 'interpolate' without 'slices'",
        id="interpolate-box3d",
    ),
    pytest.param(
        objects({"label": 1, "slices": {"3": {"box": [1, 2, 5, 8]}}, "interpolate": True}),
        "object 0: 'interpolate' with boxes on 1 slices; expected two",
        id="interpolate-one",
    ),
    pytest.param(
        objects({"label": 1, "box3d": GOOD, "range": [1, 4]}), "'range' without 'prop", id="range"
    ),
    *(
        pytest.param(
            objects({**FOLLOWED, "range": value}),
            rf"range is \{value}; expected whole numbers along axis k, of which the scan has 6",
            id=f"range-{name}",
        )
        for name, value in (("outside", [2, 7]), ("reversed", [5, 2]), ("half", [2.5, 5]))
    ),
    pytest.param(
        objects({**FOLLOWED, "range": [4, 6]}),
        "object 0: 1 of its 1 prompts lie outside its range",
        id="range-without-the-prompt",
    ),
    pytest.param(
        objects(
            {"label": 1, "points": [[2.0, 3.0, 12.0, 1]], "propagate": True, "range": [0, 20]},
            space="world",
        ),
        r"range: point 0 is 0; expected 3 finite numbers",
        id="range-in-mm",
    ),
    pytest.param(
        objects(
            {"label": 1, "points": [[2, 3, 12, 1]], "propagate": True, "range": [[0, 0, 0]]},
            space="world",
        ),
        r"range is \[\[0, 0, 0\]\]; expected two points in LPS millimetres",
        id="range-of-one-point",
    ),
    pytest.param(
        objects(
            {
                "label": 1,
                "points": [[2, 3, 12, 1]],
                "propagate": True,
                "range": [[0, 0, 0], [0, 0, 30]],
            },
            space="world",
        ),
        "range is slices 0 to 8; expected whole numbers",
        id="range-in-mm-outside",
    ),
]


@pytest.mark.parametrize(("content", "message"), REFUSED)
def test_refused_prompts(content: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_prompts(content, LPS_GRID, LABELS)


def test_arrays_stand_for_lists() -> None:
    """From Python, values come from NumPy and torch."""
    points = [[1, 2, 2, 1], [3, 4, 4, 0]]
    slices = {"3": {"box": [1, 2, 5, 8], "points": [[2, 3, 1]]}}
    scan = {"size": [10, 12, 6], "spacing": [2, 3, 4]}
    expected = read_prompts(
        objects({"label": 1, "box3d": GOOD, "points": points[:1]}, {"label": 2, "slices": slices}),
        LPS_GRID,
        LABELS,
    )
    one = {"label": np.int64(1), "box3d": np.array(GOOD), "points": (torch.tensor(points[0]),)}
    box = np.array([1, 2, 5, 8], np.float32)
    two = {
        "label": np.uint8(2),
        "slices": {np.int64(3): {"box": box, "points": np.array([[2, 3, 1]])}},
        "propagate": np.False_,
    }
    given = {"objects": (one, two), "scan": {key: np.array(value) for key, value in scan.items()}}
    found = read_prompts(given, LPS_GRID, LABELS)
    for name in ("slices", "labels", "boxes", "points", "point_labels"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), equal_nan=True)
    deep: list[Any] = []
    deep.append(deep)
    for content, message in (
        (objects({**one, "label": np.bool_(True)}), "label True is not there"),
        (objects({**one, "box3d": np.array(["i0"] * 6)}), "expected 6 finite numbers"),
        (objects({**one, "box3d": np.array([True] * 6)}), "expected 6 finite numbers"),
        (objects({**one, "box3d": np.zeros((2, 3))}), "expected 6 finite numbers"),
        ({**given, "space": np.zeros(2)}, r"space is \[0.0, 0.0\]; expected 'voxel' or 'world'"),
        (objects({**one, "box3d": deep}), "lists too deep"),
        ([one], r"prompts are of type list; expected a file, or .*: \{'objects': \[...\]\}\.$"),
        (3, "prompts are of type int"),
    ):
        with pytest.raises(DataError, match=message):
            read_prompts(content, LPS_GRID, LABELS)


def test_slices_are_named_as_the_file_counts_them() -> None:
    with pytest.raises(DataError, match="object 0: on slice 4 it has only points outside"):
        read_prompts(objects({"label": 1, "points": [[1, 2, 4, 0]]}), FLIPPED, LABELS)


def test_slices_of_another_axis_are_refused() -> None:
    content = objects({"label": 1, "slices": {"3": {"box": [1, 2, 5, 8]}}})
    with pytest.raises(DataError, match=r"along axis k of the file, and .* along axis j; give a"):
        read_prompts(content, ScanGrid(SAGITTAL, (12, 6, 10)), LABELS)


def test_refused_prompt_files(tmp_path: Path) -> None:
    path = tmp_path / "prompts.json"
    with pytest.raises(DataError, match=r"prompts\.json: no such prompt file; expected JSON with"):
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
    (text := tmp_path / "boxes.csv").write_text("1, 2, 3, 5, 8, 5")
    with pytest.raises(DataError, match=r"boxes\.csv: neither JSON nor a label map"):
        read_prompts(text, LPS_GRID, LABELS)
    text.write_text(json.dumps(objects({"label": 1, "box3d": GOOD})))
    assert len(read_prompts(text, LPS_GRID, LABELS)) == 2


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(item: dict[str, Any]) -> SlicePrompts:
        return read_prompts(objects(item), LPS_GRID, LABELS)

    slices = {"1": {"box": [1, 2, 5, 8]}, "5": {"box": [1, 2, 5, 8]}}
    box, between = {"label": 1, "box3d": GOOD}, {"label": 1, "slices": slices, "interpolate": True}
    points = {"label": 1, "points": [[1, 2, 3, 1], [2, 2, 3, 1], [1, 2, 4, 1]]}
    monkeypatch.setattr(given, "MOST_ON_SLICES", 4)
    assert len(read(box)) == 2
    assert len(read(points)) == 2  # two rows of two points, one of which is padding
    with monkeypatch.context() as patched:
        patched.delattr(given, "interpolated")  # refused before the boxes are made
        with pytest.raises(DataError, match=r"^prompts: 5 prompts on slices; at most 4 are taken"):
            read(between)
    monkeypatch.setattr(given, "MOST_ON_SLICES", 3)
    with pytest.raises(DataError, match=r"^prompts: 4 prompts on slices"):
        read(points)
    monkeypatch.setattr(given, "MOST_PROMPTS", 2)
    with pytest.raises(DataError, match=r"^prompts: more than 2 boxes and points; give fewer"):
        read(points)
