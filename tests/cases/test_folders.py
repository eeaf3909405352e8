from __future__ import annotations

import json

import numpy as np
import pytest

from medsam_tune.cases.datalist import Case
from medsam_tune.cases.folders import find_cases
from medsam_tune.cases.splits import labels_of_patients
from medsam_tune.errors import DataError
from tests.scans import load_turned, msd_folder, plain_folder, small_scan, write_nifti


def test_msd_folder(tmp_path):
    data = find_cases(msd_folder(tmp_path, ["a", "b"]))
    assert (data.name, data.modality) == ("Small", "MR")
    assert data.labels == {1: "liver", 2: "spleen"}
    assert [case.id for case in data.training] == ["a", "b"]
    assert data.training[0] == Case(
        tmp_path / "imagesTr/a.nii.gz", tmp_path / "labelsTr/a.nii.gz", "a"
    )
    assert data.validation == data.test == ()


def test_patient_key_of_a_case_is_kept(tmp_path):
    folder = msd_folder(tmp_path, ["a"])
    content = json.loads((folder / "dataset.json").read_text())
    content["training"][0]["patient"] = "p7"
    (folder / "dataset.json").write_text(json.dumps(content))
    assert find_cases(folder).training[0].patient == "p7"


def test_plain_folder_reads_its_label_values(tmp_path):
    data = find_cases(plain_folder(tmp_path, ["a", "b"]), modality="CT")
    assert data.labels == {1: "label 1", 2: "label 2"}
    assert [case.id for case in data.training] == ["a", "b"]


def test_plain_folder_with_names(tmp_path):
    plain_folder(tmp_path, ["a"])
    (tmp_path / "labels.json").write_text('{"1": "liver", "2": "spleen"}')
    assert find_cases(tmp_path, modality="MR").labels == {1: "liver", 2: "spleen"}


def test_nnunet_raw_folder(tmp_path):
    plain_folder(tmp_path, ["a", "b"], "imagesTr", "labelsTr", suffix="_0000")
    (tmp_path / "dataset.json").write_text(
        json.dumps(
            {
                "channel_names": {"0": "CT"},
                "labels": {"background": 0, "liver": 1, "spleen": 2},
                "numTraining": 2,
                "file_ending": ".nii.gz",
            }
        )
    )
    data = find_cases(tmp_path)
    assert data.labels == {1: "liver", 2: "spleen"}
    assert data.modality == "CT"
    assert [(case.id, case.patient) for case in data.training] == [("a_0000", "a"), ("b_0000", "b")]


def test_folders_of_dicom_and_other_formats(tmp_path):
    import SimpleITK as sitk

    from tests.dicom_series import stored, write_series

    for name in ("a", "b"):
        write_series(tmp_path / "images" / name)
    scan = sitk.GetImageFromArray(stored())
    sitk.WriteImage(scan, str(tmp_path / "images" / "c.nrrd"))
    (tmp_path / "labels").mkdir()
    sitk.WriteImage(scan > 500, str(tmp_path / "labels" / "c.mha"))
    for name in ("a", "b"):
        affine = np.diag([-0.7, -0.9, 2.5, 1.0])
        affine[:3, 3] = [3.0, -4.0, -50.0]
        label = (stored().transpose(2, 1, 0) > 500).astype(np.uint8)
        write_nifti(tmp_path / "labels" / f"{name}.nii.gz", label, affine)
    data = find_cases(tmp_path, modality="CT")
    assert [case.id for case in data.training] == ["a", "b", "c"]
    a, b, c = (case.patient for case in data.training)
    assert a == b  # their headers say so
    assert a != "a"
    assert c == "c"
    for case in data.training:
        image, label = load_turned(case, data.labels)
        inside = image[label == 1]
        assert float(inside.min()) == 501 - 1000 * (case.id != "c")


def test_modality_and_patient_of_dicom_headers(tmp_path):
    from tests.dicom_series import stored, write_series

    for name in "ab":
        write_series(tmp_path / "images" / name, modality="MR")
        label = (stored().transpose(2, 1, 0) > 500).astype(np.uint8)
        write_nifti(tmp_path / "labels" / f"{name}.nii.gz", label)
    assert find_cases(tmp_path).modality == "MR"
    with pytest.raises(DataError, match=r"case a is of MR by its DICOM header, the data set of CT"):
        find_cases(tmp_path, modality="CT")
    entries = [{"image": f"images/{n}", "label": f"labels/{n}.nii.gz"} for n in "ab"]
    entries[1]["patient"] = "said"
    content = {"labels": {"1": "liver"}, "modality": {"0": "MR"}, "training": entries}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    first, second = find_cases(tmp_path).training
    assert (first.guessed, second.guessed) == (False, False)
    assert (len(first.patient), second.patient) == (16, "said")


