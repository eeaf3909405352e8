"""What a run was trained and validated on: kept in its folder, and never held-out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medsam_tune.cases.datalist import Case
from medsam_tune.errors import DataError, listed
from medsam_tune.files import read_json, write_json
from medsam_tune.runs import SPLIT, RunFolder, read_record
from medsam_tune.slices.store import PreparedCase


def keep_split(folder: RunFolder, **subsets: Sequence[tuple[Case, PreparedCase]]) -> None:
    """Write what is trained and validated on, or compare it with what was.

    Args:
        folder: folder of the run, opened.
        subsets: name of the subset -> its cases and their entries in the slice store.

    Raises:
        DataError: a resumed training has other patients, scans or labels than before, or its
            split is lost.
    """
    split: dict[str, list[dict[str, Any]]] = {
        name: [
            {
                "case": case.id,
                "patient": case.patient,
                "content": prepared.content,
                "size": [*prepared.shape[1:]],
            }
            for case, prepared in members
            if not case.copy
        ]
        for name, members in subsets.items()
    }
    if not (folder.path / SPLIT).is_file() and not folder.last.exists():
        write_json(folder.path / SPLIT, split)
        return
    before = _read_split(folder.path)
    for name, members in split.items():
        then, now = ([_identity(one) for one in each] for each in (before[name], members))
        if then != now:
            changed = sorted({case for case, *_ in {*then} ^ {*now}}) or ["their order"]
            raise DataError(
                f"{folder.path}: the {name} cases, scans or labels are not those of the run, it "
                f"cannot be resumed: {listed(changed)}. Give them as they were, or choose "
                "another output folder."
            )


def refuse_seen(run: str | Path, name: str, cases: Sequence[tuple[Case, PreparedCase]]) -> None:
    """Refuse cases that a run was trained or validated on: their score would not be held-out.

    A case is known by its voxels; and by its patient, in a datalist beside that of the training.

    Args:
        run: folder of the run.
        name: path of the datalist of the cases.
        cases: cases and their entries in the slice store.

    Raises:
        DataError: names the cases.
    """
    known = [one for members in _read_split(Path(run)).values() for one in members]
    voxels = {_voxels(one["content"]) for one in known}
    trained = read_record(run).datalist
    same = trained is not None and _folder(name) == _folder(trained)
    patients = {one["patient"] for one in known} if same else set()
    seen = [
        case.id
        for case, prepared in cases
        if _voxels(prepared.content) in voxels or case.patient in patients
    ]
    if seen:
        raise DataError(
            f"{name}: {len(seen)} of {len(cases)} test cases were trained or validated on in "
            f"{run}: {listed(sorted(seen))}. Their score would not be held-out: give the split of "
            "the training, or cases that it has not seen."
        )


def trained_side(run: str | Path) -> int | None:
    """Longest side of the slices that a run was trained on, pixels; None if nothing says it."""
    try:
        members: list[dict[str, Any]] = [*_read_split(Path(run))["training"]]
    except DataError:
        return None
    sizes = [size for one in members if isinstance(size := one.get("size"), list)]
    return max((side for size in sizes for side in size if type(side) is int), default=None)


def _read_split(run: Path) -> dict[str, list[dict[str, str]]]:
    """What a run was trained and validated on: subset -> its cases.

    Raises:
        DataError: the file is missing or damaged.
    """
    path = run / SPLIT
    if not path.is_file():
        raise DataError(f"{path}: no such file; the split of the training is lost. Train again.")
    content = read_json(path)
    split = {name: content.get(name) for name in ("training", "validation")}
    for members in split.values():
        if not isinstance(members, list) or not all(
            isinstance(one, dict)
            and all(isinstance(one.get(key), str) for key in ("case", "patient", "content"))
            for one in members
        ):
            raise DataError(f"{path}: is damaged; the split of the training is lost. Train again.")
    return split  # type: ignore[return-value]


def _identity(entry: Mapping[str, str]) -> tuple[str, str, str]:
    return entry["case"], entry["patient"], entry["content"]


def _voxels(content: str) -> str:
    """The part of `PreparedCase.content` that is the image's."""
    return content.partition(":")[0]


def _folder(path: str | Path) -> str:
    return os.path.realpath(Path(path).parent)
