"""Names of files and folders, and what lies beside the scans."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from medsam_tune.cases.audit import SOUND, check_place
from medsam_tune.cases.datalist import Case, read_datalist, write_datalist
from medsam_tune.cases.folders import find_cases
from medsam_tune.cases.load import load_case
from medsam_tune.slices.intensity import Percentiles
from medsam_tune.slices.rules import ScanRules
from medsam_tune.slices.store import SliceStore
from tests.bad_inputs.calls import load, monai, same_in_world
from tests.bad_inputs.table import NO_COUNTERPART, BadInput
from tests.scans import LABELS, small_scan, write_nifti

RESOURCE_FORK = b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(130)
CLUTTER = (
    "._c0.nii.gz",
    ".DS_Store",
    "Thumbs.db",
    "~$c0.nii.gz",
    ".#c1.nii.gz",
    "c0.nii.gz~",
    "__MACOSX/._c0.nii.gz",
    "@eaDir/c0.nii.gz",
)


def pairs(folder: Path, names: tuple[str, ...] = ("c0", "c1")) -> Path:
    for name in names:
        for kind, array in zip(("images", "labels"), small_scan(), strict=True):
            write_nifti(folder / kind / f"{name}.nii.gz", array)
    return folder


def litter(folder: Path) -> None:
    for name in CLUTTER:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(RESOURCE_FORK)


def littered(folder: Path) -> Path:
    pairs(folder)
    for place in (folder, folder / "images", folder / "labels"):
        litter(place)
    return folder


def littered_organs(folder: Path) -> Path:
    pairs(folder)
    for name in ("c0", "c1"):
        (folder / "labels" / f"{name}.nii.gz").unlink()
        for number, organ in LABELS.items():
            part = (small_scan()[1] == number).astype(np.uint8)
            write_nifti(folder / "labels" / name / f"{organ}.nii.gz", part)
        litter(folder / "labels" / name)
    return folder


def littered_scans(folder: Path) -> Path:
    """Scans in no known layout."""
    for name in ("a", "b"):
        write_nifti(folder / "scans" / f"{name}.nii.gz", small_scan(ord(name))[0])
    litter(folder / "scans")
    return folder / "scans"


def prepared(folder: Path) -> list[Case]:
    """Ours, from the folder to the slices."""
    data = find_cases(folder, modality="MR")
    path = folder.parent / "datalist.json"
    write_datalist(data, path)
    cases = list(read_datalist(path).training)
    store = SliceStore(folder.parent / "store", ScanRules(Percentiles()), data.labels)
    entries = store.prepare(cases, progress=False)
    again = [store.find(case) for case in cases]
    assert [one.path for one in again if one] == [one.path for one in entries]
    return cases


def two_cases(cases: list[Case]) -> None:
    assert len({case.id for case in cases}) == 2
    for case in cases:
        assert case.id.isprintable()
        assert len(case.id.encode()) <= 160
        image, label = load_case(case, LABELS)
        assert label is not None
        same_in_world(label, small_scan()[1], np.diag([2.0, 3, 4, 1]))
        assert image.shape == label.shape


def nii_folder(folder: Path, *names: str) -> Case:
    """A folder that is named like a file."""
    for name in names:
        write_nifti(folder / "case_017.nii" / name, small_scan()[0])
    (folder / "case_017.nii").mkdir(exist_ok=True)
    (folder / "case_017.nii" / ".DS_Store").write_bytes(RESOURCE_FORK)
    return Case(folder / "case_017.nii", None, "p")


def nii_folders(folder: Path) -> Path:
    for name in ("c0", "c1"):
        for kind, array in zip(("images", "labels"), small_scan(), strict=True):
            write_nifti(folder / kind / f"{name}.nii" / "0001_brain.nii", array)
    return folder


def linked(folder: Path) -> Path:
    """Linked files, in a folder that is linked, below one that leads back to itself."""
    pairs(folder / "disk")
    for kind in ("images", "labels"):
        (folder / "data" / kind).mkdir(parents=True)
        for file in (folder / "disk" / kind).iterdir():
            (folder / "data" / kind / file.name).symlink_to(file)
    (folder / "link").symlink_to(folder / "data")
    return folder / "link"


def linked_below(folder: Path) -> Path:
    for name in ("a", "b"):
        write_nifti(folder / "disk" / name / "scan.nii", small_scan(ord(name))[0])
    (folder / "data").mkdir()
    for name in ("a", "b"):
        (folder / "data" / name).symlink_to(folder / "disk" / name)
    (folder / "disk" / "a" / "back").symlink_to(folder / "data")
    return folder / "data"


def two_sound(folder: Path) -> Callable[[], None]:
    report = check_place(folder, progress=False)

    def check() -> None:
        assert report.outcome == SOUND, report.lines()
        assert len(report.findings) == 2

    return check


def run_check(check: Callable[[], None]) -> None:
    check()


NAMES = (
    ("249-bytes", "249 bytes", "スキャン" * 20 + "_"),
    ("spaces", "spaces and quotes", "the \"first\" 'scan' "),
    ("signs", "signs", "-a$(b)@c%d#e;&=*?"),
    ("lines", "line breaks", "a\nb\r\tc"),
    ("bytes", "bytes that are not UTF-8", os.fsdecode(b"a\xff\xfeb")),
    ("formula", "a leading =", "=1+1"),
)

INPUTS: tuple[BadInput, ...] = (
    BadInput(
        84,
        "pairs",
        "files that systems and programs leave, among images and labels",
        littered,
        prepared,
        NO_COUNTERPART,
        handled="left out",
        check=two_cases,
    ),
    BadInput(
        84,
        "organs",
        "files that systems and programs leave, among those of organs",
        littered_organs,
        prepared,
        NO_COUNTERPART,
        handled="left out",
        check=two_cases,
    ),
    BadInput(
        84,
        "check",
        "files that systems and programs leave, in any folder of scans",
        littered_scans,
        two_sound,
        NO_COUNTERPART,
        handled="left out",
        check=run_check,
    ),
    BadInput(
        85,
        "folder-named-like-a-file",
        "folders c0.nii/ and c1.nii/ with a scan in each",
        nii_folders,
        prepared,
        NO_COUNTERPART,
        handled="the scan is read",
        check=two_cases,
    ),
    *(
        BadInput(
            85,
            f"folder-with-{len(inside)}-scans",
            f"a folder case_017.nii/ with {len(inside)} scans in it",
            lambda folder, inside=inside: nii_folder(folder, *inside),
            load,
            monai,
            r"^case case_017: \S*case_017\.nii: a folder that is named like a file, with "
            rf"{len(inside)} scans in it: {', '.join(inside) or 'none'}; expected one\.",
        )
        for inside in ((), ("a.nii", "b.nii.gz"))
    ),
    BadInput(
        85,
        "links",
        "linked files in a linked folder",
        linked,
        prepared,
        NO_COUNTERPART,
        handled="read",
        check=two_cases,
    ),
    BadInput(
        85,
        "linked-folders",
        "linked folders below a folder, one of them in a circle",
        linked_below,
        two_sound,
        NO_COUNTERPART,
        handled="read, each once",
        check=run_check,
    ),
    *(
        BadInput(
            93,
            name,
            f"names of scans with {what}",
            lambda folder, text=text: pairs(folder / "data", (f"{text}0", f"{text}1")),
            prepared,
            NO_COUNTERPART,
            handled="read; cases, slices and results have names that are safe",
            check=two_cases,
        )
        for name, what, text in NAMES
    ),
)