def test_all_missing_files_of_a_folder_at_once(tmp_path):
    folder = msd_folder(tmp_path, ["a", "b", "c"])
    (folder / "imagesTr/a.nii.gz").unlink()
    (folder / "labelsTr/c.nii.gz").unlink()
    with pytest.raises(DataError, match=r"2 of 6 files are missing: .*a\.nii\.gz, .*c\.nii\.gz"):
        find_cases(folder)


def test_missing_folder(tmp_path):
    with pytest.raises(DataError, match=r"none: no such folder; expected one with dataset\.json"):
        find_cases(tmp_path / "none")


def test_unknown_layout(tmp_path):
    with pytest.raises(DataError, match=r"no known layout; expected a dataset\.json, or imagesTr/"):
        find_cases(tmp_path)


def test_empty_folders(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    with pytest.raises(DataError, match="no case in it"):
        find_cases(tmp_path, modality="CT")


def test_modality_must_be_said(tmp_path):
    plain_folder(tmp_path, ["a"])
    with pytest.raises(
        DataError, match=r"nothing says which of CT, MR, XR, US, RGB\. Say it: e\.g\. --modality CT"
    ):
        find_cases(tmp_path)
    with pytest.raises(DataError, match="modality is 'PET'; expected one of CT, MR"):
        find_cases(tmp_path, modality="PET")


def test_unknown_modality_in_the_file(tmp_path):
    folder = msd_folder(tmp_path, ["a"], modality={"0": "noNorm"})
    with pytest.raises(DataError, match="'noNorm' is not plainly one of CT, MR, XR, US"):
        find_cases(folder)
    assert find_cases(folder, modality="MR").modality == "MR"


def test_labels_must_be_ids_and_names(tmp_path):
    folder = msd_folder(tmp_path, ["a"], labels={"liver": "one"})
    with pytest.raises(DataError, match=r"label 'liver': 'one' is not an id and a name"):
        find_cases(folder)


def test_labels_must_be_an_object(tmp_path):
    folder = msd_folder(tmp_path, ["a"], labels=["liver"])
    with pytest.raises(DataError, match=r"labels is not an object; expected e\.g\. {\"1\": \"sple"):
        find_cases(folder)


def test_label_maps_with_fractions(tmp_path):
    plain_folder(tmp_path, ["a"])
    label = small_scan()[1].astype(np.float32)
    label[0, 0, 0] = 0.5
    write_nifti(tmp_path / "labels/a.nii.gz", label)
    with pytest.raises(DataError, match=r"label map holds values that are no ids: \[0\.5\]"):
        find_cases(tmp_path, modality="CT")


def test_same_names_in_two_folders(tmp_path):
    for patient in ("p1", "p2"):
        write_nifti(tmp_path / patient / "ct.nii.gz", small_scan()[0])
    entries = [{"image": f"{p}/ct.nii.gz"} for p in ("p1", "p2")]
    content = {"modality": {"0": "CT"}, "labels": {"1": "liver"}, "training": entries}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="several images are named ct; expected each name once"):
        find_cases(tmp_path)


def test_label_maps_without_a_label(tmp_path):
    plain_folder(tmp_path, ["a"])
    write_nifti(tmp_path / "labels/a.nii.gz", np.zeros_like(small_scan()[1]))
    with pytest.raises(DataError, match="all label maps are empty; expected values above 0"):
        find_cases(tmp_path, modality="CT")


def test_a_label_that_cannot_be_read_names_its_case(tmp_path):
    plain_folder(tmp_path, ["a"])
    (tmp_path / "labels/a.nii.gz").write_bytes(b"hello")
    with pytest.raises(DataError, match=r"^case a: cannot read .*labels/a\.nii\.gz: "):
        find_cases(tmp_path, modality="CT")
    data = find_cases(msd_folder(tmp_path / "msd", ["b"]))
    data.training[0].label.write_bytes(b"hello")
    with pytest.raises(DataError, match=r"^case b: cannot read .*b\.nii\.gz: "):
        labels_of_patients(data)


def test_row_93_long_names_with_the_suffix_of_a_channel(tmp_path):
    """They are paired by their whole names, not by those that were cut."""
    names = ["x" * 235 + "_1", "x" * 235 + "_2"]
    data = find_cases(plain_folder(tmp_path, names, suffix="_0000"), modality="CT")
    assert [case.image.name[-17:] for case in data.training] == [
        "x_1_0000.nii.gz".rjust(17, "x"),
        "x_2_0000.nii.gz".rjust(17, "x"),
    ]
    assert [case.label.name[-11:] for case in data.training] == ["xx_1.nii.gz", "xx_2.nii.gz"]
    assert len({case.id for case in data.training} | {c.patient for c in data.training}) == 4
