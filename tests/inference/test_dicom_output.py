"""Predictions as DICOM: what is refused before a model runs, and what is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from pydicom.dataset import Dataset

from medsam_tune.cases.datalist import Case
from medsam_tune.cases.load import load_case
from medsam_tune.errors import DataError
from medsam_tune.files import file_hash
from medsam_tune.formats.dicom.rtstruct import read_regions
from medsam_tune.formats.dicom.seg import read_segmentation, segment_names
from medsam_tune.formats.open import load_image
from medsam_tune.inference.aftercare import Aftercare
from medsam_tune.inference.inferers import VolumeInferer
from medsam_tune.inference.output import Source, refuse_taken_masks, write_masks
from medsam_tune.inference.prompt_files import read_prompts
from medsam_tune.inference.segmenter import Segmenter
from medsam_tune.slices.cut import cut
from medsam_tune.slices.frames import ScanGrid
from medsam_tune.slices.intensity import Window
from medsam_tune.slices.rules import ScanRules
from tests.dicom_results import SCANS, errors, scan
from tests.dicom_series import COUNT, SIZE, write_series
from tests.inference.made import LABELS, objects
from tests.inference.test_segmenter import write_run
from tests.scans import small_scan, write_nifti

RULES = ScanRules(Window(100, 200))
PROMPTS = objects(
    {"label": 1, "box3d": [1, 1, 4, 7, 11, 8]}, {"label": 2, "box3d": [7, 1, 4, 13, 11, 8]}
)


def grid_of(place: Path) -> ScanGrid:
    return cut(load_image(place), RULES)[1]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run whose model takes boxes."""
    write_run(tmp_path / "run", RULES)
    return tmp_path / "run"


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refusals come before it."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("the model ran")

    monkeypatch.setattr(VolumeInferer, "open", fail)
    monkeypatch.setattr(VolumeInferer, "__call__", fail)


@pytest.mark.parametrize("which", SCANS)
def test_a_mask_in_slices_lies_on_the_images(tmp_path: Path, which: str) -> None:
    place = scan(which, tmp_path / "scan")
    grid = grid_of(place)
    found = torch.zeros(grid.size[::-1], dtype=torch.uint8)
    found[1:4, 2:6, 3:8], found[3, 0, 0] = 1, 2
    source = Source(place)
    ids = grid.to_file(found)
    written = write_masks(found, grid, tmp_path / "a.dcm", LABELS, source=source)
    assert written == {tmp_path / "a.dcm": {1: int((ids == 1).sum()), 2: 1}}
    planes = read_segmentation(tmp_path / "a.dcm")
    np.testing.assert_array_equal(planes.ids, ids[..., ids.any(axis=(0, 1))])
    write_masks(found, grid, tmp_path / "b.dcm", LABELS, source=source, format="rtstruct")
    assert [one.name for one in read_regions(tmp_path / "b.dcm")] == ["liver", "spleen"]


def test_masks_by_label_are_segments_of_one_file(tmp_path: Path) -> None:
    place = scan("straight", tmp_path / "scan")
    grid = grid_of(place)
    whole = torch.ones(grid.size[::-1]) > 0
    found = {2: whole, 1: whole.clone()}
    found[1][0] = False
    labels = {**LABELS, 3: "not asked for"}
    path = tmp_path / "out" / "a.dcm"
    written = write_masks(found, grid, path, labels, source=Source(place))
    pixels = SIZE[0] * SIZE[1]
    assert written == {path: {1: pixels * (COUNT - 1), 2: pixels * COUNT}}
    assert [one.name for one in path.parent.iterdir()] == ["a.dcm"]
    assert segment_names(path) == {1: "liver", 2: "spleen"}
    assert pydicom.dcmread(path).SegmentsOverlap == "YES"
    write_masks(found, grid, path, labels, source=Source(place), format="rtstruct")
    assert errors("dciodvfy", path) == []


def test_the_mask_is_cleaned_first(tmp_path: Path) -> None:
    place = scan("straight", tmp_path / "scan")
    grid = grid_of(place)
    found = torch.zeros(grid.size[::-1], dtype=torch.uint8)
    found[1:3, 2:6, 3:8], found[5, 0, 0] = 1, 1
    care = Aftercare(largest_component=True)
    (count,) = write_masks(
        found, grid, tmp_path / "a.dcm", LABELS, care, source=Source(place)
    ).values()
    assert count == {1: 40}
    assert int((read_segmentation(tmp_path / "a.dcm").ids == 1).sum()) == 40


def test_a_segmenter_writes_dicom(tmp_path: Path, run: Path) -> None:
    place = scan("oblique", tmp_path / "scan")
    segmenter = Segmenter.from_run(run, device="cpu")
    ids = segmenter.segment(place, PROMPTS)[0].numpy()
    assert set(np.unique(ids)) == {0, 1, 2}
    table = tmp_path / "codes.csv"
    table.write_text("label,name\n1,Leber\n")
    (path,) = segmenter.predict(place, PROMPTS, tmp_path / "a.dcm", codes=table)
    planes = read_segmentation(path)
    np.testing.assert_array_equal(planes.ids, ids[..., ids.any(axis=(0, 1))])
    assert segment_names(path) == {1: "Leber", 2: "spleen"}
    segment = pydicom.dcmread(path).SegmentSequence[0]
    assert segment.SegmentAlgorithmType == "SEMIAUTOMATIC"
    tuned = file_hash(run / "tuned.safetensors")
    facts = segment.SegmentationAlgorithmIdentificationSequence[0].AlgorithmParameters
    assert facts == f"run=run,tuned_sha256={tuned}"
    (path,) = segmenter.predict(place, PROMPTS, tmp_path / "b.dcm", segmentation="labelmap")
    assert pydicom.dcmread(path).SegmentationType == "LABELMAP"
    (path,) = segmenter.predict(place, PROMPTS, tmp_path / "c.dcm", format="rtstruct")
    assert pydicom.dcmread(path).Modality == "RTSTRUCT"
    for file in tmp_path.glob("*.dcm"):
        assert errors("dciodvfy", file) == []


