from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from monai.data import load_decathlon_datalist

from medsam_tune.data.checks import DataError
from medsam_tune.data.datalist import (
    SUBSETS,
    Case,
    Datalist,
    few_shots,
    find_cases,
    fold_cases,
    labels_of_patients,
    read_datalist,
    split_cases,
    write_datalist,
)
from tests.data.conftest import small_scan, write_nifti


def plain_folder(
    folder: Path, names: list[str], images="images", labels="labels", suffix=""
) -> Path:
    image, label = small_scan()
    for name in names:
        write_nifti(folder / images / f"{name}{suffix}.nii.gz", image)
        write_nifti(folder / labels / f"{name}.nii.gz", label)
    return folder


def msd_folder(folder: Path, names: list[str], **description: object) -> Path:
    plain_folder(folder, names, "imagesTr", "labelsTr")
    content = {
        "name": "Small",
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "liver", "2": "spleen"},
        "training": [
            {"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in names
        ],
        "test": ["./imagesTs/x.nii.gz"],
        **description,
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def listed(patients: int, per_patient: int = 1) -> Datalist:
    cases = tuple(
        Case(Path(f"/x/p{p:02d}_{s}.nii.gz"), Path(f"/y/p{p:02d}_{s}.nii.gz"), f"p{p:02d}")
        for p in range(patients)
        for s in range(per_patient)
    )
    return Datalist("Small", "CT", {1: "liver"}, cases)


def written(folder: Path, **change: object) -> Path:
    """A datalist on disk with a changed key."""
    data = find_cases(msd_folder(folder, ["a", "b", "c"]))
    path = folder / "datalist.json"
    write_datalist(split_cases(data, (0.34, 0.33, 0.33), 0), path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    return path


# find_cases


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

    from medsam_tune.data.scans import load_case
    from tests.data.dicom_series import stored, write_series

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
        image, label = load_case(case, data.labels)
        inside = image[label == 1]
        assert float(inside.min()) == 501 - 1000 * (case.id != "c")


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
        DataError, match=r"nothing says which of CT, MR, XR, US\. Say it: e\.g\. --modality CT"
    ):
        find_cases(tmp_path)
    with pytest.raises(DataError, match="modality is 'PET'; expected one of CT, MR"):
        find_cases(tmp_path, modality="PET")


def test_unknown_modality_in_the_file(tmp_path):
    folder = msd_folder(tmp_path, ["a"], modality={"0": "FLAIR"})
    with pytest.raises(DataError, match="'FLAIR' is none of CT, MR"):
        find_cases(folder)
    assert find_cases(folder, modality="MR").modality == "MR"


def test_labels_must_be_ids_and_names(tmp_path):
    folder = msd_folder(tmp_path, ["a"], labels={"liver": [1, 2]})
    with pytest.raises(DataError, match=r"label 'liver': \[1, 2\] is not an id and a name"):
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


# Datalist and split_cases


def test_subset():
    data = listed(3)
    assert data.subset("training") == data.training
    with pytest.raises(DataError, match=r"no subset 'train'; there are: training \(3\)"):
        data.subset("train")
    with pytest.raises(DataError, match=r"subset 'test' has no case; there are: training \(3\)"):
        data.subset("test")


def test_split_is_by_patient_and_complete():
    data = split_cases(listed(10, per_patient=3), (0.6, 0.2, 0.2), 0)
    patients = [
        {case.patient for case in data.subset(s)} for s in ("training", "validation", "test")
    ]
    assert [len(p) for p in patients] == [6, 2, 2]
    assert len(set.union(*patients)) == 10
    assert len(data.training) == 18


def test_split_depends_on_the_seed_and_not_on_the_order():
    data = listed(20)
    backwards = Datalist(data.name, data.modality, data.labels, data.training[::-1])
    assert split_cases(data, (0.7, 0.1, 0.2), 1) == split_cases(backwards, (0.7, 0.1, 0.2), 1)
    assert split_cases(data, (0.7, 0.1, 0.2), 1) != split_cases(data, (0.7, 0.1, 0.2), 2)


def test_split_again_is_the_same():
    once = split_cases(listed(9), (0.5, 0.25, 0.25), 3)
    assert split_cases(once, (0.5, 0.25, 0.25), 3) == once


def rare_labels(count: int = 40) -> tuple[Datalist, dict[str, set[int]]]:
    """All patients have label 1, a quarter 2, every tenth 3; some have two scans."""
    names = [f"p{i:02d}" for i in range(count)]
    scans = [Case(Path(f"{n}_{k}.nii"), None, n) for n in names for k in range(1 + (n < "p05"))]
    present = {
        name: {1} | ({2} if i % 4 == 0 else set()) | ({3} if i % 10 == 3 else set())
        for i, name in enumerate(names)
    }
    return Datalist("d", "CT", {1: "a", 2: "b", 3: "c"}, training=tuple(scans)), present


def with_label(cases, present, label) -> int:
    return len({case.patient for case in cases if label in present[case.patient]})


@pytest.mark.parametrize("seed", range(5))
def test_rare_labels_are_shared_out(seed):
    data, present = rare_labels()
    split = split_cases(data, (0.5, 0.25, 0.25), seed, present)
    sizes = [len({case.patient for case in split.subset(name)}) for name in SUBSETS]
    assert sizes == [20, 10, 10]
    for label, expected in ((2, (5, 2.5, 2.5)), (3, (2, 1, 1))):
        counts = [with_label(split.subset(name), present, label) for name in SUBSETS]
        assert sum(counts) == sum(expected)
        assert all(abs(n - e) <= 0.5 for n, e in zip(counts, expected, strict=True))
    turned = replace(data, training=data.training[::-1])
    assert split == split_cases(turned, (0.5, 0.25, 0.25), seed, present)
    assert split != split_cases(data, (0.5, 0.25, 0.25), seed + 1, present)
    patients = [{case.patient for case in split.subset(name)} for name in SUBSETS]
    assert len(set.union(*patients)) == 40
    assert len(split.training + split.validation + split.test) == 45


def test_equal_labels_are_split_as_without():
    data, present = rare_labels()
    same = {patient: {1, 2} for patient in present}
    assert split_cases(data, (0.5, 0.25, 0.25), 3, same) == split_cases(data, (0.5, 0.25, 0.25), 3)


def test_folds_test_every_patient_once():
    data, present = rare_labels()
    folds = fold_cases(data, 4, seed=1, present=present)
    tested = [case.patient for fold in folds for case in fold.test]
    assert len(tested) == 45
    assert len(set(tested)) == 40
    for i, fold in enumerate(folds):
        assert fold.validation == folds[(i + 1) % 4].test
        assert with_label(fold.test, present, 3) == 1
        groups = [{case.patient for case in fold.subset(name)} for name in SUBSETS]
        assert sum(map(len, groups)) == len(set.union(*groups)) == 40
    with pytest.raises(DataError, match="2 folds; expected at least 3"):
        fold_cases(data, 2)
    with pytest.raises(DataError, match="40 patients cannot fill 41 subsets"):
        fold_cases(data, 41)


def patients_of(cases) -> set[str]:
    return {case.patient for case in cases}


def test_few_shots_keep_patients_of_training_only():
    split = split_cases(listed(20, per_patient=2), (0.7, 0.1, 0.2), 0)
    few = few_shots(split, 5, seed=1)
    assert len(patients_of(few.training)) == 5
    assert len(few.training) == 10
    assert few == replace(split, training=few.training)
    turned = few_shots(replace(split, training=split.training[::-1]), 5, seed=1)
    assert turned.training == few.training[::-1]
    assert few != few_shots(split, 5, seed=2)
    assert patients_of(few_shots(split, 2, seed=1).training) < patients_of(few.training)
    assert few_shots(split, 14) == split


def test_few_shots_of_too_few_patients():
    split = split_cases(listed(20), (0.7, 0.1, 0.2), 0)
    with pytest.raises(
        DataError, match=r"^20 shots, but 14 training patients in Small; expected at most as many\."
    ):
        few_shots(split, 20)
    with pytest.raises(DataError, match=r"^0 shots; expected at least 1 training patient\.$"):
        few_shots(split, 0)


def test_labels_of_patients_are_read(tmp_path):
    for name, value in (("a", 1), ("b", 2)):
        write_nifti(tmp_path / "images" / f"{name}.nii.gz", np.ones((4, 4, 4), np.float32))
        write_nifti(tmp_path / "labels" / f"{name}.nii.gz", np.full((4, 4, 4), value, np.uint8))
    data = find_cases(tmp_path, modality="CT")
    assert labels_of_patients(data) == {"a": {1}, "b": {2}}


def test_each_wanted_subset_gets_a_patient():
    data = split_cases(listed(3), (0.8, 0.1, 0.1), 0)
    assert [len(data.training), len(data.validation), len(data.test)] == [1, 1, 1]
    assert split_cases(listed(2), (0.5, 0.0, 0.5), 0).validation == ()


def test_fewer_patients_than_subsets():
    with pytest.raises(DataError, match=r"2 patients cannot fill 3 subsets \(fractions"):
        split_cases(listed(2, per_patient=5), (0.6, 0.2, 0.2), 0)


@pytest.mark.parametrize("fractions", [(0.5, 0.5, 0.5), (1.2, -0.1, -0.1), (0, 0, 0)])
def test_bad_fractions(fractions):
    with pytest.raises(DataError, match="of 0 or more that add up to 1"):
        split_cases(listed(5), fractions, 0)


# write_datalist and read_datalist


def test_round_trip(tmp_path):
    data = split_cases(find_cases(msd_folder(tmp_path, ["a", "b", "c"])), (0.4, 0.3, 0.3), 0)
    write_datalist(data, tmp_path / "datalist.json")
    assert read_datalist(tmp_path / "datalist.json") == data
    content = json.loads((tmp_path / "datalist.json").read_text())
    assert content["labels"] == {"0": "background", "1": "liver", "2": "spleen"}
    assert content["modality"] == {"0": "MR"}
    assert content["test"][0]["image"].startswith("imagesTr/")
    assert [file.name for file in tmp_path.glob(".*")] == []


def test_scans_elsewhere_are_written_as_absolute_paths(tmp_path):
    data = find_cases(msd_folder(tmp_path / "scans", ["a"]))
    write_datalist(data, tmp_path / "lists" / "datalist.json")
    assert read_datalist(tmp_path / "lists" / "datalist.json").training == data.training


def test_monai_reads_it(tmp_path):
    path = written(tmp_path)
    (entry,) = load_decathlon_datalist(path, data_list_key="validation")
    case = read_datalist(path).validation[0]
    assert (Path(entry["image"]), Path(entry["label"])) == (case.image, case.label)
    assert entry["patient"] == case.patient


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = written(tmp_path)
    before = path.read_text()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_datalist(listed(2), path)
    assert path.read_text() == before
    assert not list(tmp_path.glob(".datalist*"))


def test_missing_datalist_says_how_to_make_one(tmp_path):
    with pytest.raises(DataError, match=r"Make one: medsam-tune split DIR --out datalist\.json"):
        read_datalist(tmp_path / "datalist.json")


def test_not_json(tmp_path):
    (tmp_path / "d.json").write_text("{")
    with pytest.raises(DataError, match=r"d\.json: is not JSON"):
        read_datalist(tmp_path / "d.json")
    (tmp_path / "d.json").write_text("[]")
    with pytest.raises(DataError, match=r"holds a JSON list; expected an object"):
        read_datalist(tmp_path / "d.json")


def test_missing_keys(tmp_path):
    (tmp_path / "d.json").write_text("{}")
    with pytest.raises(DataError, match="the keys labels, training are missing"):
        read_datalist(tmp_path / "d.json")


def test_entry_without_image(tmp_path):
    with pytest.raises(DataError, match="entry 0 has no image"):
        read_datalist(written(tmp_path, training=[{"label": "x"}]))
    with pytest.raises(DataError, match="a subset is str; expected a list"):
        read_datalist(written(tmp_path, training="x"))


def test_only_background(tmp_path):
    with pytest.raises(DataError, match="names none but the background"):
        read_datalist(written(tmp_path, labels={"0": "background"}))


def test_missing_scans_are_counted(tmp_path):
    entries = [{"image": f"m{i}.nii.gz"} for i in range(12)]
    with pytest.raises(DataError) as caught:
        read_datalist(written(tmp_path, training=entries))
    assert "12 of 16 files are missing: " in str(caught.value)
    assert "m9.nii.gz, ... (12 in all)" in str(caught.value)


def test_file_in_two_subsets(tmp_path):
    path = written(tmp_path)
    content = json.loads(path.read_text())
    content["test"] = [{**content["training"][0], "patient": "other"}]
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"\.nii\.gz is in training and in test"):
        read_datalist(path)


def test_link_to_a_file_in_another_subset(tmp_path):
    path = written(tmp_path)
    content = json.loads(path.read_text())
    (tmp_path / "link.nii.gz").symlink_to(tmp_path / content["training"][0]["image"])
    content["test"] = [{"image": "link.nii.gz"}]
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"link\.nii\.gz is in training and in test"):
        read_datalist(path)


@pytest.mark.real_data
def test_hippocampus(hippocampus):
    data = split_cases(find_cases(hippocampus), (0.7, 0.1, 0.2), 0)
    assert (data.modality, data.labels) == ("MR", {1: "Anterior", 2: "Posterior"})
    assert [len(data.training), len(data.validation), len(data.test)] == [126, 18, 36]
