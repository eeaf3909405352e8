"""JSON files, files that are written whole or not at all, and folders of one process."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, Timeout

from medsam_tune.errors import DataError, listed
from medsam_tune.version import __version__

JSON_LIMIT = 256 * 2**20
"""Bytes of the largest JSON file that is read; 100,000 cases take about 20 million."""

FORMAT = "format"
"""Key of the number of a file's format, in every JSON file that is read again."""

LOCK = ".lock"
"""Name of the file by which a process holds a folder."""


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """Give a path to write to; its file replaces `path` in one step at the end.

    If the block raises, an older file at `path` stays and no temporary file is left.

    Args:
        path: file to write; its folder is made if absent.

    Yields:
        path of the same name, in a temporary folder on the same file system.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=_hidden(path)) as folder:
        beside = Path(folder) / path.name
        yield beside
        flush(beside)
        os.replace(beside, path)
        flush(path.parent)


def flush(path: str | Path) -> None:
    """Have the system write a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def all_written_whole(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """Give paths to write to, as `written_whole` does; all files get their place, or none.

    Args:
        paths: files to write, none of which is there.

    Yields:
        for each, a path of the same name in a temporary folder on the same file system.
    """
    placed: list[Path] = []
    with ExitStack() as scratch:
        beside = []
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            folder = tempfile.TemporaryDirectory(dir=path.parent, prefix=_hidden(path))
            beside.append(Path(scratch.enter_context(folder)) / path.name)
        yield beside
        try:
            for file, path in zip(beside, paths, strict=True):
                flush(file)
                os.replace(file, path)
                placed.append(path)
        except OSError:
            for path in placed:
                path.unlink()
            raise


@contextmanager
def folder_written_whole(folder: str | Path) -> Iterator[Path]:
    """Give a folder to write into; it becomes `folder` at the end, or is removed after an error.

    Raises:
        FileExistsError: the folder exists already.
    """
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder}: is there already; delete it or choose another.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=_hidden(folder)) as scratch:
        beside = Path(scratch) / folder.name
        beside.mkdir()
        yield beside
        os.replace(beside, folder)


def _hidden(path: Path) -> str:
    """Start of a hidden name beside a path; a name may have 255 bytes, a letter four."""
    return f".{path.name[:40]}."


def is_leftover(name: str, ours: Iterable[str]) -> bool:
    """Whether a name is that of a temporary folder beside a file of one of our names."""
    return name.startswith(tuple(_hidden(Path(each)) for each in ours))


def remove_leftovers(folder: Path, ours: Iterable[str]) -> None:
    """Delete unfinished files of killed processes, which this package alone names so.

    Args:
        folder: folder that no other process writes into.
        ours: names of the files that are written.
    """
    names = [*ours]
    for one in folder.iterdir():
        if is_leftover(one.name, names) and one.is_dir() and not one.is_symlink():
            shutil.rmtree(one, ignore_errors=True)


def hold_folder(folder: Path, works: str) -> BaseFileLock:
    """Hold a folder until the lock is released, or the process ends.

    Args:
        folder: folder that is there.
        works: what a process that holds it does, such as "trains".

    Raises:
        DataError: another process holds it.
    """
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise DataError(
            f"{folder}: another process {works} into it; wait for it, or choose another output "
            "folder."
        ) from None
    return lock


