"""Boxes and points that are typed on the command line."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import pytest

from medsam_tune.cli.drawn import drawn_prompts, write_drawn
from medsam_tune.formats.image import affine_of
from medsam_tune.inference.prompt_files import read_prompts
from medsam_tune.slices.frames import ScanGrid
from medsam_tune.slices.intensity import for_modality
from medsam_tune.slices.rules import ScanRules
from tests.dicom_series import SIZE, write_series
from tests.inference.made import write_run

LABELS = {1: "road", 2: "house, old"}
GRID = ScanGrid(affine_of(), (60, 40, 1))


def test_each_box_is_an_object_and_points_join_the_smallest_around_them():
    said = drawn_prompts(
        ["2,3,30,30,road", "5,6,12,13,1", "40,1,50,9,House, old"],
        ["6,7,1,1", "20,20,0,road", "55,35,1,2"],
        LABELS,
    )
    found = read_prompts(said, GRID, LABELS)
    assert found.labels.tolist() == [1, 1, 2, 2]
    assert found.boxes[:3].tolist() == [[2, 3, 30, 30], [5, 6, 12, 13], [40, 1, 50, 9]]
    assert found.point_labels.tolist() == [[0], [1], [-1], [1]]
    assert found.points[:, 0].tolist()[:2] == [[20.5, 20.5], [6.5, 7.5]]
    assert found.drawn.all()
    assert not found.spread


def test_the_only_label_needs_no_name():
    said = drawn_prompts(["1,2,3,4"], ["5,6,1"], {7: "cell"})
    assert [one["label"] for one in said["objects"]] == [7, 7]


@pytest.mark.parametrize(
    ("boxes", "points", "text"),
    [
        (["1,2,3"], [], r"--box '1,2,3': expected x0,y0,x1,y1,label, in pixels of the image"),
        (["1,2,3,x"], [], "--box '1,2,3,x': expected"),
        (["1,2,3,4"], [], r"says no label, and the model has several: 1 \(road\), 2 \(house"),
        (["1,2,3,4,tree"], [], r"label 'tree' is not there; known: 1 \(road\)"),
        ([], ["1,2"], "--point '1,2': expected x,y,1,label"),
    ],
)
def test_what_is_no_prompt(boxes, points, text):
    with pytest.raises(ValueError, match=text):
        drawn_prompts(boxes, points, LABELS)


def test_two_numbers_are_no_place_in_a_volume():
    with pytest.raises(
        ValueError, match=r"--box and --point are of one 2-D image, \.png.*a\.nii\.gz"
    ):
        write_drawn(Path("a.nii.gz"), Path("run"), Path("m.png"), ["1,2,3,4"], [])
    with pytest.raises(ValueError, match="are of one image, and --output masks is a folder"):
        write_drawn(Path("a.PNG"), Path("run"), Path("masks"), ["1,2,3,4"], [])


def without_place(_, image):
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        delattr(image, name)


@pytest.mark.parametrize(
    ("modality", "change"), [("DX", without_place), ("CR", None), ("MG", None)]
)
def test_radiographs_in_dicom_take_boxes(tune, tmp_path, modality, change):
    rules = ScanRules(for_modality("XR"), modality="XR")
    write_run(tmp_path / "run", rules, classes=2)
    folder = write_series(tmp_path / "scan", change, modality, count=1)
    write_series(tmp_path / "others" / "a", change, modality, count=1, uid="1.2.3")
    write_series(tmp_path / "others" / "b", change, modality, count=1, uid="1.2.4")
    scans = (folder, next(folder.iterdir()), tmp_path / "others")
    for number, scan in enumerate(scans):
        mask = tmp_path / f"m{number}.nii.gz"
        more = ["--series", "1.2.4"] if scan.name == "others" else []
        words = ("--run", tmp_path / "run", "--output", mask, "--box", "2,3,9,8,liver", *more)
        code, _, err = tune("predict", scan, *words, "--bundle", "image")
        assert code == 0, err
        assert nib.load(mask).shape == (*SIZE, 1)
        written = read_prompts(
            tmp_path / f"m{number}.prompts.json", ScanGrid(affine_of(), (*SIZE, 1)), LABELS
        )
        assert written.boxes.tolist() == [[2, 3, 9, 8]]


def test_other_dicom_is_refused(tmp_path):
    ct = write_series(tmp_path / "ct", count=1)
    cine = write_series(tmp_path / "xa", modality="XA", count=3)
    for scan in (ct, cine):
        with pytest.raises(
            ValueError, match=r"or of one radiograph in DICOM; .* is none. Give a pr"
        ):
            write_drawn(scan, Path("run"), tmp_path / "m.nii.gz", ["1,2,3,4"], [])
    several = write_series(tmp_path / "both" / "a", modality="DX", count=1).parent
    write_series(several / "b", modality="DX", count=1)
    with pytest.raises(ValueError, match=r"is none: .*both: 2 series: .*--series"):
        write_drawn(several, Path("run"), tmp_path / "m.nii.gz", ["1,2,3,4"], [])
    assert not list(tmp_path.glob("m*"))
