"""A series becomes a volume where its headers say, or is refused."""

from __future__ import annotations

import numpy as np
import pytest
from pydicom.dataset import Dataset

from medsam_tune.errors import DataError
from medsam_tune.formats.open import load_image, read_grid
from tests.dicom_series import COUNT, SIZE, SPACING, STEP, read, refusal, stored, write_series


def test_a_sound_series(tmp_path):
    volume = read(write_series(tmp_path / "s"))
    np.testing.assert_array_equal(volume.array, stored().transpose(2, 1, 0) - 1000.0)
    assert volume.array.dtype == np.float32
    expected = np.diag([-SPACING[0], -SPACING[1], STEP, 1.0])
    expected[:3, 3] = [3.0, -4.0, -50.0]
    np.testing.assert_allclose(volume.affine, expected, atol=1e-9)
    assert volume.notes == ()


def test_oblique_series_lie_where_their_headers_say(tmp_path):
    c, s = np.cos(0.5), np.sin(0.5)
    row, column = np.array([c, s, 0]), np.array([-s * c, c * c, s])
    normal = np.cross(row, column)

    def turn(k: int, image: Dataset) -> None:
        image.ImageOrientationPatient = [*row, *column]
        image.ImagePositionPatient = list(np.array([5.0, 6.0, 7.0]) + STEP * k * normal)

    volume = read(write_series(tmp_path / "s", turn))
    i, j, k = 3, 5, 6
    where = volume.affine @ [i, j, k, 1]
    lps = np.array([5, 6, 7]) + i * SPACING[0] * row + j * SPACING[1] * column + k * STEP * normal
    np.testing.assert_allclose(where[:3], lps * [-1, -1, 1], atol=1e-6)
    assert volume.array[i, j, k] == stored()[k, j, i] - 1000


@pytest.mark.parametrize("missing", [1, 3, COUNT - 2])
def test_missing_slice_anywhere(tmp_path, missing):
    folder = write_series(tmp_path / "s")
    next(folder.glob(f"*-{missing}.dcm")).unlink()
    message = refusal(folder)
    assert "a gap of 5.00 mm between neighbours, 2.50 mm elsewhere: 1 slices are missing" in message
    assert f"-{missing - 1}.dcm, " in message
    with pytest.raises(DataError, match="slices are missing"):
        read(folder, resample_uneven=True)


def uneven(k: int, image: Dataset) -> None:
    image.ImagePositionPatient = [-3.0, 4.0, float(k + 0.4 * k * k)]
    image.PixelData = np.full(SIZE[::-1], 100 * (k + 0.4 * k * k), np.int16).tobytes()


def test_uneven_spacing_resampled(tmp_path):
    folder = write_series(tmp_path / "s", uneven)
    assert "To interpolate to an even grid: mending::resample_uneven=true" in refusal(folder)
    volume = read(folder, resample_uneven=True)
    step = float(volume.affine[2, 2])
    assert step == pytest.approx(1.4)
    height = volume.affine[2, 3] + step * np.arange(volume.array.shape[2])
    assert height[-1] == pytest.approx(7 + 0.4 * 49)
    np.testing.assert_allclose(volume.array[4, 5], 100 * height - 1000, atol=0.1)
    assert volume.notes == (f"uneven slices resampled to {step:.2f} mm",)


def test_small_rounding_of_positions_is_accepted(tmp_path):
    def rounded(k: int, image: Dataset) -> None:
        image.ImagePositionPatient = [-3.0, 4.0, round(0.625 * k, 1)]

    volume = read(write_series(tmp_path / "s", rounded, count=9))
    assert volume.affine[2, 2] == pytest.approx(0.625)


def test_tilted_gantry_resampled(tmp_path):
    slope = np.tan(np.radians(15))

    def lean(k: int, image: Dataset) -> None:
        image.ImagePositionPatient = [-3.0, 4.0 + STEP * k * slope, STEP * k]
        y = 4.0 + STEP * k * slope + SPACING[1] * np.arange(SIZE[1])
        image.PixelData = np.repeat(np.round(50 * y)[:, None], SIZE[0], 1).astype("<i2").tobytes()

    folder = write_series(tmp_path / "s", lean)
    assert "lean by 15.0 degrees from their normal (a tilted gantry)" in refusal(folder)
    volume = read(folder, resample_uneven=True)
    np.testing.assert_allclose(volume.affine[:3, 2], [0, 0, STEP], atol=1e-9)
    y = 4.0 + SPACING[1] * np.arange(SIZE[1])
    inside = volume.array[5] > volume.array.min()
    expected = np.repeat(50 * y[:, None] - 1000, COUNT, 1)
    np.testing.assert_allclose(volume.array[5][inside], expected[inside], atol=1.0)
    assert inside[:, 0].sum() >= SIZE[1] - 1
    assert volume.notes == ("tilt of 15.0 degrees resampled",)


