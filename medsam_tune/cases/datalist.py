"""Cases, their subsets, and the JSON file that lists them."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from medsam_tune.errors import DataError, listed
from medsam_tune.files import read_json, written_whole
from medsam_tune.formats.open import case_id
from medsam_tune.formats.volume import HIGHEST_ID

MODALITIES = ("CT", "MR", "XR", "US")
"""Known modalities: XR are radiographs in any depth, US ultrasound in 8 bits."""

SUBSETS = ("training", "validation", "test")
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Case:
    """One scan.

    Attributes:
        image: NIfTI, NRRD or MetaImage file, or a folder of DICOM.
        label: label map on the image's grid, a DICOM SEG or RTSTRUCT, a folder with a file for
            each organ, or None.
        patient: id of the patient; all scans of one patient stay in one subset.
        series: SeriesInstanceUID (or its end) where the folder holds several.
        name: name of the case, where the image's own is not unique or identifies the patient.
        copy: 0 for the scan itself, otherwise the number of a deformed copy of it.

    Raises:
        DataError: a name that is not safe as a file's.
    """

    image: Path
    label: Path | None
    patient: str
    series: str | None = None
    name: str | None = None
    copy: int = 0

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
        modality: one of `MODALITIES`.
        labels: label id -> name, without the background 0.
        training: cases to learn from.
        validation: cases to choose checkpoints on.
        test: held-out cases, which only the evaluation reads.
        present: case id -> ids of the labels that it has, for label maps that had to be read to
            find the labels; not written to the file.
    """

    name: str
    modality: str
    labels: Mapping[int, str]
    training: tuple[Case, ...] = ()
    validation: tuple[Case, ...] = ()
    test: tuple[Case, ...] = ()
    present: Mapping[str, frozenset[int]] = field(default_factory=dict, compare=False, repr=False)

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
            raise DataError(f"{self.name}: subset {name!r} has no case; there are: {there}.")
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
    content = {
        "name": datalist.name,
        "modality": {"0": datalist.modality},
        "labels": {"0": "background", **{str(k): v for k, v in sorted(datalist.labels.items())}},
        **{
            subset: [_entry(case, path.parent) for case in getattr(datalist, subset)]
            for subset in SUBSETS
        },
    }
    text = json.dumps(content, indent=1, ensure_ascii=False)
    if any("\ud800" <= letter <= "\udfff" for letter in text):  # names that are not UTF-8
        text = json.dumps(content, indent=1)
    with written_whole(path) as file:
        file.write_text(text, encoding="utf-8")


