"""Contours of an RTSTRUCT on the grid of their image."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pydicom
import pytest

from medsam_tune.cases.datalist import Case
from medsam_tune.cases.folders import find_cases
from medsam_tune.cases.labels.open import open_label
from medsam_tune.cases.splits import labels_of_patients
from medsam_tune.errors import DataError
from medsam_tune.formats.dicom.rtstruct import read_regions
from medsam_tune.formats.open import dicom_modality
from tests.dicom_series import COUNT, SIZE, SPACING, STEP, stored, write_series
from tests.scans import load_turned, write_nifti
from tests.segmentation import NAMES
from tests.structure_set import box, placed, write_structure_set


def refusal(case: Case, labels: dict[int, str] = NAMES) -> str:
    with pytest.raises(DataError) as caught:
        load_turned(case, labels)
    message = str(caught.value)
    assert message.startswith("case s: ")
    assert "Doe" not in message
    assert "MRN123" not in message
    return message


@pytest.fixture
def series(tmp_path: Path) -> Path:
    return write_series(tmp_path / "s")


def test_contours_become_a_label_map(tmp_path, series):
    liver = [placed(box(1.5, 2.5, 6.5, 7.5), k) for k in (2, 3, 5)]
    spleen = [placed(box(8.6, 2.2, 11.4, 5.4), 3)]
    file = write_structure_set(tmp_path / "r.dcm", series, {"Liver ": liver, "spleen": spleen})
    image, label = load_turned(Case(series, file, "p"), NAMES)
    expected = np.zeros((*SIZE, COUNT), int)
    expected[2:7, 3:8, [2, 3, 5]] = 1
    expected[9:12, 3:6, 3] = 2
    assert label.shape == image.shape
    assert label.dtype.is_floating_point is False
    np.testing.assert_array_equal(label[0].numpy(), expected)
    np.testing.assert_array_equal(label.affine, image.affine)
    assert label.meta["notes"] == ["liver: 1 slices between its contours without one"]


def test_points_that_are_rounded_lie_on_voxels(tmp_path, series):
    """A contour through the centres of voxels has them inside, though its file rounds them."""
    rounded = [placed(box(2.008, 3.008, 5.992, 6.992), 3)]
    file = write_structure_set(tmp_path / "r.dcm", series, {"liver": rounded})
    _, label = load_turned(Case(series, file, "p"), NAMES)
    assert label[0, ..., 3].nonzero().amin(0).tolist() == [2, 3]
    assert label[0, ..., 3].nonzero().amax(0).tolist() == [6, 7]
    inner = [placed(box(2.02, 3.02, 5.98, 6.98), 3)]
    file = write_structure_set(tmp_path / "i.dcm", series, {"liver": inner})
    _, label = load_turned(Case(series, file, "p"), NAMES)
    assert label[0, ..., 3].nonzero().amin(0).tolist() == [3, 4]
    assert label[0, ..., 3].nonzero().amax(0).tolist() == [5, 6]


def test_contours_in_the_first_and_the_last_slice(tmp_path, series):
    ends = [placed(box(1.5, 2.5, 6.5, 7.5), k) for k in (0, COUNT - 1)]
    file = write_structure_set(tmp_path / "r.dcm", series, {"liver": ends})
    _, label = load_turned(Case(series, file, "p"), NAMES)
    assert label.sum((0, 1, 2)).tolist() == [25] + [0] * (COUNT - 2) + [25]


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_the_plane_of_the_slices_does_not_matter(tmp_path, series, plane):
    liver = [placed(box(1.5, 2.5, 6.2, 7.5), k) for k in range(2, 6)]
    file = write_structure_set(tmp_path / "r.dcm", series, {"liver": liver})
    image, label = load_turned(Case(series, file, "p"), NAMES, plane=plane)
    inside = image[label == 1].numpy()
    assert sorted(inside) == sorted(stored()[2:6, 3:8, 2:7].ravel() - 1000.0)


def test_oblique_series(tmp_path):
    c, s = np.cos(0.5), np.sin(0.5)
    row, column = np.array([c, s, 0]), np.array([-s * c, c * c, s])
    start, normal = np.array([5.0, 6.0, 7.0]), np.cross(row, column)

    def turn(k, image):
        image.ImageOrientationPatient = [*row, *column]
        image.ImagePositionPatient = list(start + STEP * k * normal)

    series = write_series(tmp_path / "s", turn)
    corners = np.asarray(box(1.5, 2.5, 6.5, 7.5)) * SPACING
    liver = [
        start + corners[:, :1] * row + corners[:, 1:] * column + STEP * k * normal for k in (2, 3)
    ]
    file = write_structure_set(tmp_path / "r.dcm", series, {"liver": liver})
    image, label = load_turned(Case(series, file, "p"), NAMES)
    inside = image[label == 1].numpy()
    assert sorted(inside) == sorted(stored()[2:4, 3:8, 2:7].ravel() - 1000.0)


def test_which_regions_count(tmp_path, series):
    liver, body = (
        [placed(box(1.5, 2.5, 6.5, 7.5), 2)],
        [placed(box(-1, -1, 20, 20), 2)],
    )
    regions = {"liver": liver, "BODY": body, "Couch": body, "other": body}
    kinds = {"BODY": "EXTERNAL", "Couch": "SUPPORT"}
    file = write_structure_set(tmp_path / "r.dcm", series, regions, kinds)
    assert dicom_modality(file) == "RTSTRUCT"
    assert dicom_modality(series) != "RTSTRUCT"
    assert open_label(file).names() == {11: "liver", 14: "other"}
    _, label = load_turned(Case(series, file, "p"), NAMES)
    assert label.unique().tolist() == [0, 1]
    assert label.meta["notes"] == ["3 ROIs that the datalist does not name left out"]
    _, label = load_turned(Case(series, file, "p"), {1: "body"})
    assert int((label == 1).sum()) == SIZE[0] * SIZE[1]
    isocentre = write_structure_set(
        tmp_path / "p.dcm", series, {"liver": [placed([[2, 2]], 2)]}, shape="POINT"
    )
    assert read_regions(isocentre) == []
    assert load_turned(Case(series, isocentre, "p"), NAMES)[1].max() == 0


def test_what_a_structure_set_is_refused_for(tmp_path, series):
    def write(regions, **options):
        return Case(
            series, write_structure_set(tmp_path / "r.dcm", series, regions, **options), "p"
        )

    square = box(1.5, 2.5, 6.5, 7.5)
    message = refusal(write({"Doe": [placed(square, 2)], "Jane": [placed(square, 3)]}))
    assert "none of the 2 ROIs with contours has a name of the datalist: liver, spleen" in message
    message = refusal(write({"liver": [placed(square, 2)], "LIVER": [placed(square, 3)]}))
    assert "ROIs 11 and 12 are both 'liver'" in message
    message = refusal(write({"liver": [placed(square, 2)]}), {1: "liver", 2: "Liver"})
    assert "labels 1 and 2 are both 'Liver' but for their case" in message
    for k in (-1, COUNT):
        message = refusal(write({"liver": [placed(square, k)]}))
        assert f"a contour of 'liver' lies in slice {k} of 0 to {COUNT - 1}" in message
    assert "points 0.55 mm beside the centre" in refusal(write({"liver": [placed(square, 2.22)]}))
    message = refusal(write({"liver": [placed(square, 2.3)]}))
    assert "points 0.75 mm beside the centre of the nearest slice, the slices are 2.50" in message
    assert load_turned(write({"liver": [placed(square, 2.1)]}), NAMES)[1].sum() == 25
    message = refusal(write({"liver": [placed(square, COUNT)]}))
    assert "a contour of 'liver' lies in slice 8 of 0 to 7" in message
    both = {
        "liver": [placed(square, 2)],
        "spleen": [placed(box(5.5, 2.5, 9.5, 7.5), 2)],
    }
    assert "ROIs overlap in 5 voxels" in refusal(write(both))
    assert "'liver' and 'spleen' in 5; expected each" in refusal(write(both))
    flat = write({"liver": [placed(square, 2)[:, :2]]})
    with pytest.raises(DataError, match=r"r\.dcm: cannot read this RTSTRUCT \(ValueError\)"):
        load_turned(flat, NAMES)


def test_organs_that_share_a_contour_do_not_overlap(tmp_path, series):
    regions = {
        "spleen": [placed(box(5, 2, 9, 6), 2)],
        "liver": [placed(box(1, 2, 5, 6), 2)],
    }
    file = write_structure_set(tmp_path / "r.dcm", series, regions)
    _, label = load_turned(Case(series, file, "p"), NAMES)
    assert label[0, 5, 2:7, 2].tolist() == [1] * 5
    assert label[0, 6, 2:7, 2].tolist() == [2] * 5


def test_another_series_is_refused(tmp_path, series):
    regions = {"liver": [placed(box(1.5, 2.5, 6.5, 7.5), 2)]}
    file = write_structure_set(tmp_path / "r.dcm", series, regions)
    same_frame = pydicom.dcmread(next(series.iterdir())).FrameOfReferenceUID

    def in_frame(uid):
        def change(_, image):
            image.FrameOfReferenceUID = uid

        return change

    other = write_series(tmp_path / "other" / "s")
    assert "the label's frame of reference is " in refusal(Case(other, file, "p"))
    phase = write_series(tmp_path / "phase" / "s", in_frame(same_frame))
    assert load_turned(Case(phase, file, "p"), NAMES)[1].sum() == 25
    nowhere = write_series(tmp_path / "nowhere" / "s", in_frame(""))
    assert "nothing says that they share a frame" in refusal(Case(nowhere, file, "p"))
    image, _ = load_turned(Case(series, None, "p"), NAMES)
    nifti = write_nifti(tmp_path / "s.nii.gz", image[0].numpy(), image.affine.numpy())
    assert load_turned(Case(nifti, file, "p"), NAMES)[1].sum() == 25  # it does not say


def test_names_over_cases(tmp_path):
    """Numbers of ROIs mean nothing across structure sets; names do."""
    liver, spleen = (
        [placed(box(1.5, 2.5, 6.5, 7.5), 2)],
        [placed(box(8.6, 2, 11.4, 5), 3)],
    )
    for name, regions in {
        "a": {"liver": liver, "spleen": spleen},
        "b": {"Spleen": spleen, "Liver": liver, "BODY": [placed(box(0, 0, 9, 9), 1)]},
    }.items():
        series = write_series(
            tmp_path / "images" / name, lambda _, i, name=name: setattr(i, "PatientID", name)
        )
        file = tmp_path / "labels" / f"{name}.dcm"
        write_structure_set(file, series, regions, kinds={"BODY": "EXTERNAL"})
    data = find_cases(tmp_path, modality="CT")
    assert data.labels == {1: "liver", 2: "spleen"}
    assert list(labels_of_patients(data).values()) == [{1, 2}, {1, 2}]
    first, second = (load_turned(case, data.labels)[1] for case in data.training)
    np.testing.assert_array_equal(first.numpy(), second.numpy())
    (tmp_path / "labels.json").write_text(json.dumps({"7": "SPLEEN"}))
    data = find_cases(tmp_path, modality="CT")
    assert load_turned(data.training[1], data.labels)[1].unique().tolist() == [0, 7]
