"""Entries of a store that a stranger made: only what we write is opened, only ours deleted."""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medsam_tune.cases.datalist import Case
from medsam_tune.errors import DataError
from medsam_tune.slices.entries import MARKER, discard, read_metadata, write_array
from medsam_tune.slices.store import PreparedCase, SliceStore

MakeCase = Callable[..., Case]
JSON_FILES = ["zarr.json", "image/zarr.json", "label/zarr.json"]


def forge(entry: Path, file: str, content: Any) -> None:
    """Write a JSON file into an entry as somebody who knows the checksums."""
    path = entry / file
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    files = json.loads((entry / "files.json").read_text())
    status = path.stat()
    files[file] = [status.st_size, status.st_mtime_ns, zlib.crc32(path.read_bytes())]
    (entry / "files.json").write_text(json.dumps(files))


def changed(entry: Path, file: str, *way: Any, value: Any) -> None:
    """Put a value into a JSON file of an entry, at the end of a way of keys."""
    content = json.loads((entry / file).read_text())
    inner = content
    for key in way[:-1]:
        inner = inner[key]
    inner[way[-1]] = value
    forge(entry, file, content)


CODECS = ("codecs", 0, "configuration", "codecs")
FORGED: dict[str, tuple[Any, ...]] = {
    "pickle": ("image/zarr.json", *CODECS, 0, {"name": "numcodecs.pickle", "configuration": {}}),
    "pickle-in-index": (
        "image/zarr.json",
        *CODECS[:3],
        "index_codecs",
        0,
        {"name": "numcodecs.pickle"},
    ),
    "no-shards": ("image/zarr.json", "codecs", 0, {"name": "bytes"}),
    "more-codecs": ("label/zarr.json", "codecs", 1, {"name": "numcodecs.zlib"}),
    "level": ("label/zarr.json", *CODECS, 1, "configuration", "level", 10**9),
    "big-endian": (
        "label/zarr.json",
        *CODECS,
        0,
        {"name": "bytes", "configuration": {"endian": "big"}},
    ),
    "object": ("label/zarr.json", "data_type", "object"),
    "float": ("image/zarr.json", "data_type", "float64"),
    "named-type": ("label/zarr.json", "data_type", {"name": "numpy.void", "configuration": {}}),
    "huge": ("image/zarr.json", "shape", [10**12, 1, 12, 10]),
    "huge-slice": ("image/zarr.json", "shape", [6, 1, 10**6, 10**6]),
    "negative": ("image/zarr.json", "shape", [-6, 1, 12, 10]),
    "axes": ("label/zarr.json", "shape", [6, 1, 12, 10]),
    "huge-chunk": ("image/zarr.json", *CODECS[:3], "chunk_shape", [10**9, 1, 10**9, 10]),
    "transformers": ("image/zarr.json", "storage_transformers", [{"name": "x"}]),
    "fill": ("image/zarr.json", "fill_value", 7),
    "keys": ("image/zarr.json", "chunk_key_encoding", {"name": "v2"}),
    "v2": ("image/zarr.json", "zarr_format", 2),
    "group-v2": ("zarr.json", "zarr_format", 2),
    "other-case": ("zarr.json", "attributes", "case", "somebody"),
    "depth": ("zarr.json", "attributes", "shape", [10**9, 12, 10]),
    "ids": ("zarr.json", "attributes", "boxes", [[["a", 0, 0, 1, 1]]] * 6),
    "row": ("zarr.json", "attributes", "boxes", [[[1, 0, 0, 1]]] * 6),
    "rows": ("zarr.json", "attributes", "boxes", [[7]] * 6),
    "two-rows": ("zarr.json", "attributes", "boxes", [[[1, 0, 0, 1, 1], [1, 0, 0, 2, 2]]] * 6),
    "box-outside": ("zarr.json", "attributes", "boxes", [[[1, 0, 0, 11, 1]]] * 6),
    "empty-box": ("zarr.json", "attributes", "boxes", [[[1, 2, 0, 2, 1]]] * 6),
    "box-of-halves": ("zarr.json", "attributes", "boxes", [[[1, 0, 0, 1.5, 1]]] * 6),
    "constant": ("zarr.json", "attributes", "constant", [10**9]),
    "spacing": ("zarr.json", "attributes", "spacing", [1.0, 0.0, 1.0]),
    "two-steps": ("zarr.json", "attributes", "spacing", [1.0, 1.0]),
    "directions": ("zarr.json", "attributes", "axes", "LPX"),
    "has-truth": ("zarr.json", "attributes", "has_truth", True),
    "text": ("zarr.json", "attributes", "has_label", "yes"),
}


