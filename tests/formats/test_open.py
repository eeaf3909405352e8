"""Every format that is written is read again as it was; a new format is one row of `WRITTEN`."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medsam_tune.errors import DataError
from medsam_tune.formats import image
from medsam_tune.formats.mending import Mending
from medsam_tune.formats.open import (
    ENDINGS,
    FORMATS,
    ID_BYTES,
    WRITTEN,
    case_id,
    dicom_modality,
    files_of,
    load_image,
    load_label,
    name_from,
    read_grid,
    scan_at,
    scan_files,
    write_array,
)
from tests.dicom_series import COUNT, write_series

C, S = np.cos(0.4), np.sin(0.4)
OBLIQUE = np.array([[-C, S, 0, 5.5], [0, 0, -1, -7], [S, C, 0, 9], [0, 0, 0, 1]]) @ np.diag(
    [0.7, 0.9, 2.5, 1.0]
)


def labels(highest: int = 2) -> np.ndarray:
    """(4, 5, 6) of ids that tell every axis and direction."""
    found = np.zeros((4, 5, 6), np.int32)
    found[1:, 2, 3], found[0, 0, 1:], found[2, 4, 5] = 1, 2, highest
    return found


FLAT = tuple(ending for ending in WRITTEN if ending in image.ENDINGS)  # of 2-D images


def held(ending: str, array: np.ndarray) -> np.ndarray:
    """What a format holds of a label map: one slice of a 2-D image."""
    return array.max(-1, keepdims=True) if ending in FLAT else array


@pytest.mark.parametrize("ending", WRITTEN)
@pytest.mark.parametrize("affine", [np.diag([2.0, 3, 4, 1]), OBLIQUE], ids=["straight", "oblique"])
def test_what_is_written_is_read_again(tmp_path, ending, affine):
    path = tmp_path / "new" / f"case_017{ending}"
    array = held(ending, labels())
    write_array(path, array, affine)
    affine = image.affine_of() if ending in FLAT else affine
    found = load_image(path)
    np.testing.assert_array_equal(found[0].numpy(), array)
    np.testing.assert_allclose(found.affine, affine, atol=1e-5)
    grid = read_grid(path)
    assert grid.shape == array.shape
    np.testing.assert_allclose(grid.affine, affine, atol=1e-5)
    assert case_id(path) == "case_017"
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("ending", WRITTEN)
@pytest.mark.parametrize("highest", [255, 256, 32767, 32768])
def test_ids_of_any_size_are_written(tmp_path, ending, highest):
    path = tmp_path / f"a{ending}"
    write_array(path, held(ending, labels(highest)), np.eye(4))
    assert load_image(path).max() == highest


@pytest.mark.parametrize("ending", WRITTEN)
def test_a_failed_write_leaves_the_old_file(tmp_path, ending, monkeypatch):
    path = tmp_path / f"a{ending}"
    write_array(path, held(ending, labels()), np.eye(4))
    before = path.read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_array(path, held(ending, labels(7)), np.eye(4))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["mask.mhd", "mask.nhdr", "mask.dcm", "mask"])
def test_what_is_not_written(tmp_path, name):
    endings = r"\.nii, \.nii\.gz, \.nrrd, \.mha, \.tif, \.tiff, \.png"
    text = rf"{name}: expected a name that ends in {endings}\.$"
    with pytest.raises(DataError, match=text):
        write_array(tmp_path / name, labels(), np.eye(4))


def test_each_ending_belongs_to_one_format():
    assert len(set(ENDINGS)) == len(ENDINGS)
    written = [ending for one in FORMATS for ending in one.WRITTEN]
    assert len(set(written)) == len(written)
    assert all(set(one.WRITTEN) <= set(one.ENDINGS) for one in FORMATS)


@pytest.mark.parametrize("ending", [*ENDINGS, ".dcm", ".IMA", ".NII.GZ", ""])
def test_a_case_is_named_without_the_ending(tmp_path, ending):
    assert case_id(tmp_path / f"a.b{ending}") == "a.b"


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(DataError, match=r"^no such file: .*a\.nii\.gz\. Correct the path in the d"):
        load_image(tmp_path / "a.nii.gz")
    (tmp_path / "a.nrrd").touch()
    with pytest.raises(DataError, match=r"^the file has zero bytes \(.*a\.nrrd\)\. Copy it again"):
        load_image(tmp_path / "a.nrrd")


def test_one_series_of_several(tmp_path):
    write_series(tmp_path / "a", uid="1.2.3.4")
    write_series(tmp_path / "b", uid="1.2.3.5", count=3)
    for uid, count in (("1.2.3.4", COUNT), ("1.2.3.5", 3)):
        image = load_image(tmp_path, series_uid=uid)
        assert image.shape[-1] == read_grid(tmp_path, uid).shape[-1] == count
        assert image.meta["series_uid"] == uid
        assert len(image.meta["frame_uid"]) > 10


def test_mending_reaches_the_series(tmp_path):
    def uneven(k, image):
        image.ImagePositionPatient = [0, 0, float(k + 0.4 * k * k)]

    folder = write_series(tmp_path / "s", uneven)
    with pytest.raises(DataError, match="expected even spacing"):
        load_image(folder)
    found = load_image(folder, Mending(resample_uneven=True))
    assert found.meta["notes"] == ["uneven slices resampled to 1.40 mm"]


def test_modality_of_dicom_only(tmp_path):
    folder = write_series(tmp_path / "s", modality="MR")
    assert dicom_modality(folder) == ""
    file = next(folder.iterdir())
    assert dicom_modality(file) == "MR"
    assert dicom_modality(file.rename(tmp_path / "a.nii")) == ""
    (tmp_path / "a.txt").write_text("hello")
    assert dicom_modality(tmp_path / "a.txt") == ""


def test_files_of_a_scan(tmp_path):
    folder = write_series(tmp_path / "s" / "deep")
    assert files_of(tmp_path) == sorted(folder.iterdir())
    assert files_of(tmp_path / "a.nii") == [tmp_path / "a.nii"]


@pytest.mark.parametrize("text", ["case_017", "a b", "the 'scan'", "a$b@c%d#e", "スキャン", "~a"])
def test_names_that_are_safe_stay(text):
    assert name_from(text) == text


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("-rf", "_rf-"),
        ("=1+1", "_1+1-"),
        ("@a", "_a-"),
        ("a\nb\tc", "a_b_c-"),
        (os.fsdecode(b"a\xffb"), "a_b-"),
        ("é" * 200, "é" * 75),
        ("x" * 161, "x" * 151 + "-"),
    ],
)
def test_names_are_made_safe(text, start):
    found = name_from(text)
    assert found.startswith(start)
    assert found.isprintable()
    assert len(found.encode()) <= ID_BYTES
    assert found == name_from(text) != name_from(f"{text} ")


def test_names_that_differ_stay_apart():
    names = ["a\nb", "a\tb", "a_b", *(f"{'x' * 240}_{i}" for i in range(3))]
    assert len({name_from(name) for name in names}) == len(names)


def test_a_folder_without_a_name_is_named(tmp_path, monkeypatch):
    (tmp_path / "scan.nii").mkdir()
    monkeypatch.chdir(tmp_path / "scan.nii")
    assert case_id(Path()) == "scan"


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_a_folder_named_like_a_file(tmp_path, ending):
    folder = tmp_path / f"c1{ending}"
    write_array(folder / "0001_brain.nii", labels(), np.eye(4))
    (folder / "notes.txt").touch()
    assert scan_at(folder) == folder / "0001_brain.nii"
    np.testing.assert_array_equal(load_image(folder)[0].numpy(), labels())
    assert read_grid(folder).shape == labels().shape
    assert case_id(folder) == "c1"
    (folder / "mask.nrrd").symlink_to(folder / "0001_brain.nii")
    with pytest.raises(DataError, match=r"with 2 scans in it: 0001_brain\.nii, mask\.nrrd; expect"):
        read_grid(folder)


@pytest.mark.parametrize("ending", WRITTEN)
def test_labels_keep_their_ids(tmp_path, ending):
    """float32 does not hold them."""
    path = tmp_path / f"a{ending}"
    highest = image.HIGHEST_ID if ending in FLAT else 2**31 - 1
    write_array(path, held(ending, labels(highest)), np.eye(4))
    found = load_label(path)
    assert not found.is_floating_point()
    assert found.max() == highest


@pytest.mark.parametrize("ending", WRITTEN)
@pytest.mark.parametrize(("low", "high"), [(0, 2**31), (-1, 3)])
def test_what_is_no_id_is_not_written(tmp_path, ending, low, high):
    array = labels().astype(np.int64)
    array[0, 0, 0], array[1, 0, 0] = low, high
    with pytest.raises(DataError, match=rf"^label ids from {low} to {high}; expected 0 to 2147483"):
        write_array(tmp_path / f"a{ending}", array, np.eye(4))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", WRITTEN)
def test_a_full_disk_leaves_the_old_file(tmp_path, ending):
    """ITK says nothing of an NRRD that the disk has no room for."""
    path = tmp_path / f"a{ending}"
    write_array(path, held(ending, labels()), np.eye(4))
    before = path.read_bytes()
    noise = np.random.default_rng(0).integers(0, 200, (100, 100, 1))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(OSError):  # noqa: PT011 - the text is the system's
            write_array(path, noise, np.eye(4))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_one_volume_of_image_and_label(tmp_path):
    stack = np.stack([labels(i) for i in (3, 4, 5)], -1)
    nib.save(nib.Nifti1Image(stack, np.eye(4)), tmp_path / "a.nii")
    for load in (load_image, load_label):
        found = load(tmp_path / "a.nii", Mending(volume_index=1))
        np.testing.assert_array_equal(found.numpy(), labels(4)[None])
        assert (found.meta["volumes"], found.meta["notes"]) == (3, ["volume 1 of 3"])
        assert load(tmp_path / "a.nii").shape[0] == 3
        with pytest.raises(DataError, match=r"^no volume 3 \(.*a\.nii\); it has 3, counted from 0"):
            load(tmp_path / "a.nii", Mending(volume_index=3))


def test_the_files_of_a_scan(tmp_path):
    write_array(tmp_path / "a.nii", labels(), np.eye(4))
    assert list(scan_files(tmp_path / "a.nii")) == [tmp_path / "a.nii"]
    for header, line in (("b.mhd", "ElementDataFile = b.raw"), ("c.nhdr", "data file: b.raw")):
        (tmp_path / header).write_text(f"NDims = 3\n{line}\n")
        assert list(scan_files(tmp_path / header)) == [tmp_path / header]
    (tmp_path / "b.raw").touch()
    for header in ("b.mhd", "c.nhdr"):
        assert list(scan_files(tmp_path / header)) == [tmp_path / header, tmp_path / "b.raw"]
    slices = [tmp_path / f"s{number:02d}.raw" for number in (1, 2, 3)]
    for path in slices:
        path.touch()
    for header, line, expected in (
        ("e.nhdr", "data file: LIST\ns01.raw\ns03.raw", slices[::2]),
        ("e.nhdr", "data file: LIST 2\ns01.raw\n", slices[:1]),
        ("e.nhdr", "data file: s%02d.raw 1 3 1", slices),
        ("e.nhdr", "datafile: s%02d.raw 1 3 2 2", slices[::2]),
        ("e.mhd", "ElementDataFile = LIST\ns01.raw\ns02.raw", slices[:2]),
        ("e.mhd", "ElementDataFile = s%02d.raw 2 3 1", slices[1:]),
    ):
        (tmp_path / header).write_text(f"NDims = 3\n{line}\n")
        assert list(scan_files(tmp_path / header)) == [tmp_path / header, *expected]
    write_series(tmp_path / "d" / "1", uid="1.2.3")
    write_series(tmp_path / "d" / "2", uid="1.2.4", count=3)
    assert len(scan_files(tmp_path / "d", "2.3")) == COUNT
    assert {path.parent.name for path in scan_files(tmp_path / "d", "2.4")} == {"2"}
    with pytest.raises(DataError, match="no such file"):
        scan_files(tmp_path / "gone.nii")
