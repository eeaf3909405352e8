"""Entries of the slice store on disk: written whole, and opened only if they are what was written.

A store may come from a stranger, and so may the name of its folder. So nothing is opened but arrays
of zarr 3 with this module's own codecs and types, checked before zarr sees them; and nothing is
written or deleted outside of a folder that this module marked, nor through links.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
import zlib
from collections.abc import Mapping, Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.storage import LocalStore, StorePath

from medsam_tune.errors import DataError
from medsam_tune.files import flush, read_json

FORMAT = 8
"""Version of the entries; raise it when their content changes."""

MARKER = "slice_store.txt"
"""File that says of a folder that it is a slice store."""

MAX_SLICE = 2**28
"""Values of the largest slice, all channels together: 16384 x 16384."""

MAX_VALUES = 2**36
"""Values of the largest array: 256 such slices."""

DAMAGED = (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, MemoryError)
"""Errors that a damaged entry leads to."""

_TYPES = {  # of the arrays, and their number of axes
    "image": (("uint8", "float16"), 4),
    "label": (("uint8", "uint16", "uint32"), 3),
    "truth": (("uint8", "uint16", "uint32"), 3),
    "objects": (("uint32",), 3),
}
_ON_SLICES = ("label", "objects")
_FILES = "files.json"  # size, modification time in ns and (of JSON) CRC-32 of an entry's files
_MAKING = ".making"  # folder of locks and unfinished entries
_UNFINISHED = re.compile(r".+-[0-9a-f]{12}\.[^.]{8}")


def claim(root: Path) -> None:
    """Make the folder of a store, or take an empty one, and mark it.

    Raises:
        DataError: a file, or a folder with other files in it.
    """
    if root.exists() and not root.is_dir():
        raise DataError(f"{root}: is a file; choose a new or an empty folder for the slices.")
    root.mkdir(parents=True, exist_ok=True)
    marker = root / MARKER
    if marker.is_file():
        return
    if any(root.iterdir()) and not marker.is_file():  # another process may have marked it by now
        raise DataError(
            f"{root}: holds other files and is no slice store (no {MARKER} in it). Choose a new or "
            "an empty folder for the slices (slices_dir)."
        )
    marker.write_text("Slices of scans, made by medsam_tune. They are made again if deleted.\n")


def making(root: Path) -> Path:
    """The folder of a marked store for locks and unfinished entries.

    Raises:
        DataError: it is a link.
    """
    folder = root / _MAKING
    if folder.is_symlink():
        raise DataError(f"{folder}: is a link; expected a folder of the slice store. Delete it.")
    folder.mkdir(exist_ok=True)
    return folder


def remove_leftovers(root: Path) -> None:
    """Delete unfinished entries of killed processes; a living one holds its entry's lock."""
    for path in making(root).iterdir():
        lock = path.with_suffix(".lock")
        ours = _UNFINISHED.fullmatch(path.name) and lock.is_file() and not lock.is_symlink()
        if ours and path.is_dir():  # if it is a link, rmtree leaves it and what it leads to
            try:
                with FileLock(lock, timeout=0):
                    shutil.rmtree(path, ignore_errors=True)
            except Timeout:
                continue


def discard(folder: Path) -> None:
    """Delete an entry that will not be finished, if it is there.

    Where zarr cannot write one of its files, its threads are still writing others for a moment.
    """
    for _ in range(100):
        if not folder.exists():
            return
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.05)


def write_array(group: zarr.Group, name: str, data: NDArray[Any]) -> None:
    """Write (Z, ...) as one file from which each slice can be read alone."""
    array = group.create_array(
        name,
        shape=data.shape,
        chunks=(1, *data.shape[1:]),
        shards=data.shape,
        dtype=data.dtype,
        compressors=[ZstdCodec(), Crc32cCodec()],
        # Otherwise an empty shard is not written, and looks like a lost one.
        config={"write_empty_chunks": True},
    )
    array[:] = np.ascontiguousarray(data)


def seal(folder: Path) -> None:
    """Record the files of an entry, and flush them to disk before the entry gets its name."""
    files = {}
    for path in sorted(folder.rglob("*")):
        flush(path)
        if path.is_file():
            status = path.stat()
            checksum = zlib.crc32(path.read_bytes()) if path.suffix == ".json" else None
            name = path.relative_to(folder).as_posix()
            files[name] = [status.st_size, status.st_mtime_ns, checksum]
    (folder / _FILES).write_text(json.dumps(files, indent=1))
    flush(folder / _FILES)
    flush(folder)


