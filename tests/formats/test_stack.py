"""DICOM series: read right, or refused by the numbers of the table of faults."""

from __future__ import annotations

import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from monai.transforms import LoadImage
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from medsam_tune.cases.datalist import Case
from medsam_tune.cases.load import load_case
from medsam_tune.errors import DataError
from medsam_tune.formats.dicom.headers import without_warnings
from medsam_tune.formats.dicom.pixels import AIR
from medsam_tune.formats.dicom.series import choose_series, find_series
from medsam_tune.formats.dicom.stack import read_series
from medsam_tune.formats.open import load_image
from medsam_tune.formats.reader import SimpleITKReader
from tests.conftest import REAL_DATA
from tests.dicom_series import COUNT, SIZE, SPACING, STEP, stored, write_series
from tests.scans import load_turned, write_nifti


def read(folder: Path, **options: bool):
    return read_series(choose_series(folder), **options)


def refusal(folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        load_case(Case(folder, None, "p", name="c1"), {})
    message = str(caught.value)
    assert message.startswith("case c1: ")
    assert "Doe" not in message
    assert "MRN123" not in message
    return message


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


def test_monai_loads_with_the_reader(tmp_path):
    folder = write_series(tmp_path / "s")
    load = LoadImage(ensure_channel_first=True)
    load.register(SimpleITKReader())
    image = load(folder)
    assert tuple(image.shape) == (1, *SIZE, COUNT)
    ours = load_image(folder)
    assert np.array_equal(image.numpy(), ours.numpy())
    np.testing.assert_allclose(image.affine, ours.affine)
    assert "Doe" not in str(ours.meta)
    files = sorted(folder.iterdir())
    assert np.array_equal(load(files).numpy(), image.numpy())
    files[1].unlink()
    with pytest.raises(DataError, match="slices are missing"):  # and no other reader steps in
        load(folder)
    assert tuple(load(write_nifti(tmp_path / "a.nii", stored())).shape) == (1, COUNT, *SIZE[::-1])


def test_series_say_nothing_of_the_patient(tmp_path):
    write_series(tmp_path / "a", uid="1.2.3.4")
    write_series(tmp_path / "b", modality="MR", uid="1.2.3.5")
    write_series(tmp_path / "c", lambda _, image: setattr(image, "PatientID", "X"), uid="1.2.3.6")
    a, c, b = find_series(tmp_path)
    assert str(a) == "number 4, CT, 14 x 12, 8 images, 1.2.3.4"
    assert (a.patient, b.modality) == (b.patient, "MR")
    assert a.patient != c.patient
    assert "MRN123" not in repr((a, b, c))


def test_choice_among_several_series(tmp_path):
    write_series(tmp_path / "a", uid="1.2.3.4")
    write_series(tmp_path / "b", uid="1.2.3.5", count=3)
    message = refusal(tmp_path)
    assert f"{tmp_path}: 2 series: number 4, CT, 14 x 12, 8 images, 1.2.3.4; number 4" in message
    assert "Choose by series_uid" in message
    assert load_image(tmp_path, series_uid="1.2.3.5").shape[-1] == 3
    assert SimpleITKReader("3.4").read(tmp_path).array.shape[-1] == COUNT
    with pytest.raises(DataError, match=r"0 series end in '9'; expected one of: number 4"):
        load_image(tmp_path, series_uid="9")


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


def test_dicomdir_is_never_opened(tmp_path, monkeypatch):
    folder = write_series(tmp_path / "s")
    (folder / "DICOMDIR").write_bytes(next(folder.glob("*.dcm")).read_bytes())
    seen = []
    module, whole = pydicom.filereader, pydicom.filereader.read_partial
    monkeypatch.setattr(
        module, "read_partial", lambda file, **o: seen.append(file.name) or whole(file, **o)
    )
    find_series(folder)
    assert len(seen) == COUNT
    assert not [path for path in seen if Path(path).name == "DICOMDIR"]


def test_headers_are_read_no_further_than_needed(tmp_path):
    def scribble(_, image):
        block = image.private_block(0x0029, "SCANNER", create=True)
        block.add_new(1, "LO", "ends here")

    folder = write_series(tmp_path / "s", scribble)
    for path in folder.iterdir():
        content = path.read_bytes()
        path.write_bytes(content[: content.index(b"ends here")])
    (series,) = find_series(folder)
    assert series.shape == (*SIZE, COUNT)
    with pytest.raises(DataError, match="cannot be read"):
        read_series(series)


def test_warnings_come_back_after_two_threads():
    before = list(warnings.filters)
    inside = threading.Event()

    def first():
        with without_warnings():
            inside.set()
            time.sleep(0.2)

    def second():
        with without_warnings():
            time.sleep(0.2)

    threads = [threading.Thread(target=each) for each in (first, second)]
    threads[0].start()
    inside.wait()
    threads[1].start()
    for thread in threads:
        thread.join()
    assert warnings.filters == before


def test_geometry_that_is_no_geometry(tmp_path):
    def zero(_: int, image: Dataset) -> None:
        image.PixelSpacing = [0, 1]

    assert "PixelSpacing is not above 0" in refusal(write_series(tmp_path / "a", zero))

    def bent(_: int, image: Dataset) -> None:
        image.ImageOrientationPatient = [1, 0, 0, 1, 0, 0]

    assert "not two perpendicular unit vectors" in refusal(write_series(tmp_path / "b", bent))


def test_values_that_cannot_be_parsed(tmp_path):
    folder = write_series(tmp_path / "s")
    file = next(folder.glob("*-3.dcm"))
    content = file.read_bytes()
    file.write_bytes(content.replace(b"-1000.", b"-1@00."))
    assert f"{file}: its DICOM header holds a value that cannot be read" in refusal(folder)


def test_without_pydicom_the_way_out_is_named(tmp_path, monkeypatch):
    folder = write_series(tmp_path / "s")
    monkeypatch.setitem(__import__("sys").modules, "pydicom", None)
    assert "pip install 'medsam_tune[dicom]'" in refusal(folder)


def test_other_formats(tmp_path):
    import SimpleITK as sitk

    array = stored().astype(np.float32)  # (K, J, I)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((*SPACING, STEP))
    image.SetOrigin((-3.0, 4.0, -50.0))
    for ending in ("nrrd", "mha", "mhd"):
        sitk.WriteImage(image, str(tmp_path / f"a.{ending}"))
        loaded = load_image(tmp_path / f"a.{ending}")
        np.testing.assert_array_equal(loaded[0].numpy(), array.transpose(2, 1, 0))
        expected = np.diag([-SPACING[0], -SPACING[1], STEP, 1.0])
        expected[:3, 3] = [3.0, -4.0, -50.0]
        np.testing.assert_allclose(loaded.affine, expected)
    (tmp_path / "b.nrrd").write_text("hello")
    assert f"cannot read {tmp_path / 'b.nrrd'}" in refusal(tmp_path / "b.nrrd")
    vector = sitk.GetImageFromArray(np.stack([array] * 3, -1), isVector=True)
    sitk.WriteImage(vector, str(tmp_path / "c.nrrd"))
    assert tuple(load_image(tmp_path / "c.nrrd").shape) == (3, *SIZE, COUNT)


def test_liver_lies_under_its_label():
    """The label's rows run the other way in storage; by array index it would be at -75 HU."""
    folder = REAL_DATA / "totalseg"
    if not folder.is_dir():
        pytest.skip("real scans are not here: totalseg beside the repository")
    case = Case(folder / "example_ct_dicom", folder / "example_seg_dicom.nii.gz", "p")
    image, label = load_turned(case, {i: str(i) for i in range(1, 118)})
    liver = image[label == 5]
    assert float(liver.mean()) == pytest.approx(89, abs=1)
    assert float(liver.std()) == pytest.approx(22, abs=1)


def test_uid_of_nobody(tmp_path):
    """Files without a series' UID are one series, not none."""
    folder = write_series(tmp_path / "s", uid=generate_uid())
    for file in folder.iterdir():
        image = pydicom.dcmread(file)
        del image.SeriesInstanceUID
        image.save_as(file)
    assert read(folder).array.shape == (*SIZE, COUNT)
