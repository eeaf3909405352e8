"""COCO's JSON as labels: ids and objects in the pixels of the image."""

from __future__ import annotations

import numpy as np
import pytest

from medsam_tune.cases.datalist import Case
from medsam_tune.cases.labels.open import open_label
from medsam_tune.cases.load import load_case
from medsam_tune.errors import DataError
from tests.coco_files import HEIGHT, PIXELS, WIDTH, annotation, photo, write

LABELS = {1: "text", 4: "table"}
SMALL = {"segmentation": None, "bbox": [2, 2, 2, 1]}  # within PIXELS
RIGHT = {"segmentation": None, "bbox": [3, 1, 5, 3]}  # over its right half


def load(tmp_path, *annotations, labels=LABELS, **changes):
    path = write(tmp_path / "c.json", *annotations, **changes)
    _, label = load_case(Case(photo(tmp_path / "a.png"), path, "p"), labels)
    ids, numbers = label[..., 0].movedim(1, 2).numpy()
    return ids, numbers, label


def test_ids_and_objects(tmp_path):
    ids, numbers, _ = load(
        tmp_path, annotation(), annotation(2, 4, segmentation=None, bbox=[6, 0, 3, 2])
    )
    expected = PIXELS.astype(int)
    expected[:2, 6:] = 4
    np.testing.assert_array_equal(ids, expected)
    assert len(np.unique(numbers[PIXELS])) == len(np.unique(numbers[:2, 6:])) == 1
    assert numbers[2, 2] != numbers[0, 7]
    assert (numbers > 0).sum() == (ids > 0).sum()


@pytest.mark.parametrize("order", [1, -1])
def test_small_objects_lie_over_large_ones(tmp_path, order):
    both = [annotation(), annotation(2, 4, **SMALL)]
    ids, _, label = load(tmp_path, *both[::order])
    assert ids[2].tolist() == [0, 1, 4, 4, 1, 0, 0, 0, 0]
    assert label.meta["notes"] == []


def test_what_is_hidden_is_said(tmp_path):
    _, _, label = load(tmp_path, annotation(), annotation(2))
    assert label.meta["notes"] == ["1 of 2 objects have no pixel, or lie under smaller ones"]


def test_crowds_are_what_nobody_annotated(tmp_path):
    crowd = annotation(2, iscrowd=1, **RIGHT)
    ids, numbers, _ = load(tmp_path, annotation(), crowd, labels={**LABELS, 5: "ignore"})
    assert ids[1].tolist() == [0, 1, 1, 1, 1, 5, 5, 5, 0]  # objects lie over it, large or small
    assert (numbers[ids == 5] == 0).all()
    ids, _, label = load(tmp_path, annotation(), crowd)  # without a label for it
    assert set(np.unique(ids)) == {0, 1}
    assert label.meta["notes"] == []


def test_categories_are_meant_by_name(tmp_path):
    ids, _, _ = load(tmp_path, annotation(1, 4), annotation(2, 1, **SMALL), labels={2: "table"})
    assert set(np.unique(ids)) == {0, 2}


def test_another_size_is_refused(tmp_path):
    image = {"id": 7, "file_name": "a.png", "width": HEIGHT, "height": WIDTH}
    with pytest.raises(DataError, match=r"case a: .*c\.json says 6 x 9 pixels .* it has 9 x 6"):
        load(tmp_path, annotation(), images=[image])


def test_a_bad_object_is_named_with_its_image(tmp_path):
    with pytest.raises(DataError, match=r"case a: .*c\.json, image a\.png: annotation 1: "):
        load(tmp_path, annotation(segmentation=[[1, 2]]))


def test_names_and_presence(tmp_path):
    images = [
        {"id": n, "file_name": f, "width": WIDTH, "height": HEIGHT} for n, f in ((7, "a"), (8, "b"))
    ]
    path = write(tmp_path / "c.json", annotation(), annotation(2, 4, image_id=8), images=images)
    assert open_label(path, image=tmp_path / "a").names() == {1: "text", 2: "table"}
    assert open_label(path, image=tmp_path / "a").present(LABELS) == {1}
    assert open_label(path, image=tmp_path / "b").present(LABELS) == {4}