def put(beside: Path, entry: Path) -> None:
    """Move a finished entry to its place, or its files over those of a damaged entry.

    So a process that has the damaged entry open finds every file.

    Raises:
        DataError: something else than a folder of files is in the place.
    """
    if os.path.lexists(entry):
        _refuse_links(entry)
        for file in sorted(beside.rglob("*"), key=lambda file: file.name == _FILES):
            if file.is_file():
                target = entry / file.relative_to(beside)
                try:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    os.replace(file, target)
                except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
                    raise DataError(
                        f"{entry}: is damaged and cannot be made again ({error}). Delete it."
                    ) from error
    else:
        os.replace(beside, entry)
    flush(entry.parent)


def _refuse_links(entry: Path) -> None:
    inner = (Path(top, name) for top, *names in os.walk(entry) for name in chain(*names))
    for path in (entry, *inner):
        if path.is_symlink():
            raise DataError(
                f"{path}: is a link; nothing is written through links. Delete it, and the slices "
                "are made again."
            )


def read_entry(entry: Path, case: str) -> dict[str, Any]:
    """The attributes of a sound entry; only files whose time differs are read.

    Args:
        entry: folder of the entry.
        case: id of the case that it must be of.

    Raises:
        One of `DAMAGED`: the entry is missing, damaged, or not what this package writes.
    """
    # zarr takes ten times as long, and there may be thousands of cases.
    group = read_json(entry / "zarr.json")
    if (group.get("zarr_format"), group.get("node_type")) != (3, "group"):
        raise ValueError("the entry is no group of zarr 3")
    attributes = _attributes(group["attributes"], case)
    optional = ("label", "truth", "objects")
    names = ["image", *(name for name in optional if attributes[f"has_{name}"])]
    shapes = {name: read_metadata(entry, name)["shape"] for name in names}
    depth, *side = attributes["shape"]
    if [shapes["image"][0], *shapes["image"][2:]] != [depth, *side]:
        raise ValueError("the slices have another shape than the entry says")
    if any(shapes.get(name, [depth, *side]) != [depth, *side] for name in _ON_SLICES):
        raise ValueError("the label has another shape than the slices")
    _check_files(entry, names)
    return attributes


def open_array(entry: Path, name: str) -> Any:
    """An array of an entry; zarr reads nothing but its chunks.

    Raises:
        ValueError: its description is not one that `write_array` writes.
    """
    store = StorePath(LocalStore(entry / name, read_only=True))
    return zarr.Array.from_dict(store, read_metadata(entry, name))


def read_metadata(entry: Path, name: str) -> dict[str, Any]:
    """The description of an array, checked to be as `write_array` writes it.

    Raises:
        ValueError: it differs; says in what.
    """
    found = read_json(entry / name / "zarr.json")
    types, axes = _TYPES[name]
    shape = found.get("shape")
    if not isinstance(shape, list) or len(shape) != axes or not all(map(_is_count, shape)):
        raise ValueError(f"{name} has no shape of {axes} axes")
    slice_values = int(np.prod([int(n) for n in shape[1:]], dtype=object))
    if slice_values > MAX_SLICE or slice_values * shape[0] > MAX_VALUES:
        raise ValueError(f"{name} would have {slice_values * shape[0]} values")
    if found.get("data_type") not in types:
        raise ValueError(f"{name} has the type {found.get('data_type')!r}")
    expected = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": shape,
        "data_type": found["data_type"],
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shape}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "attributes": {},
    }
    rest = {key: value for key, value in found.items() if key not in (*expected, "codecs")}
    if any(rest.values()) or any(found.get(key) != expected[key] for key in expected):
        raise ValueError(f"{name} is described in another way than it was written")
    if not _are_ours(found.get("codecs"), [1, *shape[1:]]):
        raise ValueError(f"{name} has other codecs than it was written with")
    return {**expected, "codecs": found["codecs"]}


def _are_ours(codecs: object, chunk: Sequence[int]) -> bool:
    """True for shards of one slice a chunk: bytes, zstd and a checksum; versions of zarr differ.

    The codecs are compared by name first: zarr, or what is registered in it, runs what is named.
    """
    shard = _configurations(codecs, ["sharding_indexed"])
    if shard is None:
        return False
    inner = _configurations(shard[0].get("codecs"), ["bytes", "zstd", "crc32c"])
    index = _configurations(shard[0].get("index_codecs"), ["bytes", "crc32c"])
    if inner is None or index is None:
        return False
    level, checksum = inner[1].get("level", 0), inner[1].get("checksum", False)
    return (
        shard[0].keys() == {"chunk_shape", "codecs", "index_codecs", "index_location"}
        and shard[0]["chunk_shape"] == chunk
        and shard[0]["index_location"] == "end"
        and inner[1].keys() <= {"level", "checksum"}
        and type(level) is int
        and abs(level) <= 22
        and isinstance(checksum, bool)
        and all(given in ({}, {"endian": "little"}) for given in (inner[0], index[0]))
        and inner[2] == index[1] == {}
    )


