"""Any JSON at any place of a prompt file: refused as a user's error, or prompts in the scan."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medsam_tune.errors import DataError
from medsam_tune.inference.prompt_files import read_prompts
from medsam_tune.slices.frames import ScanGrid
from tests.inference.made import LABELS, LPS_GRID, RAS

HALF = ScanGrid(RAS, (10, 12, 6), "LPS", (5, 24, 7))  # resampled
GRIDS = (LPS_GRID, HALF)
WHOLE: dict[str, Any] = {
    "space": "voxel",
    "scan": {"size": [10, 12, 6], "spacing": [2.0, 3.0, 4.0]},
    "labels": {"1": "liver", "2": "spleen"},
    "objects": [
        {"label": 1, "name": "liver", "box3d": [1, 2, 3, 5, 8, 5]},
        {
            "label": 2,
            "slices": {"3": {"box": [1, 2, 5, 8]}, "4": {"points": [[0, 0, 1], [9, 11, 0]]}},
            "interpolate": False,
        },
        {"label": 1, "points": [[1, 2, 3, 1]], "propagate": True, "range": [2, 5]},
    ],
}
MARKUPS: dict[str, Any] = {
    "markups": [
        {
            "type": "ROI",
            "name": "liver",
            "coordinateSystem": "LPS",
            "coordinateUnits": "mm",
            "center": [5.0, 13.5, 14.0],
            "orientation": [-1, 0, 0, 0, -1, 0, 0, 0, 1],
            "size": [8.0, 18.0, 8.0],
        },
        {
            "type": "Fiducial",
            "name": "spleen",
            "labelFormat": "%N-%d",
            "controlPoints": [
                {"label": "spleen-1", "position": [2, 6, 12], "positionStatus": "defined"},
                {
                    "label": "negative",
                    "description": "",
                    "position": [4, 6, 12],
                    "visibility": True,
                },
            ],
        },
        {
            "type": "Line",
            "name": "liver",
            "controlPoints": [{"position": [4, 15, 12]}, {"position": [12, 15, 12]}],
        },
    ]
}
PLACES: tuple[tuple[Any, ...], ...] = (
    (),
    *((key,) for key in WHOLE),
    *(("scan", key) for key in ("size", "spacing", "orientation", "x")),
    ("labels", "1"),
    ("labels", "x"),
    ("objects", 0),
    *(("objects", 0, key) for key in ("label", "name", "box3d", "slices", "x")),
    *(("objects", 0, "box3d", n) for n in range(6)),
    ("objects", 1, "slices"),
    ("objects", 1, "slices", "3"),
    ("objects", 1, "slices", "3", "box"),
    *(("objects", 1, "slices", "3", "box", n) for n in range(4)),
    ("axis",),
    ("objects", 1, "interpolate"),
    ("objects", 1, "slices", "4"),
    ("objects", 1, "slices", "4", "points"),
    ("objects", 1, "slices", "4", "points", 0),
    *(("objects", 1, "slices", "4", "points", 0, n) for n in range(3)),
    *(("objects", 2, key) for key in ("points", "propagate", "range", "interpolate")),
    ("objects", 2, "range", 1),
    ("objects", 2, "points", 0),
    ("objects", 2, "points", 0, 3),
)
PLACES_OF_MARKUPS: tuple[tuple[Any, ...], ...] = (
    ("markups",),
    *(("markups", n) for n in range(3)),
    *(("markups", 0, key) for key in (*MARKUPS["markups"][0], "insideOut", "controlPoints")),
    *(("markups", 0, key, 2) for key in ("center", "orientation", "size")),
    *(("markups", 1, key) for key in MARKUPS["markups"][1]),
    *(("markups", 1, "controlPoints", 1, key) for key in MARKUPS["markups"][1]["controlPoints"][1]),
    ("markups", 1, "controlPoints", 0, "positionStatus"),
    ("markups", 1, "controlPoints", 0, "position", 2),
    *(("markups", 2, key) for key in MARKUPS["markups"][2]),
    *(("markups", 2, "controlPoints", 0, "position", n) for n in range(3)),
)
NUMBERS = st.one_of(
    st.integers(-20, 20),
    st.integers(-(10**400), 10**400),
    st.floats(-15, 15),
    st.floats(),
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=8))
KEYS = st.one_of(
    st.sampled_from(["label", "box3d", "slices", "box", "points", "objects", "3", "position"]),
    st.text(max_size=4),
)
JSON = st.one_of(
    st.lists(NUMBERS, min_size=6, max_size=6),
    *(st.lists(NUMBERS, min_size=n, max_size=n) for n in (3, 4, 9)),
    st.sampled_from(["voxel", "world", "liver", "spleen", "negative", "RAS", "Line", "j", 1, 2]),
    st.recursive(
        SCALARS,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=3),
        max_leaves=8,
    ),
)


def put(content: Any, place: tuple[Any, ...], value: Any) -> Any:
    """The content with a value at a place."""
    if not place:
        return value
    content = copy.deepcopy(content)
    inner = content
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return content


def check(content: dict[str, Any], grid: ScanGrid) -> None:
    """The content is refused in a short line, or gives prompts in the scan."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that a box is cut off
        try:
            found = read_prompts(content, grid, LABELS)
        except DataError as error:
            found, refusal = None, str(error)
    if found is None:
        assert len(refusal) < 600
        return
    assert len(found) > 0
    assert set(found.labels.tolist()) <= set(LABELS)
    assert 0 <= found.slices.min()
    assert found.slices.max() < grid.size[2]
    assert found.points.shape[:2] == found.point_labels.shape
    assert (found.boxed | (found.point_labels == 1).any(1)).all()
    size = np.array(grid.size[:2]) + 1e-4
    low, high = found.boxes[found.boxed].numpy().reshape(-1, 2, 2).swapaxes(0, 1)
    assert (low >= 0).all()
    assert (high > low).all()
    assert (high <= size).all()
    assert (found.points.numpy() >= 0).all()
    assert (found.points.numpy() <= size).all()
    assert set(found.spread) <= set(found.objects.tolist())
    for known in found.spread.values():
        assert known is None or 0 <= known[0] < known[1] <= grid.size[2]


ANY = settings(
    max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


def name(place: tuple[Any, ...]) -> str:
    return "-".join(map(str, place)) or "all"


@pytest.mark.parametrize("place", PLACES, ids=name)
@ANY
@given(value=JSON, world=st.booleans(), which=st.sampled_from(range(len(GRIDS))))
def test_any_value_at_any_place(
    place: tuple[Any, ...], value: Any, world: bool, which: int
) -> None:
    content = put(WHOLE, place, value)
    if not isinstance(content, dict):
        return  # `read_json` refuses it
    if world and place[:1] != ("space",):
        content = {**content, "space": "world"}
    check(content, GRIDS[which])


@pytest.mark.parametrize("place", PLACES_OF_MARKUPS, ids=name)
@ANY
@given(value=JSON, which=st.sampled_from(range(len(GRIDS))))
def test_any_value_at_any_place_of_markups(place: tuple[Any, ...], value: Any, which: int) -> None:
    check(put(MARKUPS, place, value), GRIDS[which])


def test_the_whole_files_are_read() -> None:
    for content in (WHOLE, MARKUPS):
        assert len(read_prompts(content, LPS_GRID, LABELS)) > 2
