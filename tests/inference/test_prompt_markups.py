"""Markups of 3D Slicer become prompts on slices, or are refused by name."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medsam_tune.errors import DataError
from medsam_tune.inference.prompt_files import given, read_prompts
from medsam_tune.inference.prompt_files.names import Names
from medsam_tune.prompts import SlicePrompts
from medsam_tune.slices.frames import ScanGrid
from tests.inference.made import LABELS, LPS_GRID, SAGITTAL

# LPS_GRID: voxels of 2 x 3 x 4 mm, the centre of voxel (i, j, k) at (2 i, 3 j, 4 k) in LPS
SLICER = [-1.0, -0.0, -0.0, -0.0, -1.0, -0.0, 0.0, 0.0, 1.0]  # a region that nobody turned
REGION: dict[str, Any] = {
    "type": "ROI",
    "name": "liver",
    "coordinateSystem": "LPS",
    "coordinateUnits": "mm",
    "roiType": "Box",
    "center": [5.0, 13.5, 14.0],
    "orientation": SLICER,
    "size": [8.0, 18.0, 8.0],
    "insideOut": False,
}


def point(position: list[float], label: str = "", **content: object) -> dict[str, Any]:
    return {"label": label, "position": position, "positionStatus": "defined", **content}


def points(name: str, *controls: dict[str, Any], **content: object) -> dict[str, Any]:
    return {"type": "Fiducial", "name": name, "controlPoints": list(controls), **content}


def line(name: str, *ends: list[float], **content: object) -> dict[str, Any]:
    return {"type": "Line", "name": name, "controlPoints": [point(p) for p in ends], **content}


def read(*markups: object, grid: ScanGrid = LPS_GRID, labels: Any = LABELS) -> SlicePrompts:
    return read_prompts({"markups": list(markups)}, grid, labels)


def test_a_region_is_a_3d_box() -> None:
    found = read(REGION)
    box = {"label": 1, "box3d": [1, 2, 3, 5, 8, 5]}
    expected = read_prompts({"objects": [box]}, LPS_GRID, LABELS)
    for name in ("slices", "labels", "boxes", "drawn", "objects"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name))
    assert found.spread == {}


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"coordinateSystem": "RAS", "center": [-5.0, -13.5, 14.0]}, id="RAS"),
        pytest.param({"coordinateUnits": ["mm", "UCUM", "millimeter"]}, id="coded-unit"),
        pytest.param(
            {
                "coordinateUnits": "um",
                "center": [5000.0, 13500.0, 14000.0],
                "size": [8000.0, 18000.0, 8000.0],
            },
            id="um",
        ),
        pytest.param({"center": None, "controlPoints": [point([5.0, 13.5, 14.0])]}, id="no-center"),
        pytest.param(
            {"orientation": [0, 1, 0, -1, 0, 0, 0, 0, 1], "size": [18.0, 8.0, 8.0]},
            id="turned-by-90",
        ),
        pytest.param(
            # sides in columns: they go along y, z and x
            {"orientation": [0, 0, 1, 1, 0, 0, 0, 1, 0], "size": [18.0, 8.0, 8.0]},
            id="sides-in-another-order",
        ),
        pytest.param({"orientation": None}, id="no-orientation"),
        pytest.param({"name": "LIVER "}, id="case"),
        pytest.param({"name": "1"}, id="number"),
        pytest.param({"name": "liver_1"}, id="second-of-its-name"),
        pytest.param(
            {"name": "R", "controlPoints": [point([0, 0, 0], "liver")]}, id="of-its-point"
        ),
    ],
)
def test_regions_written_otherwise(change: dict[str, Any]) -> None:
    content = {key: value for key, value in {**REGION, **change}.items() if value is not None}
    found, expected = read(content), read(REGION)
    torch.testing.assert_close(found.boxes, expected.boxes)
    assert torch.equal(found.slices, expected.slices)
    assert torch.equal(found.labels, expected.labels)


def test_a_turned_region_gives_the_box_around_it() -> None:
    c, s = np.cos(np.radians(30)), np.sin(np.radians(30))
    # sides in columns: the first goes along (c, s, 0)
    turned = {**REGION, "orientation": [c, -s, 0, s, c, 0, 0, 0, 1]}
    with pytest.warns(UserWarning, match=r"^prompts: markup 0: the region is turned by 30 degrees"):
        found = read(turned)
    half = np.array([c * 4 + s * 9, s * 4 + c * 9])
    low, high = (np.array([5.0, 13.5]) - half) / [2, 3], (np.array([5.0, 13.5]) + half) / [2, 3]
    expected = np.clip([*(low + 0.5), *(high + 0.5)], 0, [10, 12, 10, 12])
    np.testing.assert_allclose(found.boxes[0], expected, atol=1e-5)
    little = {**REGION, "orientation": [1, -0.02, 0, 0.02, 1, 0, 0, 0, 1]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(little)


def test_points_of_a_list_are_an_object_that_is_followed() -> None:
    controls = [point([2, 6, 12], "liver-1"), point([4, 3, 12], "liver-2"), point([0, 0, 16])]
    found = read(points("liver", *controls))
    assert found.slices.tolist() == [3, 4]
    assert found.points.tolist() == [[[1.5, 2.5], [2.5, 1.5]], [[0.5, 0.5], [0, 0]]]
    assert found.point_labels.tolist() == [[1, 1], [1, -1]]
    assert found.labels.tolist() == [1, 1]
    assert found.spread == {0: None}
    assert found.drawn.all()
    ras = [point([-2, -6, 12])]
    same = read(points("liver", *ras, coordinateSystem="RAS"))
    assert same.points.tolist() == [[[1.5, 2.5]]]


def test_lists_and_labels_are_objects() -> None:
    """A list is an object for each label; two lists of one label are two objects."""
    both = points("F", point([2, 6, 12], "spleen"), point([4, 6, 12], "Liver"))
    found = read(both, points("liver", point([8, 6, 12])), points("liver_1", point([9, 6, 12])))
    assert found.labels.tolist() == [1, 1, 1, 2]
    assert found.objects.tolist() == [1, 2, 3, 0]
    assert found.spread == {0: None, 1: None, 2: None, 3: None}


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(
            [points("liver", point([2, 6, 12]), point([4, 3, 12], description="negative"))],
            id="description",
        ),
        pytest.param(
            [points("F", point([2, 6, 12], "liver"), point([4, 3, 12], "outside"))], id="label"
        ),
        pytest.param(
            [points("F", point([2, 6, 12], "liver"), point([4, 3, 12], "liver-negative"))],
            id="label-of-both",
        ),
        pytest.param(
            [
                points("liver", point([2, 6, 12])),
                points("negative", point([4, 3, 12], "negative-1")),
            ],
            id="list",
        ),
        pytest.param(
            [
                points("liver_positive", point([2, 6, 12])),
                points("Liver background", point([4, 3, 12])),
            ],
            id="lists-of-a-label",
        ),
        pytest.param([points("liver", point([2, 6, 12])), points("N", point([4, 3, 12]))], id="N"),
    ],
)
def test_points_outside(content: list[dict[str, Any]]) -> None:
    found = read(*content)
    assert found.points.tolist() == [[[1.5, 2.5], [2.5, 1.5]]]
    assert found.point_labels.tolist() == [[1, 0]]
    assert found.labels.tolist() == [1]


def test_points_outside_belong_to_objects_on_their_slice() -> None:
    one, two = points("liver", point([2, 6, 12])), points("liver", point([2, 6, 16]))
    other = points("spleen", point([6, 6, 12]))
    outside = points("negative", point([4, 3, 12]), point([0, 0, 16]))
    found = read(one, two, other, outside)
    assert found.objects.tolist() == [0, 2, 1]
    assert found.point_labels.tolist() == [[1, 0]] * 3
    assert found.points[:, 1].tolist() == [[2.5, 1.5], [2.5, 1.5], [0.5, 0.5]]
    named = read(one, other, points("liver negative", point([4, 3, 12])))
    assert named.point_labels.tolist() == [[1, 0], [1, -1]]
    own = read(one, points("liver", point([2, 6, 12]), point([4, 3, 12], "negative")))
    assert own.point_labels.tolist() == [[1, -1], [1, 0]]
    region = read(REGION, points("negative", point([4, 9, 16])))
    assert region.point_labels.tolist() == [[-1], [0]]
    assert region.boxed.all()


def test_the_only_label_needs_no_name() -> None:
    for markup in (points("F", point([2, 6, 12], "F-1")), {**REGION, "name": "R"}):
        assert read(markup, labels={7: "tumour"}).labels.unique().tolist() == [7]
    assert read(line("L", [2, 6, 12], [6, 6, 12]), labels={7: "tumour"}).labels.tolist() == [7]


def test_slicers_numbers_are_no_labels() -> None:
    """Slicer names a point by its list and a number, or by the number alone."""
    found = read(points("liver", point([2, 6, 12], "2"), labelFormat="%d"))
    assert found.labels.tolist() == [1]
    kidneys = {1: "kidney", 2: "kidney-2"}
    assert read(points("kidney", point([2, 6, 12], "kidney-2")), labels=kidneys).labels == 1
    assert read(points("F", point([2, 6, 12], "kidney-2")), labels=kidneys).labels == 2
    assert read(points("F", point([2, 6, 12], "2"))).labels == 2


def test_points_that_are_counted() -> None:
    """Bare numbers are no labels beside a list's own name, or where they count the points."""
    at = [[2, 6, 12], [4, 6, 12], [6, 6, 12]]
    for texts in (("1", "2", "3"), ("2", "1", "2"), ("2", " 2 ", "")):
        found = read(points("liver", *map(point, at, texts)))
        assert found.labels.tolist() == [1]
        assert found.points.shape == (1, 3, 2)
    assert read(points("liver", point(at[0], "spleen"), point(at[1], "2"))).labels.tolist() == [
        1,
        2,
    ]
    assert read(points("F", *map(point, at, ("2", "1", "2")))).labels.tolist() == [1, 2]
    text = r"its name 'F' is of no label; known: 1 \(liver\)"
    with pytest.raises(DataError, match=f"markup 0: point 0: {text}"):
        read(points("F", *map(point, at, "123")))
    ends = [point(end, text) for end, text in zip(at[:2], "12", strict=True)]
    with pytest.raises(DataError, match=f"markup 0: {text}"):
        read({"type": "Line", "name": "F", "controlPoints": ends})
    outside = points("negative", *map(point, at, "123"))
    assert read(points("liver", point(at[0])), outside).point_labels.tolist() == [[1, 0, 0, 0]]


