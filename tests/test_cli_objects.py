"""Objects as a result of `predict`: of prompts, of pieces, and everything."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medsam_tune.formats import coco
from medsam_tune.inference.segmenter import Segmenter
from medsam_tune.slices.intensity import for_modality
from medsam_tune.slices.rules import ScanRules
from medsam_tune.synthetic.aerial import make_aerial
from tests.inference.made import RAS, scan, write_run


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    made = make_aerial(np.random.default_rng(2), (96, 128))
    pixels = np.ascontiguousarray(made.image[:3].transpose(1, 2, 0))
    Image.fromarray(pixels).save(tmp_path / "tile.png")
    Image.fromarray(made.label).save(tmp_path / "prompts.png")
    return {"tile": tmp_path / "tile.png", "prompts": tmp_path / "prompts.png"}


def write_image_run(folder: Path, classes: int | None = None) -> Path:
    rules = ScanRules(for_modality("RGB"), modality="RGB", components=4)
    write_run(folder, rules, classes=classes, labels={1: "building", 2: "road"})
    return folder


def test_objects_of_prompts(tune, tmp_path, files):
    run = write_image_run(tmp_path / "run")
    words = ("predict", files["tile"], "--run", run, "--bundle", "image")
    words = (*words, "--prompts", files["prompts"], "--output")
    code, _, said = tune(*words, tmp_path / "out.json")
    assert code == 0, said
    (picture,) = coco.read(tmp_path / "out.json").pictures
    assert (picture.file_name, picture.width, picture.height) == ("tile.png", 128, 96)
    record = json.loads((tmp_path / "out.prediction.json").read_text())
    assert {one.category for one in picture.objects} <= {1, 2}
    assert 1 < len(picture.objects) <= len(record["objects"])
    assert record["settings"]["instances"] is True
    code, _, said = tune(*words, tmp_path / "numbers.png", "--instances")
    assert code == 0, said
    numbers = np.asarray(Image.open(tmp_path / "numbers.png"))
    for one in picture.objects:
        np.testing.assert_array_equal(coco.mask_of(one, picture), numbers == one.id)
    segmenter = Segmenter.from_run(run)
    (written,) = segmenter.predict(files["tile"], files["prompts"], tmp_path / "same.json")
    assert written.read_text() == (tmp_path / "out.json").read_text()


def test_everything(tune, tmp_path, files):
    run = write_image_run(tmp_path / "run")
    words = ("predict", files["tile"], "--run", run, "--bundle", "image", "--everything")
    loose = ("pred_iou_thresh=-1", "stability_score_thresh=0", "points_per_side=4")
    sets = [word for pair in loose for word in ("--set", f"inferer::{pair}")]
    code, _, said = tune(*words, "--output", tmp_path / "all.png", *sets)
    assert code == 0, said
    assert np.asarray(Image.open(tmp_path / "all.png")).max() > 0
    code, _, said = tune(*words, "--output", tmp_path / "objects.json", *sets)
    assert code == 0, said
    assert coco.read(tmp_path / "objects.json").categories == {0: "object"}
    classes = write_image_run(tmp_path / "classes", classes=2)
    code, _, said = tune(*words[:3], classes, *words[4:], "--output", tmp_path / "no.png")
    assert code == 1
    assert "train --class-agnostic" in said


def test_what_is_refused(tune, tmp_path, files):
    run = write_image_run(tmp_path / "run")
    words = ("predict", files["tile"], "--run", run, "--bundle", "image")
    words = (*words, "--prompts", files["prompts"], "--output", tmp_path / "out.png")
    code, _, said = tune(*words, "--instances", "--separate")
    assert code == 1
    assert "separate and instances are both asked for" in said
    write_run(tmp_path / "volume", ScanRules(for_modality("MR")), classes=2)
    volume = scan(tmp_path, RAS, (10, 12, 6))
    words = ("predict", volume, "--run", tmp_path / "volume", "--output", tmp_path / "out.json")
    code, _, said = tune(*words)
    assert code == 1
    assert "has 6 slices; expected a 2-D image" in said
    assert not (tmp_path / "out.json").exists()
