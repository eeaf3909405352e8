"""DICOM SEG, as its file has it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from medsam_tune.errors import DataError
from medsam_tune.formats.dicom.seg import read_segmentation, segment_names
from medsam_tune.formats.volume import image_from
from tests.bad_inputs.calls import same_in_world
from tests.dicom_series import COUNT, SIZE, SPACING, STEP, write_series
from tests.segmentation import NAMES, masks, write_seg

KINDS = ("BINARY", "FRACTIONAL", "LABELMAP")


@pytest.mark.parametrize("kind", KINDS)
def test_segments_are_numbers_at_their_place(tmp_path, kind):
    path = write_seg(tmp_path / "seg.dcm", write_series(tmp_path / "s"), masks(), kind)
    assert segment_names(path) == NAMES
    planes = read_segmentation(path)
    assert planes.notes == ()
    assert planes.ids.dtype == np.int32
    np.testing.assert_array_equal(planes.ids, masks()[2:8].transpose(2, 1, 0))  # no empty slice
    heights = [one.position[2] for one in planes.places]
    np.testing.assert_allclose(heights, -50 + STEP * np.arange(2, 8))
    affine = np.diag([-SPACING[0], -SPACING[1], STEP, 1.0])
    affine[:3, 3] = [3, -4, -50 + 2 * STEP]
    same_in_world(image_from(planes.volume), planes.ids, affine)


def test_fractions_are_cut_at_a_half(tmp_path):
    shares = np.zeros((COUNT, *SIZE[::-1], 2), np.float32)  # of both segments
    shares[3, 2, :6, 0] = [0.2, 0.49, 0.5, 0.51, 1, 0.6]
    shares[3, 2, 4:8, 1] = [0.7, 0.7, 0.9, 0.1]
    path = write_seg(tmp_path / "a.dcm", write_series(tmp_path / "s"), shares, "FRACTIONAL", 100)
    planes = read_segmentation(path)
    assert planes.ids[:8, 2, 0].tolist() == [0, 0, 1, 1, 1, 2, 2, 0]
    (note,) = planes.notes
    assert note == (
        "fractional segmentation: inside is where a segment has half of a voxel or more; "
        "30.0% of the voxels that it touches have less"
    )


def test_a_labelmap_whose_background_is_a_number(tmp_path):
    path = write_seg(tmp_path / "seg.dcm", write_series(tmp_path / "s"), masks(), "LABELMAP")
    content = pydicom.dcmread(path)
    content.PixelPaddingValue = 7
    pixels = np.frombuffer(content.PixelData, np.uint8)
    content.PixelData = np.where(pixels == 0, 7, pixels).astype(np.uint8).tobytes()
    content.save_as(path)
    np.testing.assert_array_equal(read_segmentation(path).ids, masks()[2:8].transpose(2, 1, 0))


def edited(path: Path, change: Callable[[Dataset], object]) -> Path:
    content = pydicom.dcmread(path)
    change(content)
    content.save_as(path)
    return path


def nowhere(content):
    del content.PerFrameFunctionalGroupsSequence[4].PlanePositionSequence


def without_spacing(content):
    del content.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing


def beside(content):
    for group in content.PerFrameFunctionalGroupsSequence:
        if group.SegmentIdentificationSequence[0].ReferencedSegmentNumber == 2:
            place = group.PlanePositionSequence[0]
            place.ImagePositionPatient = [9, 9, place.ImagePositionPatient[2]]


def unnamed(content):
    content.SegmentSequence = []


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (nowhere, "a frame of this DICOM SEG has no ImagePositionPatient, orientation or"),
        (without_spacing, "a frame of this DICOM SEG has no ImagePositionPatient, orientation or"),
        (beside, "the 9 frames of this DICOM SEG do not lie on parallel planes, one place on each"),
    ],
)
def test_frames_without_a_place(tmp_path, change, why):
    path = write_seg(tmp_path / "seg.dcm", write_series(tmp_path / "s"), masks())
    with pytest.raises(DataError, match=re.escape(f"{edited(path, change)}: {why}")):
        read_segmentation(path)


def test_without_segments(tmp_path):
    path = write_seg(tmp_path / "seg.dcm", write_series(tmp_path / "s"), masks())
    with pytest.raises(DataError, match=r"seg\.dcm: this DICOM SEG describes no segment"):
        segment_names(edited(path, unnamed))


def test_segments_that_overlap_or_are_damaged(tmp_path):
    series = write_series(tmp_path / "s")
    both = np.stack([masks() > 0, masks() == 2], -1).astype(np.uint8)
    path = write_seg(tmp_path / "seg.dcm", series, both)
    with pytest.raises(DataError, match=r"seg\.dcm: its segments cannot be one label map \(135 vo"):
        read_segmentation(path)
    (tmp_path / "a.dcm").write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"a\.dcm: its DICOM header holds a value that cannot be r"):
        read_segmentation(tmp_path / "a.dcm")
    (tmp_path / "b.dcm").write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataError, match=r"b\.dcm: cannot read this DICOM SEG \(\w+\)\. Export"):
        read_segmentation(tmp_path / "b.dcm")
    with pytest.raises(DataError, match=r"a\.dcm: this DICOM SEG describes no segment\. Export"):
        segment_names(tmp_path / "a.dcm")


def test_planes_as_a_stack(tmp_path):
    """As resampling needs it: SliceThickness is no spacing."""
    series = write_series(tmp_path / "s")
    label = masks()
    label[[3, 5, 6]] = 0  # slices 2, 4 and 7 are left
    path = write_seg(tmp_path / "seg.dcm", series, label)
    stack = read_segmentation(path).volume
    np.testing.assert_array_equal(stack.array, label[2:8].transpose(2, 1, 0))
    np.testing.assert_allclose(stack.affine[:3, 2], [0, 0, STEP])

    def unsaid(content):
        del content.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices

    edited(path, unsaid)
    with pytest.raises(DataError, match=r"seg\.dcm: its 3 planes do not say how far apart slices"):
        _ = read_segmentation(path).volume
    label[7] = 0  # two planes say a spacing, though perhaps not the image's
    path = write_seg(tmp_path / "two.dcm", series, label)
    assert read_segmentation(path).volume.array.shape[2] == 3
    assert read_segmentation(edited(path, unsaid)).volume.array.shape[2] == 2
    label[4] = 0
    path = write_seg(tmp_path / "one.dcm", series, label)
    np.testing.assert_allclose(read_segmentation(path).volume.affine[:3, 2], [0, 0, STEP])
    with pytest.raises(DataError, match=r"one\.dcm: its 1 planes do not say how far apart"):
        _ = read_segmentation(edited(path, unsaid)).volume