def read_datalist(path: Path, *, with_leaks: bool = False) -> Datalist:
    """Read and check what `write_datalist` writes.

    Args:
        path: .json file.
        with_leaks: accept a patient or a file in two subsets, for a report of them.

    Raises:
        DataError: no such file, not JSON, missing keys, missing scans (all of them at once), one
            patient or one file in two subsets.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(
            f"{path}: no such datalist. Make one: medsam-tune split DIR --out {path.name}"
        )
    content = read_json(path)
    missing = [key for key in ("labels", "training") if key not in content]
    if missing:
        raise DataError(
            f"{path}: the keys {', '.join(missing)} are missing; expected name, modality, labels, "
            "training, validation, test. `medsam-tune split` writes them."
        )
    subsets = {key: cases_from(content.get(key, []), path.parent, path) for key in SUBSETS}
    cases = [case for members in subsets.values() for case in members]
    refuse_missing(cases, path)
    leaks = [] if with_leaks else _leaks(subsets)
    if leaks:
        raise DataError(
            f"{path}: {listed(leaks)}; expected each patient and each scan in one subset. Make the "
            "split again: medsam-tune split"
        )
    scans = {(case.image.resolve(), case.series): case for case in cases}
    refuse_same_names(scans.values() if with_leaks else cases, path)
    labels = named_labels(path.parent, content, path)
    if not labels:
        raise DataError(f"{path}: labels names none but the background; expected at least one.")
    return Datalist(
        name=str(content.get("name", path.stem)),
        modality=known_modality(None, content, path),
        labels=labels,
        training=subsets["training"],
        validation=subsets["validation"],
        test=subsets["test"],
    )


def leaks_of(datalist: Datalist) -> list[str]:
    """Patients and scans that are in several subsets, one sentence each."""
    return _leaks({subset: getattr(datalist, subset) for subset in SUBSETS})


def _leaks(subsets: Mapping[str, Sequence[Case]]) -> list[str]:
    names: dict[Hashable, str] = {}
    where: dict[Hashable, dict[str, None]] = {}
    for subset, cases in subsets.items():
        for case in cases:
            scan = f"{case.image}{f', series {case.series}' if case.series else ''}"
            for key, name in (
                (case.patient, f"patient {case.patient}"),
                ((case.image.resolve(), case.series), scan),
            ):
                names[key] = name
                where.setdefault(key, {})[subset] = None
    return [
        f"{names[key]} is in {' and in '.join(found)}"
        for key, found in where.items()
        if len(found) > 1
    ]


def _entry(case: Case, folder: Path) -> dict[str, str]:
    files = {"image": case.image, "label": case.label}
    entry = {key: _relative(file, folder) for key, file in files.items() if file is not None}
    optional = {"series": case.series, "name": case.name}
    said = {key: value for key, value in optional.items() if value is not None}
    return {**entry, "patient": case.patient, **said}


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
        DataError: no list, or an entry without an image.
    """
    if not isinstance(entries, list):
        raise DataError(f"{source}: a subset is {type(entries).__name__}; expected a list.")
    cases = []
    for index, entry in enumerate(entries):
        entry = {"image": entry} if isinstance(entry, str) else entry
        if not isinstance(entry, dict) or not isinstance(entry.get("image"), str):
            raise DataError(f"{source}: entry {index} has no image; expected {{'image', 'label'}}.")
        image = Path(os.path.normpath(folder / entry["image"]))
        label = entry.get("label")
        cases.append(
            Case(
                image=image,
                label=None if label is None else Path(os.path.normpath(folder / str(label))),
                patient=str(entry.get("patient", case_id(image))),
                series=None if entry.get("series") is None else str(entry["series"]),
                name=None if entry.get("name") is None else str(entry["name"]),
            )
        )
    return tuple(cases)


def known_modality(given: str | None, content: Mapping[str, Any], source: Path) -> str:
    """The modality that is given, or that a JSON file's content speaks of.

    Raises:
        DataError: none, or none of `MODALITIES`.
    """
    known = ", ".join(MODALITIES)
    if given is not None:
        if given not in MODALITIES:
            raise DataError(f"modality is {given!r}; expected one of {known}.")
        return given
    said = content.get("modality", content.get("channel_names", {}))
    text = " ".join(map(str, said.values() if isinstance(said, dict) else [said]))
    for modality in MODALITIES:
        if re.search(rf"\b{modality}I?\b", text, re.IGNORECASE):
            return modality
    found = f"{text!r} is none of" if text else "nothing says which of"
    raise DataError(f"{source}: {found} {known}. Say it: e.g. --modality CT.")


def named_labels(folder: Path, content: Mapping[str, Any], source: Path) -> dict[int, str]:
    """Label ids and names in either direction: {"1": "spleen"}, or nnU-Net's {"spleen": 1}.

    Args:
        folder: folder of the data set; its labels.json is read where `content` names no labels.
        content: content of a JSON file.
        source: that file, for messages.

    Raises:
        DataError: ids or names that are none.
    """
    names = content.get("labels", {})
    if not names and (folder / "labels.json").is_file():
        source = folder / "labels.json"
        names = read_json(source)
    if not isinstance(names, dict):
        raise DataError(f'{source}: labels is not an object; expected e.g. {{"1": "spleen"}}.')
    labels = {}
    for key, value in names.items():
        key, value = (str(value), key) if isinstance(value, int) else (key, value)
        if not str(key).isdecimal() or not isinstance(value, str):
            raise DataError(
                f'{source}: label {key!r}: {value!r} is not an id and a name; expected e.g. "1": '
                '"spleen".'
            )
        if int(key) > HIGHEST_ID:
            raise DataError(
                f"{source}: label {value!r} has the id {key}; expected at most {HIGHEST_ID}. "
                "Renumber the label."
            )
        labels[int(key)] = value
    labels.pop(0, None)
    return dict(sorted(labels.items()))


def refuse_missing(cases: Iterable[Case], source: Path) -> None:
    """Refuse scans and labels that are not there, all of them at once."""
    files = [file for case in cases for file in (case.image, case.label) if file is not None]
    missing = [str(file) for file in files if not file.exists()]
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
