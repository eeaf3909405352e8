"""COCO's JSON: masks of known pixels, refusals by name, and a round trip."""

from __future__ import annotations

import json

import numpy as np
import pycocotools.mask as coco_mask
import pytest

from medsam_tune.errors import DataError
from medsam_tune.formats import coco
from tests.coco_files import COUNTS, HEIGHT, PIXELS, WIDTH, annotation, write

SIZE = [HEIGHT, WIDTH]
COMPRESSED = coco_mask.frPyObjects({"size": SIZE, "counts": COUNTS}, *SIZE)["counts"].decode()


def mask(tmp_path, **changes):
    (picture,) = coco.read(write(tmp_path / "c.json", annotation(**changes))).pictures
    return coco.mask_of(picture.objects[0], picture)


def box(*sides):
    return {"segmentation": None, "bbox": [*sides]}


def rle(counts, size=SIZE):
    return {"segmentation": {"size": size, "counts": counts}}


@pytest.mark.parametrize(
    "said",
    [
        {},
        rle(COUNTS),
        rle(COMPRESSED),
        box(1, 1, 4, 3),
        box(0.6, 0.6, 4.6, 3.8),  # of a pixel, the centre counts
        {"segmentation": [], "bbox": [1, 1, 4, 3]},
        {"segmentation": [[1, 1, 3, 1, 3, 4, 1, 4], [3, 1, 5, 1, 5, 4, 3, 4]]},
    ],
    ids=["polygon", "rle", "compressed", "box", "odd box", "no polygon", "two polygons"],
)
def test_the_same_pixels_from_every_form(tmp_path, said):
    np.testing.assert_array_equal(mask(tmp_path, **said), PIXELS)


def test_long_compressed_counts():
    rng = np.random.default_rng(0)
    pixels = rng.random((70, 90)) > 0.5
    pixels[:, 20:60] = rng.random() > 0.5  # a long run, then a much shorter one
    text = coco_mask.encode(np.asfortranarray(pixels, dtype=np.uint8))["counts"].decode()
    one = coco.Annotation(1, 1, False, {"size": [70, 90], "counts": text}, None)
    found = coco.mask_of(one, coco.Picture("a.png", 90, 70, (one,)))
    np.testing.assert_array_equal(found, pixels)


def test_what_reaches_out_a_little_is_cut(tmp_path):
    assert mask(tmp_path, **box(-1.5, -1.5, WIDTH + 3, HEIGHT + 3)).all()
    assert mask(tmp_path, segmentation=[[-2, -2, 11, -2, 11, 8, -2, 8]]).all()


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"segmentation": [[1, 1, 5, 1]]}, "polygons of 4 numbers"),
        ({"segmentation": [[1, 1, 5, 1, 5, 4, 1]]}, "polygons of 7 numbers"),
        ({"segmentation": [[1, 1, "5", 1, 5, 4]]}, "segmentation is"),
        ({"segmentation": [[1, 1, 5, 1, 5, 90]]}, r"to \(5, 90\); expected it within .* 9 x 6"),
        (
            rle(COUNTS, [WIDTH, HEIGHT]),
            r"height and width \[9, 6\]; expected the image's, \[6, 9\]",
        ),
        (rle(COUNTS[:-1]), "whose sum is 54"),
        (rle([-7, *COUNTS[1:]]), "whose sum is 54"),
        (rle(COMPRESSED[:-2]), "whose sum is 54"),
        (rle("zz"), "whose sum is 54"),
        (rle(None), "whose sum is 54"),
        (box(1, 1, 0, 3), r"no segmentation, and bbox is \[1, 1, 0, 3\]"),
        (box(1, 1, 4), "bbox is"),
        ({"segmentation": None}, "bbox is None"),
        (box(20, 1, 4, 3), r"reaches from \(20, 1\)"),
    ],
)
def test_a_bad_object_is_named(tmp_path, said, message):
    with pytest.raises(DataError, match=f"annotation 1: .*{message}"):
        mask(tmp_path, **said)


IMAGE = {"id": 7, "file_name": "a.png", "width": WIDTH, "height": HEIGHT}


@pytest.mark.parametrize(
    ("annotations", "changes", "message"),
    [
        ([annotation(image_id=8)], {}, r"do.* not list: image 8 \(1 annotations\)"),
        ([annotation(category=9), annotation(2, 9)], {}, r"category 9 \(2 annotations\)"),
        ([annotation(1), annotation(1)], {}, "several annotations have the ids 1"),
        ([annotation(image_id="7")], {}, "image_id is '7'"),
        ([annotation(iscrowd=2)], {}, "annotation 1: iscrowd is 2"),
        ([], {"images": [IMAGE, {**IMAGE, "id": 8}]}, "several images are named a.png"),
        ([], {"images": [IMAGE, {**IMAGE, "file_name": "b"}]}, "several images have the ids 7"),
        ([], {"images": [{**IMAGE, "width": 0}]}, r"image a.png: width and height are \(0, 6\)"),
        ([], {"images": [{**IMAGE, "file_name": None}]}, "image 7: file_name is None"),
        ([], {"images": {}}, r"images is \{\}; expected a list"),
        ([], {"categories": [{"id": 1}]}, "category 1: name is None"),
        ([], {"categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]}, "are named a"),
    ],
)
def test_a_bad_file_is_refused(tmp_path, annotations, changes, message):
    with pytest.raises(DataError, match=rf"c\.json: .*{message}"):
        coco.read(write(tmp_path / "c.json", *annotations, **changes))


def test_a_changed_file_is_read_again(tmp_path):
    path = write(tmp_path / "c.json", annotation())
    assert coco.read(path) is coco.read(path)
    write(path, annotation(), annotation(2))
    assert len(coco.read(path).pictures[0].objects) == 2


def test_pictures_are_found_by_their_paths(tmp_path):
    images = [{**IMAGE, "id": n, "file_name": f} for n, f in ((1, "x/a.png"), (2, "y/a.png"))]
    found = coco.read(write(tmp_path / "c.json", images=images))
    assert found.picture_of(tmp_path / "y" / "a.png").file_name == "y/a.png"
    with pytest.raises(DataError, match=r"several images may be .*a\.png: x/a\.png, y/a\.png"):
        found.picture_of(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"no image has the file_name b\.png"):
        found.picture_of(tmp_path / "b.png")


def test_results_come_back(tmp_path):
    numbers = np.zeros((HEIGHT, WIDTH), np.int32)
    numbers[PIXELS], numbers[5, 8] = 3, 5
    path = tmp_path / "out.json"
    coco.write_results(
        path, "a.png", numbers, {3: 4, 5: 1, 6: 1}, {1: "text", 4: "table"}, {3: 0.5, 5: 1, 6: 1}
    )
    (picture,) = coco.read(path).pictures
    assert [(one.id, one.category) for one in picture.objects] == [(3, 4), (5, 1)]
    np.testing.assert_array_equal(coco.mask_of(picture.objects[0], picture), PIXELS)
    first = json.loads(path.read_text())["annotations"][0]
    assert (first["area"], first["bbox"], first["score"]) == (12, [1, 1, 4, 3], 0.5)