def _configurations(codecs: object, names: list[str]) -> list[dict[str, Any]] | None:
    """The configuration of each codec, or None if they are not those named."""
    if not isinstance(codecs, list) or len(codecs) != len(names):
        return None
    for codec, name in zip(codecs, names, strict=True):
        if not isinstance(codec, dict) or codec.get("name") != name:
            return None
        if codec.keys() - {"name", "configuration"}:
            return None
        if not isinstance(codec.get("configuration", {}), dict):
            return None
    return [codec.get("configuration", {}) for codec in codecs]


def _attributes(found: object, case: str) -> dict[str, Any]:
    """The attributes of an entry, checked in types and ranges."""
    if not isinstance(found, dict) or (found["case"], found["format"]) != (case, FORMAT):
        raise ValueError("the entry is of another case or format")
    if not isinstance(found["content"], str):
        raise ValueError("the entry has no hash of its scan")
    shape, boxes, constant = (found[key] for key in ("shape", "boxes", "constant"))
    if not isinstance(shape, list) or len(shape) != 3 or not all(map(_is_count, shape)):
        raise ValueError("the entry has no shape of 3 axes")
    rows = isinstance(boxes, list) and len(boxes) == shape[0]
    if (
        not rows
        or not all(_are_boxes(each, shape) for each in boxes)
        or not _ascend(constant, start=0, below=shape[0])
    ):
        raise ValueError("the entry lists labels or slices that it cannot have")
    _check_place(found["spacing"], found["axes"])
    if not all(isinstance(found[key], bool) for key in ("has_label", "has_truth", "has_objects")):
        raise ValueError("the entry does not say whether it has a label")
    return found


def _check_place(spacing: object, axes: object) -> None:
    """Refuse a spacing that is neither None nor three lengths, and axes that are no directions."""
    steps = spacing if isinstance(spacing, list) else []
    if spacing is not None and (len(steps) != 3 or not all(map(_is_length, steps))):
        raise ValueError("the entry has no spacing of 3 axes")
    if not isinstance(axes, str) or len(axes) != 3 or not set(axes) <= set("LRAPSI"):
        raise ValueError("the entry does not say where its slices lie")


def _is_length(value: object) -> bool:
    return type(value) is float and 0 < value < MAX_VALUES


def _are_boxes(rows: object, shape: Sequence[int]) -> bool:
    """True for rows of label id, x0, y0, x1, y1 inside of the slice, by ascending id."""
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        return False
    _, h, w = shape
    return _ascend([row[0] if row else 0 for row in rows]) and all(
        len(row) == 5
        and all(type(v) is int for v in row)
        and 0 <= row[1] < row[3] <= w
        and 0 <= row[2] < row[4] <= h
        for row in rows
    )


def _is_count(value: object) -> bool:
    return type(value) is int and 1 <= value <= MAX_VALUES


def _ascend(values: object, start: int = 1, below: int = 2**31) -> bool:
    return (
        isinstance(values, list)
        and all(type(v) is int and start <= v < below for v in values)
        and all(a < b for a, b in pairwise(values))
    )


def _check_files(entry: Path, names: Sequence[str]) -> None:
    """Refuse files that changed, are missing or are links."""
    listed: Mapping[str, Any] = read_json(entry / _FILES)
    shards = {f"{name}/c{'/0' * _TYPES[name][1]}": name for name in names}
    if listed.keys() != {"zarr.json", *(f"{name}/zarr.json" for name in names), *shards}:
        raise ValueError("the entry lists other files than it was written with")
    _refuse_links(entry)
    for name, (size, written, checksum) in listed.items():
        file = entry / name
        status = file.stat()
        if status.st_size != size:
            raise ValueError(f"{name} has {status.st_size} bytes, not {size}")
        if status.st_mtime_ns == written:
            continue
        if name in shards:  # each slice has its own checksum
            open_array(entry, shards[name])[:]
        elif zlib.crc32(file.read_bytes()) != checksum:
            raise ValueError(f"{name} is not as it was written")


def refuse_missing(entry: Path, name: str) -> None:
    """Raise OSError if an array's file is missing."""
    (entry / f"{name}/c{'/0' * _TYPES[name][1]}").stat()
