"""DICOM SEG that is written: valid, and the same to the readers of others."""

from __future__ import annotations

from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest

from medsam_tune.errors import DataError
from medsam_tune.formats.dicom.codes import structures
from medsam_tune.formats.dicom.seg import read_segmentation, segment_names
from medsam_tune.formats.dicom.seg_writing import try_segmentation, write_segmentation
from medsam_tune.formats.dicom.sources import Sources, read_sources
from tests.dicom_results import (
    DRAWN_BY,
    LABELS,
    SCANS,
    SEEN,
    by_dcmqi,
    drawn,
    errors,
    numbered,
    onto,
    scan,
)

EVERY = [*SCANS, pytest.param("real", marks=pytest.mark.real_data)]


def written(path: Path, sources: Sources, ids: object, kind: str = "binary") -> pydicom.Dataset:
    write_segmentation(path, ids, sources, SEEN, DRAWN_BY, kind)
    return pydicom.dcmread(path)


@pytest.mark.parametrize("kind", ["binary", "labelmap"])
@pytest.mark.parametrize("which", EVERY)
def test_others_find_the_same_voxels(tmp_path: Path, which: str, kind: str) -> None:
    place = scan(which, tmp_path / "scan")
    sources = read_sources(place, None, "a DICOM SEG")
    shape, affine = sources.grid.shape, sources.grid.affine
    ids, path = drawn(shape), tmp_path / "seg.dcm"
    content = written(path, sources, ids, kind)
    expected = ids if kind == "labelmap" else numbered(ids)
    assert errors("dciodvfy", path) == []
    files = sorted(place.iterdir()) if place.is_dir() else [place]
    assert errors("dcentvfy", path, *files) == []
    volume = highdicom.seg.segread(path).get_volume(combine_segments=True)
    np.testing.assert_array_equal(onto(volume.array, volume.affine, shape, affine), expected)
    dcmqi = by_dcmqi(path, tmp_path / "dcmqi")
    np.testing.assert_array_equal(onto(*dcmqi, shape, affine), expected)
    planes = read_segmentation(path)
    np.testing.assert_array_equal(planes.ids, expected[..., ids.any(axis=(0, 1))])
    # As OHIF and others need it: the series, each image, and the image below each frame.
    (series,) = content.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == sources.series.uid
    referred = {one.ReferencedSOPInstanceUID for one in series.ReferencedInstanceSequence}
    assert referred == {frame.uid for frame in sources.frames}
    for frame in content.PerFrameFunctionalGroupsSequence:
        (below,) = frame.DerivationImageSequence[0].SourceImageSequence
        (k,) = (
            k
            for k, one in enumerate(sources.frames)
            if np.allclose(
                one.instance.position, frame.PlanePositionSequence[0].ImagePositionPatient
            )
        )
        assert below.ReferencedSOPInstanceUID == sources.frames[k].uid
        assert int(below.get("ReferencedFrameNumber") or 0) == sources.frames[k].instance.frame


def test_what_a_segment_says(tmp_path: Path) -> None:
    sources = read_sources(scan("straight", tmp_path), None, "a DICOM SEG")
    content = written(tmp_path / "seg.dcm", sources, drawn(sources.grid.shape))
    assert segment_names(tmp_path / "seg.dcm") == {1: "liver", 2: "kidney_left", 3: "spleen"}
    kidney = content.SegmentSequence[1]
    (kind,) = kidney.SegmentedPropertyTypeCodeSequence
    assert (kind.CodeValue, kind.CodingSchemeDesignator) == ("64033007", "SCT")
    assert kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"
    assert kidney.SegmentedPropertyCategoryCodeSequence[0].CodeMeaning == "Anatomical Structure"
    colour = highdicom.color.CIELabColor.from_dicom_value(kidney.RecommendedDisplayCIELabValue)
    assert colour.to_rgb() == SEEN[1].colour
    assert kidney.SegmentAlgorithmType == "AUTOMATIC"
    (algorithm,) = kidney.SegmentationAlgorithmIdentificationSequence
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("medsam_tune", "0.1.0")
    assert algorithm.AlgorithmParameters == f"tuned_sha256={'a' * 64}"
    assert content.DeviceSerialNumber == "a" * 64
    assert content.SegmentsOverlap == "NO"
    (measures,) = content.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
    assert measures.SpacingBetweenSlices == measures.SliceThickness == 2.5  # the tag says 9