def test_formats_of_strangers_take_no_time() -> None:
    strange = points("liver", point([2, 6, 12], "1" * 10_000 + "x"), labelFormat="%d" * 10_000)
    assert read(strange).labels.tolist() == [1]


def test_what_names_mean() -> None:
    names = Names({1: "left kidney", 2: "Tumor 2", 3: "background tissue", 4: "???", 5: "n"})
    for text, meaning in {
        "left kidney": (1, False),
        "Left_Kidney-3": (1, False),
        "1": (1, False),
        "1-4": (1, False),
        "tumor 2": (2, False),
        "tumor": (None, False),
        "background tissue": (3, False),
        "left kidney negative 2": (1, True),
        "tumor 2 foreground": (2, False),
        "bg": (None, True),
        "N": (5, False),
        "P-1": (None, False),
        "???": (4, False),
        "": (None, False),
        "12": (None, False),
    }.items():
        assert names.meaning(text) == meaning, text
    assert Names(LABELS).meaning("N-1") == (None, True)


def test_hidden_points_are_left_out() -> None:
    left = [
        point([9, 9, 12], positionStatus="undefined"),
        point([9, 9, 12], positionStatus="preview"),
        point([9, 9, 12], visibility=False),
        {"label": "liver-4", "positionStatus": "undefined"},
    ]
    with pytest.warns(UserWarning, match=r"^prompts: 4 points are hidden or not placed, and are l"):
        found = read(points("liver", point([2, 6, 12], visibility=True), *left))
    assert found.points.tolist() == [[[1.5, 2.5]]]
    with pytest.raises(DataError, match=r"prompts: no region, line or point of an object in it"):
        read(points("liver"))


