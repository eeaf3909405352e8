"""DICOM studies in any layout become cases, without a word of the patient."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest

from medsam_tune.cases.audit import SOUND, check_place
from medsam_tune.cases.datalist import Case, read_datalist, write_datalist
from medsam_tune.cases.folders import find_cases
from medsam_tune.cases.splits import labels_of_patients, split_cases
from medsam_tune.errors import DataError
from medsam_tune.failures import REFUSED
from tests.conftest import REAL_DATA
from tests.dicom_series import write_series
from tests.scans import load_turned
from tests.segmentation import masks, write_seg
from tests.structure_set import box, placed, write_structure_set


def drawn(path: Path, series: Path, **options) -> Path:
    regions = {"liver": [placed(box(1.5, 2.5, 6.5, 7.5), k) for k in (2, 3)]}
    return write_structure_set(path, series, regions, **options)


def study(folder: Path, patient: str, modality: str = "CT", count: int = 8) -> Path:
    """PATIENT/STUDY/SERIES, as archives export them: a scan, its RTSTRUCT, and a scan without."""

    def of_patient(_, image):
        image.PatientID = patient

    series = write_series(folder / f"{patient}^Doe" / "STUDY1" / "SERIES1", of_patient, modality)
    write_series(folder / f"{patient}^Doe" / "STUDY1" / "SERIES2", of_patient, "CT", count=3)
    drawn(folder / f"{patient}^Doe" / "STUDY1" / "RTSTRUCT" / "1.dcm", series)
    return series


def found(folder: Path, **options):
    with pytest.warns(UserWarning, match="series without a label left out"):
        return find_cases(folder, **options)


def test_patient_study_series_folders(tmp_path):
    for patient in ("ann", "bob", "cid"):
        study(tmp_path / "export", patient)
    with pytest.warns(UserWarning, match=r"export: 3 series without a label left out\."):
        data = find_cases(tmp_path / "export")
    assert (data.modality, data.labels) == ("CT", {1: "liver"})
    assert [case.id for case in data.training] == ["case_0001", "case_0002", "case_0003"]
    assert len({case.patient for case in data.training}) == 3
    for case in data.training:
        assert case.series is None  # the folder holds this series alone
        assert not any(name in case.id for name in ("ann", "bob", "cid", "Doe", "SERIES"))
        assert load_turned(case, data.labels)[1].sum() == 50
    path = tmp_path / "datalist.json"
    split = split_cases(data, (0.34, 0.33, 0.33), present=labels_of_patients(data))
    write_datalist(split, path)
    assert read_datalist(path).cases == split.cases
    written = json.loads(path.read_text())["training"][0]
    assert written["name"] == split.training[0].id
    assert found(tmp_path / "export").training == data.training
    report = check_place(tmp_path / "export", progress=False)
    assert report.outcome == SOUND
    assert [bool(one.labels) for one in report.findings] == [True] * 3 + [False] * 3
    assert not any(one.problem for one in check_place(path, progress=False).findings)


def test_all_in_one_folder(tmp_path):
    """Two patients' series, one with a SEG, one with an RTSTRUCT, under names that say nothing."""
    names = iter(range(100))
    folder = tmp_path / "flat"
    folder.mkdir()
    for patient, kind in (("ann", "SEG"), ("bob", "RTSTRUCT")):
        series = write_series(
            tmp_path / patient, lambda _, i, p=patient: setattr(i, "PatientID", p)
        )
        label = tmp_path / f"{patient}.dcm"
        if kind == "SEG":
            write_seg(label, series, masks())
        else:
            drawn(label, series)
        for file in (label, *series.iterdir()):
            shutil.copy(file, folder / f"IM{next(names):04d}")
    (folder / "labels.json").write_text('{"1": "liver", "2": "spleen"}')
    data = find_cases(folder)
    assert [case.image for case in data.training] == [folder, folder]
    sums = []
    for case in data.training:
        assert case.series is not None
        sums.append(int((load_turned(case, data.labels)[1] > 0).sum()))
    assert sorted(sums) == [50, int((masks() > 0).sum())]
    write_datalist(split_cases(data, (0.5, 0.0, 0.5)), tmp_path / "d.json")
    assert len(read_datalist(tmp_path / "d.json").cases) == 2  # one folder, but two scans
    report = check_place(folder, progress=False)
    assert report.outcome == SOUND
    assert [len(one.labels) for one in report.findings] in ([1, 2], [2, 1])


