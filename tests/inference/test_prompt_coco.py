"""COCO's JSON as prompts: boxes of one image, labels by the names of categories."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medsam_tune.cases.datalist import Case
from medsam_tune.cases.places import Scans
from medsam_tune.errors import DataError
from medsam_tune.formats.image import affine_of
from medsam_tune.inference.jobs import jobs_for
from medsam_tune.inference.prompt_files import kind_of_prompts, read_prompts
from medsam_tune.slices.frames import ScanGrid
from tests.coco_files import COUNTS, HEIGHT, WIDTH, annotation, write

GRID = ScanGrid(affine_of(), (WIDTH, HEIGHT, 1))
LABELS = {3: "Text", 5: "table"}
SCAN = Path("pages/a.png")


def test_boxes_and_else_bounds_of_outlines(tmp_path: Path) -> None:
    rle = {"size": [HEIGHT, WIDTH], "counts": COUNTS}
    path = write(
        tmp_path / "p.json",
        annotation(1, bbox=[2.5, 0, 3, 2.5]),
        annotation(2, category=4),
        annotation(3, segmentation=rle),
        annotation(4, iscrowd=1, segmentation=rle),
    )
    with pytest.warns(UserWarning, match=r"p\.json: 1 crowds of a\.png left out"):
        found = read_prompts(path, GRID, LABELS, scan=SCAN)
    rows = {
        (int(label), *box) for label, box in zip(found.labels, found.boxes.tolist(), strict=True)
    }
    assert rows == {(3, 2.5, 0, 5.5, 2.5), (5, 1, 1, 5, 4), (3, 1, 1, 5, 4)}
    assert len(found.objects.unique()) == 3
    assert kind_of_prompts(path) == "COCO"


@pytest.mark.parametrize(
    ("one", "scan", "message"),
    [
        ({}, Path("b.png"), r"no image has the file_name b\.png; expected one"),
        ({}, None, "COCO's files are of 2-D images, .* and this is in memory"),
        ({"image_id": 8}, SCAN, r"no object of a\.png; expected one at least"),
        ({"bbox": [1, 1, 0, 3]}, SCAN, r"p\.json: annotation 1: .*bbox is \[1, 1, 0, 3\]"),
        ({"bbox": [1, 1, 40, 3]}, SCAN, r"annotation 1: reaches from"),
        ({"category": 6}, SCAN, r"annotation 1: its category is 'figure'; known: .*Text"),
    ],
)
def test_what_is_refused(
    tmp_path: Path, one: dict[str, Any], scan: Path | None, message: str
) -> None:
    named = [{"id": 1, "name": "text"}, {"id": 6, "name": "figure"}]
    sizes = {"width": WIDTH, "height": HEIGHT}
    images = [{"id": 7, "file_name": "a.png", **sizes}, {"id": 8, "file_name": "c.png", **sizes}]
    path = write(tmp_path / "p.json", annotation(1, **one), images=images, categories=named)
    with pytest.raises(DataError, match=message):
        read_prompts(path, GRID, LABELS, scan=scan)


def test_other_sizes_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "p.json", annotation())
    with pytest.raises(DataError, match=r"a\.png has 9 x 6 pixels, the image 9 x 7 \(pages"):
        read_prompts(path, ScanGrid(np.eye(4), (9, 7, 1)), LABELS, scan=SCAN)


def test_one_file_is_of_many_images(tmp_path: Path) -> None:
    path = write(tmp_path / "p.json", annotation())
    cases = tuple(Case(tmp_path / name, None, "") for name in ("a.png", "b.png"))
    jobs = jobs_for(Scans(cases, tmp_path), tmp_path / "masks", ".png", path)
    assert [job.prompts for job in jobs] == [path, path]