@pytest.mark.parametrize("segmentation", ["binary", "labelmap"])
def test_a_written_segmentation_is_prompts_of_the_same_labels(
    tmp_path: Path, segmentation: str
) -> None:
    place = scan("straight", tmp_path / "scan")
    labels = {31: "kidney_left", 2: "liver", 18: "spleen"}  # gaps
    write_run(tmp_path / "run", RULES, labels=labels)
    segmenter = Segmenter.from_run(tmp_path / "run", device="cpu")
    prompts = objects(
        {"label": 18, "box3d": [1, 1, 4, 7, 11, 8]}, {"label": 31, "box3d": [7, 1, 4, 13, 11, 8]}
    )
    ids = segmenter.segment(place, prompts)[0].numpy()
    assert set(np.unique(ids)) == {0, 18, 31}
    path = tmp_path / "a.dcm"
    segmenter.predict(place, prompts, path, segmentation=segmentation)
    grid = grid_of(place)
    assert set(read_prompts(path, grid, labels).labels.tolist()) == {18, 31}
    _, label = load_case(Case(place, path, "p"), labels)
    np.testing.assert_array_equal(label[0].numpy(), ids)


def test_a_segmenter_takes_one_series_of_several(tmp_path: Path, run: Path) -> None:
    write_series(tmp_path / "scans" / "a", uid="1.2.3.4")
    write_series(tmp_path / "scans" / "b", uid="1.2.3.5", count=6)
    segmenter = Segmenter.from_run(run, device="cpu")
    with pytest.raises(DataError, match="2 series"):
        segmenter.predict(tmp_path / "scans", PROMPTS, tmp_path / "a.dcm")
    (path,) = segmenter.predict(tmp_path / "scans", PROMPTS, tmp_path / "a.dcm", series="3.5")
    assert pydicom.dcmread(path).ReferencedSeriesSequence[0].SeriesInstanceUID == "1.2.3.5"
    (path,) = segmenter.predict(tmp_path / "scans", PROMPTS, tmp_path / "a.nii", series="3.5")
    assert nib.load(path).shape == (*SIZE, 6)


def nothing(_: int, image: Dataset) -> None:
    image.SOPInstanceUID = ""


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (
            lambda folder: write_nifti(folder / "scan.nii.gz", small_scan()[0]),
            {},
            r"scan\.nii\.gz: is not DICOM; a DICOM SEG refers to DICOM images\. Write the mask as",
        ),
        (lambda _: small_scan()[0], {}, r"^an image in memory: is not DICOM; a DICOM SEG refers"),
        (lambda folder: write_series(folder / "s", nothing), {}, "has no SOPInstanceUID, by which"),
        (lambda folder: folder / "gone", {}, r"gone: no such file or folder"),
        (
            lambda folder: write_series(folder / "s"),
            {"format": "nrrd"},
            r"--format nrrd writes \.nrrd, and the name ends otherwise",
        ),
        (
            lambda folder: write_series(folder / "s"),
            {"codes": "gone.csv"},
            r"gone\.csv: cannot be read",
        ),
        (
            lambda folder: write_series(folder / "s"),
            {"segmentation": "labelmap", "separate": True},
            r"^segmentation is 'labelmap', which is for a DICOM SEG without separate; expected b",
        ),
        (
            lambda folder: write_series(folder / "s"),
            {"segmentation": "labelmap", "format": "rtstruct"},
            r"^segmentation is 'labelmap', which is for a DICOM SEG without separate",
        ),
        (
            lambda folder: write_series(folder / "s"),
            {"segmentation": "Binary"},
            r"^segmentation is 'Binary'; expected binary or labelmap\.$",
        ),
    ],
)
def test_refusals_before_the_model_runs(
    tmp_path: Path,
    run: Path,
    make: Callable[[Path], object],
    options: dict[str, object],
    message: str,
) -> None:
    segmenter = Segmenter.from_run(run, device="cpu")
    made = make(tmp_path)
    if isinstance(made, np.ndarray):
        options = {**options, "affine": np.eye(4)}
    with pytest.raises(ValueError, match=message):
        segmenter.predict(made, PROMPTS, tmp_path / "a.dcm", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "a.dcm").exists()


def test_an_image_of_the_series_is_no_output(tmp_path: Path) -> None:
    place = scan("straight", tmp_path)
    file = next(place.iterdir())
    before = file.read_bytes()
    with pytest.raises(DataError, match=r"\.dcm: is an input; choose another file"):
        refuse_taken_masks(file, LABELS, overwrite=True, inputs=[place], source=Source(place))
    refuse_taken_masks(place / "seg.dcm", LABELS, inputs=[place], source=Source(place))
    (place / "seg.dcm").touch()
    with pytest.raises(DataError, match=r"seg\.dcm: is there already"):
        refuse_taken_masks(place / "seg.dcm", LABELS, source=Source(place))
    assert file.read_bytes() == before


def test_a_mask_of_another_scan_is_not_written(tmp_path: Path) -> None:
    grid = grid_of(scan("oblique", tmp_path / "one"))
    source = Source(scan("straight", tmp_path / "two"))
    found = torch.zeros(grid.size[::-1], dtype=torch.uint8)
    for format in ("seg", "rtstruct"):
        with pytest.raises(DataError, match="a DICOM result lies on the images as they are"):
            write_masks(found, grid, tmp_path / "a.dcm", LABELS, source=source, format=format)
    assert not (tmp_path / "a.dcm").exists()