def test_hidden_markups_are_left_out() -> None:
    hidden = {"display": {"visibility": False, "opacity": 1.0}}
    shown = points("liver", point([2, 6, 12]), display={"visibility": True})
    other = points("spleen", point([9, 9, 12]), **hidden)
    with pytest.warns(UserWarning, match=r"^prompts: 2 of 3 markups are hidden, and are left out$"):
        found = read(shown, other, {**REGION, **hidden})
    assert found.labels.tolist() == [1]
    with (
        pytest.warns(UserWarning, match="1 of 1 markups are hidden"),
        pytest.raises(DataError, match=r"prompts: no region, line or point of an object in it"),
    ):
        read(other)


def test_a_line_is_the_long_axis_of_an_ellipse() -> None:
    found = read(line("liver", [4, 15, 13], [12, 15, 11.5]))  # 8 mm along x
    assert found.slices.tolist() == [3]
    assert found.spread == {0: None}
    assert found.drawn.all()
    np.testing.assert_allclose(found.boxes[0], [2.5, 4.5, 6.5, 6.5], atol=1e-5)  # 8 x 6 mm
    ends = np.array([[4.0, 9], [14, 21]])
    slant = read(line("liver", *([*end, 12.0] for end in ends)))
    # the ellipse's outline, drawn
    half = (ends[1] - ends[0]) / 2
    angle = np.linspace(0, 2 * np.pi, 10_000)[:, None]
    outline = ends.mean(0) + np.cos(angle) * half + np.sin(angle) * 0.75 * half[::-1] * [1, -1]
    expected = np.concatenate([outline.min(0), outline.max(0)]) / [2, 3, 2, 3] + 0.5
    np.testing.assert_allclose(slant.boxes[0], expected, atol=1e-3)


