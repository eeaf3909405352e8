"""NRRD and MetaImage."""

from __future__ import annotations

import os
import warnings

import numpy as np
import pytest
import SimpleITK as sitk

from medsam_tune.errors import DataError
from medsam_tune.formats import itk
from medsam_tune.formats.mending import Mending
from medsam_tune.formats.open import load_image, read_grid
from tests.dicom_series import COUNT, SIZE, SPACING, STEP, refusal, stored


def test_other_formats(tmp_path):

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


def test_flat_and_moving_images(tmp_path):
    flat = np.arange(12, dtype=np.int16).reshape(3, 4)
    image = sitk.GetImageFromArray(flat)
    image.SetSpacing((0.5, 2.0))
    sitk.WriteImage(image, str(tmp_path / "flat.mha"))
    found = load_image(tmp_path / "flat.mha")
    np.testing.assert_array_equal(found[0, ..., 0].numpy(), flat.T)
    np.testing.assert_allclose(found.affine, np.diag([-0.5, -2, 1, 1]))
    moving = np.arange(2 * 3 * 4 * 5, dtype=np.int16).reshape(2, 3, 4, 5)
    sitk.WriteImage(sitk.GetImageFromArray(moving, isVector=False), str(tmp_path / "moving.nrrd"))
    found = load_image(tmp_path / "moving.nrrd")
    np.testing.assert_array_equal(found.numpy(), moving.transpose(0, 3, 2, 1))
    assert read_grid(tmp_path / "moving.nrrd").shape == (5, 4, 3, 2)


def test_truncated_voxels(tmp_path):
    path = tmp_path / "a.mha"
    sitk.WriteImage(sitk.GetImageFromArray(stored()), str(path))
    path.write_bytes(path.read_bytes()[:-100])
    message = refusal(path)
    assert f"cannot read {path}: " in message
    assert "0x" not in message
    assert message.endswith("Expected a whole NRRD or MetaImage; copy or export it again.")


def test_what_an_exception_says():
    error = RuntimeError("a\nsitk::ERROR: ITK ERROR: MetaImageIO(0x5581): file is short.\n")
    assert itk.reason_of(error) == "file is short"
    assert itk.reason_of(RuntimeError()) == "RuntimeError"


def write_mha(path, more):
    path.write_bytes(
        f"ObjectType = Image\nNDims = 3\nBinaryData = True\n{more}DimSize = 2 3 4\n"
        "ElementType = MET_SHORT\nElementDataFile = LOCAL\n".encode()
        + bytes(48)
    )
    return path


def write_nrrd(path, more):
    path.write_bytes(
        "NRRD0004\ntype: short\ndimension: 3\nsizes: 2 3 4\nendian: little\nencoding: raw\n"
        f"# a comment\nnote:=space: LPS\n{more}\n".encode()
        + bytes(48)
    )
    return path


STEPS = "space directions: (2,0,0) (0,2,0) (0,0,2)\n"
PLACED = {
    "a.nrrd": f"space: left-posterior-superior\n{STEPS}",
    "b.nrrd": f"Space: RAS\n{STEPS}",
    "a.mha": "TransformMatrix = 1 0 0 0 1 0 0 0 1\n",
    "b.mha": "Orientation = 0 1 0 1 0 0 0 0 1\n",
}
GUESSED = {
    "c.nrrd": ("", "space directions are not set"),
    "d.nrrd": ("spacings: 1 2 3\n", "space directions are not set"),
    "e.nrrd": ("space: LPS\n", "space directions are not set"),
    "f.nrrd": (f"space dimension: 3\n{STEPS}", "no space of the patient is named"),
    "g.nrrd": (f"space: scanner-xyz\n{STEPS}", "no space of the patient is named"),
    "c.mha": ("ElementSpacing = 1 2 3\nOffset = 1 2 3\n", "TransformMatrix is not set"),
}


@pytest.mark.parametrize("name", PLACED)
def test_row_78_a_place_that_is_said(tmp_path, name):
    write = write_mha if name.endswith(".mha") else write_nrrd
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = load_image(write(tmp_path / name, PLACED[name]), Mending(strict=True))
    assert image.meta["guess"] == ""


@pytest.mark.parametrize("name", GUESSED)
def test_row_78_a_place_that_is_a_guess(tmp_path, name):
    more, guess = GUESSED[name]
    path = (write_mha if name.endswith(".mha") else write_nrrd)(tmp_path / name, more)
    with pytest.warns(UserWarning, match=rf"^{guess} \({path}\); the orientation is a guess\.$"):
        assert load_image(path).meta["guess"] == guess
    with pytest.raises(DataError, match=rf"^{guess} \({path}\); .* Export the scan again from its"):
        load_image(path, Mending(strict=True))


@pytest.mark.parametrize("dimension", [2, 4])
def test_itks_own_files_of_other_dimensions_are_placed(tmp_path, dimension):
    values = np.zeros((2, 3, 4, 5)[-dimension:], np.int16)
    sitk.WriteImage(sitk.GetImageFromArray(values, isVector=False), str(tmp_path / "a.nrrd"))
    assert load_image(tmp_path / "a.nrrd", Mending(strict=True)).meta["guess"] == ""


@pytest.mark.parametrize(
    ("name", "more", "scale"),
    [
        ("a.nrrd", 'space units: "um" "um" "um"\n', 1e-3),
        ("a.nrrd", 'space units: "m" "m" "m"\n', 1e3),
        ("a.nrrd", 'space units: "mm" "mm" "mm"\n', 1),
        ("a.nrrd", 'space units: "" "" ""\n', 1),
        ("a.mha", "DistanceUnits = um\n", 1e-3),
        ("a.mha", "DistanceUnits = cm\n", 10),
    ],
)
def test_row_75_units(tmp_path, name, more, scale):
    write = write_mha if name.endswith(".mha") else write_nrrd
    origin = "space origin: (1,2,3)\n" if name.endswith("nrrd") else "Offset = 1 2 3\n"
    step = "" if name.endswith("nrrd") else "ElementSpacing = 2 2 2\n"
    path = write(tmp_path / name, PLACED[name] + origin + step + more)
    expected = scale * np.diag([-2.0, -2, 2, 1 / scale])
    expected[:3, 3] = scale * np.array([-1, -2, 3])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        np.testing.assert_allclose(load_image(path).affine, expected)
    assert len(caught) == (scale != 1)
    np.testing.assert_allclose(read_grid(path).affine, expected)


def test_row_75_two_units(tmp_path):
    path = write_nrrd(tmp_path / "a.nrrd", PLACED["a.nrrd"] + 'space units: "mm" "um" "mm"\n')
    with pytest.raises(DataError, match=r"^coordinates in mm and um \(.*a\.nrrd\); expected one "):
        load_image(path)


def test_row_93_a_name_that_would_end_the_process(tmp_path):
    path = write_nrrd(tmp_path / os.fsdecode(b"a\xff.nrrd"), PLACED["a.nrrd"])
    for read in (load_image, read_grid):
        with pytest.raises(DataError, match=r"a\\udcff\.nrrd: the name is not UTF-8, and ITK cann"):
            read(path)


def test_what_is_written_is_compared(tmp_path, monkeypatch):
    write = sitk.WriteImage
    monkeypatch.setattr(sitk, "WriteImage", lambda image, *a, **k: write(image * 0, *a, **k))
    with pytest.raises(OSError, match=r"a\.nrrd: cannot be written whole; the disk may be full"):
        itk.write(tmp_path / "a.nrrd", np.ones((2, 3, 4), np.uint8), np.eye(4))
    assert list(tmp_path.iterdir()) == []
