from __future__ import annotations

import struct
from collections import namedtuple

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from medsam_tune.cases.datalist import Case
from medsam_tune.cases.load import load_case
from medsam_tune.errors import DataError
from medsam_tune.formats.open import load_image, read_grid
from medsam_tune.slices import estimate as module
from medsam_tune.slices.estimate import estimate
from medsam_tune.slices.intensity import Window, Windows, full_range
from medsam_tune.slices.rules import ScanRules
from medsam_tune.slices.store import SliceStore
from tests.dicom_series import COUNT, SIZE, write_series
from tests.scans import LABELS, SHAPE, load_turned, write_nifti

VOXELS = int(np.prod(SHAPE))
SAGITTAL = np.array([[0, 0, 3.0, 0], [0.5, 0, 0, 0], [0, 0.5, 0, 0], [0, 0, 0, 1]])


@pytest.fixture
def store(tmp_path):
    return SliceStore(tmp_path / "new" / "store", ScanRules(Window(100, 200)), LABELS)


def test_what_there_is_to_do(store, make_case):
    cases = [make_case(name) for name in "abc"]
    cases[2] = Case(cases[2].image, None, "p")
    found = estimate(store, cases, progress=False)
    assert not store.root.exists()
    assert (found.cases, found.there, found.slices) == (3, 0, 18)
    assert found.bytes == 5 * VOXELS
    store.prepare(cases[:1], progress=False)
    rest = estimate(store, cases, progress=False)
    assert (rest.cases, rest.there, rest.slices, rest.bytes) == (3, 1, 12, 3 * VOXELS)
    assert "3 cases, 1 of them prepared; 12 slices to prepare, at most" in str(rest)
    store.prepare(cases, progress=False)
    assert "all 3 cases are prepared" in str(estimate(store, cases, progress=False))


def test_bytes_are_an_upper_bound_of_what_is_stored(store, make_case):
    noise = np.random.default_rng(0).uniform(0, 200, (64, 64, 20)).astype(np.float32)
    case = make_case(image=noise, label=(noise > 100).astype(np.uint8))
    expected = estimate(store, [case], progress=False).bytes
    (prepared,) = store.prepare([case], progress=False)
    stored = sum(file.stat().st_size for file in prepared.path.rglob("*") if file.is_file())
    assert expected == 2 * noise.size
    assert expected / 3 < stored < expected


def test_channels_and_wide_ids_count(tmp_path, make_case):
    store = SliceStore(tmp_path / "s", ScanRules(Windows()), {1: "liver", 300: "spleen"})
    assert estimate(store, [make_case()], progress=False).bytes == (3 + 2) * VOXELS


def test_a_fine_window_takes_two_bytes(tmp_path, make_case):
    store = SliceStore(tmp_path / "s", ScanRules(full_range()), {1: "liver"})
    assert estimate(store, [make_case()], progress=False).bytes == (2 + 1) * VOXELS


def test_no_voxel_is_read(store, make_case):
    case = make_case()
    whole = case.image.read_bytes()
    case.image.write_bytes(whole[: len(whole) * 2 // 3])
    assert estimate(store, [case], progress=False).slices == 6
    with pytest.raises(DataError, match="truncated or damaged gzip"):
        store.prepare([case], progress=False)


def test_the_series_that_a_case_names(store, tmp_path):
    write_series(tmp_path / "scan" / "a", uid="1.2.3.4")
    write_series(tmp_path / "scan" / "b", uid="1.2.3.5", count=3)
    case = Case(tmp_path / "scan", None, "p", series="1.2.3.5")
    assert estimate(store, [case], progress=False).slices == 3


def _nifti(folder, affine):
    return write_nifti(folder / "s.nii.gz", np.zeros((4, 5, 6), np.int16), affine)


def _nrrd(folder):
    path = folder / "s.nrrd"
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((6, 5, 4), np.int16)), str(path))
    return path


def _nrrd_2d(folder):
    path = folder / "flat.mha"
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((5, 4), np.int16)), str(path))
    return path


def _sagittal_series(folder):
    def turn(k, image):
        image.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
        image.ImagePositionPatient = [2.5 * k, 0, 0]

    return write_series(folder / "series", turn)


@pytest.mark.parametrize(
    ("write", "shape", "slices"),
    [
        (lambda folder: _nifti(folder, np.eye(4)), (4, 5, 6), 6),
        (lambda folder: _nifti(folder, SAGITTAL), (4, 5, 6), 5),
        (_nrrd, (4, 5, 6), 6),
        (_nrrd_2d, (4, 5, 1), 1),
        (lambda folder: write_series(folder / "series"), (*SIZE, COUNT), COUNT),
        (_sagittal_series, (*SIZE, COUNT), SIZE[1]),
    ],
)
def test_grid_is_what_would_be_read(tmp_path, write, shape, slices):
    path = write(tmp_path)
    grid = read_grid(path)
    assert grid.shape[:3] == tuple(load_image(path).shape[1:]) == shape
    assert ScanRules(Window(100, 200)).grid(grid.shape, grid.affine).size[2] == slices
    image, _ = load_turned(Case(path, None, ""), {}, plane="coronal")
    assert ScanRules(Window(100, 200), "coronal").grid(grid.shape, grid.affine).size == tuple(
        image.shape[1:]
    )
    np.testing.assert_allclose(grid.affine, image.meta["original_affine"], atol=1e-5)


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nrrd", "a"])
def test_unreadable_header(tmp_path, name):
    path = tmp_path / name
    path.write_text("hello")
    with pytest.raises(DataError, match=name):
        read_grid(path)


def test_full_disk_is_refused(store, make_case, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(module, "COMPRESSED", {"image": 0.75, "label": 0.25})
    case = make_case()
    for free, refused in ((VOXELS - 1, True), (VOXELS, False)):
        monkeypatch.setattr(module.shutil, "disk_usage", lambda _, free=free: usage(free))
        found = estimate(store, [case], progress=False)
        if refused:
            with pytest.raises(
                DataError, match=r"store: 6 slices will typically take .* Make room"
            ):
                found.refuse_full_disk()
        else:
            found.refuse_full_disk()


def _huge_nifti(folder):
    header = nib.Nifti1Header()
    header.set_data_shape((30000, 30000, 30000))
    header.set_data_dtype(np.int16)
    header["magic"] = b"n+1"
    header["vox_offset"] = 352
    header["pixdim"][1:4] = 0.1  # of 3 m, as a scan may have
    path = folder / "huge.nii"
    path.write_bytes(header.binaryblock + struct.pack("4x"))
    return path


def _huge_nrrd(folder):
    path = folder / "huge.nrrd"
    path.write_text(
        "NRRD0004\ntype: short\ndimension: 3\nsizes: 30000 30000 30000\nendian: little\n"
        "encoding: raw\n\n"
    )
    return path


def _huge_series(folder):
    def grow(_, image):
        image.Rows = image.Columns = 65535

    return write_series(folder / "huge", grow, count=40)


@pytest.mark.parametrize("write", [_huge_nifti, _huge_nrrd, _huge_series])
def test_row_16_scan_larger_than_the_memory(tmp_path, store, write):
    path = write(tmp_path)
    text = r"case huge: \S*huge\S*: the header speaks of [\dx ]+ voxels, \d+\.\d GB of memory; \d"
    with pytest.raises(DataError, match=text):
        load_case(Case(path, None, "p"), {})
    with pytest.raises(DataError, match=text):
        estimate(store, [Case(path, None, "p")], progress=False)
