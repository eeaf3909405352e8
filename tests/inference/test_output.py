"""Masks as files in the scan's own grid."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import nrrd
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from PIL import Image

from medsam_tune.errors import DataError
from medsam_tune.formats.image import affine_of
from medsam_tune.formats.open import load_image
from medsam_tune.inference.aftercare import Aftercare
from medsam_tune.inference.output import (
    Source,
    check_output,
    ending_of,
    format_for,
    mask_paths,
    refuse_taken_masks,
    write_mask,
    write_masks,
)
from medsam_tune.slices.cut import grid_of
from medsam_tune.slices.frames import ScanGrid
from medsam_tune.slices.intensity import Window
from medsam_tune.slices.rules import ScanRules
from tests.dicom_series import write_series
from tests.formats.test_open import OBLIQUE
from tests.inference.made import GRIDS, LPS_GRID

ODD_GRID = pytest.param(OBLIQUE, (12, 10, 14), id="oblique")


@pytest.mark.parametrize(("affine", "shape"), GRIDS)
@pytest.mark.parametrize(("label", "dtype"), [(2, np.uint8), (255, np.uint8), (300, np.int16)])
def test_mask_has_the_scans_grid(
    tmp_path: Path, affine: np.ndarray, shape: tuple[int, ...], label: int, dtype: type
) -> None:
    labels = torch.zeros(6, 12, 10, dtype=torch.int16)
    labels[3, 2:8, 5:9] = label
    grid = ScanGrid(affine, shape)  # type: ignore[arg-type]
    path = tmp_path / "new" / "mask.nii.gz"
    assert write_mask(labels, grid, path) == {label: 24}
    found = nib.load(path)
    assert found.shape == shape
    assert found.get_data_dtype() == dtype
    np.testing.assert_allclose(found.affine, affine)
    np.testing.assert_array_equal(np.asarray(found.dataobj), grid.to_file(labels))
    assert np.asarray(found.dataobj).sum() == 24 * label


def nibabels(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Ids (I, J, K) and affine in RAS+ millimetres, not by our own readers."""
    found = nib.load(path)
    return np.asarray(found.dataobj), found.affine


def pynrrds(path: Path) -> tuple[np.ndarray, np.ndarray]:
    array, header = nrrd.read(str(path))
    assert header["space"] == "left-posterior-superior"
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = header["space directions"].T, header["space origin"]
    return array, np.diag([-1.0, -1, 1, 1]) @ affine


def simpleitks(path: Path) -> tuple[np.ndarray, np.ndarray]:
    image = sitk.ReadImage(path)
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    array = sitk.GetArrayFromImage(image).transpose(2, 1, 0)
    return array, np.diag([-1.0, -1, 1, 1]) @ affine


READERS = {
    "a.nii": nibabels,
    "a.nii.gz": nibabels,
    "a.NII.GZ": nibabels,
    "a.nrrd": pynrrds,
    "b.nrrd": simpleitks,
    "a.mha": simpleitks,
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(("affine", "shape"), [*GRIDS, ODD_GRID])
def test_masks_of_all_formats_have_the_scans_grid(
    tmp_path: Path, affine: np.ndarray, shape: tuple[int, ...], name: str
) -> None:
    """By the readers of others, to 1e-6."""
    grid = ScanGrid(affine, shape)  # type: ignore[arg-type]
    labels = torch.zeros(grid.size[::-1], dtype=torch.int16)
    labels[3, 2:8, 5:9], labels[0, 0, 0] = 300, 7
    (path,) = write_masks(labels, grid, tmp_path / name, {7: "a", 300: "b"})
    array, found = READERS[name](path)
    np.testing.assert_array_equal(array, grid.to_file(labels))
    np.testing.assert_allclose(found, affine, rtol=1e-6, atol=1e-6)
    assert array.dtype == np.int16


@pytest.mark.parametrize("name", ["mask.mhd", "mask.nhdr", "mask.jpg", "mask"])
def test_mask_of_another_kind_is_refused(tmp_path: Path, name: str) -> None:
    endings = r"\.nii, \.nii\.gz, \.nrrd, \.mha, \.tif, \.tiff, \.png, \.gpkg, \.geojson, \.json"
    text = rf"{name}: expected a name that ends in {endings} or \.dcm\.$"
    for refused in (
        lambda: write_masks(torch.zeros(6, 12, 10), LPS_GRID, tmp_path / name, {1: "liver"}),
        lambda: refuse_taken_masks(tmp_path / name, {1: "liver"}),
    ):
        with pytest.raises(DataError, match=text):
            refused()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "format", "expected"),
    [
        ("mask.nii.gz", None, "nii.gz"),
        ("mask.nii", None, "nii"),
        ("MASK.NRRD", None, "nrrd"),
        ("mask.dcm", None, "seg"),
        ("mask.DCM", "rtstruct", "rtstruct"),
        ("mask.mha", "mha", "mha"),
    ],
)
def test_the_ending_says_the_format(name: str, format: str | None, expected: str) -> None:
    assert format_for(name, format) == expected