@pytest.mark.parametrize("kind", FORGED)
def test_row_104_what_we_do_not_write_is_made_again(
    store: SliceStore, make_case: MakeCase, kind: str
) -> None:
    case = make_case()
    first = store.prepare([case], progress=False)[0]
    image, label = first.image(), first.label()
    file, *way, value = FORGED[kind]
    if kind == "more-codecs":
        codecs = json.loads((first.path / file).read_text())["codecs"]
        changed(first.path, file, "codecs", value=[*codecs, value])
    else:
        changed(first.path, file, *way, value=value)
    assert store.find(case) is None
    with pytest.warns(UserWarning, match="is damaged and is made again"):
        again = store.prepare([case], progress=False)[0]
    np.testing.assert_array_equal(again.image(), image)
    np.testing.assert_array_equal(again.label(), label)


def test_row_104_a_codec_swapped_after_the_check_is_refused_too(
    store: SliceStore, make_case: MakeCase
) -> None:
    prepared = store.prepare([make_case()], progress=False)[0]
    file, *way, value = FORGED["pickle"]
    changed(prepared.path, file, *way, value=value)
    with pytest.raises(
        DataError, match=r"case case_017: .*image cannot be read any more \(image h"
    ):
        prepared.image_slice(0)


def test_row_104_zarr_v2_beside_is_not_looked_at(store: SliceStore, make_case: MakeCase) -> None:
    prepared = store.prepare([make_case()], progress=False)[0]
    image = prepared.image()
    (prepared.path / "image" / ".zarray").write_text(
        '{"zarr_format": 2, "filters": [{"id": "pickle"}]}'
    )
    fresh = PreparedCase(**{**prepared.__getstate__(), "_arrays": {}})
    np.testing.assert_array_equal(fresh.image(), image)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32"])
def test_what_we_write_is_what_we_open(tmp_path: Path, dtype: str) -> None:
    group = zarr.open_group(tmp_path, mode="w", zarr_format=3)
    write_array(group, "label", np.zeros((3, 4, 5), dtype))
    write_array(group, "image", np.zeros((3, 2, 4, 5), np.uint8))
    assert read_metadata(tmp_path, "label")["data_type"] == dtype
    assert read_metadata(tmp_path, "image")["shape"] == [3, 2, 4, 5]


