"""Every scan of a place is read once; what is wrong, and what is there twice, is said."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from medsam_tune.cases import audit
from medsam_tune.cases.audit import LEAKING, SOUND, Finding, Report, check_place
from medsam_tune.cases.datalist import Datalist, read_datalist, write_datalist
from medsam_tune.cases.folders import find_cases
from medsam_tune.cases.load import load_case
from medsam_tune.cases.splits import split_cases
from medsam_tune.errors import DataError
from medsam_tune.failures import REFUSED
from medsam_tune.formats.mending import Mending
from tests.conftest import REAL_DATA
from tests.dicom_series import write_series
from tests.images import image_and_ids
from tests.scans import LABELS, SHAPE, msd_folder, small_scan, write_nifti


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


def test_row_42_patients_and_files_in_two_subsets(datalist):
    """All are listed, before and beside what the voxels say; reading goes on."""
    data = json.loads(datalist.read_text())
    for subset in ("validation", "test"):
        data[subset][0]["patient"] = data["training"][0]["patient"]
    data["validation"].append({**data["training"][1], "patient": "someone else"})
    datalist.write_text(json.dumps(data))
    report = check_place(datalist, progress=False)
    assert report.outcome == LEAKING
    patient = data["training"][0]["patient"]
    image = datalist.parent / data["training"][1]["image"]
    assert report.leaks == (
        f"patient {patient} is in training and in validation and in test",
        f"{image} is in training and in validation",
    )
    assert len(report.findings) == 5
    assert not any(one.problem for one in report.findings)


def test_row_42_identical_files_that_cannot_be_read(datalist):
    """Found by their bytes, whatever they are."""
    data = json.loads(datalist.read_text())
    one, two = (datalist.parent / data[s][0]["image"] for s in ("training", "test"))
    for path in (one, two):
        path.write_bytes(b"no scan")
    report = check_place(datalist, progress=False)
    assert report.outcome == LEAKING
    names = [path.name.split(".")[0] for path in (one, two)]
    assert report.leaks == (
        f"{names[0]} and {names[1]} are the same file, one in training, one in test",
    )
    assert [one.case for one in report.findings if one.problem] == names


def test_a_published_split_that_leaks(tmp_path):
    """The lists that come with these slices hold one patient twice; 2-D images are not read yet."""
    folder = REAL_DATA / "prostate_mr_slices"
    if not folder.is_dir():
        pytest.skip("real scans are not here: prostate_mr_slices beside the repository")

    def entries(name):
        for line in (folder / name).read_text().split():
            image, mask = (folder / part.strip("/").split("/", 1)[1] for part in line.split(","))
            yield {"image": str(image), "label": str(mask), "patient": image.parts[-4]}

    content = {
        "modality": "MR",
        "labels": {"1": "prostate"},
        "training": list(entries("train_5shot.csv")),
        "validation": list(entries("val_5shot.csv")),
    }
    (tmp_path / "d.json").write_text(json.dumps(content))
    report = check_place(tmp_path / "d.json", progress=False)
    assert report.outcome == LEAKING
    assert report.leaks == ("patient patient77 is in training and in validation",)
    with pytest.raises(DataError, match="patient patient77 is in training and in validation; exp"):
        read_datalist(tmp_path / "d.json")


def test_what_is_mended(datalist):
    """As the recipes' `reading` says."""
    data = json.loads(datalist.read_text())
    path = datalist.parent / data["training"][0]["image"]
    image = small_scan(int(path.name[1]))[0]
    image[0, 0, 0] = np.nan
    write_nifti(path, image)
    report = check_place(datalist, progress=False, mending=Mending(fill_nan=0.0))
    assert report.outcome == SOUND
    assert report.findings[0].notes == ("1 NaN or infinite voxels set to 0",)


