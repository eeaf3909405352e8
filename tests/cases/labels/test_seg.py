"""A DICOM SEG on the grid of its image."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import torch
from monai.transforms import Orientation

from medsam_tune.cases.datalist import Case
from medsam_tune.cases.description import Labels
from medsam_tune.cases.folders import find_cases
from medsam_tune.cases.labels.open import open_label
from medsam_tune.cases.load import load_case
from medsam_tune.cases.splits import labels_of_patients
from medsam_tune.errors import DataError
from medsam_tune.formats.mending import Mending
from tests.conftest import REAL_DATA
from tests.dicom_series import STEP, refusal, write_series
from tests.scans import load_turned, write_nifti
from tests.segmentation import NAMES, masks, write_seg


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
    with pytest.raises(DataError, match=r"no label: 2 \(spleen\) \(.*a\.dcm\); known: 1 \(li"):
        load_turned(data.training[0], {1: "liver"})


def renamed(path, *names):
    content = pydicom.dcmread(path)
    for segment, name in zip(content.SegmentSequence, names, strict=True):
        segment.SegmentLabel = name
    content.save_as(path)
    return path


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_a_segment_is_the_label_of_its_name(tmp_path, kind):
    series = write_series(tmp_path / "s")
    path = renamed(
        write_seg(tmp_path / "seg.dcm", series, masks(), kind),
        *(["Background"] if kind == "LABELMAP" else []),
        *("Left Kidney", "SPLEEN"),
    )
    for labels, expected in (
        ({31: "left_kidney", 18: "spleen"}, [0, 31, 18]),
        ({1: "spleen", 2: "left-kidney"}, [0, 2, 1]),
    ):
        _, label = load_case(Case(series, path, "p"), labels)
        np.testing.assert_array_equal(
            label[0].numpy(), np.array(expected)[masks().transpose(2, 1, 0)]
        )
        assert open_label(path).present(labels) == set(labels)


@pytest.mark.parametrize(
    ("names", "labels", "expected"),
    [
        (("Segment_1", "Segment_2"), {1: "liver", 2: "spleen"}, [0, 1, 2]),
        (("liver", "02"), {1: "liver", 2: "spleen"}, [0, 1, 2]),
        (("Leber", "Milz"), {1: "label 1", 2: "2"}, [0, 1, 2]),
        (("Segment_2", "Segment_3"), {1: "liver", 2: "spleen"}, "1 (Segment_2), 2 (Segment_3)"),
        (("liver", "Segment_2"), {18: "liver", 2: "spleen"}, "2 (Segment_2)"),
        (("liver", "tumour"), {1: "liver", 2: "spleen"}, "2 (tumour)"),
        (("liver", "Liver"), {7: "liver"}, "segments 1, 2 are all 'liver'"),
        (("liver", "gall bladder"), {1: "liver", 2: "gall_bladder", 3: "GallBladder"}, [0, 1, 2]),
    ],
)
def test_numbers_of_segments_whose_names_say_nothing(tmp_path, names, labels, expected):
    series = write_series(tmp_path / "s")
    path = renamed(write_seg(tmp_path / "seg.dcm", series, masks()), *names)
    if isinstance(expected, str):
        with pytest.raises(DataError) as caught:
            load_case(Case(series, path, "p"), labels)
        assert expected in str(caught.value)
        return
    _, label = load_case(Case(series, path, "p"), labels)
    np.testing.assert_array_equal(label[0].numpy(), np.array(expected)[masks().transpose(2, 1, 0)])


def test_labels_that_are_given_by_name(tmp_path):
    series = write_series(tmp_path / "images" / "a")
    (tmp_path / "labels").mkdir()
    write_seg(tmp_path / "labels" / "a.dcm", series, masks())
    given = Labels({18: "Spleen", 31: "Liver"})
    assert find_cases(tmp_path, modality="CT", labels=given).labels == given.names
    with pytest.raises(DataError, match="no label has 40"):
        find_cases(tmp_path, modality="CT", labels=Labels({**given.names, 40: "kidney"}))
    studies = tmp_path / "studies"
    write_seg(studies_label := tmp_path / "seg.dcm", series, masks())
    series.rename(tmp_path / "a")
    studies.mkdir()
    (tmp_path / "a").rename(studies / "a")
    studies_label.rename(studies / "seg.dcm")
    assert [*find_cases(studies, labels=given).present.values()] == [{18, 31}]


def test_real_segmentations_equal_their_masks():
    folder = REAL_DATA / "dcmqi_ct3slice"
    if not folder.is_dir():
        pytest.skip("real scans are not here: dcmqi_ct3slice beside the repository")
    for series, segmentation, mask in (
        ("ct-3slice", "liver.dcm", "liver_seg.nrrd"),
        ("24x38x3/image", "24x38x3/seg/label.seg", "24x38x3/nrrd/label.nrrd"),
        ("24x38x3/image", "sparse-labelmap-noppv.dcm", "sparse_labelmap_noppv_seg.nrrd"),
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


@pytest.mark.parametrize("axes", ["LPS", "RAS", "PIR", "SLA"])
def test_frames_on_an_image_stored_otherwise(tmp_path, axes):
    """The same scan as NIfTI, its axes in any order and direction."""
    series = write_series(tmp_path / "s")
    path = write_seg(tmp_path / "seg.dcm", series, masks())
    image, label = load_case(Case(series, path, "p"), NAMES)
    turned = Orientation(axcodes=axes, labels=None)
    file = write_nifti(
        tmp_path / "s.nii.gz", turned(image)[0].numpy(), turned(image).affine.numpy()
    )
    _, found = load_case(Case(file, path, "p"), NAMES)
    np.testing.assert_array_equal(found.numpy(), turned(label).numpy())
    assert found.sum() > 0


def test_oblique_frames(tmp_path):
    c, s = np.cos(0.5), np.sin(0.5)
    row, column = np.array([c, s, 0]), np.array([-s * c, c * c, s])
    start, normal = np.array([5.0, 6.0, 7.0]), np.cross(row, column)

    def turn(k, image):
        image.ImageOrientationPatient = [f"{x:.9f}" for x in (*row, *column)]
        image.ImagePositionPatient = list(start + STEP * k * normal)

    series = write_series(tmp_path / "s", turn)
    path = write_seg(tmp_path / "seg.dcm", series, masks())
    _, label = load_case(Case(series, path, "p"), NAMES)
    np.testing.assert_array_equal(label[0].numpy(), masks().transpose(2, 1, 0))


def shifted(path, z=0.0, x=0.0):
    content = pydicom.dcmread(path)
    for frame in content.PerFrameFunctionalGroupsSequence:
        place = frame.PlanePositionSequence[0]
        old = place.ImagePositionPatient
        place.ImagePositionPatient = [old[0] + x, old[1], old[2] + z]
    content.save_as(path)
    return path


@pytest.mark.parametrize(
    ("shift", "where"),
    [
        ({"z": 0.09}, (0, 0)),  # as positions are rounded
        ({"z": -0.09}, (0, 0)),
        ({"z": 0.2}, None),
        ({"x": 0.2}, None),
        ({"x": -0.7}, (1, 0)),
        ({"z": -STEP}, (0, 1)),
        ({"z": STEP}, None),  # beyond the last slice
        ({"x": 0.7}, None),
    ],
)
def test_frames_beside_the_voxels(tmp_path, shift, where):
    series = write_series(tmp_path / "s")
    path = shifted(write_seg(tmp_path / "seg.dcm", series, masks()), **shift)
    if where is None or where[0]:  # frames as wide as the image reach out of it
        assert "grid is no part of the image's" in refusal(series, path)
        return
    _, label = load_case(Case(series, path, "p"), NAMES)
    expected = np.roll(masks().transpose(2, 1, 0), -where[1], axis=2)
    np.testing.assert_array_equal(label[0].numpy(), expected)


def test_frames_between_the_voxels_resampled(tmp_path):
    series = write_series(tmp_path / "s")
    path = shifted(write_seg(tmp_path / "seg.dcm", series, masks()), z=0.4 * STEP)
    image, label = load_case(Case(series, path, "p"), NAMES, Mending(resample_label=True))
    np.testing.assert_array_equal(label[0].numpy(), masks().transpose(2, 1, 0))
    assert label.dtype == torch.int32
    np.testing.assert_array_equal(label.affine, image.affine)
