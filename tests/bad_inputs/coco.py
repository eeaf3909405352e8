"""COCO's JSON."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO

from medsam_tune.cases.folders import find_cases
from medsam_tune.cases.load import load_case
from tests.bad_inputs.calls import Pair
from tests.bad_inputs.table import NO_COUNTERPART, BadInput
from tests.coco_files import HEIGHT, PIXELS, WIDTH, annotation, photo, write

IMAGE = {"id": 7, "file_name": "a.png", "width": WIDTH, "height": HEIGHT}


def data_set(*annotations: dict[str, Any], **changes: Any) -> Callable[[Path], Path]:
    """Writes an image and its file."""

    def make(folder: Path) -> Path:
        photo(folder / "a.png")
        return write(folder / "instances.json", *annotations, **changes)

    return make


def several(folder: Path) -> Path:
    data_set(annotation())(folder)
    write(folder / "other.json", annotation())
    return folder


def first(path: Path) -> Pair:
    """Ours: the only case, by the labels that are found."""
    found = find_cases(path)
    return load_case(found.training[0], found.labels_in_files)


def plain(path: Path) -> np.ndarray:
    """pycocotools: the mask of every annotation of the image, united."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(path))
        ids = coco.getAnnIds(imgIds=[7])
        masks = [coco.annToMask(one) for one in coco.loadAnns(ids)]
    return np.asarray(np.any(masks, axis=0)) if masks else np.zeros((HEIGHT, WIDTH), bool)


def as_drawn(found: Any) -> None:
    ids = found if isinstance(found, np.ndarray) else found[1][0, ..., 0].T.numpy()
    np.testing.assert_array_equal(ids > 0, PIXELS)


REFUSED = (
    ("no-image", "objects of an image that is not listed", [annotation(image_id=8)], {}, "image 8"),
    (
        "no-category",
        "objects of a category that is not listed",
        [annotation(category=9)],
        {},
        "category 9",
    ),
    ("ids-twice", "two objects with one id", [annotation(), annotation()], {}, "the ids 1"),
    (
        "size",
        "another size than the image's",
        [annotation()],
        {"images": [{**IMAGE, "width": 8}]},
        "8 x 6 pixels",
    ),
    (
        "missing",
        "an image that is not there",
        [annotation()],
        {"images": [{**IMAGE, "file_name": "b.png"}]},
        r"missing: .*b\.png",
    ),
    (
        "outside",
        "a polygon outside of the image",
        [annotation(segmentation=[[90, 90, 95, 90, 95, 95]])],
        {},
        "within the image",
    ),
    (
        "two-points",
        "a polygon of two points",
        [annotation(segmentation=[[1, 1, 5, 1]])],
        {},
        "polygons of 4",
    ),
    (
        "short-rle",
        "RLE that is cut short",
        [annotation(segmentation={"size": [HEIGHT, WIDTH], "counts": "73"})],
        {},
        "whose sum is 54",
    ),
    (
        "turned-rle",
        "RLE of width x height",
        [annotation(segmentation={"size": [WIDTH, HEIGHT], "counts": [54]})],
        {},
        "RLE of height",
    ),
    (
        "nothing",
        "an object without polygon and box",
        [annotation(segmentation=None)],
        {},
        "bbox is None",
    ),
)

INPUTS: tuple[BadInput, ...] = (
    *(
        BadInput(
            116,
            f"coco-{name}",
            f"COCO: {what}",
            data_set(*objects, **changes),
            first,
            plain,
            refused,
        )
        for name, what, objects, changes, refused in REFUSED
    ),
    BadInput(
        116,
        "coco-box",
        "COCO: a box without a polygon",
        data_set(annotation(segmentation=None, bbox=[1, 1, 4, 3])),
        first,
        plain,
        handled="the box is the mask",
        check=as_drawn,
    ),
    BadInput(
        116,
        "coco-several",
        "COCO: a folder with two files",
        several,
        find_cases,
        NO_COUNTERPART,
        "holds several COCO files",
    ),
)
