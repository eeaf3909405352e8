"""RTSTRUCT that is written: valid, and the same to our reader and to rt-utils."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest

from medsam_tune.cases.labels.rtstruct import StructureSet
from medsam_tune.formats.dicom.codes import structures
from medsam_tune.formats.dicom.references import references
from medsam_tune.formats.dicom.rtstruct import read_regions
from medsam_tune.formats.dicom.rtstruct_writing import write_structure_set
from medsam_tune.formats.dicom.sources import Sources, read_sources
from medsam_tune.formats.mending import Mending
from medsam_tune.formats.open import load_image
from tests.dicom_results import DRAWN_BY, LABELS, SCANS, SEEN, drawn, errors, scan

EVERY = [*SCANS, pytest.param("real", marks=pytest.mark.real_data)]


def written(path: Path, sources: Sources, ids: np.ndarray) -> pydicom.Dataset:
    write_structure_set(path, ids, sources, SEEN, DRAWN_BY)
    return pydicom.dcmread(path)


@pytest.mark.parametrize("which", EVERY)
def test_readers_find_the_same_voxels(tmp_path: Path, which: str) -> None:
    place, path = scan(which, tmp_path / "scan"), tmp_path / "rt.dcm"
    sources = read_sources(place, None, "an RTSTRUCT")
    ids = drawn(sources.grid.shape)
    content = written(path, sources, ids)
    assert errors("dciodvfy", path) == []
    files = sorted(place.iterdir()) if place.is_dir() else [place]
    # The standard wants the study's UID as that of a referenced instance; dcentvfy looks for one.
    study = f"Missing SOPInstanceUID that was referenced - {content.StudyInstanceUID} "
    assert [text for text in errors("dcentvfy", path, *files) if study not in text] == []
    label = StructureSet(path).onto(
        load_image(place), place, {1: "liver", 5: "kidney_left"}, Mending()
    )
    np.testing.assert_array_equal(label[0].numpy(), ids)
    for roi in content.ROIContourSequence:
        for contour in roi.get("ContourSequence", ()):
            (image,) = contour.ContourImageSequence
            (k,) = (
                k
                for k, frame in enumerate(sources.frames)
                if frame.uid == image.ReferencedSOPInstanceUID
                and frame.instance.frame == int(image.get("ReferencedFrameNumber") or 0)
            )
            position = sources.frames[k].instance.position
            normal = np.cross(*sources.orientation)
            points = np.reshape(contour.ContourData, (-1, 3)).astype(float)
            assert np.abs((points - position) @ normal).max() < 1e-4
            assert len(points) == contour.NumberOfContourPoints


@pytest.mark.parametrize("which", ["square", pytest.param("real", marks=pytest.mark.real_data)])
def test_rt_utils_finds_the_same_voxels(tmp_path: Path, which: str) -> None:
    rt_utils = pytest.importorskip("rt_utils", reason="rt-utils is not installed")
    place, path = scan(which, tmp_path / "scan"), tmp_path / "rt.dcm"
    sources = read_sources(place, None, "an RTSTRUCT")
    ids = drawn(sources.grid.shape)
    written(path, sources, ids)
    found = rt_utils.RTStructBuilder.create_from(str(place), str(path))
    assert found.get_roi_names() == [*LABELS.values()]
    for label in (1, 5):
        mask = found.get_roi_mask_by_name(LABELS[label])
        np.testing.assert_array_equal(mask.transpose(1, 0, 2), ids == label)


def test_what_a_region_says(tmp_path: Path) -> None:
    sources = read_sources(scan("straight", tmp_path), None, "an RTSTRUCT")
    content = written(tmp_path / "rt.dcm", sources, drawn(sources.grid.shape))
    assert [(one.number, one.name) for one in read_regions(tmp_path / "rt.dcm")] == [
        (1, "liver"),
        (5, "kidney_left"),
    ]
    said = references(tmp_path / "rt.dcm")
    assert (said.series, said.frame) == ((sources.series.uid,), sources.series.frame)
    (frame,) = content.ReferencedFrameOfReferenceSequence
    (series,) = frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence
    referred = {one.ReferencedSOPInstanceUID for one in series.ContourImageSequence}
    assert referred == {one.uid for one in sources.frames}
    kidney = content.StructureSetROISequence[1]
    assert kidney.ROIGenerationAlgorithm == "AUTOMATIC"
    (algorithm,) = kidney.ROIDerivationAlgorithmIdentificationSequence
    assert algorithm.AlgorithmParameters == f"tuned_sha256={'a' * 64}"
    assert list(content.ROIContourSequence[1].ROIDisplayColor) == list(SEEN[1].colour)
    (code,) = content.RTROIObservationsSequence[1].RTROIIdentificationCodeSequence
    assert code.CodeMeaning == "Kidney"
    assert "ContourSequence" not in content.ROIContourSequence[2]  # nothing was found
    assert content.ApprovalStatus == "UNAPPROVED"


def test_an_empty_structure_set_is_valid(tmp_path: Path) -> None:
    sources = read_sources(scan("straight", tmp_path), None, "an RTSTRUCT")
    written(tmp_path / "rt.dcm", sources, np.zeros(sources.grid.shape, np.uint8))
    assert errors("dciodvfy", tmp_path / "rt.dcm") == []
    assert read_regions(tmp_path / "rt.dcm") == []


def test_regions_overlap(tmp_path: Path) -> None:
    sources = read_sources(scan("straight", tmp_path), None, "an RTSTRUCT")
    ids = drawn(sources.grid.shape)
    path = tmp_path / "rt.dcm"
    seen = structures({1: "liver", 5: "kidney_left"})
    write_structure_set(path, {1: ids > 0, 5: ids == 5}, sources, seen, DRAWN_BY)
    image, labels = load_image(tmp_path / "series"), {1: "liver", 5: "kidney_left"}
    for label, mask in ((1, ids > 0), (5, ids == 5)):
        only = {label: labels[label]}
        found = StructureSet(path).onto(image, tmp_path, only, Mending())
        np.testing.assert_array_equal(found[0].numpy() > 0, mask)


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = read_sources(scan("straight", tmp_path), None, "an RTSTRUCT")
    path = tmp_path / "out" / "rt.dcm"
    written(path, sources, drawn(sources.grid.shape))
    before = path.read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        written(path, sources, drawn(sources.grid.shape) * 0)
    assert path.read_bytes() == before
    assert [one.name for one in path.parent.iterdir()] == ["rt.dcm"]