def test_single_image_without_a_place(tmp_path):
    def nowhere(_: int, image: Dataset) -> None:
        del image.ImagePositionPatient, image.ImageOrientationPatient

    folder = write_series(tmp_path / "s", nowhere)
    assert "so that its place among 8 images is not known" in refusal(folder)
    single = load_image(next(folder.iterdir()))
    assert tuple(single.shape) == (1, *SIZE, 1)
    assert float(single.affine[0, 0]) == pytest.approx(-SPACING[0])


def test_single_image_with_its_place(tmp_path):
    image = load_image(next(write_series(tmp_path / "s", count=1).iterdir()))
    whole = load_image(write_series(tmp_path / "whole"))
    assert tuple(image.shape) == (1, *SIZE, 1)
    np.testing.assert_array_equal(image[0, ..., 0].numpy(), whole[0, ..., 0].numpy())
    np.testing.assert_allclose(image.affine[:3, [0, 1, 3]], whole.affine[:3, [0, 1, 3]], atol=1e-9)
    np.testing.assert_allclose(image.affine[:3, 2], [0, 0, 1], atol=1e-9)  # as thick as it likes


def test_uneven_slices_are_interpolated_between_their_neighbours(tmp_path):
    heights = [0.0, 1.0, 3.0, 3.8, 6.0, 7.0, 9.0, 10.0]
    values = [5, 300, 40, 900, 120, 700, 10, 450]

    def change(k: int, image: Dataset) -> None:
        image.ImagePositionPatient = [-3.0, 4.0, heights[k]]
        image.PixelData = np.full(SIZE[::-1], values[k], np.int16).tobytes()

    volume = read(write_series(tmp_path / "s", change), resample_uneven=True)
    count = volume.array.shape[2]
    even = volume.affine[2, 3] + volume.affine[2, 2] * np.arange(count)
    np.testing.assert_allclose(even[[0, -1]], [0, 10], atol=1e-9)
    expected = np.interp(even, heights, values) - 1000
    np.testing.assert_allclose(volume.array[3, 4], expected, atol=0.01)
    assert volume.array[3, 4, -1] == values[-1] - 1000


def test_what_the_metadata_says(tmp_path):
    for modality in ("CT", "MR"):
        image = load_image(write_series(tmp_path / modality, modality=modality))
        assert (image.meta["modality"], image.meta["spacing_known"]) == (modality, True)

    def radiograph(_: int, image: Dataset) -> None:
        image.Modality = "CR"
        del image.PixelSpacing

    image = load_image(write_series(tmp_path / "cr", radiograph, count=1))
    assert (image.meta["modality"], image.meta["spacing_known"]) == ("CR", False)
    np.testing.assert_allclose(np.abs(image.affine[:3, :3]).numpy(), np.eye(3))


@pytest.mark.parametrize("modality", ["PT", "NM", ""])
def test_row_77_whatever_is_no_projection_needs_its_spacing(tmp_path, modality):
    def change(_: int, image: Dataset) -> None:
        image.Modality = modality
        del image.PixelSpacing

    folder = write_series(tmp_path / "s", change, "MR")
    assert "has no PixelSpacing, so that the size of its pixels" in refusal(folder)
    with pytest.raises(DataError, match="has no PixelSpacing"):
        read_grid(folder)


@pytest.mark.parametrize(
    ("tag", "value"),
    [
        ("Modality", "MR"),
        ("Modality", "SR"),
        ("FrameOfReferenceUID", "1.2.3"),
        ("PhotometricInterpretation", "MONOCHROME1"),
    ],
)
def test_one_image_of_another_kind(tmp_path, tag, value):
    def change(k: int, image: Dataset) -> None:
        if k == COUNT - 1:
            setattr(image, tag, value)

    message = refusal(write_series(tmp_path / "s", change))
    assert f"-{COUNT - 1}.dcm: its {tag} is " in message


def test_faulty_series_have_no_grid(tmp_path):
    folder = write_series(tmp_path / "s")
    next(folder.glob("*-7.dcm")).write_bytes(b"")
    with pytest.raises(DataError, match=r"-7\.dcm: is named as DICOM images are, but is none"):
        read_grid(folder)
