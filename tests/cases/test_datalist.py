from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from monai.data import load_decathlon_datalist

from medsam_tune.cases.datalist import SUBSETS, read_datalist, write_datalist
from medsam_tune.cases.folders import find_cases
from medsam_tune.cases.splits import split_cases
from medsam_tune.errors import DataError
from tests.scans import listed, msd_folder, small_scan, write_nifti


def written(folder: Path, **change: object) -> Path:
    """A datalist on disk with a changed key."""
    data = find_cases(msd_folder(folder, ["a", "b", "c"]))
    path = folder / "datalist.json"
    write_datalist(split_cases(data, (0.34, 0.33, 0.33), 0), path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    return path


def test_subset():
    data = listed(3)
    assert data.subset("training") == data.training
    with pytest.raises(DataError, match=r"no subset 'train'; there are: training \(3\)"):
        data.subset("train")
    with pytest.raises(DataError, match=r"subset 'test' has no case; there are: training \(3\)"):
        data.subset("test")


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


def test_ignore_is_kept(tmp_path):
    data = replace(find_cases(msd_folder(tmp_path, ["a"])), labels={1: "liver"}, ignore=2)
    write_datalist(data, tmp_path / "datalist.json")
    again = read_datalist(tmp_path / "datalist.json")
    assert (again.labels, again.ignore) == ({1: "liver"}, 2)
    assert again.labels_in_files == {1: "liver", 2: "ignore"}


def test_only_test_cases(tmp_path):
    path = written(tmp_path)
    content = json.loads(path.read_text())
    test = [entry for key in ("training", "validation", "test") for entry in content.pop(key)]
    path.write_text(json.dumps({**content, "test": test}))
    assert len(read_datalist(path).test) == 3
    path.write_text(json.dumps({**content, "test": []}))
    with pytest.raises(DataError, match="no case in it; expected entries in training, valid"):
        read_datalist(path)


def test_patients_without_a_word_are_guessed(tmp_path):
    data = find_cases(msd_folder(tmp_path, ["p1_visit1", "p1_visit2", "p2"]))
    path = tmp_path / "datalist.json"
    write_datalist(split_cases(data, (0.5, 0, 0.5)), path)
    content = json.loads(path.read_text())
    entries = {Path(e["image"]).name[:9]: e for key in ("training", "test") for e in content[key]}
    for entry in entries.values():
        del entry["patient"]
    first, second, other = (entries[name] for name in ("p1_visit1", "p1_visit2", "p2.nii.gz"))
    path.write_text(json.dumps({**content, "training": [first, second], "test": [other]}))
    assert [case.patient for case in read_datalist(path).cases] == ["p1", "p1", "p2"]
    path.write_text(json.dumps({**content, "training": [first, other], "test": [second]}))
    with pytest.raises(DataError, match=r"patient p1 \(by the names\) is in training and in test"):
        read_datalist(path)
    second["patient"] = 7
    path.write_text(json.dumps({**content, "training": [first, other], "test": [second]}))
    assert read_datalist(path).test[0].patient == "7"


@pytest.mark.parametrize("value", [True, 1.5, [], {}, "", " "])
@pytest.mark.parametrize("key", ["image", "label", "patient", "series", "name"])
def test_values_of_another_type(tmp_path, key, value):
    path = written(tmp_path)
    content = json.loads(path.read_text())
    content["test"][0][key] = value
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=rf"entry 0: {key} is .*; expected text"):
        read_datalist(path)


def test_many_cases_are_read_in_linear_time(tmp_path, monkeypatch):
    """Each file is looked at twice, and each folder once."""
    count = 5000
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    (tmp_path / "labels" / "one.nii").touch()
    entries = []
    for i in range(count):
        os.link(tmp_path / "labels" / "one.nii", tmp_path / "images" / f"c_{i}.nii")
        entries.append({"image": f"images/c_{i}.nii", "label": "labels/one.nii"})
    content = {"labels": {"1": "liver"}, "modality": "CT", "training": entries[:4000]}
    path = tmp_path / "d.json"
    path.write_text(
        json.dumps({**content, "validation": entries[4000:4500], "test": entries[4500:]})
    )
    calls = Counter()
    for name in ("stat", "lstat", "readlink"):
        looked = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda *a, n=name, f=looked, **k: (calls.update([n]), f(*a, **k))[1]
        )
    data = read_datalist(path)
    assert [len(data.subset(name)) for name in SUBSETS] == [4000, 500, 500]
    assert count <= calls["stat"] <= 2 * count + 10  # every image and label is there
    assert calls["lstat"] <= count + 50  # no image is a link
    write_datalist(data, path)


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


def test_two_scans_of_one_name_are_refused(tmp_path):
    image, _ = small_scan()
    entries = []
    for folder in ("first", "second"):
        write_nifti(tmp_path / folder / "scan.nii.gz", image)
        entries.append({"image": f"{folder}/scan.nii.gz", "patient": folder})
    path = tmp_path / "d.json"
    content = {"labels": {"1": "liver"}, "modality": {"0": "CT"}, "training": entries}
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="several images are named scan; expected each name once"):
        read_datalist(path)
    for entry in entries:
        entry["name"] = f"{entry['patient']}-scan"
    path.write_text(json.dumps(content))
    assert [case.id for case in read_datalist(path).training] == ["first-scan", "second-scan"]


@pytest.mark.parametrize(("highest", "refused"), [(2**31 - 1, False), (2**31, True)])
def test_row_76_the_highest_label_id(tmp_path, highest, refused):
    path = written(tmp_path)
    content = json.loads(path.read_text())
    content["labels"] = {"0": "background", "1": "liver", str(highest): "lesion"}
    path.write_text(json.dumps(content))
    if refused:
        with pytest.raises(DataError, match=r"label 'lesion' has the id 2147483648; expected at m"):
            read_datalist(path)
    else:
        assert read_datalist(path).labels == {1: "liver", highest: "lesion"}


def test_columns_and_tolerance_are_kept(tmp_path):
    path = written(tmp_path)
    content = json.loads(path.read_text())
    content["test"][0] |= {"site": "A", "age": 71, "empty": " ", "list": [1]}
    content["tolerance"] = {"liver": 3}
    path.write_text(json.dumps(content))
    data = read_datalist(path)
    assert data.test[0].columns == {"site": "A", "age": "71"}
    assert data.tolerance == {"liver": 3}
    write_datalist(data, path)
    assert read_datalist(path).test[0].columns == {"site": "A", "age": "71"}
    assert read_datalist(path).tolerance == {"liver": 3}


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (-1, "tolerance is -1; expected millimetres"),
        ("2", "tolerance is '2'; expected millimetres"),
        ({"liver": None}, r"tolerance is {'liver': None}; expected millimetres"),
        ({"livre": 2}, "tolerance names 'livre'; expected one of the labels: liver"),
    ],
)
def test_tolerances_that_are_none(tmp_path, said, message):
    path = written(tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "tolerance": said}))
    with pytest.raises(DataError, match=message):
        read_datalist(path)
