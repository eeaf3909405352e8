"""Values of DICOM images."""

from __future__ import annotations

import numpy as np
import pytest
from pydicom.dataset import Dataset

from medsam_tune.formats.dicom.pixels import AIR
from tests.dicom_series import COUNT, read, refusal, stored, write_series


@pytest.mark.parametrize("bits", [12, 16])
def test_monochrome1_is_its_twin(tmp_path, bits):
    def inverted(_: int, image: Dataset) -> None:
        image.PhotometricInterpretation = "MONOCHROME1"
        image.PixelRepresentation, image.BitsStored, image.HighBit = 0, bits, bits - 1
        pixels = 4095 - np.frombuffer(image.PixelData, "<i2")
        image.PixelData = pixels.astype("<u2").tobytes()

    twin = read(write_series(tmp_path / "a", modality="MR"))
    volume = read(write_series(tmp_path / "b", inverted, modality="MR"))
    np.testing.assert_allclose(np.diff(volume.array, axis=0), np.diff(twin.array, axis=0))
    assert volume.notes == ("MONOCHROME1: inverted",)


def test_hounsfield_units_are_never_inverted(tmp_path):
    def shown_inverted(_: int, image: Dataset) -> None:
        image.PhotometricInterpretation = "MONOCHROME1"

    volume = read(write_series(tmp_path / "s", shown_inverted))
    np.testing.assert_array_equal(volume.array, stored().transpose(2, 1, 0) - 1000.0)


def test_each_slice_by_its_own_rescale(tmp_path):
    def own(k: int, image: Dataset) -> None:
        image.RescaleSlope, image.RescaleIntercept = 1 + 0.25 * k, -10.5 * k

    volume = read(write_series(tmp_path / "s", own, modality="MR"))
    for k in range(COUNT):
        expected = stored()[k].T * (1 + 0.25 * k) - 10.5 * k
        np.testing.assert_allclose(volume.array[..., k], expected, rtol=1e-6)


@pytest.mark.parametrize("signed", [True, False])
def test_padding_of_either_sign_is_air(tmp_path, signed):
    def padded(_: int, image: Dataset) -> None:
        pixels = np.frombuffer(image.PixelData, "<i2").copy()
        pixels[:5] = -2000
        image.PixelData = pixels.tobytes()
        if not signed:
            image.PixelRepresentation = 0  # 63536 stored, and the tag holds -2000
        image.add_new("PixelPaddingValue", "SS", -2000)

    volume = read(write_series(tmp_path / "s", padded))
    assert (volume.array[:5, 0] == AIR).all()
    assert volume.array[5, 0, 0] == stored()[0, 0, 5] - 1000
    assert volume.notes == ("padding set to -1024 in 3.0% of the voxels",)


def test_values_below_air_are_said(tmp_path):
    def below(_: int, image: Dataset) -> None:
        image.RescaleIntercept = -2048

    volume = read(write_series(tmp_path / "s", below))
    assert volume.array.min() == AIR
    assert "below -1024 HU set to that" in volume.notes[0]


def test_truncated_monochrome1_is_named(tmp_path):
    def inverted(_: int, image: Dataset) -> None:
        image.PhotometricInterpretation, image.PixelRepresentation = "MONOCHROME1", 0

    folder = write_series(tmp_path / "s", inverted, modality="MR")
    file = next(folder.glob("*-3.dcm"))
    file.write_bytes(file.read_bytes()[:-100])
    assert f"{file}: its pixels cannot be read (" in refusal(folder)


def test_lowest_value_is_the_padding_of_mr(tmp_path):
    def padded(_: int, image: Dataset) -> None:
        pixels = np.frombuffer(image.PixelData, "<i2").copy()
        pixels[:5] = -2000
        image.PixelData = pixels.tobytes()
        image.add_new("PixelPaddingValue", "SS", -2000)

    volume = read(write_series(tmp_path / "s", padded, modality="MR"))
    assert (volume.array[:5, 0] == stored()[0, 0, 5]).all()
    assert volume.notes == ("padding set to 105 in 3.0% of the voxels",)


def test_padding_is_found_by_its_stored_value(tmp_path):
    """Whatever the slope."""

    def padded(_: int, image: Dataset) -> None:
        pixels = np.frombuffer(image.PixelData, "<i2").copy()
        pixels[:5] = -2000
        image.PixelData = pixels.tobytes()
        image.RescaleSlope, image.RescaleIntercept = "2", "-100"
        image.add_new("PixelPaddingValue", "SS", -2000)

    volume = read(write_series(tmp_path / "s", padded))
    assert (volume.array[:5, 0] == AIR).all()
    assert "padding set to -1024 in 3.0% of the voxels" in volume.notes


def test_padding_whose_tag_has_the_wrong_sign(tmp_path):
    def padded(_: int, image: Dataset) -> None:
        pixels = np.frombuffer(image.PixelData, "<i2").copy()
        pixels[:5] = -2000
        image.PixelData = pixels.tobytes()  # signed, and the tag holds 63536
        image.add_new("PixelPaddingValue", "US", 63536)

    volume = read(write_series(tmp_path / "s", padded))
    assert (volume.array[:5, 0] == AIR).all()
    assert volume.notes == ("padding set to -1024 in 3.0% of the voxels",)


def test_padding_of_zero(tmp_path):
    def padded(_: int, image: Dataset) -> None:
        pixels = np.frombuffer(image.PixelData, "<i2").copy()
        pixels[:5] = 0
        image.PixelData = pixels.tobytes()
        image.PixelRepresentation = 0
        image.RescaleIntercept = "-500"
        image.add_new("PixelPaddingValue", "US", 0)

    volume = read(write_series(tmp_path / "s", padded))
    assert (volume.array[:5, 0] == AIR).all()
    assert volume.notes == ("padding set to -1024 in 3.0% of the voxels",)
