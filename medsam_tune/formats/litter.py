"""Files that systems and programs leave beside scans, and that are never scans."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_NAMES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx"}
_ENDINGS = (".lock", ".lck")


def is_litter(name: str) -> bool:
    """Whether a file or folder of this name is none of the user's.

    Hidden files (.DS_Store, ._scan.dcm), owner and lock files (~$scan, scan.lock), previews and
    settings of folders (Thumbs.db, desktop.ini), and __MACOSX of archives.
    """
    name = name.casefold()
    return name.startswith((".", "~")) or name in _NAMES or name.endswith(_ENDINGS)


def files_below(folder: Path) -> Iterator[Path]:
    """All files below a folder in a stable order, without litter and what lies in it."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not any(map(is_litter, path.relative_to(folder).parts)):
            yield path
