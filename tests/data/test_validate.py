"""Every scan of a place is read once; what is wrong, and what is there twice, is said."""

from __future__ import annotations

import json

import numpy as np
import pytest

from medsam_tune.data.checks import DataError
from medsam_tune.data.datalist import find_cases, split_cases, write_datalist
from medsam_tune.data.validate import REFUSED, SOUND, check_place
from tests.data.conftest import LABELS, SHAPE, small_scan, write_nifti
from tests.data.dicom_series import write_series


@pytest.fixture
def datalist(tmp_path):
    """Four cases, two for training, one each for validation and test."""
    for i in range(4):
        image, label = small_scan(i)
        write_nifti(tmp_path / "images" / f"c{i}.nii.gz", image)
        write_nifti(tmp_path / "labels" / f"c{i}.nii.gz", label)
    (tmp_path / "labels.json").write_text(json.dumps({str(k): v for k, v in LABELS.items()}))
    data = split_cases(find_cases(tmp_path, modality="MR"), (0.5, 0.25, 0.25))
    write_datalist(data, tmp_path / "d.json")
    return tmp_path / "d.json"


def test_sound_datalist(datalist, tmp_path):
    report = check_place(datalist, progress=False)
    assert report.outcome == SOUND
    assert sorted(one.case for one in report.findings) == ["c0", "c1", "c2", "c3"]
    first = report.findings[0]
    assert (first.shape, first.spacing, first.orientation) == (SHAPE, (2.0, 3.0, 4.0), "RAS")
    image, label = small_scan(int(first.case[1]))
    assert first.range == (image.min(), image.max())
    assert first.labels == {1: int((label == 1).sum()), 2: int((label == 2).sum())}
    report.write(tmp_path / "check.json")
    written = json.loads((tmp_path / "check.json").read_text())
    assert written["outcome"] == 0
    assert written["findings"][0]["subset"] == "training"
    assert report.lines()[-1] == f"{datalist}: 4 sound, 0 refused, 0 leaks"


def test_all_refusals_are_listed(datalist, tmp_path):
    image, _ = small_scan()
    image[0, 0, 0] = np.nan
    write_nifti(tmp_path / "images" / "c1.nii.gz", image)
    write_nifti(tmp_path / "labels" / "c2.nii.gz", np.full(SHAPE, 7, np.uint8))
    report = check_place(datalist, progress=False)
    assert report.outcome == REFUSED
    problems = {one.case: one.problem for one in report.findings if one.problem}
    assert sorted(problems) == ["c1", "c2"]
    assert "1 NaN or infinite voxels" in problems["c1"]
    assert "label has the values 7" in problems["c2"]
    assert "2 sound, 2 refused" in report.lines()[-1]


def test_folder_of_dicom(tmp_path):
    write_series(tmp_path / "a", uid="1.2.3.4")
    bad = write_series(tmp_path / "b", uid="1.2.3.5", modality="MR")
    next(bad.glob("*-3.dcm")).unlink()
    report = check_place(tmp_path, progress=False)
    assert report.outcome == REFUSED
    sound, refused = report.findings
    assert sound.case == "number 4, CT, 14 x 12, 8 images, 1.2.3.4"
    assert (sound.shape, sound.spacing) == ((14, 12, 8), (0.7, 0.9, 2.5))
    assert sound.orientation == "LPS"
    assert "slices are missing" in refused.problem
    assert not any("Doe" in line or "MRN123" in line for line in report.lines())


def test_folder_of_scans_and_single_files(tmp_path):
    write_nifti(tmp_path / "x" / "a.nii.gz", small_scan()[0])
    (tmp_path / "x" / "README").write_text("hello")
    report = check_place(tmp_path / "x", progress=False)
    assert [one.case for one in report.findings] == ["a"]
    assert check_place(tmp_path / "x" / "a.nii.gz", progress=False).outcome == SOUND
    with pytest.raises(DataError, match="no image DICOM in"):
        check_place(tmp_path / "x" / "README", progress=False)
    with pytest.raises(DataError, match="no such file or folder"):
        check_place(tmp_path / "nowhere")
