"""Records beside masks: which files a prediction wrote, so that no other is replaced or deleted."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from medsam_tune.errors import DataError, listed
from medsam_tune.files import FORMAT, file_hash, read_json, refuse_other_format, write_json
from medsam_tune.inference.output import ending_of

RECORD = ".prediction.json"
"""What the name of a mask's record ends in; no file of prompts is named so."""
RECORD_FORMAT = 1
"""Format of these records."""


def record_of(mask: Path) -> Path:
    """The file beside a mask that says how it was made."""
    return mask.with_name(mask.name.removesuffix(ending_of(mask)) + RECORD)


def begin_record(record: Path, files: Iterable[Path]) -> None:
    """Write what holds until the masks are whole: which files may be there, of unknown content.

    Args:
        record: the record.
        files: files that may be written. Those of an older record stay listed.
    """
    names = sorted({path.name for path in (*files, *own_files(record))})
    write_json(record, {FORMAT: RECORD_FORMAT, "finished": False, "files": dict.fromkeys(names)})


def end_record(record: Path, content: Mapping[str, Any], files: Iterable[Path]) -> None:
    """Write the record of files that are whole, and delete the older ones that it replaces.

    Args:
        record: the record, whose unfinished form is there.
        content: how the files were made.
        files: the files.
    """
    written = [*files]
    for path in other_files(record, written):
        path.unlink()
    hashes = {path.name: file_hash(path) for path in written}
    write_json(record, {FORMAT: RECORD_FORMAT, "finished": True, **content, "files": hashes})


def drop_record(record: Path) -> None:
    """Delete an unfinished record none of whose files is there."""
    if not own_files(record):
        record.unlink(missing_ok=True)


def own_files(record: Path) -> dict[Path, str | None]:
    """The files that a record lists and that are there -> SHA-256; None of an unfinished record.

    Raises:
        DataError: a record of another format.
    """
    try:
        content = read_json(record)
    except DataError:  # of somebody else, or none
        return {}
    files = content.get("files")
    if isinstance(files, dict):
        way_out = "Choose another output, or move it away with its masks."
        refuse_other_format(record, content, RECORD_FORMAT, way_out)
    found = {}
    for name, sha256 in files.items() if isinstance(files, dict) else ():
        path = record.parent / name
        if Path(name).name == name and path != record and path.is_file():
            found[path] = sha256
    return found


def other_files(record: Path, files: Iterable[Path]) -> list[Path]:
    """The files that a record lists and that are there, but for some."""
    names = {path.name for path in files}
    return [path for path in own_files(record) if path.name not in names]


def refuse_input(record: Path, files: Iterable[Path], inputs: Iterable[str | Path | None]) -> None:
    """Refuse to delete an input with the older files of a record.

    Args:
        record: the record.
        files: files that may be written; see `files.refuse_taken` for these.
        inputs: files and folders that are read.

    Raises:
        DataError: another file of the record is an input, or lies in one.
    """
    if not (old := other_files(record, files)):
        return
    read = {os.path.realpath(path) for path in inputs if path is not None}
    for path in old:
        real = Path(os.path.realpath(path))
        if not read.isdisjoint(map(str, (real, *real.parents))):
            raise DataError(f"{path}: is an input; choose another name for the output.")


def refuse_lost(record: Path, files: Iterable[Path], way_out: str = "say --overwrite") -> None:
    """Refuse to replace the record of masks that stay.

    Args:
        record: the record.
        files: files that may be written.
        way_out: how a user has them deleted.

    Raises:
        DataError: it lists others that are there.
    """
    if lost := other_files(record, files):
        raise DataError(
            f"{record}: is the record of {listed((path.name for path in lost), 5)}, and would be "
            f"replaced. Choose another name, delete them, or {way_out}, which deletes them too."
        )


def refuse_owned(record: Path, files: Iterable[Path]) -> None:
    """Refuse to replace what belongs to another scan, whatever was asked for.

    Names of masks by label may be those of other scans' masks: m_1_liver.nii.gz.

    Args:
        record: the record of the scan.
        files: files that may be written.

    Raises:
        DataError: one is the mask of another record, or is listed in one beside it.
    """
    there = [path for path in files if os.path.lexists(path)]
    if not there:
        return
    own = {path.name for path in own_files(record)}
    strange = [path for path in there if path.name not in own]
    others = [one for one in record.parent.glob(f"*{RECORD}") if one != record] if strange else []
    for other in others:
        listed_there = {path.name for path in own_files(other)}
        for path in strange:
            if path.name in listed_there:
                raise DataError(
                    f"{path}: belongs to the prediction of another scan, {other.name}, and would "
                    "be replaced. Choose another output, or rename one of the scans."
                )


def refuse_foreign(record: Path, files: Iterable[Path]) -> None:
    """Refuse to replace files that no prediction wrote, or that were changed since.

    Args:
        record: the record, which lists the files of a prediction.
        files: files that may be written.

    Raises:
        DataError: one is there and is not listed, or has another content than is recorded.
    """
    own = own_files(record)
    for path in files:
        if os.path.lexists(path) and path not in own:
            raise DataError(
                f"{path}: is there already, and no record says that a prediction wrote it; "
                "--resume replaces nothing else. Choose another output, move it away, or say "
                "--overwrite."
            )
    for path, sha256 in own.items():
        if sha256 is not None and file_hash(path) != sha256:
            raise DataError(
                f"{path}: is to be made again, and was changed since it was written: its sha256 is "
                f"not that in {record.name}. Move it away, or say --overwrite."
            )