def test_several_labels_of_one_series(tmp_path):
    series = study(tmp_path, "ann")
    drawn(tmp_path / "other.dcm", series)
    with pytest.raises(DataError, match=r"1\.dcm, .*other\.dcm: 2 labels of one series"):
        find_cases(tmp_path)  # no other case is there
    report = check_place(tmp_path, progress=False)
    assert report.outcome == REFUSED
    assert [bool(one.problem) for one in report.findings] == [False, False, True]


def test_labels_without_their_series(tmp_path):
    series = study(tmp_path / "in", "ann")
    lost = write_series(tmp_path / "out")
    drawn(tmp_path / "in" / "lost.dcm", lost)
    with pytest.warns(
        UserWarning, match=r"out: .*lost\.dcm: belongs to no series of images in .*; it n"
    ):
        assert len(find_cases(tmp_path / "in").training) == 1
    (tmp_path / "in" / "lost.dcm").unlink()
    frame_only = tmp_path / "in" / "ann^Doe" / "STUDY1" / "RTSTRUCT" / "1.dcm"

    def unnamed(content):
        del content.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence

    drawn(frame_only, series, change=unnamed)
    assert len(found(tmp_path / "in").training) == 1  # by the frame of reference


def test_no_label_at_all(tmp_path):
    write_series(tmp_path / "a", uid="1.2.3.4")
    with pytest.raises(DataError, match="1 series of images and no SEG or RTSTRUCT for them"):
        find_cases(tmp_path)


def test_mixed_modalities(tmp_path):
    study(tmp_path, "ann", "CT")
    study(tmp_path, "bob", "MR")
    with pytest.raises(DataError, match=r"1 of CT, 1 of MR; expected CT or MR, one of them\. Choo"):
        find_cases(tmp_path)
    data = found(tmp_path, modality="MR")
    assert (data.modality, len(data.training)) == ("MR", 1)
    with pytest.raises(DataError, match=r"no labelled series of US; there are: CT, MR\. Choose an"):
        find_cases(tmp_path, modality="US")


def test_names_of_cases(tmp_path):
    assert Case(tmp_path / "a.nii.gz", None, "p", name="scan_1.2-b").id == "scan_1.2-b"
    for name in ("../a", "", ".a", "a b", "a/b", "x" * 65):
        with pytest.raises(DataError, match=r"the case's name is .*; expected up to 64 letters"):
            Case(tmp_path / "a.nii.gz", None, "p", name=name)


def test_real_trees(tmp_path):
    folder = REAL_DATA / "dcmqi_ct3slice"
    if not folder.is_dir():
        pytest.skip("real scans are not here: dcmqi_ct3slice beside the repository")
    with pytest.warns(UserWarning, match=r"left out: .*labels of one series"):
        assert len(find_cases(folder).training) == 2
    with pytest.warns(UserWarning, match="1 series without a label"):  # the multi-frame twin
        data = find_cases(folder / "24x38x3")
    assert (data.modality, data.labels) == ("CT", {1: "Liver"})
    _, label = load_turned(data.training[0], data.labels)
    assert int(label.sum()) > 100
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isin(label.unique(), (0, 1)).all()
    shutil.copytree(folder / "ct-3slice", tmp_path / "PATIENT" / "SERIES")
    shutil.copy(folder / "liver.dcm", tmp_path / "PATIENT")
    (case,) = find_cases(tmp_path).training
    file = pydicom.dcmread(next((tmp_path / "PATIENT" / "SERIES").iterdir()))
    assert str(file.PatientID) not in case.id
    report = check_place(tmp_path, progress=False)
    assert report.outcome == SOUND
    assert report.findings[0].labels.keys() == {1}
