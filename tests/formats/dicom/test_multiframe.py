"""Row 37: an enhanced multi-frame file is read as its single images would be, or refused."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from medsam_tune.cases.datalist import Case
from medsam_tune.formats.dicom.pixels import AIR
from medsam_tune.formats.open import load_image, read_grid
from tests.conftest import REAL_DATA
from tests.dicom_series import COUNT, SIZE, STEP, Change, read, refusal, write_series
from tests.scans import load_turned

_EMPTY = ("StudyDate", "StudyTime", "AccessionNumber", "StudyID", "PatientBirthDate", "PatientSex")


def both(
    folder: Path, change: Change | None = None, modality: str = "CT", count: int = COUNT
) -> tuple[Path, Path]:
    """A series as single images and as one multi-frame file, frames in the order of the files."""

    def complete(k: int, image: Dataset) -> None:
        for name in (*_EMPTY, "ReferringPhysicianName", "PositionReferenceIndicator", "Laterality"):
            setattr(image, name, "")
        image.Manufacturer, image.AcquisitionNumber = "x", 1
        image.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        if change is not None:
            change(k, image)

    series = write_series(folder / "series", complete, modality, count)
    kind = {
        "CT": hd.legacy.LegacyConvertedEnhancedCTImage,
        "MR": hd.legacy.LegacyConvertedEnhancedMRImage,
    }[modality]
    file = folder / "multiframe.dcm"
    kind(
        [pydicom.dcmread(path) for path in sorted(series.iterdir())],
        series_instance_uid=hd.UID(),
        series_number=5,
        sop_instance_uid=hd.UID(),
        instance_number=1,
    ).save_as(file)
    return series, file


def assert_equal(series: Path, file: Path) -> None:
    """In values and place, after both are turned to LPS."""
    (single, _), (multi, _) = (load_turned(Case(path, None, "p"), {}) for path in (series, file))
    assert multi.dtype == single.dtype
    np.testing.assert_allclose(multi.numpy(), single.numpy(), atol=1e-3)
    np.testing.assert_allclose(multi.affine, single.affine, atol=1e-6)
    assert multi.meta["notes"] == single.meta["notes"]


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_row_37_multiframe_equals_its_single_images(tmp_path, modality):
    assert_equal(*both(tmp_path, modality=modality))


def test_row_37_oblique(tmp_path):
    c, s = np.cos(0.5), np.sin(0.5)
    row, column = np.array([c, s, 0]), np.array([-s * c, c * c, s])
    normal = np.cross(row, column)

    def turn(k, image):
        image.ImageOrientationPatient = [*row, *column]
        image.ImagePositionPatient = list(np.array([5.0, 6.0, 7.0]) + STEP * k * normal)

    assert_equal(*both(tmp_path, turn))


def test_row_37_padding_and_monochrome1(tmp_path):
    def padded(_, image):
        pixels = np.frombuffer(image.PixelData, "<i2").copy()
        pixels[:5] = -2000
        image.PixelData = pixels.tobytes()
        image.add_new("PixelPaddingValue", "SS", -2000)

    series, file = both(tmp_path / "ct", padded)
    assert_equal(series, file)
    assert (load_image(file)[0, :5, 0] == AIR).all()

    for modality in ("MR", "CT"):  # set afterwards: highdicom turns MONOCHROME1 over as it writes
        series, file = both(tmp_path / f"inverted-{modality}", modality=modality)
        for path in (file, *series.iterdir()):
            image = pydicom.dcmread(path)
            image.PhotometricInterpretation = "MONOCHROME1"
            image.save_as(path)
        assert_equal(series, file)


def refused(file: Path) -> str:
    message = refusal(file)
    assert message.startswith(f"case c1: {file}")
    return message


def uneven(k: int, image: Dataset) -> None:
    image.ImagePositionPatient = [-3.0, 4.0, float(k + 0.4 * k * k)]


def two_stacks(k: int, image: Dataset) -> None:
    image.ImagePositionPatient = [-3.0, 4.0, STEP * (k // 2)]
    if k % 2:
        image.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]


def two_phases(k: int, image: Dataset) -> None:
    image.ImagePositionPatient = [-3.0, 4.0, STEP * (k // 2)]


def without_spacing(_: int, image: Dataset) -> None:
    del image.PixelSpacing


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (uneven, "mm elsewhere; expected even spacing"),
        (two_stacks, "of another size, orientation or spacing"),
        (two_phases, "8 images lie at 4 positions; expected one image at each"),
        (without_spacing, "has no PixelSpacing"),
    ],
)
def test_row_37_what_is_no_volume_is_refused(tmp_path, change, why):
    """As single images are, with the number of the frame."""
    series, file = both(tmp_path, change)
    assert why in refused(file)
    assert re.search(r"multiframe\.dcm \(frame \d\)", refused(file))
    assert why in refusal(series)


def test_row_37_uneven_frames_resampled(tmp_path):
    series, file = both(tmp_path, uneven)
    single, multi = (read(place, resample_uneven=True) for place in (series, file))
    np.testing.assert_allclose(multi.array, single.array, atol=1e-3)
    assert multi.notes == single.notes == ("uneven slices resampled to 1.40 mm",)


def test_row_37_one_frame(tmp_path):
    """Its geometry lies in the functional groups all the same."""
    series, file = both(tmp_path, count=1)
    assert_equal(series, file)
    assert (read_grid(file).affine == load_image(file).affine.numpy()).all()


def test_row_89_orientations_that_round_differently(tmp_path):
    def jitter(k, image):
        image.ImageOrientationPatient = [1, 0, 0, 0, 1, (k - 4) * 3e-7]
        image.PixelSpacing = [0.9 + (k % 2) * 1e-7, 0.7]

    assert_equal(*both(tmp_path, jitter))


@pytest.mark.parametrize("every", [True, False])
def test_frames_without_their_unit(tmp_path, every):
    _, file = both(tmp_path)
    content = pydicom.dcmread(file)
    groups = [
        group
        for group in (
            *content.SharedFunctionalGroupsSequence,
            *content.PerFrameFunctionalGroupsSequence,
        )
        if "PixelValueTransformationSequence" in group
    ]
    if every:
        for group in groups:
            del group.PixelValueTransformationSequence
    else:
        frames = content.PerFrameFunctionalGroupsSequence
        for frame in frames[:-1]:
            frame.PixelValueTransformationSequence = groups[0].PixelValueTransformationSequence
        if groups[0] is content.SharedFunctionalGroupsSequence[0]:
            del groups[0].PixelValueTransformationSequence
        else:
            del frames[-1].PixelValueTransformationSequence
    content.save_as(file)
    why = "is CT without Rescale" if every else "has no RescaleSlope and RescaleIntercept, but 7"
    assert f"(frame 8): {why}" in refused(file)  # the last of the file is the first in space


def test_frames_that_cannot_be_decoded(tmp_path):
    _, file = both(tmp_path)
    file.write_bytes(file.read_bytes()[:-100])
    assert "its 8 frames cannot be read (" in refused(file)


def test_size_and_place_by_the_header(tmp_path):
    _, file = both(tmp_path)
    grid = read_grid(file)
    assert grid.shape == (*SIZE, COUNT)
    np.testing.assert_allclose(grid.affine, load_image(file).affine)


def test_row_37_without_highdicom_the_way_out_is_named(tmp_path, monkeypatch):
    _, file = both(tmp_path)
    monkeypatch.setitem(sys.modules, "highdicom", None)
    assert "needs highdicom. Install it: pip install 'medsam_tune[dicom]'" in refused(file)


def test_row_37_real_multiframe_equals_its_single_images():
    folder = REAL_DATA / "dcmqi_ct3slice"
    if not folder.is_dir():
        pytest.skip("real scans are not here: dcmqi_ct3slice beside the repository")
    for name in ("23x38x3", "24x38x3"):
        assert_equal(folder / name / "image", folder / name / "multiframe")
    assert load_image(folder / "23x38x3" / "multiframe").shape[0] == 1
    label = folder / "24x38x3" / "seg" / "label.seg"
    _, found = load_turned(Case(folder / "24x38x3" / "multiframe", label, "p"), {1: "Liver"})
    assert found.sum() > 100  # of another series, in the same frame of reference
