"""Which labels a data set has: as a user says, as a JSON file says, or as its label files say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from medsam_tune.cases.classes import FILE
from medsam_tune.cases.datalist import Case
from medsam_tune.cases.description import Labels, labels_said
from medsam_tune.cases.labels.masks import Mask
from medsam_tune.cases.labels.open import LabelFile, open_label
from medsam_tune.cases.labels.seg import Segmentation
from medsam_tune.cases.labels.segments import labels_of_segments
from medsam_tune.errors import DataError, about, listed
from medsam_tune.files import read_json

MOST_UNNAMED = 32
"""Most values of masks of images that may be ids without a name; more are numbers of objects."""

_Read = tuple[Case, LabelFile, Mapping[int, str]]


def labels_of(
    folder: Path,
    cases: Iterable[Case],
    content: Mapping[str, Any] | None = None,
    given: Labels | None = None,
) -> tuple[Labels, dict[str, frozenset[int]]]:
    """Label id -> name: from a user, dataset.json, labels.json, or the label files themselves.

    Args:
        folder: folder that was searched.
        cases: cases found in it.
        content: content of its dataset.json.
        given: labels by name; every label is read for them.

    Returns:
        the labels; and case id -> label ids, of the label maps that were read for them.

    Raises:
        DataError: ids or names that are none, or of two meanings; labels that do not fit `given`;
            masks of images with more than `MOST_UNNAMED` values and no name.
    """
    if given is None:
        said = labels_said(content or {}, folder / "dataset.json")
        names = folder / "labels.json"
        if not said.names and names.is_file():
            held = read_json(names)
            said = labels_said(held if "labels" in held else {"labels": held}, names)
        if said.names:
            return said, {}
    read = [(case, *_read_label(case, case.label)) for case in cases if case.label is not None]
    present = {case.id: frozenset(ids) for case, label, ids in read if label.names_are_present}
    if given is not None:
        _refuse_other_labels(given, read, folder)
        return given, present
    _refuse_objects(read, folder)
    return Labels(_labels_in(read, folder)), present


def _read_label(case: Case, path: Path) -> tuple[LabelFile, dict[int, str]]:
    """The label of a case, and its ids and names."""
    with about(f"case {case.id}"):
        label = open_label(path, case.coding, case.region, case.image)
        return label, label.names()


def _refuse_objects(read: Iterable[_Read], folder: Path) -> None:
    """Refuse masks of images whose values are numbers of objects, as nothing names them."""
    values = {
        value
        for _, label, ids in read
        if isinstance(label, Mask) and not label.coding.colours
        for value in ids
    }
    if len(values) > MOST_UNNAMED:
        raise DataError(
            f"{folder}: the masks have {len(values)} values without a name, from {min(values)} to "
            f"{max(values)}; expected at most {MOST_UNNAMED}. If they are numbers of objects, "
            f'write so in {FILE} in the folder: {{"classes": [{{"name": "object"}}], "instances": '
            "true}. If they are ids of classes, name each there or by --labels."
        )


def _refuse_other_labels(given: Labels, read: Iterable[_Read], folder: Path) -> None:
    """Refuse values that have no name, and names that no label has."""
    numbers: dict[int, str] = {}  # id -> a case that has it
    seen: set[str] = set()
    for case, label, ids in read:
        if label.numbered:
            for number in _numbers_in(label, ids, given):
                numbers.setdefault(number, case.id)
        seen |= {name.casefold() for name in ids.values()}
    unnamed = [
        f"{k} (case {case})" for k, case in sorted(numbers.items()) if k not in given.in_files
    ]
    if unnamed:
        raise DataError(
            f"{folder}: the labels have values without a name: {listed(unnamed)}; expected only "
            f"{', '.join(map(str, given.in_files))}. Name them in --labels."
        )
    missing = [
        f"{number} ({name})"
        for number, name in given.names.items()
        if number not in numbers and (numbers or name.casefold() not in seen)
    ]
    if missing:
        raise DataError(
            f"{folder}: no label has {listed(missing)}; expected each name of --labels in one at "
            "least. Leave it out, or correct its number."
        )


def _numbers_in(label: LabelFile, ids: Mapping[int, str], given: Labels) -> Iterable[int]:
    """Label ids of a numbered label; of segments, those of their names."""
    if not isinstance(label, Segmentation):
        return ids
    found = labels_of_segments(ids, given.in_files)
    return [found.get(number, number) for number in ids]


def _labels_in(read: Iterable[_Read], folder: Path) -> dict[int, str]:
    """Ids and names that the label files speak of.

    Raises:
        DataError: a number of two meanings, names beside numbers, or nothing but background.
    """
    exact: set[str] = set()  # names without a number
    folded: dict[str, str] = {}  # of kinds that compare them without regard to case
    found: dict[int, str] = {}
    for case, label, ids in read:
        if not label.numbered:
            for name in ids.values():
                if label.folds_case:
                    folded.setdefault(name.casefold(), name)
                else:
                    exact.add(name)
            continue
        for number, name in ids.items():
            if found.setdefault(number, name) != name:
                raise DataError(
                    f"{case.label}: label {number} is {name!r}, in another case {found[number]!r}; "
                    "expected one meaning of a number. Export the labels with equal numbers."
                )
    known = {name.casefold() for name in exact}
    named = exact | {name for key, name in folded.items() if key not in known}
    if named and found:
        raise DataError(
            f"{folder}: some labels have names only (a file for each organ, or RTSTRUCT), some "
            "have numbers (label maps, or SEG); expected one kind, or a labels.json with both."
        )
    labels = dict(enumerate(sorted(named), start=1)) or dict(sorted(found.items()))
    if not labels:
        raise DataError(f"{folder}: all label maps are empty; expected values above 0.")
    return labels
