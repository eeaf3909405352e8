"""Objects of an image as numbers and as COCO's JSON."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from medsam_tune.errors import DataError
from medsam_tune.formats import coco
from medsam_tune.formats.open import load_image
from medsam_tune.inference.aftercare import Aftercare
from medsam_tune.inference.canvas import Found, FoundObject
from medsam_tune.inference.instances import refuse_volume, write_instances
from medsam_tune.slices.cut import cut
from medsam_tune.slices.intensity import for_modality
from medsam_tune.slices.rules import ScanRules

LABELS = {1: "road", 4: "house"}
IDS = torch.tensor([[[1, 1, 0, 4, 4, 4], [1, 1, 0, 4, 4, 0], [0, 0, 0, 0, 0, 4]]])
NUMBERS = torch.tensor([[[2, 2, 0, 1, 3, 3], [2, 2, 0, 1, 3, 0], [0, 0, 0, 0, 0, 3]]])
OBJECTS = (
    FoundObject(4, 1, 0.5),
    FoundObject(1, 1, 0.25),
    FoundObject(4, 1, 1),
    FoundObject(4, 0, 0),
)


@pytest.fixture
def grid(tmp_path):
    pixels = np.arange(18).reshape(3, 6).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return cut(load_image(tmp_path / "a.png"), ScanRules(for_modality("RGB")))[1]


def test_numbers_of_prompted_objects(tmp_path, grid):
    path = tmp_path / "out.png"
    counts = write_instances(Found(IDS, OBJECTS, numbers=NUMBERS), grid, path, "a.png", LABELS)
    np.testing.assert_array_equal(np.asarray(Image.open(path)), NUMBERS[0])
    assert counts == {path: {1: 4, 4: 6}}


def test_coco_of_prompted_objects(tmp_path, grid):
    path = tmp_path / "out.json"
    write_instances(Found(IDS, OBJECTS, numbers=NUMBERS), grid, path, "a.png", LABELS)
    found = coco.read(path)
    (picture,) = found.pictures
    assert (picture.file_name, picture.width, picture.height) == ("a.png", 6, 3)
    assert found.categories == LABELS
    assert [(one.id, one.category) for one in picture.objects] == [(1, 4), (2, 1), (3, 4)]
    np.testing.assert_array_equal(coco.mask_of(picture.objects[2], picture), NUMBERS[0] == 3)
    scores = [one["score"] for one in json.loads(path.read_text())["annotations"]]
    assert scores == [0.5, 0.25, 1]


def test_without_prompts_the_pieces_are_objects(tmp_path, grid):
    path = tmp_path / "out.png"
    expected = [[1, 1, 0, 2, 2, 2], [1, 1, 0, 2, 2, 0], [0, 0, 0, 0, 0, 0]]
    pieces = IDS.clone()
    pieces[0, 2, 5] = 0
    write_instances(Found(pieces, ()), grid, path, "a.png", LABELS)
    np.testing.assert_array_equal(np.asarray(Image.open(path)), expected)
    write_instances(Found(IDS, ()), grid, path, "a.png", LABELS, smallest=5)
    assert set(np.unique(Image.open(path))) == {0, 1}
    path = tmp_path / "out.json"
    write_instances(Found(pieces, ()), grid, path, "a.png", LABELS)
    rows = json.loads(path.read_text())["annotations"]
    assert [(row["category_id"], row["area"]) for row in rows] == [(1, 4), (4, 5)]
    assert "score" not in rows[0]


def test_aftercare_takes_pixels_of_objects(tmp_path, grid):
    lonely = NUMBERS.clone()
    lonely[0, 0, 3] = 0
    ids = IDS * (lonely > 0)
    ids[0, 2, 0], lonely[0, 2, 0] = 4, 3  # a piece apart
    path = tmp_path / "out.png"
    care = Aftercare(largest_component=True)
    write_instances(Found(ids, OBJECTS, numbers=lonely), grid, path, "a.png", LABELS, 1, care)
    lonely[0, 2, 0] = 0
    np.testing.assert_array_equal(np.asarray(Image.open(path)), lonely[0])


def test_many_objects_take_16_bits(tmp_path):
    Image.fromarray(np.arange(900).reshape(30, 30).astype(np.uint8)).save(tmp_path / "a.png")
    grid = cut(load_image(tmp_path / "a.png"), ScanRules(for_modality("RGB")))[1]
    numbers = torch.arange(900).view(1, 30, 30)
    objects = (FoundObject(1, 1, 1.0),) * 900
    path = tmp_path / "out.png"
    write_instances(Found((numbers > 0).int(), objects, numbers=numbers), grid, path, "a", LABELS)
    np.testing.assert_array_equal(np.asarray(Image.open(path)), numbers[0])


def test_volumes_are_refused():
    refuse_volume(torch.zeros(1, 3, 4, 5))
    with pytest.raises(DataError, match="has 2 slices; expected a 2-D image"):
        refuse_volume(torch.zeros(2, 3, 4, 5))