def test_a_line_on_slices_of_another_plane() -> None:
    grid = ScanGrid(SAGITTAL, (12, 6, 10))  # axial slices along the second axis, 4 x 2 x 3 mm
    centre = np.array([6.0, 3, 5])
    step = np.array([2.0, 0, 0])  # along i
    ends = [(grid.affine @ [*(centre + sign * step), 1])[:3] for sign in (-1, 1)]
    found = read(line("liver", *([-x, -y, z] for x, y, z in ends)), grid=grid)
    expected = [4.5, 3, 5.5 - 2 / 4 * 0.75 * 2, 8.5, 4, 5.5 + 2 / 4 * 0.75 * 2]
    box = read_prompts({"objects": [{"label": 1, "box3d": expected}]}, grid, LABELS)
    torch.testing.assert_close(found.boxes, box.boxes)
    assert torch.equal(found.slices, box.slices)


def test_files_are_known_by_their_content(tmp_path: Path) -> None:
    """Slicer names a node that has no name by its file."""
    content = {"markups": [points("", point([2, 6, 12], "spleen-1"))]}
    del content["markups"][0]["name"]
    for name in ("Spleen.mrk.json", "spleen.json", "spleen.txt", "spleen"):
        path = tmp_path / name
        path.write_bytes(b"\xef\xbb\xbf" + json.dumps(content, indent=2).encode())
        assert read_prompts(path, LPS_GRID, LABELS).labels.tolist() == [2], name


