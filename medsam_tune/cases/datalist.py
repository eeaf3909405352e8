"""Cases, their subsets, and the JSON file that lists them."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from reprlib import repr as shown
from typing import Any

import numpy as np

from medsam_tune.cases.classes import PLAIN, Coding, coding_said
from medsam_tune.cases.description import (
    IGNORE,
    Labels,
    columns_said,
    known_modality,
    labels_said,
    region_said,
    tolerance_said,
)
from medsam_tune.cases.guesses import guessed_patient
from medsam_tune.errors import DataError, listed
from medsam_tune.files import FORMAT, read_json, refuse_other_format, written_whole
from medsam_tune.formats.open import case_id
from medsam_tune.formats.volume import Region

DATALIST_FORMAT = 1
"""Format of datalists that this package writes."""

SUBSETS = ("training", "validation", "test")
_NEEDS = {
    "training": "Training needs cases to learn from.",
    "validation": "Training needs cases to choose the best epoch on.",
    "test": "Evaluation needs held-out cases.",
}
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Case:
    """One scan.

    Attributes:
        image: NIfTI, NRRD or MetaImage file, a folder of DICOM, or a 2-D image.
        label: label map on the image's grid, a DICOM SEG or RTSTRUCT, the mask of an image, a
            folder with a file for each organ, or None.
        patient: id of the patient; all scans of one patient stay in one subset. Of images, it is
            what they have in common: a scene, a tile, a document.
        series: SeriesInstanceUID (or its end) where the folder holds several.
        name: name of the case, where the image's own is not unique or identifies the patient.
        copy: 0 for the scan itself, otherwise the number of a deformed copy of it.
        guessed: True if nothing says the patient, and it is guessed from the scan's name.
        coding: how the mask of an image says its labels.
        region: the part of an image that the case is; None for all of it.
        columns: what else its entry says, such as the site; results can be grouped by it.

    Raises:
        DataError: a name that is not safe as a file's.
    """

    image: Path
    label: Path | None
    patient: str
    series: str | None = None
    name: str | None = None
    copy: int = 0
    guessed: bool = field(default=False, compare=False, repr=False)
    coding: Coding = field(default=PLAIN, compare=False, repr=False)
    region: Region | None = None
    columns: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.name is not None and not _SAFE_NAME.fullmatch(self.name):
            raise DataError(
                f"{self.image}: the case's name is {self.name!r}; expected up to 64 letters, "
                "digits, '-', '_' and '.', the first a letter or a digit, as results are named "
                "after it."
            )

    @property
    def id(self) -> str:
        """Its name, or the image's without the ending; messages and results use it."""
        return (self.name or case_id(self.image)) + (f"~{self.copy}" if self.copy else "")


@dataclass(frozen=True)
class Datalist:
    """Scans in three subsets, and what their labels mean.

    Attributes:
        name: name of the data set.
        modality: one of `description.MODALITIES`.
        labels: label id -> name, without the background 0.
        ignore: id of voxels that nobody annotated; they are no part of training and of scores.
            None if there are none.
        training: cases to learn from.
        validation: cases to choose checkpoints on.
        test: held-out cases, which only the evaluation reads.
        present: case id -> ids of the labels that it has, for label maps that had to be read to
            find the labels; not written to the file.
        coding: how masks of images say their labels; the cases have it as well.
        tolerance: of the surface Dice in millimetres, for all labels or by name; None if it does
            not say.
    """

    name: str
    modality: str
    labels: Mapping[int, str]
    training: tuple[Case, ...] = ()
    validation: tuple[Case, ...] = ()
    test: tuple[Case, ...] = ()
    ignore: int | None = None
    present: Mapping[str, frozenset[int]] = field(default_factory=dict, compare=False, repr=False)
    coding: Coding = PLAIN
    tolerance: float | Mapping[str, float] | None = None

    @property
    def labels_in_files(self) -> dict[int, str]:
        """Id -> name of every value that a label may hold besides 0: `labels` and `ignore`."""
        return Labels(self.labels, self.ignore).in_files

    @property
    def cases(self) -> list[Case]:
        """Cases of all subsets."""
        return [case for subset in SUBSETS for case in getattr(self, subset)]

    def subset(self, name: str) -> tuple[Case, ...]:
        """The cases of one subset.

        Args:
            name: "training", "validation" or "test".

        Raises:
            DataError: an unknown or an empty subset.
        """
        sizes = {subset: len(getattr(self, subset)) for subset in SUBSETS}
        there = ", ".join(f"{subset} ({size})" for subset, size in sizes.items() if size) or "none"
        if name not in sizes:
            raise DataError(f"{self.name}: no subset {name!r}; there are: {there}.")
        if sizes[name] == 0:
            raise DataError(
                f"{self.name}: subset {name!r} has no case; there are: {there}. {_NEEDS[name]} "
                "Split again with a share for it: medsam-tune split --fractions 0.7 0.15 0.15 "
                "(training, validation, test)."
            )
        cases: tuple[Case, ...] = getattr(self, name)
        return cases


