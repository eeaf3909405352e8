"""Labels as DICOM SEG and as one file for each organ, on the grid of their image."""

from __future__ import annotations

import highdicom as hd
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.sr.codedict import codes

from medsam_tune.cases.datalist import Case
from medsam_tune.cases.folders import find_cases
from medsam_tune.cases.labels.open import open_label
from medsam_tune.cases.splits import labels_of_patients
from medsam_tune.errors import DataError
from medsam_tune.formats.open import dicom_modality
from tests.conftest import REAL_DATA
from tests.dicom_series import COUNT, SIZE, write_series
from tests.scans import SHAPE, load_turned, small_scan, write_nifti

NAMES = {1: "liver", 2: "spleen"}


def masks() -> np.ndarray:
    """(K, rows, columns) uint8 with both segments, the first two slices empty."""
    label = np.zeros((COUNT, *SIZE[::-1]), np.uint8)
    label[2:6, 2:7, 1:5] = 1
    label[3:8, 8:11, 3:12] = 2
    return label


def write_seg(path, series, label) -> None:
    """As a SEG that leaves out the slices where nothing is, as most do."""
    images = sorted(
        (pydicom.dcmread(file) for file in series.iterdir()),
        key=lambda image: float(image.ImagePositionPatient[2]),
    )
    for image in images:
        image.StudyDate = image.StudyTime = image.AccessionNumber = image.StudyID = ""
        image.PatientBirthDate = image.PatientSex = image.ReferringPhysicianName = ""
    segments = [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=name,
            segmented_property_category=codes.SCT.Organ,
            segmented_property_type=codes.SCT.Liver,
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.MANUAL,
        )
        for number, name in NAMES.items()
    ]
    hd.seg.Segmentation(
        source_images=images,
        pixel_array=label,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=segments,
        series_instance_uid=hd.UID(),
        series_number=9,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="x",
        manufacturer_model_name="x",
        software_versions="x",
        device_serial_number="x",
        omit_empty_frames=True,
    ).save_as(path)


def test_segmentation_lies_on_its_series(tmp_path):
    series = write_series(tmp_path / "images" / "a")
    (tmp_path / "labels").mkdir()
    write_seg(tmp_path / "labels" / "a.dcm", series, masks())
    data = find_cases(tmp_path, modality="CT")
    assert data.labels == NAMES
    image, label = load_turned(data.training[0], data.labels)
    assert label.shape == image.shape
    np.testing.assert_array_equal(label[0].numpy(), masks().transpose(2, 1, 0))
    assert labels_of_patients(data) == {data.training[0].patient: {1, 2}}
    other = write_series(
        tmp_path / "other", lambda k, i: setattr(i, "ImagePositionPatient", [9.0, 4.0, 2.5 * k])
    )
    with pytest.raises(DataError, match="case other: the segmentation's grid is no part of the im"):
        load_turned(Case(other, tmp_path / "labels" / "a.dcm", "p"), NAMES)
    with pytest.raises(DataError, match=r"a\.dcm\); expected only 0, 1\. Add them"):
        load_turned(data.training[0], {1: "liver"})


def test_what_is_no_segmentation(tmp_path):
    series = write_series(tmp_path / "a")
    assert dicom_modality(series) != "SEG"
    assert dicom_modality(next(series.iterdir())) != "SEG"
    assert dicom_modality(write_nifti(tmp_path / "b.nii.gz", small_scan()[0])) != "SEG"


def test_one_file_for_each_organ(tmp_path):
    image, label = small_scan()
    for name in ("a", "b"):
        write_nifti(tmp_path / "images" / f"{name}.nii.gz", image)
        for number, organ in NAMES.items():
            part = ((label == number) * (255 if organ == "liver" else 1)).astype(np.uint8)
            write_nifti(tmp_path / "labels" / name / f"{organ}.nii.gz", part)
    kidney = tmp_path / "labels" / "b" / "kidney.nii.gz"
    write_nifti(kidney, np.zeros(SHAPE, np.uint8))
    data = find_cases(tmp_path, modality="CT")
    assert data.labels == {1: "kidney", 2: "liver", 3: "spleen"}
    assert labels_of_patients(data) == {"a": {2, 3}, "b": {2, 3}}
    for case in data.training:
        _, merged = load_turned(case, data.labels)
        np.testing.assert_array_equal(
            np.flip(merged[0].numpy(), (0, 1)), np.where(label > 0, label + 1, 0)
        )
    with pytest.raises(DataError, match=r"kidney\.nii\.gz is of no label that the datalist names"):
        load_turned(data.training[1], NAMES)
    write_nifti(kidney, (label == 2).astype(np.uint8))
    twice = int((label == 2).sum())
    with pytest.raises(DataError, match=rf"{twice} voxels of .*spleen\.nii\.gz are in another"):
        load_turned(data.training[1], data.labels)
    write_nifti(kidney, np.zeros((10, 12, 5), np.uint8))
    with pytest.raises(DataError, match=r"label shape \(10, 12, 5\) differs from image shape"):
        load_turned(data.training[1], data.labels)


def test_numbers_with_two_meanings(tmp_path):
    series = write_series(tmp_path / "images" / "a")
    (tmp_path / "labels").mkdir()
    write_seg(tmp_path / "labels" / "a.dcm", series, masks())
    write_nifti(tmp_path / "images" / "b.nii.gz", small_scan()[0])
    write_nifti(tmp_path / "labels" / "b.nii.gz", small_scan()[1])
    with pytest.raises(DataError, match="label 1 is 'label 1', in another case 'liver'; expected"):
        find_cases(tmp_path, modality="CT")


def test_real_segmentations_equal_their_masks():
    folder = REAL_DATA / "dcmqi_ct3slice"
    if not folder.is_dir():
        pytest.skip("real scans are not here: dcmqi_ct3slice beside the repository")
    for series, segmentation, mask in (
        ("ct-3slice", "liver.dcm", "liver_seg.nrrd"),
        ("24x38x3/image", "24x38x3/seg/label.seg", "24x38x3/nrrd/label.nrrd"),
    ):
        names = open_label(folder / segmentation).names()
        found = [
            load_turned(Case(folder / series, folder / file, "p"), {i: str(i) for i in range(9)})[1]
            for file in (segmentation, mask)
        ]
        assert names == {1: "Liver"}
        assert found[0].sum() > 100
        assert np.array_equal(found[0].numpy(), found[1].numpy())
    with pytest.raises(DataError, match="its segments cannot be one label map"):
        load_turned(Case(folder / "ct-3slice", folder / "partial_overlaps.dcm", "p"), {})
    assert sitk.ReadImage(str(folder / "liver_seg.nrrd")).GetSize() == (512, 512, 3)
