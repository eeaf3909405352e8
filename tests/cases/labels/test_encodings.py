"""Every way to store a mask of a 2-D image gives one and the same label."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from medsam_tune.cases.classes import Coding
from medsam_tune.cases.datalist import Case
from medsam_tune.cases.load import load_case
from tests.images import deep_colours

IDS = np.zeros((24, 30), np.uint8)  # H, W
IDS[2:9, 3:12], IDS[14:22, 16:28] = 1, 1
BOXES = [(3, 2, 12, 9), (16, 14, 28, 22)]  # of the two pieces, x0, y0, x1, y1
LABELS = {1: "house"}
COLOUR = np.array([[0, 0, 0], [60, 16, 152]], np.uint8)
COLOURS = Coding({"#3C1098": 1})
REFERENCE = torch.from_numpy(IDS.T.astype(np.int32))[None, ..., None]  # (1, W, H, 1)


def array(values: np.ndarray, name: str = "m.png") -> Callable[[Path], Path]:
    """Saves an array as a mask."""

    def save(folder: Path) -> Path:
        Image.fromarray(values).save(folder / name)
        return folder / name

    return save


def palette(order: int) -> Callable[[Path], Path]:
    """Saves indices and a palette, or both in another order."""

    def save(folder: Path) -> Path:
        mask = Image.fromarray(IDS if order > 0 else 1 - IDS).convert("P")
        mask.putpalette(COLOUR[::order].ravel().tolist())
        mask.save(folder / "m.png")
        return folder / "m.png"

    return save


def file_of_the_class(folder: Path) -> Path:
    """Saves a folder with a file for the class."""
    (folder / "m").mkdir()
    Image.fromarray(IDS * 255).save(folder / "m" / "house.png")
    return folder / "m"


def coco(folder: Path) -> Path:
    """Saves COCO's JSON, with polygons."""
    rings = [[[x0, y0, x1, y0, x1, y1, x0, y1]] for x0, y0, x1, y1 in BOXES]
    objects = [
        {"id": n, "image_id": 1, "category_id": 1, "iscrowd": 0, "segmentation": one}
        for n, one in enumerate(rings, start=1)
    ]
    image = {"id": 1, "file_name": "a.png", "width": IDS.shape[1], "height": IDS.shape[0]}
    found = {"images": [image], "annotations": objects, "categories": [{"id": 1, "name": "house"}]}
    (folder / "m.json").write_text(json.dumps(found))
    return folder / "m.json"


def geojson(folder: Path) -> Path:
    """Saves polygons on the ground, and an image there in place of the PNG."""
    geo = pytest.importorskip("tests.geo")
    geopandas = pytest.importorskip("geopandas", reason="the extra geo is not installed")
    shapely = pytest.importorskip("shapely")
    (folder / "a.png").unlink()
    geo.write(folder / "a.tif", np.stack([IDS, IDS * 2, 9 - IDS]))
    (x, y), side = geo.ORIGIN, 0.5
    shapes = [
        shapely.box(x + x0 * side, y - y1 * side, x + x1 * side, y - y0 * side)
        for x0, y0, x1, y1 in BOXES
    ]
    geopandas.GeoDataFrame(geometry=shapes, crs=geo.UTM).to_file(folder / "m.geojson")
    return folder / "m.geojson"


@pytest.mark.parametrize(
    ("save", "coding"),
    [
        pytest.param(array(IDS), Coding(), id="0 and 1"),
        pytest.param(array(IDS * 255), Coding(), id="0 and 255"),
        pytest.param(array(IDS.astype(bool)), Coding(), id="1 bit"),
        pytest.param(array(IDS.astype(np.uint16)), Coding(), id="ids of 16 bits"),
        pytest.param(array(IDS.astype(np.uint16) * 65535), Coding(), id="0 and 65535"),
        pytest.param(array(IDS.astype(np.int32), "m.tif"), Coding(), id="ids of 32 bits"),
        pytest.param(array(COLOUR[IDS]), COLOURS, id="colours"),
        pytest.param(array(COLOUR[IDS], "m.bmp"), COLOURS, id="colours, BMP"),
        pytest.param(
            lambda folder: deep_colours(folder / "m.png", COLOUR[IDS].astype(np.uint16) * 257),
            COLOURS,
            id="colours of 16 bits",
        ),
        pytest.param(palette(1), Coding(), id="palette by index"),
        pytest.param(palette(-1), COLOURS, id="palette by colour"),
        pytest.param(
            array(IDS * np.where(np.arange(30) < 13, 7, 3000).astype(np.uint16)),
            Coding(instances=True),
            id="numbers of objects",
        ),
        pytest.param(file_of_the_class, Coding(), id="a file for each class"),
        pytest.param(coco, Coding(), id="COCO"),
        pytest.param(geojson, Coding(), id="GeoJSON"),
    ],
)
def test_one_label(tmp_path, save, coding):
    photo = np.random.default_rng(0).integers(0, 256, (*IDS.shape, 3)).astype(np.uint8)
    Image.fromarray(photo).save(tmp_path / "a.png")
    path = save(tmp_path)
    (image,) = tmp_path.glob("a.*")
    _, label = load_case(Case(image, path, "p", coding=coding), LABELS)
    assert label.dtype == torch.int32
    assert torch.equal(label.as_tensor()[:1], REFERENCE)
