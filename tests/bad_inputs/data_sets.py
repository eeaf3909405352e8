"""Faults of folders and datalists."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
from monai.data import load_decathlon_datalist

from medsam_tune.cases.audit import LEAKING, SOUND, Report, check_place
from medsam_tune.cases.datalist import Case, read_datalist
from medsam_tune.cases.folders import find_cases
from medsam_tune.cases.splits import few_shots
from tests.bad_inputs.calls import Pair, monai
from tests.bad_inputs.table import NO_COUNTERPART, BadInput
from tests.scans import LABELS, small_scan, write_nifti


def monai_lists(path: Path) -> list[Pair]:
    """Every case of a datalist by plain MONAI."""
    subsets = [key for key in ("training", "test") if json.loads(path.read_text()).get(key)]
    entries = [e for key in subsets for e in load_decathlon_datalist(str(path), True, key)]
    return [monai(Case(Path(e["image"]), Path(e["label"]), "")) for e in entries]


def check(path: Path) -> Report:
    """`medsam-tune check`."""
    return check_place(path, progress=False)


def folder_of(folder: Path, count: int = 3) -> Path:
    """images/ and labels/ of cases c0, c1, ..."""
    for i in range(count):
        image, label = small_scan(i)
        write_nifti(folder / "images" / f"c{i}.nii.gz", image)
        write_nifti(folder / "labels" / f"c{i}.nii.gz", label)
    return folder


def without_partners(folder: Path) -> Path:
    folder_of(folder)
    (folder / "labels" / "c1.nii.gz").unlink()
    (folder / "images" / "c2.nii.gz").unlink()
    return folder


def datalist(folder: Path, patients: str = "abc", copy: int | None = None) -> Path:
    """c0 and c1 to train on, c2 to test; c`copy` holds the voxels of c0 under its own name."""
    folder_of(folder)
    if copy is not None:
        whole = nib.load(folder / "images" / "c0.nii.gz")
        again = nib.Nifti1Image(whole.get_fdata(), whole.affine)
        nib.save(again, folder / "images" / f"c{copy}.nii.gz")
    entries = [
        {"image": f"images/c{i}.nii.gz", "label": f"labels/c{i}.nii.gz", "patient": patient}
        for i, patient in enumerate(patients)
    ]
    labels = {"0": "background", **{str(k): v for k, v in LABELS.items()}}
    content = {"labels": labels, "modality": {"0": "MR"}}
    path = folder / "datalist.json"
    path.write_text(json.dumps({**content, "training": entries[:2], "test": entries[2:]}))
    return path


def without_files(folder: Path) -> Path:
    path = datalist(folder)
    (folder / "images" / "c1.nii.gz").unlink()
    (folder / "labels" / "c2.nii.gz").unlink()
    return path


def leak_is_said(report: Report) -> None:
    assert report.outcome == LEAKING
    assert report.leaks[0] == "c0 and c2 hold the same voxels, one in training, one in test"


def double_is_said(report: Report) -> None:
    assert report.outcome == SOUND
    assert "twice: c0 and c1 hold the same voxels" in report.lines()


INPUTS: tuple[BadInput, ...] = (
    BadInput(
        5,
        "missing-files",
        "datalist, two of whose files are missing",
        without_files,
        read_datalist,
        monai_lists,
        r"datalist\.json: 2 of 6 files are missing: \S*images/c1\.nii\.gz, \S*labels/c2\.nii\.gz\. "
        r"Copy them there or remove their entries\.$",
    ),
    BadInput(
        23,
        "without-partner",
        "folder with a label missing, and one without image",
        without_partners,
        find_cases,
        NO_COUNTERPART,
        r"images without a label: c1\.nii\.gz; labels without an image: c2\.nii\.gz; expected one "
        r"label of the same name",
    ),
    BadInput(
        42,
        "patient-in-both",
        "one patient in training and test",
        lambda folder: datalist(folder, "aba"),
        read_datalist,
        monai_lists,
        r"datalist\.json: patient a is in training and in test; expected each patient and each",
    ),
    BadInput(
        42,
        "voxels-in-both",
        "one scan in training and test, under two names",
        lambda folder: datalist(folder, copy=2),
        check,
        monai_lists,
        handled='check: "c0 and c2 hold the same voxels, one in training, one in test", exit 4',
        check=leak_is_said,
    ),
    BadInput(
        43,
        "twice",
        "one scan twice in a subset, under two names",
        lambda folder: datalist(folder, copy=1),
        check,
        monai_lists,
        handled='check: "twice: c0 and c1 hold the same voxels"',
        check=double_is_said,
    ),
    BadInput(
        44,
        "few-shot",
        "few-shot training with more cases than there are",
        datalist,
        lambda path: few_shots(read_datalist(path), 20),
        NO_COUNTERPART,
        r"^20 shots, but 2 training patients in datalist; expected at most as many\. Ask for fewer",
    ),
)