@pytest.mark.parametrize(
    ("name", "format", "message"),
    [
        (
            "m.nii.gz",
            "rtstruct",
            r"m\.nii\.gz: --format rtstruct writes \.dcm, and the name ends oth",
        ),
        ("m.nii.gz", "nii", r"--format nii writes \.nii, and"),
        ("m.dcm", "nrrd", r"--format nrrd writes \.nrrd, and"),
        ("m.dcm", "rtstrct", r"^format is 'rtstrct'; expected one of nii, .*'rtstruct'\?$"),
    ],
)
def test_formats_that_contradict_the_name(name: str, format: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        format_for(name, format)


def test_settings_of_dicom_for_other_formats(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"m\.nii: has no place for --codes; leave it out"):
        refuse_taken_masks(tmp_path / "m.nii", {1: "a"}, source=Source(codes="codes.csv"))
    with pytest.raises(ValueError, match=r"^segmentation is 'labelmap', which is for a DICOM SEG"):
        refuse_taken_masks(tmp_path / "m.nii", {1: "a"}, source=Source(segmentation="labelmap"))
    with pytest.raises(ValueError, match=r"^segmentation is 'bits'; expected binary or labelmap"):
        Source(segmentation="bits")


def test_failing_write_leaves_the_old_mask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mask.nii"
    write_mask(torch.zeros(6, 12, 10, dtype=torch.int16), LPS_GRID, path)
    before = path.read_bytes()

    def fail(image: nib.Nifti1Image, file: Path) -> None:
        file.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(nib, "save", fail)
    with pytest.raises(OSError, match="No space left"):
        write_mask(torch.ones(6, 12, 10, dtype=torch.int16), LPS_GRID, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["mask.nii"]


def test_voxels_are_counted_in_the_scans_own_grid(tmp_path: Path) -> None:
    grid = ScanGrid(LPS_GRID.affine, LPS_GRID.shape, size=(20, 24, 6))  # twice as fine in the plane
    labels = torch.zeros(6, 24, 20, dtype=torch.int16)
    labels[2, 4:12, 6:18] = 1
    assert write_mask(labels, grid, tmp_path / "mask.nii") == {1: 4 * 6}


def test_row_78_codes_go_from_the_scan_to_its_mask(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.ones((4, 5, 6), np.float32), np.diag([2.0, 3, 4, 1]))
    image.set_qform(image.affine, 1)
    image.set_sform(image.affine, 4)
    nib.save(image, tmp_path / "a.nii")
    grid = grid_of(load_image(tmp_path / "a.nii"), ScanRules(Window(0, 1)))
    assert grid.codes == (1, 4)
    write_mask(torch.ones(6, 5, 4, dtype=torch.int32), grid, tmp_path / "mask.nii")
    header = nib.load(tmp_path / "mask.nii").header
    assert (int(header["qform_code"]), int(header["sform_code"])) == (1, 4)


def test_row_76_ids_of_a_mask(tmp_path: Path) -> None:
    labels = torch.zeros(6, 12, 10, dtype=torch.int64)
    labels[0, 0, 0] = 2**31 - 1
    write_mask(labels, LPS_GRID, tmp_path / "mask.nii.gz")
    assert np.asarray(nib.load(tmp_path / "mask.nii.gz").dataobj).max() == 2**31 - 1
    with pytest.raises(DataError, match=r"^label ids from 0 to 2147483648; expected 0 to 21474836"):
        write_mask(labels + (labels > 0), LPS_GRID, tmp_path / "other.nii.gz")
    assert [path.name for path in tmp_path.iterdir()] == ["mask.nii.gz"]


def test_masks_of_labels_have_files_of_their_own(tmp_path: Path) -> None:
    labels = {1: "liver", 2: "left/kidney: 3 cm", 30: "../.."}
    paths = mask_paths(tmp_path / "a.b.nii.gz", labels)
    assert [path.name for path in paths.values()] == [
        "a.b_1_liver.nii.gz",
        "a.b_2_left_kidney_3_cm.nii.gz",
        "a.b_30_.._...nii.gz",
    ]
    assert {path.parent for path in paths.values()} == {tmp_path}
    masks = {1: torch.zeros(6, 12, 10, dtype=torch.bool), 2: torch.ones(6, 12, 10) > 0}
    counts = write_masks(masks, LPS_GRID, tmp_path / "a.b.nii.gz", labels)
    assert counts == {paths[1]: {}, paths[2]: {2: 720}}
    assert {path.name for path in tmp_path.iterdir()} == {paths[1].name, paths[2].name}
    assert np.asarray(nib.load(paths[2]).dataobj).sum() == 720
    assert nib.load(paths[2]).get_data_dtype() == np.uint8


def test_what_is_there_is_refused_before_the_work(tmp_path: Path) -> None:
    path, labels = tmp_path / "mask.nii.gz", {1: "liver", 2: "spleen"}
    refuse_taken_masks(path, labels)
    refuse_taken_masks(path, labels, separate=True)
    (tmp_path / "mask_2_spleen.nii.gz").touch()
    refuse_taken_masks(path, labels)
    with pytest.raises(DataError, match=r"mask_2_spleen\.nii\.gz: is there already"):
        refuse_taken_masks(path, labels, separate=True)
    refuse_taken_masks(path, labels, separate=True, overwrite=True)
    with pytest.raises(DataError, match="is an input"):
        refuse_taken_masks(path, labels, True, True, [tmp_path / "mask_2_spleen.nii.gz"])


@pytest.mark.parametrize(
    ("name", "ending"), [("a.nii.gz", ".nii.gz"), ("a.b.nii", ".nii"), ("a.png", ".png"), ("a", "")]
)
def test_the_ending_of_a_mask(name: str, ending: str) -> None:
    assert ending_of(Path("x.nii") / name) == ending


def test_the_mask_is_cleaned_in_the_scans_own_grid(tmp_path: Path) -> None:
    labels = torch.zeros(6, 12, 10, dtype=torch.int16)
    labels[1:3, 2:8, 5:9] = 1
    labels[5, 11, 0] = 1
    path = tmp_path / "mask.nii.gz"
    spacing = float(np.prod(LPS_GRID.spacing))  # mm3 of a voxel
    assert write_mask(labels, LPS_GRID, path, Aftercare(min_volume_ml=2 * spacing / 1000)) == {
        1: 48
    }
    assert write_mask(labels, LPS_GRID, path, Aftercare(min_volume_ml=spacing / 1000)) == {1: 49}


def test_a_mask_of_an_image_is_a_png_of_its_size(tmp_path: Path) -> None:
    grid = ScanGrid(affine_of(), (7, 5, 1))
    labels = torch.zeros(1, 5, 7, dtype=torch.int16)
    labels[0, 1, 2:6] = 300
    assert write_mask(labels, grid, tmp_path / "mask.png") == {300: 4}
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "mask.png")), labels[0])
    assert mask_paths("a/mask.png", {1: "road"}) == {1: Path("a/mask_1_road.png")}
    refuse_taken_masks(tmp_path / "b.png", {1: "road"}, source=Source(scan=tmp_path / "a.JPG"))
    with pytest.raises(
        DataError, match=r"b\.png: a 2-D image holds one slice, and .*a\.nii\.gz is no 2-D"
    ):
        refuse_taken_masks(
            tmp_path / "b.png", {1: "road"}, source=Source(scan=tmp_path / "a.nii.gz")
        )


def test_dicom_of_one_slice_is_an_image(tmp_path: Path) -> None:
    for count in (1, 2):
        source = Source(scan=write_series(tmp_path / str(count), count=count))
        if count == 1:
            check_output(tmp_path / "b.png", {1: "lung"}, source=source)
            continue
        with pytest.raises(
            DataError, match=r"b\.png: a 2-D image holds one slice, and .*2 is no 2"
        ):
            check_output(tmp_path / "b.png", {1: "lung"}, source=source)
