"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """A path to write to; what is written there takes the place of `path` in one step at the end.

    If the block raises, an older file at `path` stays and nothing is left beside it.

    Args:
        path: of the file; its folder is made if absent.

    Yields:
        a path of the same name, in a temporary folder on the same file system.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        beside = Path(folder) / path.name
        yield beside
        os.replace(beside, path)


@contextmanager
def folder_written_whole(folder: str | Path) -> Iterator[Path]:
    """A folder beside `folder` to write into; renamed to it if all went well, else removed.

    Raises:
        FileExistsError: there is one already.
    """
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder}: is there already; delete it or choose another.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        beside = Path(scratch) / folder.name
        beside.mkdir()
        yield beside
        os.replace(beside, folder)