REFUSED = [
    pytest.param([], "prompts: no markups; expected a list 'markups'", id="none"),
    pytest.param(["x"], "markup 0: type is None; expected one of ROI, Line, Fiducial", id="text"),
    pytest.param(
        [REGION, {"type": "ClosedCurve"}], "markup 1: type is 'ClosedCurve'; expected", id="curve"
    ),
    pytest.param(
        [{**REGION, "coordinateSystem": "XYZ"}], "coordinateSystem is 'XYZ'; exp", id="system"
    ),
    pytest.param([{**REGION, "coordinateUnits": "ft"}], "coordinateUnits is 'ft'; exp", id="unit"),
    pytest.param([{**REGION, "coordinateUnits": 1}], "coordinateUnits is 1; exp", id="unit-number"),
    pytest.param(
        [{**REGION, "size": [0, 1, 2]}], "size is .*; expected three numbers ab", id="size"
    ),
    pytest.param([{**REGION, "size": [1, 2]}], "size is .*; expected 3 finite numbers", id="sizes"),
    pytest.param([{**REGION, "center": None}], "center is None; expected 3", id="center"),
    pytest.param([{**REGION, "insideOut": True}], "the region is inside out", id="inside-out"),
    pytest.param(
        [{**REGION, "orientation": [1] * 9}], "orientation is .*; expected the three", id="no-turn"
    ),
    pytest.param([{**REGION, "center": [900, 0, 0]}], "lies outside the scan", id="outside"),
    pytest.param(
        [{**REGION, "name": "R_1"}],
        r"markup 0: its name 'R_1' is of no label; known: 1 \(liver\), 2 \(spleen\)",
        id="name",
    ),
    pytest.param(
        [{**REGION, "name": "liver negative"}], "says outside; expected", id="name-outside"
    ),
    pytest.param(
        [points("F", point([2, 6, 12], "F-1"))],
        r"markup 0: point 0: its name 'F-1' is of no label; known: 1 \(liver\)",
        id="name-of-a-point",
    ),
    pytest.param(
        [points("liver", point([2, 6, 900]))],
        "markup 0: point 0: point at voxel .* lies outside the scan",
        id="point-outside",
    ),
    pytest.param(
        [points("liver", point([2, 6]))],
        "point 0: position is .*; expected 3 finite",
        id="position",
    ),
    pytest.param([points("liver", {"label": "x"})], "position is None; expected 3", id="no-place"),
    pytest.param(
        [{**points("liver"), "controlPoints": 1}], "controlPoints is 1; exp", id="controls"
    ),
    pytest.param(
        [{**points("liver"), "controlPoints": [1]}], "point 0 is 1; expected", id="control"
    ),
    pytest.param(
        [points("liver", point([2, 6, 12]), point([2, 6, 20], "negative"))],
        "markup 0: point 1: a point outside, and no object has a box or a point inside on",
        id="outside-elsewhere",
    ),
    pytest.param(
        [points("liver negative", point([2, 6, 12])), points("spleen", point([2, 6, 12]))],
        "markup 0: point 0: a point outside, and no object has",
        id="outside-of-another",
    ),
    pytest.param(
        [points("negative", point([2, 6, 12]))], "no region, line or point", id="only-out"
    ),
    pytest.param(
        [line("liver", [2, 6, 0], [2, 6, 12])],
        "markup 0: the line crosses 3 slices; expected both ends on one slice",
        id="line-across",
    ),
    pytest.param(
        [line("liver", [2, 6, 12])], "a line of 1 points; expected its two", id="line-end"
    ),
    pytest.param(
        [line("liver", [2, 6, 12], [2, 6, 12])], "has no length", id="line-without-length"
    ),
    pytest.param([line("liver", [2, 6, 12], [2, 6, 16])], "has no length", id="line-along-slices"),
]


@pytest.mark.parametrize(("markups", "message"), REFUSED)
def test_refused_markups(markups: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(*markups)


def test_row_78_markups_on_a_guessed_place_are_refused() -> None:
    with pytest.raises(DataError, match=r"^prompts: markups lie in the world, but .* no qform"):
        read(REGION, grid=replace(LPS_GRID, guess="no qform"))


def test_limits_of_markups(monkeypatch: pytest.MonkeyPatch) -> None:
    """A point outside counts once for each object that gets it."""
    inside = [points("liver", point([2, 6, 12])) for _ in range(4)]
    outside = points("negative", point([0, 0, 12]), point([4, 0, 12]))
    monkeypatch.setattr(given, "MOST_PROMPTS", 13)
    with pytest.raises(DataError, match=r"^prompts: more than 13 boxes and points"):
        read(*inside, outside)
    monkeypatch.setattr(given, "MOST_PROMPTS", 14)
    assert len(read(*inside, outside)) == 4
    monkeypatch.setattr(given, "MOST_PROMPTS", 3)
    with pytest.raises(DataError, match="more than 3 boxes and points"):
        read(*inside)