def test_masks_by_label_overlap(tmp_path: Path) -> None:
    sources = read_sources(scan("straight", tmp_path), None, "a DICOM SEG")
    ids = drawn(sources.grid.shape)
    masks = {1: ids > 0, 5: ids == 5}
    seen = structures({1: "liver", 5: "kidney_left"})
    path = tmp_path / "seg.dcm"
    write_segmentation(path, masks, sources, seen, DRAWN_BY)
    assert errors("dciodvfy", path) == []
    seg = highdicom.seg.segread(path)
    assert seg.SegmentsOverlap == "YES"
    volume = seg.get_volume()
    for channel, mask in enumerate(masks.values()):
        array = volume.array[..., channel]
        found = onto(array, volume.affine, ids.shape, sources.grid.affine)
        np.testing.assert_array_equal(found, mask)
    with pytest.raises(ValueError, match="in which masks cannot overlap"):
        write_segmentation(path, masks, sources, seen, DRAWN_BY, "labelmap")


@pytest.mark.parametrize("kind", ["binary", "labelmap"])
def test_an_empty_mask_is_a_small_valid_file(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    sources = read_sources(scan("straight", tmp_path), None, "a DICOM SEG")
    path = tmp_path / "seg.dcm"
    content = written(path, sources, np.zeros(sources.grid.shape, np.uint8), kind)
    assert content.NumberOfFrames == (6 if kind == "binary" else 2)
    assert errors("dciodvfy", path) == []
    assert not by_dcmqi(path, tmp_path / "dcmqi")[0].any()
    assert not read_segmentation(path).ids.any()
    names = segment_names(path)
    assert list(names.values()) == list(LABELS.values())
    (series,) = content.ReferencedSeriesSequence
    assert len(series.ReferencedInstanceSequence) == len(sources.frames)
    assert not caplog.records


def test_one_slice(tmp_path: Path) -> None:
    place = scan("straight", tmp_path)
    for file in sorted(place.iterdir())[1:]:
        file.unlink()
    sources = read_sources(place, None, "a DICOM SEG")
    ids = np.zeros(sources.grid.shape, np.uint8)
    for values in (0, 5):
        ids[2:5, 3:4] = values
        written(tmp_path / "seg.dcm", sources, ids)
        assert errors("dciodvfy", tmp_path / "seg.dcm") == []
        np.testing.assert_array_equal(read_segmentation(tmp_path / "seg.dcm").ids, ids // 2)


def test_names_in_any_script(tmp_path: Path) -> None:
    place = scan("straight", tmp_path)
    seen = structures({1: "肝臓", 2: "Milz \\ größer\nals 3 cm " + "x" * 80})
    sources = read_sources(place, None, "a DICOM SEG")
    path = tmp_path / "seg.dcm"
    write_segmentation(path, np.zeros(sources.grid.shape, np.uint8), sources, seen, DRAWN_BY)
    first, second = segment_names(path).values()
    assert first == "肝臓"
    assert second.startswith("Milz _ größer_als 3 cm xx")
    assert len(second.encode()) == 64
    assert errors("dciodvfy", path) == []


def test_ids_that_a_labelmap_cannot_hold(tmp_path: Path) -> None:
    sources = read_sources(scan("straight", tmp_path), None, "a DICOM SEG")
    seen = structures({1: "liver", 70_000: "spleen"})
    with pytest.raises(
        DataError, match=r"seg\.dcm: label id 70000; a labelmap of DICOM holds ids up"
    ):
        try_segmentation(tmp_path / "seg.dcm", sources, seen, DRAWN_BY, "labelmap")
    ids = np.zeros(sources.grid.shape, np.int32)
    ids[0, 0, 0] = 70_000
    write_segmentation(tmp_path / "seg.dcm", ids, sources, seen, DRAWN_BY)
    assert read_segmentation(tmp_path / "seg.dcm").ids.max() == 2


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = read_sources(scan("straight", tmp_path), None, "a DICOM SEG")
    path = tmp_path / "out" / "seg.dcm"
    written(path, sources, drawn(sources.grid.shape))
    before = path.read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        written(path, sources, drawn(sources.grid.shape) * 0)
    assert path.read_bytes() == before
    assert [one.name for one in path.parent.iterdir()] == ["seg.dcm"]