def test_spacing_of_an_oblique_scan(tmp_path):
    turn = np.radians(30)
    affine = np.eye(4)
    affine[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    scan = write_nifti(tmp_path / "a.nii", small_scan()[0], affine @ np.diag([0.7, 1.3, 5.0, 1]))
    (found,) = check_place(scan, progress=False).findings
    assert found.spacing == (0.7, 1.3, 5.0)


def test_the_same_scan_stored_in_another_orientation_is_found(tmp_path):
    values = small_scan()[0]
    write_nifti(tmp_path / "a.nii", values, np.diag([2.0, 3, 4, 1]))
    flipped = np.diag([-2.0, 3, 4, 1])
    flipped[0, 3] = 2.0 * (values.shape[0] - 1)
    write_nifti(tmp_path / "b.nii", values[::-1], flipped)
    assert check_place(tmp_path, progress=False).twice == ("a and b hold the same voxels",)


@pytest.mark.parametrize(
    ("first", "second"), [("a.png", "b.bmp"), ("a.png", "b.tif"), ("a.webp", "b.png")]
)
def test_copies_of_an_image_in_another_format_are_found(tmp_path, first, second):
    """By their pixels, as the bytes differ."""
    pixels, ids = image_and_ids(0)
    for name in (first, second):
        Image.fromarray(pixels).save(
            tmp_path / name, **({"lossless": True} if "we" in name else {})
        )
    Image.fromarray(pixels ^ 1).save(tmp_path / "c.png")
    Image.fromarray(ids).save(tmp_path / "m.png")
    places = zip(("training", "validation", "test"), (first, "c.png", second), strict=True)
    data = {"modality": "RGB", "labels": {"1": "road", "2": "house", "3": "corner"}}
    for place, name in places:
        data[place] = [{"image": name, "label": "m.png", "patient": name}]
    (tmp_path / "d.json").write_text(json.dumps(data))
    report = check_place(tmp_path / "d.json", progress=False)
    assert report.outcome == LEAKING
    assert report.leaks == ("a and b hold the same voxels, one in training, one in test",)
    assert not report.twice


@pytest.mark.parametrize("error", [KeyError("Doe^Jane"), ZeroDivisionError(), MemoryError()])
def test_an_unexpected_error_of_one_scan_is_its_finding(datalist, tmp_path, monkeypatch, error):
    def fails(case, *rest):
        if case.id == "c2":
            raise error
        return load_case(case, *rest)

    monkeypatch.setattr(audit, "load_case", fails)
    report = check_place(datalist, progress=False)
    problems = {one.case: one.problem for one in report.findings}
    assert [case for case, problem in problems.items() if problem] == ["c2"]
    assert problems["c2"].startswith(f"c2: {type(error).__name__} at cases/audit.py, line ")
    assert "Doe" not in problems["c2"]
    report.write(tmp_path / "check.json")
    assert len(json.loads((tmp_path / "check.json").read_text())["findings"]) == 4


def test_row_80_folder_whose_json_says_ct(tmp_path):
    folder = msd_folder(tmp_path, ["c0"], modality={"0": "CT"})
    write_nifti(folder / "imagesTr" / "c0.nii.gz", small_scan()[0] / 200)
    report = check_place(folder, progress=False)
    assert report.outcome == REFUSED
    assert "cannot be Hounsfield units" in report.findings[0].problem
    assert check_place(folder, progress=False, any_unit=True).outcome == SOUND
    msd_folder(tmp_path, ["c0"], modality={"0": "something"})
    write_nifti(folder / "imagesTr" / "c0.nii.gz", small_scan()[0] / 200)
    assert check_place(folder, progress=False).outcome == SOUND


def test_labels_of_large_ids_are_counted(tmp_path):
    folder = msd_folder(tmp_path, ["c0"], labels={"0": "background", "2000000000": "liver"})
    label = small_scan()[1].astype(np.int32) * 0
    label[2, 2, 2:4] = 2_000_000_000
    write_nifti(folder / "labelsTr" / "c0.nii.gz", label)
    (found,) = check_place(folder, progress=False).findings
    assert (found.problem, found.labels) == ("", {2_000_000_000: 2})


def test_row_76_ids_are_counted_one_by_one(make_case):
    """A table up to the highest id would take 16 GB."""
    ids = np.array([0, 315, 2**31 - 1], np.uint32)
    case = make_case(label=ids[small_scan()[1]])
    path = case.image.parent / "datalist.json"
    write_datalist(Datalist("d", "MR", {315: "a", 2**31 - 1: "b"}, (case,)), path)
    (finding,) = check_place(path, progress=False).findings
    counts = np.bincount(small_scan()[1].ravel())
    assert finding.labels == {315: counts[1], 2**31 - 1: counts[2]}


def test_images_are_told_in_pixels(tmp_path):
    pixels = np.arange(40, dtype=np.uint8).reshape(5, 8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert check_place(tmp_path / "a.png").lines()[0] == "a: 8 x 5 pixels, 0 to 39"
    scene = Finding("b", "", True, shape=(8, 5, 1), spacing=(500.0, 500.0, 1.0), range=(0.0, 1.0))
    report = Report("d.json", (scene,), (), ())
    assert report.lines()[0] == "b: 8 x 5 pixels of 0.5 m, 0 to 1"
