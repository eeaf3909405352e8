"""Faults of many scans at once: places, names, prompts by name, and runs that are averaged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset

from medsam_tune.cases.datalist import Case
from medsam_tune.cases.places import Scans, find_scans
from medsam_tune.errors import DataError
from medsam_tune.inference.jobs import jobs_for
from medsam_tune.inference.tuned_runs import TunedRuns
from medsam_tune.slices.intensity import Window
from medsam_tune.slices.rules import ScanRules
from tests.bad_inputs.table import NO_COUNTERPART, BadInput
from tests.dicom_series import write_series
from tests.inference.made import write_run

RULES = ScanRules(Window(100, 200))


def touched(*files: str) -> Callable[[Path], Path]:
    """A folder of empty files."""

    def make(folder: Path) -> Path:
        for name in files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()
        return folder

    return make


def two_jobs(folder: Path) -> Any:
    """Ours: two scans with prompts of their names."""
    scans = Scans(tuple(Case(folder / f"{name}.nii", None, "") for name in "ab"), folder)
    jobs = jobs_for(scans, folder / "out", ".nii.gz", folder / "prompts")
    if jobs[1].problem:
        raise DataError(jobs[1].problem)
    return jobs


def two_runs(**other: Any) -> Callable[[Path], list[Path]]:
    """Runs that differ."""

    def make(folder: Path) -> list[Path]:
        write_run(folder / "first", RULES, classes=2)
        write_run(folder / "second", **{"rules": RULES, "classes": 2, **other})
        return [folder / "first", folder / "second"]

    return make


def odd_uid(folder: Path) -> Path:
    """A study whose series has the patient's name for a UID."""

    def change(_: int, image: Dataset) -> None:
        image.SeriesInstanceUID = "Doe^Jane"

    write_series(folder / "study" / "series", change, count=3)
    return folder


def damaged(folder: Path) -> Path:
    """A scan, and a file of DICOM that is cut off."""
    (folder / "a.nii").touch()
    (folder / "b.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\1" * 40)
    return folder


def has_no_name(found: Any) -> None:
    (case,) = found.cases
    assert case.id.startswith("series-")
    assert "Doe" not in case.id


def has_both(found: Any) -> None:
    assert [case.id for case in found.cases] == ["a"]
    assert [path.name for path in found.refused] == ["b.dcm"]


def refused(
    name: str,
    what: str,
    make: Callable[[Path], Any],
    ours: Callable[[Any], Any],
    message: str,
) -> BadInput:
    return BadInput(112, name, what, make, ours, NO_COUNTERPART, message)


INPUTS: tuple[BadInput, ...] = (
    refused(
        "no-scan",
        "folder to predict without a scan in it",
        touched("README.txt", "sub/notes.csv"),
        find_scans,
        r"no scan in it; expected files that end in \.nii, .*, or images of DICOM\. Give",
    ),
    refused(
        "one-name",
        "two scans of one name in folders of a folder",
        touched("p1/ct.nii.gz", "p2/ct.nii.gz"),
        find_scans,
        r"several images are named ct; expected each name once, .* Rename the files\.",
    ),
    refused(
        "subset",
        "subset of a folder, which is no datalist",
        touched("a.nii"),
        lambda folder: find_scans(folder, subset="test"),
        r"is no datalist, so it has no subset 'test'\. Leave it out\.",
    ),
    refused(
        "no-prompts",
        "folder of prompts without those of a scan",
        touched("prompts/a.json"),
        two_jobs,
        r"case b: .*prompts has 0 files of prompts for it: none; expected one: b\.json, b\.mrk",
    ),
    refused(
        "two-prompts",
        "folder with two files of prompts for a scan",
        touched("prompts/a.json", "prompts/b.json", "prompts/b.nii.gz"),
        two_jobs,
        r"case b: .*prompts has 2 files of prompts for it: b\.json, b\.nii\.gz; expected one",
    ),
    refused(
        "other-labels",
        "runs of other labels, to be averaged",
        two_runs(labels={1: "liver", 3: "spleen"}),
        TunedRuns,
        r"second: cannot be averaged with .*first: label 2 is None there, 'spleen' here; label 3",
    ),
    refused(
        "other-slices",
        "runs of other planes, to be averaged",
        two_runs(rules=ScanRules(Window(100, 200), "coronal")),
        TunedRuns,
        r"second: cannot be averaged with .*first: plane is 'coronal' there, 'axial' here\. Give",
    ),
    BadInput(
        112,
        "odd-uid",
        "study whose SeriesInstanceUID is the patient's name",
        odd_uid,
        find_scans,
        NO_COUNTERPART,
        handled="the mask is named after a hash of it",
        check=has_no_name,
    ),
    BadInput(
        112,
        "damaged",
        "folder of scans with a damaged file of DICOM",
        damaged,
        find_scans,
        NO_COUNTERPART,
        handled="the file is refused alone",
        check=has_both,
    ),
)
