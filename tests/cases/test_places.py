"""Scans of a place, and what they are named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydicom.dataset import Dataset

from medsam_tune.cases.datalist import Case, Datalist, write_datalist
from medsam_tune.cases.places import Scans, find_scans
from medsam_tune.errors import DataError
from tests.dicom_series import write_series
from tests.scans import plain_folder, small_scan, write_nifti


def names(found: Scans) -> list[str]:
    return [case.id for case in found.cases]


def touch(folder: Path, *files: str) -> None:
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_files_of_a_folder(tmp_path: Path) -> None:
    touch(tmp_path, "b.nii.gz", "a.NRRD", "sub/c.mha", "README.txt", ".d.nii", "masks/a.nii.gz")
    found = find_scans(tmp_path, leave_out=[tmp_path / "masks", tmp_path])
    assert names(found) == ["a", "b", "c"]
    assert found.folder == tmp_path
    assert all(case.label is None for case in found.cases)
    assert not found.refused


def test_of_images_and_labels_the_images(tmp_path: Path) -> None:
    plain_folder(tmp_path, ["a", "b"])
    write_nifti(tmp_path / "images" / "c.nii.gz", small_scan()[0])
    found = find_scans(tmp_path)
    assert names(found) == ["a", "b", "c"]
    assert found.folder == tmp_path / "images"


def test_masks_beside_images_are_no_images(tmp_path: Path) -> None:
    files = [f"{folder}/a.png" for folder in ("x/images", "x/masks", "y/images", "y/labels")]
    touch(tmp_path / "one", "images/a.png", "masks/a.png", "masks/b.png")
    touch(tmp_path / "tiles", *(file.replace("y/images/a", "y/images/b") for file in files))
    assert names(find_scans(tmp_path / "one")) == ["a"]
    found = find_scans(tmp_path / "tiles")
    assert names(found) == ["a", "b"]
    assert all(case.image.parent.name == "images" for case in found.cases)


def test_one_scan(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii.gz", small_scan()[0])
    assert find_scans(path) == Scans((Case(path, None, ""),), tmp_path)
    write_series(tmp_path / "dicom")
    found = find_scans(tmp_path / "dicom", series="3.4")
    assert found.cases == (Case(tmp_path / "dicom", None, "", "3.4"),)
    assert names(find_scans(tmp_path / "dicom")) == ["dicom"]


def test_series_are_named_after_their_own_folder_or_by_uid(tmp_path: Path) -> None:
    write_series(tmp_path / "first", uid="1.2.1", count=3)
    write_series(tmp_path / "two", uid="1.2.2", count=3)
    for path in write_series(tmp_path / "x", uid="1.2.3", count=3).iterdir():
        path.rename(tmp_path / "two" / f"x{path.name}")
    (tmp_path / "x").rmdir()
    write_series(tmp_path / "Doe_Jane" / "study" / "1", uid="1.2.4", count=3)
    write_series(tmp_path / "Doe_Jane" / "study" / "2", uid="1.2.5", count=3)
    found = find_scans(tmp_path)
    assert names(found) == ["1.2.2", "1.2.3", "1.2.4", "1.2.5", "first"]
    assert [case.series for case in found.cases] == ["1.2.2", "1.2.3", None, None, None]
    write_nifti(tmp_path / "a.nii", small_scan()[0])
    assert names(find_scans(tmp_path))[:2] == ["a", "1.2.2"]


def test_a_text_in_place_of_a_uid_is_not_told(tmp_path: Path) -> None:
    def change(_: int, image: Dataset) -> None:
        image.SeriesInstanceUID = "Doe^Jane"

    write_series(tmp_path / "a" / "b", change, count=3)
    (name,) = names(find_scans(tmp_path))
    assert name.startswith("series-")
    assert "Doe" not in name


def test_series_of_another_modality_are_left_out_of_a_tree(tmp_path: Path) -> None:
    write_series(tmp_path / "p" / "ct", uid="1.2.1", count=3)
    write_series(tmp_path / "p" / "mr", uid="1.2.2", count=3, modality="MR")
    write_series(tmp_path / "own", uid="1.2.3", count=3, modality="MR")
    with pytest.warns(match=r"series of another modality than CT left out: 1 of MR\.$"):
        found = find_scans(tmp_path, modality="CT")
    assert names(found) == ["1.2.1", "own"]  # to be refused by its name
    assert len(names(find_scans(tmp_path))) == 3


def test_a_damaged_file_of_no_series_is_refused_alone(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii", small_scan()[0])
    (tmp_path / "b.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\1" * 40)
    found = find_scans(tmp_path)
    assert names(found) == ["a"]
    assert [path.name for path in found.refused] == ["b.dcm"]


def test_a_datalist_without_its_labels(tmp_path: Path) -> None:
    gone = tmp_path / "gone.nii.gz"
    image = write_nifti(tmp_path / "a.nii.gz", small_scan()[0])
    cases = Case(image, gone, "p", name="case_1"), Case(gone, None, "q")
    write_datalist(Datalist("x", "CT", {1: "liver"}, cases[:1], (), cases[1:]), tmp_path / "d.json")
    found = find_scans(tmp_path / "d.json")
    assert names(found) == ["case_1", "gone"]
    assert [case.label for case in found.cases] == [None, None]
    assert names(find_scans(tmp_path / "d.json", subset="test")) == ["gone"]


def test_what_is_no_place_of_scans_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "empty/README", "twice/a.nii", "twice/b/a.nii.gz")
    write_datalist(
        Datalist("x", "CT", {1: "liver"}, (Case(tmp_path / "a.nii", None, "p"),)),
        tmp_path / "d.json",
    )
    for place, subset, message in (
        ("gone", None, r"gone: no such file or folder\. Correct the path\."),
        ("empty", None, r"empty: no scan in it; expected files that end in \.nii, .* DICOM\. Give"),
        ("twice", None, r"twice: several images are named a; expected each name once"),
        ("twice", "test", r"twice: is no datalist, so it has no subset 'test'\. Leave it out\."),
        ("d.json", "tests", r"x: no subset 'tests'; there are: training \(1\)\."),
        ("d.json", "test", r"x: subset 'test' has no case"),
    ):
        with pytest.raises(DataError, match=message):
            find_scans(tmp_path / place, subset=subset)


def test_scans_of_a_domain(tmp_path: Path) -> None:
    """A datalist to predict needs no labels; a column says the domain of each scan."""
    entries = [{"image": "a.nii", "domain": "ct"}, {"image": "b.nii", "domain": "mr"}]
    place = tmp_path / "mixed.json"
    place.write_text(json.dumps({"test": entries}))
    assert [case.id for case in find_scans(place, domain="mr").cases] == ["b"]
    assert [case.id for case in find_scans(place).cases] == ["a", "b"]
    with pytest.raises(DataError, match="is no datalist, so it has no domain 'mr'"):
        find_scans(tmp_path, domain="mr")
