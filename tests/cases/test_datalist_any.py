"""A datalist of any content is read, or refused by a `DataError`."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medsam_tune.cases.datalist import SUBSETS, Datalist, read_datalist, write_datalist
from medsam_tune.cases.description import MODALITIES
from medsam_tune.errors import DataError

KEYS = ("image", "label", "patient", "series", "name", "labels", "ignore", "0", "1", *SUBSETS)
WORDS = (
    "images/a.nii",
    "images/b.nii",
    "../x",
    "\0",
    "a" * 300,
    "CT",
    "FLAIR",
    "ignore",
    "p_visit1",
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-3, 5)
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(WORDS)
    | st.text(max_size=8)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)
SOUND = {
    "name": "Small",
    "modality": {"0": "CT"},
    "labels": {"0": "background", "1": "liver", "2": "spleen"},
    "ignore": 3,
    "training": [
        {"image": "images/a.nii", "label": "labels/a.nii", "patient": "a"},
        {"image": "images/b.nii", "label": "labels/b.nii", "patient": "b", "name": "b"},
    ],
    "validation": [{"image": "images/c.nii", "label": "labels/c.nii"}],
    "test": ["images/d.nii"],
}


def places(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in nested JSON."""
    inner = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in inner:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


PLACES = list(places(SOUND))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("any")
    for name in "abcd":
        for kind in ("images", "labels"):
            (made / kind).mkdir(exist_ok=True)
            (made / kind / f"{name}.nii").write_text(name)
    return made


def is_sound(data: Datalist) -> None:
    assert data.modality in MODALITIES
    assert data.labels
    assert all(type(number) is int and number > 0 for number in data.labels)
    assert all(isinstance(name, str) and name.strip() for name in data.labels.values())
    assert data.ignore is None or (type(data.ignore) is int and data.ignore not in data.labels)
    assert data.cases
    assert len({case.id for case in data.cases}) == len(data.cases)
    for case in data.cases:
        assert case.image.exists()
        assert case.label is None or case.label.exists()
        assert isinstance(case.patient, str)
        assert case.patient


def read_or_refused(path: Path) -> None:
    try:
        data = read_datalist(path)
    except DataError:
        return
    is_sound(data)
    again = path.with_name("again.json")
    write_datalist(data, again)
    assert read_datalist(again) == data


quick = settings(
    max_examples=120,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@quick
@given(changes=st.lists(st.tuples(st.sampled_from(PLACES), VALUES), min_size=1, max_size=2))
def test_any_value_in_any_place(folder: Path, changes: list[tuple[Any, Any]]) -> None:
    content = copy.deepcopy(SOUND)
    for place, value in changes:
        where: Any = content
        try:
            for key in place[:-1]:
                where = where[key]
            where[place[-1]] = value
        except (TypeError, IndexError, KeyError):
            continue  # the first change took the second one's place away
    path = folder / "d.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    read_or_refused(path)


@quick
@given(content=VALUES | st.dictionaries(st.sampled_from(list(SOUND)), VALUES, max_size=5))
def test_any_content(folder: Path, content: Any) -> None:
    path = folder / "d.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    read_or_refused(path)


@quick
@given(data=st.data())
def test_any_damage_to_the_file(folder: Path, data: st.DataObject) -> None:
    content = bytearray(json.dumps(SOUND).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 5))] = data.draw(st.binary(max_size=5))
    path = folder / "d.json"
    path.write_bytes(bytes(content))
    read_or_refused(path)


def test_the_sound_one_is_read(folder: Path) -> None:
    path = folder / "d.json"
    path.write_text(json.dumps(SOUND))
    data = read_datalist(path)
    is_sound(data)
    assert (len(data.cases), data.ignore) == (4, 3)
