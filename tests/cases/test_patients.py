from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from medsam_tune.cases.datalist import Case, Datalist
from medsam_tune.cases.patients import (
    numbered,
    patients_by_regex,
    patients_by_table,
    patients_line,
)
from medsam_tune.cases.splits import split_cases
from medsam_tune.errors import DataError


def data(*names: str, guessed: bool = True) -> Datalist:
    cases = [Case(Path(f"/x/{n}.nii.gz"), None, n.split("-")[0], guessed=guessed) for n in names]
    return Datalist("Small", "CT", {1: "liver"}, tuple(cases))


def patients(datalist: Datalist) -> list[str]:
    return [case.patient for case in datalist.cases]


def test_by_regex() -> None:
    two = data("x-pat1-a", "x-pat1-b", "x-pat2-a")
    assert patients(patients_by_regex(two, r"pat\d+")) == ["pat1", "pat1", "pat2"]
    assert patients(patients_by_regex(two, r"pat(\d+)-([a-z])")) == ["1", "1", "2"]
    assert not any(case.guessed for case in patients_by_regex(two, r"pat\d").cases)
    with pytest.raises(ValueError, match=r"--patient-regex is '\('; expected a regular expression"):
        patients_by_regex(two, "(")
    for empty in (r"\d*", r"(y)?x"):
        with pytest.raises(DataError, match=r"finds no patient in the names of 3 of 3 cases: x-pa"):
            patients_by_regex(two, empty)


@pytest.mark.parametrize(
    "text",
    [
        "case,patient\na,P\nb,P\nc,Q\n",
        "a,P\nb,P\nc,Q",
        "\ufeffCase;Patient\r\na;P\r\nb;P\r\n\r\nc;Q\r\nunused;R\r\n",
        "a\tP\nb.nii.gz\tP\nc\tQ\nc\tQ\n",
    ],
)
def test_by_table(tmp_path: Path, text: str) -> None:
    table = tmp_path / "p.csv"
    table.write_bytes(text.encode())
    assert patients(patients_by_table(data("a", "b", "c"), table)) == ["P", "P", "Q"]


def test_a_table_names_nnunets_cases_without_their_channel(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("a,P\nb,Q\n")
    assert patients(patients_by_table(data("a_0000", "b_0000"), tmp_path / "p.csv")) == ["P", "Q"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,P,1\n", "line 1 has 3 values; expected two"),
        (b"a,P\nb,\n", "line 2 has 1 values; expected two"),
        (b"a,P\nb,Q\n\xff", "is not CSV in UTF-8"),
        (b"", "no row for 2 of 2 cases: a, b"),
        (None, r"cannot be read \(No such file or directory\)"),
    ],
)
def test_tables_that_are_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "p.csv").write_bytes(content)
    with pytest.raises(DataError, match=rf"p\.csv: {message}"):
        patients_by_table(data("a", "b"), tmp_path / "p.csv")


def test_what_is_said_of_the_patients() -> None:
    assert patients_line(data("p1-a", "p1-b", "p2-a")) == (
        "patients: 2 for 3 scans, guessed from the names; e.g. p1-a, p1-b are p1. If that "
        "is wrong: --patient-regex or --patients FILE.csv."
    )
    assert "2 for 2 scans, guessed from the names; each scan is taken as another" in (
        patients_line(data("p1-a", "p2-a"))
    )
    assert patients_line(data("p1-a", "p1-b", "p2-a", guessed=False), "t.csv") == (
        "patients: 2 for 3 scans, by t.csv; e.g. p1-a, p1-b are p1."
    )
    mixed = data("p1-a", "p2-a", "p3-a")
    first = replace(mixed.training[0], guessed=False)
    line = patients_line(replace(mixed, training=(first, *mixed.training[1:])))
    assert "3 for 3 scans, of 2 scans guessed from the names" in line


def test_one_patient_by_the_names_is_refused() -> None:
    with pytest.raises(DataError, match=r"\(p1-a, p1-b\), all 2 scans are of one patient, p1;"):
        patients_line(data("p1-a", "p1-b"))
    assert "1 for 1 scans" in patients_line(data("p1-a"))
    assert "by DICOM" in patients_line(data("p1-a", "p1-b", guessed=False))


def test_numbers_instead_of_names() -> None:
    names = [f"p{i:02}-{k}" for i in range(20) for k in "ab"]
    whole = data(*names)
    split = split_cases(whole, (0.5, 0.25, 0.25), 3)
    put, key = numbered(whole, 3)
    hidden = put(split)
    rows = list(csv.DictReader(key.splitlines()))
    assert [row["case"] for row in rows] == [f"case_{n:04}" for n in range(1, 41)]
    assert {row["patient"] for row in rows} == {f"patient_{n:04}" for n in range(1, 21)}
    known = {row["case"]: row for row in rows}
    for before, after in ((split.training, hidden.training), (split.test, hidden.test)):
        assert [case.id for case in after] == sorted(case.id for case in after)
        found = {known[case.id]["name"]: known[case.id]["patient_before"] for case in after}
        assert found == {case.id: case.patient for case in before}
    for case in hidden.cases:
        assert known[case.id]["image"] == str(case.image)
        assert known[case.id]["patient"] == case.patient
    assert [row["name"] for row in rows] != sorted(names)
    assert numbered(replace(whole, training=whole.training[::-1]), 3)[1] == key
    assert numbered(whole, 4)[1] != key
    assert hidden.name == "anonymous"
