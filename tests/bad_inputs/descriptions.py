"""Faults of what a dataset.json, a datalist or a table says of scans, labels and patients."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from medsam_tune.cases.datalist import Datalist, read_datalist
from medsam_tune.cases.folders import find_cases
from medsam_tune.cases.load import load_case
from medsam_tune.cases.patients import patients_by_regex, patients_by_table, patients_line
from tests.bad_inputs.data_sets import datalist, monai_lists
from tests.bad_inputs.table import NO_COUNTERPART, BadInput
from tests.scans import plain_folder, small_scan, write_nifti

IGNORED = 3


def nnunet(folder: Path, names: list[str] | None = None, **said: Any) -> Path:
    """An nnU-Net raw folder (second version); in label maps, the last column is not annotated."""
    for seed, name in enumerate(names or ["a", "b", "c"]):
        image, label = small_scan(seed)
        label[-1] = IGNORED
        write_nifti(folder / "imagesTr" / f"{name}_0000.nii.gz", image)
        write_nifti(folder / "labelsTr" / f"{name}.nii.gz", label)
    labels = {"background": 0, "liver": 1, "spleen": 2, "ignore": IGNORED}
    content = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 3, **said}
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def first_version(folder: Path, channels: int = 1) -> Path:
    """nnU-Net's first version: lists images without their channel."""
    nnunet(folder)
    for name in "abc":
        for channel in range(1, channels):
            image = small_scan()[0]
            write_nifti(folder / "imagesTr" / f"{name}_{channel:04}.nii.gz", image)
    content = json.loads((folder / "dataset.json").read_text())
    content["training"] = [
        {"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in "abc"
    ]
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def key_twice(folder: Path) -> Path:
    nnunet(folder)
    text = (folder / "dataset.json").read_text()
    (folder / "dataset.json").write_text(text.replace('"spleen": 2', '"liver": 2'))
    return folder


def visits(folder: Path) -> Path:
    """A datalist by hand, without patients: one visit to train on, one to test."""
    path = datalist(folder)
    content = json.loads(path.read_text())
    for key, name in (("training", "pat03_visit1"), ("test", "pat03-followup")):
        entry = content[key][0]
        (folder / entry["image"]).rename(folder / "images" / f"{name}.nii.gz")
        entry["image"] = f"images/{name}.nii.gz"
        del entry["patient"]
    path.write_text(json.dumps(content))
    return path


def named(*names: str) -> Callable[[Path], Path]:
    return lambda folder: plain_folder(folder, list(names))


def table(text: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        plain_folder(folder, ["a1", "a2", "b1"])
        (folder / "patients.csv").write_text(text)
        return folder

    return make


def found(folder: Path) -> Datalist:
    return find_cases(folder, modality="CT")


def by_table(folder: Path) -> Datalist:
    return patients_by_table(found(folder), folder / "patients.csv")


def text(of: Callable[[str], str]) -> Callable[[Path], Path]:
    """A datalist with a changed text."""

    def make(folder: Path) -> Path:
        path = datalist(folder)
        path.write_text(of(path.read_text()), encoding="utf-8")
        return path

    return make


def ignore_is_no_organ(data: Datalist) -> None:
    assert (data.labels, data.ignore) == ({1: "liver", 2: "spleen"}, IGNORED)
    _, label = load_case(data.training[0], data.labels_in_files)
    assert label is not None
    assert set(np.unique(label)) == {0, 1, 2, IGNORED}


def channels_are_found(data: Datalist) -> None:
    assert [case.image.name for case in data.training] == [f"{n}_0000.nii.gz" for n in "abc"]
    assert [case.patient for case in data.training] == ["a", "b", "c"]


def is_read(data: Datalist) -> None:
    assert len(data.cases) == 3


INPUTS: tuple[BadInput, ...] = (
    BadInput(
        82,
        "ignore-label",
        'dataset.json with nnU-Net\'s label "ignore"',
        nnunet,
        find_cases,
        NO_COUNTERPART,
        handled="read; left out of prompts, loss and scores",
        check=ignore_is_no_organ,
    ),
    BadInput(
        82,
        "region",
        "dataset.json with a region, a list of ids",
        lambda folder: nnunet(folder, labels={"background": 0, "whole": [1, 2], "core": 2}),
        find_cases,
        NO_COUNTERPART,
        r"dataset\.json: label 'whole' is a region of the ids \[1, 2\]; .* --labels 1=edema,2=core",
    ),
    BadInput(
        82,
        "two-names-of-an-id",
        "dataset.json with two names for one id",
        lambda folder: nnunet(folder, labels={"background": 0, "liver": 1, "spleen": 1}),
        find_cases,
        NO_COUNTERPART,
        r"dataset\.json: label 1 has the names 'liver' and 'spleen'; expected one name for each id",
    ),
    BadInput(
        82,
        "two-ids-of-a-name",
        "dataset.json with one name for two ids",
        lambda folder: nnunet(folder, labels={"0": "background", "1": "kidney", "2": "kidney"}),
        find_cases,
        NO_COUNTERPART,
        r"dataset\.json: labels 1 and 2 are both named 'kidney'; expected one id for each name",
    ),
    BadInput(
        82,
        "key-twice",
        "dataset.json with one key twice",
        key_twice,
        find_cases,
        NO_COUNTERPART,
        r"dataset\.json: is not JSON \(the keys 'liver' are there twice in one object\)",
    ),
    BadInput(
        83,
        "without-channel",
        "nnU-Net's first dataset.json, whose images have a channel in their name",
        first_version,
        find_cases,
        NO_COUNTERPART,
        handled="found",
        check=channels_are_found,
    ),
    BadInput(
        83,
        "several-channels",
        "the same, with two channels of each scan",
        lambda folder: first_version(folder, channels=2),
        find_cases,
        NO_COUNTERPART,
        r"a\.nii\.gz: has several channels, a file for each .* Copy the channel to train on",
    ),
    BadInput(
        87,
        "no-validation",
        "training with an empty validation subset",
        datalist,
        lambda path: read_datalist(path).subset("validation"),
        NO_COUNTERPART,
        r"subset 'validation' has no case; there are: training \(2\), test \(1\)\. .* --fractions",
    ),
    BadInput(
        87,
        "no-test",
        "evaluation with an empty test subset",
        lambda folder: datalist(folder, "ab"),
        lambda path: read_datalist(path).subset("test"),
        NO_COUNTERPART,
        r"subset 'test' has no case; there are: training \(2\)\. .* --fractions",
    ),
    BadInput(
        98,
        "visits-in-both",
        "datalist without patients, one visit of a patient in training, one in test",
        visits,
        read_datalist,
        monai_lists,
        r"patient pat03 \(by the names\) is in training and in test; .* Give each entry its \"pat",
    ),
    BadInput(
        98,
        "one-patient",
        "folder whose names speak of one patient",
        named("scan_t1", "scan_t2", "scan_t3"),
        lambda folder: patients_line(found(folder)),
        NO_COUNTERPART,
        r"all 3 scans are of one patient, scan; expected several\. .* --patient-regex or",
    ),
    BadInput(
        98,
        "regex-misses",
        "--patient-regex that a case's name does not match",
        named("pat1_a", "pat2_a", "control_1"),
        lambda folder: patients_by_regex(found(folder), r"pat\d+"),
        NO_COUNTERPART,
        r"--patient-regex 'pat\\\\d\+' finds no patient in the names of 1 of 3 cases: control_1",
    ),
    BadInput(
        98,
        "table-misses",
        "--patients without a row for a case",
        table("case,patient\na1,A\na2,A\n"),
        by_table,
        NO_COUNTERPART,
        r"patients\.csv: no row for 1 of 3 cases: b1; expected one patient for each case",
    ),
    BadInput(
        98,
        "table-of-two-patients",
        "--patients with two patients of one case",
        table("a1,A\na2,A\nb1,B\na1,B\n"),
        by_table,
        NO_COUNTERPART,
        r"patients\.csv: case a1 has the patients A and B; expected one\. Correct line 4\.",
    ),
    BadInput(
        108,
        "byte-order-mark",
        "datalist with a byte order mark",
        text(lambda said: "\ufeff" + said),
        read_datalist,
        NO_COUNTERPART,
        handled="read",
        check=is_read,
    ),
    BadInput(
        108,
        "deep",
        "datalist of 100,000 lists in each other",
        text(lambda _: "[" * 100_000),
        read_datalist,
        NO_COUNTERPART,
        r"datalist\.json: its objects and lists are nested too deeply; expected a few levels",
    ),
    BadInput(
        108,
        "true-as-id",
        "datalist with a label's id true",
        text(lambda said: json.dumps({**json.loads(said), "labels": {"liver": True}})),
        read_datalist,
        NO_COUNTERPART,
        r"datalist\.json: label 'liver': True is not an id and a name; expected e\.g\. \"1\": ",
    ),
    BadInput(
        108,
        "number-as-path",
        "datalist with a number as an image",
        text(lambda said: json.dumps({**json.loads(said), "test": [{"image": 1.5}]})),
        read_datalist,
        NO_COUNTERPART,
        r"datalist\.json: entry 0: image is 1\.5; expected text\.",
    ),
    BadInput(
        108,
        "infinite",
        "datalist with NaN",
        text(lambda said: said.replace('"0": "background"', '"0": NaN')),
        read_datalist,
        NO_COUNTERPART,
        r"datalist\.json: is not JSON \(the number NaN is not finite\)",
    ),
)
