"""Any JSON at any place of a prompt file: refused as an error of the user, or boxes in the scan."""

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
        {"label": 2, "slices": {"3": {"box": [1, 2, 5, 8]}, "4": {"box": [0, 0, 10, 12]}}},
    ],
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
)
NUMBERS = st.one_of(
    st.integers(-20, 20),
    st.integers(-(10**400), 10**400),
    st.floats(-15, 15),
    st.floats(),
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=8))
KEYS = st.one_of(
    st.sampled_from(["label", "box3d", "slices", "box", "space", "objects", "3", "size"]),
    st.text(max_size=4),
)
JSON = st.one_of(
    st.lists(NUMBERS, min_size=6, max_size=6),
    st.lists(NUMBERS, min_size=4, max_size=4),
    st.sampled_from(["voxel", "world", "liver", "spleen", 1, 2]),
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


@pytest.mark.parametrize("place", PLACES, ids=lambda place: "-".join(map(str, place)) or "all")
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(value=JSON, world=st.booleans(), which=st.sampled_from(range(len(GRIDS))))
def test_any_value_at_any_place(
    place: tuple[Any, ...], value: Any, world: bool, which: int
) -> None:
    grid, content = GRIDS[which], put(WHOLE, place, value)
    if not isinstance(content, dict):
        return  # `read_json` refuses it
    if world and place[:1] != ("space",):
        content = {**content, "space": "world"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that a box is cut off
        try:
            found = read_prompts(content, grid, LABELS)
        except DataError as error:
            found, refusal = None, str(error)
    if found is None:
        assert len(refusal) < 600
        return
    assert len(found.slices) == len(found.boxes) == len(found.labels) > 0
    assert set(found.labels.tolist()) <= set(LABELS)
    assert 0 <= found.slices.min()
    assert found.slices.max() < grid.size[2]
    low, high = found.boxes[:, :2], found.boxes[:, 2:]
    assert (low >= 0).all()
    assert (high > low).all()
    assert (high.numpy() <= np.array(grid.size[:2]) + 1e-4).all()