@pytest.mark.parametrize("shape", [[1, 1, 10**5, 10**5], [2**20, 1, 2**9, 2**9]])
def test_row_104_shapes_without_bounds_are_refused(tmp_path: Path, shape: list[int]) -> None:
    write_array(zarr.open_group(tmp_path, mode="w", zarr_format=3), "image", np.zeros((2, 1, 3, 4)))
    content = json.loads((tmp_path / "image" / "zarr.json").read_text())
    content |= {"shape": shape, "data_type": "uint8"}
    content["chunk_grid"]["configuration"]["chunk_shape"] = shape
    content["codecs"][0]["configuration"]["chunk_shape"] = [1, *shape[1:]]
    (tmp_path / "image" / "zarr.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"image would have \d+ values"):
        read_metadata(tmp_path, "image")


# What is deleted and written over.


def precious(folder: Path) -> Path:
    """A folder that is somebody else's."""
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("years of work")
    return folder


def is_whole(folder: Path) -> bool:
    return [p.name for p in folder.iterdir()] == ["thesis.txt"]


def test_row_104_a_folder_with_other_files_is_no_store(
    store: SliceStore, make_case: MakeCase
) -> None:
    precious(store.root)
    with pytest.raises(
        DataError, match=rf"store: holds other files and is no slice store \(no {MARKER}"
    ):
        store.prepare([make_case()], progress=False)
    assert is_whole(store.root)


def test_row_104_folders_in_a_making_folder_of_others_stay(
    store: SliceStore, make_case: MakeCase
) -> None:
    precious(store.root / ".making" / "data")
    with pytest.raises(DataError, match="is no slice store"):
        store.prepare([make_case()], progress=False)
    (store.root / MARKER).touch()  # even where it is one
    store.prepare([make_case()], progress=False)
    assert is_whole(store.root / ".making" / "data")


def test_row_104_a_file_is_no_store(store: SliceStore, make_case: MakeCase) -> None:
    store.root.write_text("mine")
    with pytest.raises(DataError, match="store: is a file; choose a new or an empty folder"):
        store.prepare([make_case()], progress=False)
    assert store.root.read_text() == "mine"


def test_an_empty_folder_becomes_a_store(store: SliceStore, make_case: MakeCase) -> None:
    store.root.mkdir()
    store.prepare([make_case()], progress=False)
    assert (store.root / MARKER).is_file()
    store.prepare([make_case("b")], progress=False)


def test_row_104_links_in_the_making_folder_are_not_followed(
    store: SliceStore, make_case: MakeCase, tmp_path: Path
) -> None:
    mine = precious(tmp_path / "mine")
    store.prepare([make_case()], progress=False)
    leftover = store.root / ".making" / "case_017-0123456789ab.abcdefgh"
    leftover.symlink_to(mine)
    leftover.with_suffix(".lock").touch()
    store.prepare([make_case()], progress=False)
    assert is_whole(mine)
    leftover.unlink()
    precious(leftover)  # one of ours, of a killed process
    store.prepare([make_case()], progress=False)
    assert not leftover.exists()


def test_row_104_a_making_folder_that_is_a_link_is_refused(
    store: SliceStore, make_case: MakeCase, tmp_path: Path
) -> None:
    mine = precious(tmp_path / "mine")
    store.root.mkdir()
    (store.root / MARKER).touch()
    (store.root / ".making").symlink_to(mine)
    with pytest.raises(DataError, match=r"\.making: is a link; expected a folder of the slice st"):
        store.prepare([make_case()], progress=False)
    assert is_whole(mine)


@pytest.mark.parametrize("where", ["", "image", "image/c", "zarr.json"])
@pytest.mark.filterwarnings("ignore:.*is damaged")
def test_row_104_nothing_is_written_through_links(
    store: SliceStore, make_case: MakeCase, tmp_path: Path, where: str
) -> None:
    case = make_case()
    entry = store.prepare([case], progress=False)[0].path
    mine = precious(tmp_path / "mine")
    place = entry / where
    place.rename(tmp_path / "away")
    place.symlink_to(mine / "thesis.txt" if where == "zarr.json" else mine)
    with pytest.raises(DataError, match="is a link; nothing is written through links"):
        store.prepare([case], progress=False)
    assert is_whole(mine)
    assert (mine / "thesis.txt").read_text() == "years of work"
    place.unlink()
    store.prepare([case], progress=False)


@pytest.mark.parametrize("where", ["", "image", "image/zarr.json"])
def test_row_104_a_sound_entry_behind_a_link_is_not_opened(
    store: SliceStore, make_case: MakeCase, tmp_path: Path, where: str
) -> None:
    case = make_case()
    entry = store.prepare([case], progress=False)[0].path
    (entry / where).rename(tmp_path / "away")
    (entry / where).symlink_to(tmp_path / "away")
    assert store.find(case) is None


@pytest.mark.filterwarnings("ignore:.*is damaged")
@pytest.mark.parametrize("where", ["", "image"])
def test_a_file_in_the_place_of_a_folder_is_named(
    store: SliceStore, make_case: MakeCase, tmp_path: Path, where: str
) -> None:
    case = make_case()
    entry = store.prepare([case], progress=False)[0].path
    (entry / where).rename(tmp_path / "away")
    (entry / where).write_text("mine")
    with pytest.raises(DataError, match=r"is damaged and cannot be made again \(.*\)\. Delete it"):
        store.prepare([case], progress=False)
    assert (entry / where).read_text() == "mine"


def test_files_that_an_entry_lists_outside_of_it_are_not_read(
    store: SliceStore, make_case: MakeCase, tmp_path: Path
) -> None:
    case = make_case()
    entry = store.prepare([case], progress=False)[0].path
    os.mkfifo(tmp_path / "pipe")  # reading it would wait for ever
    files = json.loads((entry / "files.json").read_text())
    (entry / "files.json").write_text(json.dumps({**files, "../../pipe": [0, 0, 1]}))
    assert store.find(case) is None


# Any JSON at all.

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**13), 10**13) | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["name", "shape", "configuration", "x"]), inner, max_size=3
        )
    ),
    max_leaves=6,
)


def _ways(content: Any, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The ways of keys to every value of a JSON document, the document included."""
    inner: Any = ()
    if isinstance(content, dict | list):
        inner = content.items() if isinstance(content, dict) else enumerate(content)
    return [way, *(deeper for key, value in inner for deeper in _ways(value, (*way, key)))]


def test_row_104_any_description_is_damaged_or_gives_the_same(
    store: SliceStore, make_case: MakeCase
) -> None:
    case = make_case()
    prepared = store.prepare([case], progress=False)[0]
    image, label = prepared.image(), prepared.label()
    whole = {file: (prepared.path / file).read_text() for file in JSON_FILES}

    @settings(
        max_examples=100,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def check(data: st.DataObject) -> None:
        file = data.draw(st.sampled_from(JSON_FILES))
        content = json.loads(whole[file])
        way = data.draw(st.sampled_from(_ways(content)[1:]))
        changed(prepared.path, file, *way, value=data.draw(VALUES))
        try:
            found = store.find(case)
            if found is not None:
                np.testing.assert_array_equal(found.image(), image)
                np.testing.assert_array_equal(found.label(), label)
        finally:
            forge(prepared.path, file, whole[file])

    check()
    assert store.find(case) is not None


def test_nothing_is_left_of_an_entry_that_threads_are_still_writing(tmp_path: Path) -> None:
    entry = tmp_path / "entry"
    entry.mkdir()

    def write(files: int = 20) -> None:
        for number in range(files):
            entry.mkdir(exist_ok=True)
            (entry / str(number)).touch()
            time.sleep(0.005)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(write)
        discard(entry)
    assert not entry.exists()
