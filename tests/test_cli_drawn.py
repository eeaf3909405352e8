"""Boxes and points that are typed on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from medsam_tune.cli.drawn import drawn_prompts, write_drawn
from medsam_tune.formats.image import affine_of
from medsam_tune.inference.prompt_files import read_prompts
from medsam_tune.slices.frames import ScanGrid

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
    with pytest.raises(ValueError, match=r"--box and --point are of 2-D images, \.png.*a\.nii\.gz"):
        write_drawn(Path("a.nii.gz"), Path("run"), Path("m.png"), ["1,2,3,4"], [])
    with pytest.raises(ValueError, match="are of one image, and --output masks is a folder"):
        write_drawn(Path("a.PNG"), Path("run"), Path("masks"), ["1,2,3,4"], [])
