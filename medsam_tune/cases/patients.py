"""Whose scan a case is: by a table, by a pattern of its name, or by a guess from its name."""

from __future__ import annotations

import csv
import io
import random
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from medsam_tune.cases.datalist import SUBSETS, Case, Datalist
from medsam_tune.cases.guesses import without_channel
from medsam_tune.errors import DataError, listed
from medsam_tune.formats.open import case_id

_HEADER = {"case", "case_id", "caseid", "id", "name", "image", "scan", "file", "filename"}


def patients_by_regex(datalist: Datalist, pattern: str) -> Datalist:
    """The patient is what a pattern finds in a case's name: its first group, or the whole match.

    Args:
        datalist: datalist before the split.
        pattern: regular expression of Python.

    Raises:
        ValueError: the pattern is no regular expression.
        DataError: cases that do not match, or whose match is empty.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"--patient-regex is {pattern!r}; expected a regular expression ({error}), "
            r"e.g. 'pat\d+'."
        ) from error

    def patient_of(case: Case) -> str:
        found = compiled.search(case.id)
        return "" if found is None else found[1 if compiled.groups else 0] or ""

    return _with_patients(
        datalist, patient_of, f"--patient-regex {pattern!r} finds no patient in the names of"
    )


def patients_by_table(datalist: Datalist, table: Path) -> Datalist:
    """The patient is what a table says.

    Args:
        datalist: datalist before the split.
        table: CSV of two columns, case and patient, with or without a header. A case is named as
            in the messages, or as its file.

    Raises:
        DataError: the table cannot be read; a case is not in it, or is there with two patients.
    """
    rows = _rows(table)
    first = next(iter(rows.items()), None)
    if first is not None and first[0].strip().casefold() in _HEADER:
        del rows[first[0]]

    def patient_of(case: Case) -> str:
        names = (case.id, case.image.name, case_id(case.image), without_channel(case.id))
        return next((rows[name] for name in names if name in rows), "")

    return _with_patients(datalist, patient_of, f"{table}: no row for")


def _rows(table: Path) -> dict[str, str]:
    """Case -> patient."""
    found: dict[str, str] = {}
    try:
        lines = table.read_text(encoding="utf-8-sig").splitlines()
        head = lines[0] if lines else ""
        delimiter = next((sign for sign in ",;\t" if sign in head), ",")
        for number, row in enumerate(csv.reader(lines, delimiter=delimiter), start=1):
            cells = [cell.strip() for cell in row]
            if not any(cells):
                continue
            if len(cells) != 2 or not all(cells):
                raise DataError(
                    f"{table}: line {number} has {len([c for c in cells if c])} values; expected "
                    "two: case,patient."
                )
            case, patient = cells
            if found.setdefault(case, patient) != patient:
                raise DataError(
                    f"{table}: case {case} has the patients {found[case]} and {patient}; expected "
                    "one. Correct line "
                    f"{number}."
                )
    except OSError as error:
        raise DataError(
            f"{table}: cannot be read ({error.strerror}). Correct --patients."
        ) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{table}: is not CSV in UTF-8 ({error}). Save it again as such."
        ) from error
    return found


def _with_patients(datalist: Datalist, patient_of: Callable[[Case], str], refusal: str) -> Datalist:
    """The datalist with other patients; cases that get none are refused by name."""
    cases = datalist.cases
    found = {case.id: patient_of(case) for case in cases}
    without = [name for name, patient in found.items() if not patient]
    if without:
        raise DataError(
            f"{refusal} {len(without)} of {len(cases)} cases: {listed(without)}; expected one "
            "patient for each case."
        )
    return with_cases(datalist, lambda case: replace(case, patient=found[case.id], guessed=False))


def with_cases(datalist: Datalist, change: Callable[[Case], Case]) -> Datalist:
    """The datalist with every case changed."""
    training, validation, test = (tuple(map(change, getattr(datalist, name))) for name in SUBSETS)
    return replace(datalist, training=training, validation=validation, test=test)


def patients_line(datalist: Datalist, told: str | None = None) -> str:
    """One line: how many patients there are, how they were found, and an example.

    Of 2-D images, patients are called groups.

    Args:
        datalist: all cases.
        told: what said the patients that are not guessed; by default DICOM headers or dataset.json,
            of images their folders or the table.

    Raises:
        DataError: all scans seem to be of one patient, by their names alone.
    """
    cases = datalist.cases
    members: dict[str, list[str]] = {}
    for case in cases:
        members.setdefault(case.patient, []).append(case.id)
    flat = datalist.modality == "RGB"
    patients, scans = ("groups", "images") if flat else ("patients", "scans")
    told = told or ("folders or a table" if flat else "DICOM headers or dataset.json")
    counts = f"{len(members)} for {len(cases)} {scans}"
    guessed = [case for case in cases if case.guessed]
    several = next(
        (c.patient for c in guessed if len(members[c.patient]) > 1),
        next((patient for patient, names in members.items() if len(names) > 1), None),
    )
    example = f"; e.g. {listed(members[several], 2)} are {several}" if several is not None else ""
    if not guessed:
        return f"{patients}: {counts}, by {told}{example}."
    say = "--patient-regex or --patients FILE.csv"
    if len(members) == 1 and len(cases) > 1:
        raise DataError(
            f"{datalist.name}: by their names ({listed((c.id for c in cases), 3)}), all "
            f"{len(cases)} {scans} are of one {patients[:-1]}, {cases[0].patient}; expected "
            f"several. Say which {patients[:-1]} each is of: {say}."
        )
    how = "guessed from the names"
    if len(guessed) < len(cases):
        how = f"of {len(guessed)} {scans} {how}"
    if several is None:
        example = f"; each {scans[:-1]} is taken as another {patients[:-1]}"
    return f"{patients}: {counts}, {how}{example}. If that is wrong: {say}."


def numbered(datalist: Datalist, seed: int) -> tuple[Callable[[Datalist], Datalist], str]:
    """Running numbers instead of the names of cases and patients, in a shuffled order.

    Args:
        datalist: all cases, before or after the split.
        seed: seed of the order.

    Returns:
        what puts the numbers into a datalist of these cases; and the key, as CSV: case, image,
        series, old name, patient, and what the patient was called before.
    """
    cases = sorted(datalist.cases, key=lambda case: (case.patient, case.id))
    order = random.Random(f"{seed} cases").sample(range(len(cases)), len(cases))
    patients = sorted({case.patient for case in cases})
    random.Random(f"{seed} patients").shuffle(patients)
    called = {name: f"patient_{n:04}" for n, name in enumerate(patients, start=1)}
    new: dict[str, Case] = {}
    rows: list[tuple[str, ...]] = [("case", "image", "series", "name", "patient", "patient_before")]
    for n, index in enumerate(order, start=1):
        case = cases[index]
        name, patient = f"case_{n:04}", called[case.patient]
        new[case.id] = replace(case, name=name, patient=patient)
        rows.append((name, str(case.image), case.series or "", case.id, patient, case.patient))

    def by_name(case: Case) -> str:
        return case.id

    def put(other: Datalist) -> Datalist:
        subsets: dict[str, Any] = {
            name: tuple(sorted((new[case.id] for case in getattr(other, name)), key=by_name))
            for name in SUBSETS
        }
        return replace(other, name="anonymous", present={}, **subsets)

    return put, _csv(rows)


def _csv(rows: Iterable[tuple[str, ...]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