def with_copies(cases: Sequence[Case], copies: int) -> list[Case]:
    """Cases, and so many deformed copies of each, see `training.deformation.Deformation`."""
    return [replace(case, copy=n) for n in range(copies + 1) for case in cases]


def write_datalist(datalist: Datalist, path: Path) -> None:
    """Write MONAI's (the Decathlon's) JSON; a file that is there is replaced in one step.

    Args:
        datalist: datalist to write.
        path: .json file; files below its folder are written relative to it.
    """
    path = Path(path)
    with written_whole(path) as file:
        file.write_text(as_json(datalist, path.parent), encoding="utf-8")


def as_json(datalist: Datalist, folder: Path) -> str:
    """Text of a datalist's file that will stand in `folder`."""
    content = {
        FORMAT: DATALIST_FORMAT,
        "name": datalist.name,
        "modality": {"0": datalist.modality},
        "labels": {"0": "background", **{str(k): v for k, v in sorted(datalist.labels.items())}},
        **({} if datalist.ignore is None else {IGNORE: datalist.ignore}),
        **datalist.coding.describe(),
        **({} if datalist.tolerance is None else {"tolerance": datalist.tolerance}),
        **{
            subset: [_entry(case, folder) for case in getattr(datalist, subset)]
            for subset in SUBSETS
        },
    }
    text = json.dumps(content, indent=1, ensure_ascii=False)
    if any("\ud800" <= letter <= "\udfff" for letter in text):  # names that are not UTF-8
        return json.dumps(content, indent=1)
    return text


def read_datalist(
    path: Path, *, with_leaks: bool = False, with_missing: bool = False, unlabelled: bool = False
) -> Datalist:
    """Read and check what `write_datalist` writes.

    Args:
        path: .json file.
        with_leaks: accept a patient or a file in two subsets, for a report of them.
        with_missing: accept scans and labels that are not there.
        unlabelled: accept one without labels and modality: scans to predict need neither.

    Raises:
        DataError: no such file, not JSON, missing keys, values of another type, no case, missing
            scans (all of them at once), one patient or one file in two subsets.
    """
    path = Path(path)
    if not os.path.isfile(path):
        raise DataError(
            f"{path}: no such datalist. Make one: medsam-tune split DIR --out {path.name}"
        )
    content = read_json(path)
    if type(content.get(FORMAT)) is int:  # MONAI's and the Decathlon's have none
        refuse_other_format(path, content, DATALIST_FORMAT, "Split again: medsam-tune split")
    content = {"labels": {}, "modality": "CT"} | content if unlabelled else content
    missing = [] if "labels" in content else ["labels"]
    missing += [] if any(subset in content for subset in SUBSETS) else ["training"]
    if missing:
        raise DataError(
            f"{path}: the keys {', '.join(missing)} are missing; expected name, modality, labels, "
            "training, validation, test. `medsam-tune split` writes them."
        )
    if not isinstance(name := content.get("name", path.stem), str):
        raise DataError(f"{path}: name is {shown(name)}; expected text.")
    subsets = {key: cases_from(content.get(key, []), path.parent, path) for key in SUBSETS}
    cases = [case for members in subsets.values() for case in members]
    if not cases:
        raise DataError(f"{path}: no case in it; expected entries in training, validation or test.")
    if not with_missing:
        refuse_missing(cases, path)
    places = real_paths(cases)
    if leaks := [] if with_leaks else _leaks(subsets, places):
        guessed = any(case.guessed for case in cases)
        way = 'Give each entry its "patient", or make' if guessed else "Make"
        raise DataError(
            f"{path}: {listed(leaks)}; expected each patient and each scan in one subset. {way} "
            "the split again: medsam-tune split"
        )
    scans = {(places[case.image], case.series, case.region): case for case in cases}
    refuse_same_names(scans.values() if with_leaks else cases, path)
    labels = labels_said(content, path)
    if not labels.names and not unlabelled:
        raise DataError(f"{path}: labels names none but the background; expected at least one.")
    coding = coding_said(content, labels.in_files, path)
    coded = {k: tuple(replace(c, coding=coding) for c in each) for k, each in subsets.items()}
    return Datalist(
        name=name,
        modality=known_modality(None, content, path),
        labels=labels.names,
        training=coded["training"],
        validation=coded["validation"],
        test=coded["test"],
        ignore=labels.ignore,
        coding=coding,
        tolerance=tolerance_said(content, labels.names, path),
    )


def leaks_of(datalist: Datalist) -> list[str]:
    """Patients and scans that are in several subsets, one sentence each."""
    return _leaks({name: getattr(datalist, name) for name in SUBSETS}, real_paths(datalist.cases))


def real_paths(cases: Iterable[Case]) -> dict[Path, str]:
    """Image -> its path without links; each folder is looked at once, as there may be thousands."""
    folders: dict[Path, str] = {}
    found: dict[Path, str] = {}
    for case in cases:
        if os.path.islink(case.image):
            found[case.image] = os.path.realpath(case.image)
            continue
        folder = case.image.parent
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        found[case.image] = os.path.join(folders[folder], case.image.name)
    return found


