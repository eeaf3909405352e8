"""Files of a folder, without those that systems and programs leave beside them."""

from __future__ import annotations

import os
from pathlib import Path

_LEFT_BEHIND = {
    "__macosx",
    "@eadir",
    "$recycle.bin",
    "desktop.ini",
    "ehthumbs.db",
    "lost+found",
    "system volume information",
    "thumbs.db",
}


def is_clutter(path: Path) -> bool:
    """Whether a system or a program left a file or folder behind: hidden, lock and backup files."""
    name = path.name.lower()
    lock = name.startswith("#") and name.endswith("#")
    lock = lock or name.endswith(("~", ".lock", ".lck"))
    return lock or name.startswith((".", "~$")) or name in _LEFT_BEHIND


def entries_of(folder: Path) -> list[Path]:
    """Files and folders in a folder, sorted, without clutter."""
    return sorted(path for path in folder.iterdir() if not is_clutter(path))


def files_below(folder: Path) -> list[Path]:
    """Files in a folder and in its sub-folders, linked ones too, sorted, without clutter.

    Each folder is entered once, however many links lead to it.
    """
    found: list[Path] = []
    entered: set[str] = set()
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        real = os.path.realpath(here)
        if real in entered:
            continue
        entered.add(real)
        inside = entries_of(here)
        found += [path for path in inside if path.is_file()]
        # Its own folders before linked ones, so that files are named where they lie.
        folders = [path for path in inside if path.is_dir()]
        waiting = [p for p in folders if p.is_symlink()] + waiting
        waiting += [p for p in reversed(folders) if not p.is_symlink()]
    return sorted(found)