def file_hash(path: Path) -> str:
    """SHA-256 of a file's content, as `sha256sum` gives it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_hash(paths: Iterable[Path]) -> str:
    """SHA-256 of the content of files, whatever their names and order.

    Of one file, it is that of its content; of several, that of their hashes in ascending order.
    """
    hashes = sorted(map(file_hash, paths))
    return hashes[0] if len(hashes) == 1 else _text_hash(hashes)


def named_hash(folder: Path, paths: Iterable[Path]) -> str:
    """SHA-256 of the content of files in a folder and of their names in it."""
    named = [(path.relative_to(folder).as_posix(), file_hash(path)) for path in sorted(paths)]
    return _text_hash(f"{sha256}  {json.dumps(name)}" for name, sha256 in named)


def _text_hash(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def read_json(path: Path, limit: int | None = None) -> dict[str, Any]:
    """Read the object in a JSON file, in UTF-8 with or without a byte order mark.

    Args:
        path: the file.
        limit: bytes of the largest file that is read; by default `JSON_LIMIT`.

    Raises:
        DataError: the file cannot be read, has more than `limit` bytes, is not JSON, or does
            not hold an object; a key is there twice in one object, a number is not finite, or
            objects are nested too deeply.
    """
    limit = JSON_LIMIT if limit is None else limit
    try:
        size = path.stat().st_size
        if size > limit:
            raise DataError(
                f"{path}: has {size} bytes; expected at most {limit}. Divide it into several."
            )
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). Correct the path.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not JSON ({error}). Correct it or make it again.") from error
    return parse_json(text, str(path))


def parse_json(text: str, source: str) -> dict[str, Any]:
    """Read the object in a JSON text.

    Args:
        text: JSON of somebody, as in `read_json`.
        source: where the text is from, for the message.

    Raises:
        DataError: as in `read_json`; names `source`.
    """
    try:
        content = json.loads(
            text, object_pairs_hook=_object, parse_constant=_finite, parse_float=_finite
        )
    except RecursionError as error:
        raise DataError(
            f"{source}: its objects and lists are nested too deeply; expected a few levels. Make "
            "it again."
        ) from error
    except ValueError as error:
        raise DataError(f"{source}: is not JSON ({error}). Correct it or make it again.") from error
    if not isinstance(content, dict):
        raise DataError(f"{source}: holds a JSON {type(content).__name__}; expected an object.")
    return content


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, whose keys are there once: Python keeps the last of several."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
        raise ValueError(f"the keys {listed(map(repr, twice))} are there twice in one object")
    return found


def _finite(text: str) -> float:
    """A number of JSON, which has no NaN and no infinity."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text} is not finite")
    return number


def refuse_other_format(
    path: str | Path, content: Mapping[str, Any], number: int, way_out: str
) -> None:
    """Refuse a file of another format than this version writes.

    Args:
        path: the file, for the message.
        content: its JSON.
        number: format that this version writes and reads.
        way_out: what a user does, a sentence.

    Raises:
        DataError: the content has another number, or none.
    """
    found = content.get(FORMAT)
    if type(found) is int and found == number:
        return
    age = "another"
    if found is None or type(found) is int:
        age = "an older" if found is None or found < number else "a newer"
    shown = "no format number" if found is None else f"format {repr(found)[:20]}"
    raise DataError(
        f"{path}: has {shown}, of {age} version of medsam_tune; expected format {number}, which "
        f"version {__version__} reads. {way_out}"
    )


def refuse_other_ending(output: str | Path, ending: str) -> None:
    """Refuse an output whose name would make it another kind of file.

    Raises:
        DataError: the name ends otherwise.
    """
    if Path(output).suffix.lower() != ending:
        raise DataError(f"{output}: expected a name that ends in {ending}.")


def refuse_taken(
    output: str | Path,
    overwrite: bool = False,
    inputs: Iterable[str | Path | None] = (),
    way_out: str = "say --overwrite",
) -> None:
    """Refuse an output that is there already, or that is one of the inputs.

    Args:
        output: file or folder that a user named.
        overwrite: replace a file that is there. A folder, and an input, are refused all the same.
        inputs: files and folders that are read; None stands for one that was not given.
        way_out: how a user has a file replaced.

    Raises:
        DataError: the output is taken.
    """
    output = Path(output)
    for given in inputs:
        if given is not None and Path(given).exists() and output.exists():
            if os.path.samefile(given, output):
                raise DataError(f"{output}: is an input; choose another file for the output.")
    if output.is_dir():
        raise DataError(f"{output}: is a folder; choose another name for the output.")
    if os.path.lexists(output) and not overwrite:
        raise DataError(
            f"{output}: is there already; choose another name, delete it, or {way_out}."
        )


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file, whole or not at all."""
    with written_whole(path) as file:
        text = json.dumps(content, indent=1, ensure_ascii=False, default=str)
        file.write_text(text + "\n", encoding="utf-8", errors="surrogateescape")


def flat(content: Any, place: str = "") -> dict[str, Any]:
    """Nested JSON as `a::b::0` -> value, as it is after a round trip through a file."""
    if isinstance(content, dict):
        inner = content.items()
    elif isinstance(content, (list, tuple)):
        inner = {str(number): value for number, value in enumerate(content)}.items()
    else:
        plain = content is None or isinstance(content, (str, int, float))
        return {place: content if plain else str(content)}
    found: dict[str, Any] = {}
    for key, value in inner:
        found |= flat(value, f"{place}::{key}" if place else str(key))
    return found