def _leaks(subsets: Mapping[str, Sequence[Case]], places: Mapping[Path, str]) -> list[str]:
    names: dict[Hashable, str] = {}
    where: dict[Hashable, dict[str, None]] = {}
    for subset, cases in subsets.items():
        for case in cases:
            scan = f"{case.image}{f', series {case.series}' if case.series else ''}"
            scan += f", region {[*case.region]}" if case.region else ""
            patient = f"patient {case.patient}{' (by the names)' if case.guessed else ''}"
            for key, name in (
                (case.patient, patient),
                ((places[case.image], case.series, case.region), scan),
            ):
                names[key] = name
                where.setdefault(key, {})[subset] = None
    leaks = [
        f"{names[key]} is in {' and in '.join(found)}"
        for key, found in where.items()
        if len(found) > 1
    ]
    return leaks + _overlaps(subsets, places)


def _overlaps(subsets: Mapping[str, Sequence[Case]], places: Mapping[Path, str]) -> list[str]:
    """Regions of one image that overlap and are in two subsets."""
    parts: dict[str, dict[str, list[Case]]] = {}
    for subset, cases in subsets.items():
        for case in cases:
            parts.setdefault(places[case.image], {}).setdefault(subset, []).append(case)
    found = []
    for by_subset in parts.values():
        for (first, ours), (second, theirs) in combinations(by_subset.items(), 2):
            if not any(case.region for case in (*ours, *theirs)):
                continue
            boxes = np.array([case.region or (0, 0, np.inf, np.inf) for case in theirs])
            for case in ours:
                x0, y0, x1, y1 = case.region or (0, 0, np.inf, np.inf)
                apart = (boxes[:, 0] >= x1) | (boxes[:, 1] >= y1)
                apart |= (boxes[:, 2] <= x0) | (boxes[:, 3] <= y0)
                apart |= [case.region == other.region for other in theirs]  # is told already
                found += [
                    f"{case.id} in {first} and {theirs[n].id} in {second} overlap"
                    for n in np.flatnonzero(~apart)
                ]
    return found


def _entry(case: Case, folder: Path) -> dict[str, Any]:
    files = {"image": case.image, "label": case.label}
    entry = {key: _relative(file, folder) for key, file in files.items() if file is not None}
    optional = {"series": case.series, "name": case.name}
    said: dict[str, Any] = {key: value for key, value in optional.items() if value is not None}
    said |= {} if case.region is None else {"region": list(case.region)}
    return {**entry, "patient": case.patient, **said, **case.columns}


def _relative(file: Path, folder: Path) -> str:
    file, folder = Path(os.path.abspath(file)), Path(os.path.abspath(folder))
    return (file.relative_to(folder) if file.is_relative_to(folder) else file).as_posix()


def cases_from(entries: Any, folder: Path, source: Path) -> tuple[Case, ...]:
    """The entries of one subset; a bare string, as in the Decathlon's `test`, has no label.

    Args:
        entries: list from a JSON file.
        folder: folder that their paths are relative to.
        source: the JSON file, for messages.

    Raises:
        DataError: no list, an entry without an image, or with a value of another type.
    """
    if not isinstance(entries, list):
        raise DataError(f"{source}: a subset is {type(entries).__name__}; expected a list.")
    return tuple(_case(entry, folder, f"{source}: entry {i}") for i, entry in enumerate(entries))


def _case(entry: Any, folder: Path, where: str) -> Case:
    entry = {"image": entry} if isinstance(entry, str) else entry
    if not isinstance(entry, dict) or entry.get("image") is None:
        raise DataError(f"{where} has no image; expected {{'image', 'label'}}.")
    if type(number := entry.get("patient")) is int:
        entry = {**entry, "patient": str(number)}
    for key in ("image", "label", "patient", "series", "name"):
        value = entry.get(key)
        if value is not None and (not isinstance(value, str) or not value.strip()):
            raise DataError(f"{where}: {key} is {shown(value)}; expected text.")
    image = Path(os.path.normpath(folder / entry["image"]))
    label, patient = entry.get("label"), entry.get("patient")
    return Case(
        image=image,
        label=None if label is None else Path(os.path.normpath(folder / label)),
        patient=guessed_patient(case_id(image)) if patient is None else patient,
        series=entry.get("series"),
        name=entry.get("name"),
        guessed=patient is None,
        region=region_said(entry.get("region"), where),
        columns=columns_said(entry),
    )


def refuse_missing(cases: Iterable[Case], source: Path) -> None:
    """Refuse scans and labels that are not there, all of them at once."""
    files = [file for case in cases for file in (case.image, case.label) if file is not None]
    missing = [str(file) for file in files if not os.path.exists(file)]
    if missing:
        raise DataError(
            f"{source}: {len(missing)} of {len(files)} files are missing: {listed(missing)}. "
            "Copy them there or remove their entries."
        )


def refuse_same_names(cases: Iterable[Case], source: Path) -> None:
    """Refuse cases of one id."""
    twice = [name for name, count in Counter(case.id for case in cases).items() if count > 1]
    if twice:
        raise DataError(
            f"{source}: several images are named {listed(twice)}; expected each name once, "
            "because results are named after the scan. Rename the files."
        )
