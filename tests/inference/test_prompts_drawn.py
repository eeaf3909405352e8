"""A box, points or a name in place of a prompt file, on an image in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from medsam_tune.inference.prompt_files.drawn import content_of, label_named
from medsam_tune.inference.segmenter import Segmenter
from medsam_tune.slices.intensity import for_modality
from medsam_tune.slices.rules import ScanRules
from medsam_tune.synthetic.aerial import make_aerial
from tests.inference.made import write_run

LABELS = {1: "building", 2: "road"}


@pytest.fixture
def segmenter(tmp_path: Path) -> Segmenter:
    rules = ScanRules(for_modality("RGB"), modality="RGB", components=4)
    write_run(tmp_path / "run", rules, classes=2, labels=LABELS)
    return Segmenter.from_run(tmp_path / "run", device="cpu")


@pytest.fixture
def tile(tmp_path: Path) -> Path:
    made = make_aerial(np.random.default_rng(2), (96, 128))
    Image.fromarray(np.ascontiguousarray(made.image[:3].transpose(1, 2, 0))).save(
        tmp_path / "t.png"
    )
    return tmp_path / "t.png"


def test_an_image_is_a_file_or_an_array_or_pillows(segmenter, tile):
    box = [20, 10, 90, 60]
    mask = segmenter.segment(tile, box, label="building")
    assert mask.shape == (1, 128, 96, 1)
    assert set(mask.unique().tolist()) == {0, 1}
    with Image.open(tile) as image:
        array = np.asarray(image)
        palette = image.quantize(256)
        found = [segmenter.segment(one, box, label=1) for one in (image, array)]
        found += [segmenter.segment(torch.from_numpy(array.copy()), np.array(box), label=1)]
    for one in found:
        torch.testing.assert_close(one.as_tensor(), mask.as_tensor())
    same = segmenter.segment(palette, box, label=1)
    colours = segmenter.segment(palette.convert("RGB"), box, label=1)
    torch.testing.assert_close(same.as_tensor(), colours.as_tensor())
    turned = Image.fromarray(np.ascontiguousarray(np.rot90(array)))
    turned.getexif()[ExifTags.Base.Orientation] = 6
    torch.testing.assert_close(
        segmenter.segment(turned, box, label=1).as_tensor(), mask.as_tensor()
    )
    grey = array[..., 0]
    assert segmenter.segment(grey, box, label=2).shape == mask.shape


def test_boxes_points_and_names(segmenter, tile):
    content = {"objects": [{"label": 2, "slices": {"0": {"points": [[30, 20, 1], [5, 5, 0]]}}}]}
    torch.testing.assert_close(
        segmenter.segment(tile, [[30, 20, 1], [5, 5, 0]], label="road").as_tensor(),
        segmenter.segment(tile, content).as_tensor(),
    )
    two = [[20, 10, 50, 60], [60, 10, 90, 60]]
    boxes = {"objects": [{"label": 1, "slices": {"0": {"box": box}}} for box in two]}
    session = segmenter.open(tile)
    torch.testing.assert_close(
        session.segment(two, label=1).as_tensor(), segmenter.segment(tile, boxes).as_tensor()
    )
    road = segmenter.segment(tile, "road")
    assert set(road.unique().tolist()) <= {0, 2}
    every = segmenter.segment(tile)
    assert bool((road[every == 2] == 2).all())
    np.testing.assert_array_equal(road.numpy() == 2, segmenter.probabilities(tile)[2].numpy() > 0.5)
    torch.testing.assert_close(session.segment("road").as_tensor(), road.as_tensor())


def test_what_is_no_prompt(segmenter, tile):
    for prompts, label, message in (
        ([1, 2, 3, 4], None, r"label is None; expected the id or the name of one of: 1 \(buildi"),
        ([1, 2, 3, 4], "house", "label is 'house'; expected the id or the name"),
        ([1, 2, 3], 1, r"prompts have the shape \(3,\); expected a box \(4,\)"),
        ([], 1, r"prompts have the shape \(0,\)"),
        ([["a", 2, 3]], 1, "expected a box"),
        (7, 1, "prompts are 7; expected a box"),
        (None, 1, "label is 1; expected it beside a box or points alone"),
    ):
        with pytest.raises(ValueError, match=message):
            segmenter.segment(tile, prompts, label=label)
    with pytest.raises(ValueError, match="affine is given, and a 2-D image has none"):
        segmenter.segment(Image.new("RGB", (8, 8)), affine=np.eye(4))


def test_content_of_a_box_of_the_only_label():
    assert content_of((1, 2, 3, 4), {7: "a"}) == {
        "objects": [{"label": 7, "slices": {"0": {"box": [1.0, 2.0, 3.0, 4.0]}}}]
    }
    assert content_of("boxes.json", {7: "a"}) == "boxes.json"
    assert label_named("a", {7: "a"}) == 7
    assert label_named(Path("a"), {7: "a"}) is None
