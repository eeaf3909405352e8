"""The way from real images, scenes and microscopy to checked cases with labels, without a model."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageColor

from medsam_tune.cases.audit import SOUND, Finding, check_place
from medsam_tune.cases.blocks import in_blocks, side_from
from medsam_tune.cases.datalist import Datalist, write_datalist
from medsam_tune.cases.folders import find_cases
from medsam_tune.cases.load import load_case
from medsam_tune.cases.splits import split_cases
from medsam_tune.errors import DataError
from tests.conftest import REAL_DATA

pytestmark = pytest.mark.real_data

AERIAL = {
    "Building": "#3C1098",
    "Land": "#8429F6",
    "Road": "#6EC1E4",
    "Vegetation": "#FEDD3A",
    "Water": "#E2A929",
}
IGNORED = "#9B9B9B"


def real(name: str) -> Path:
    """A folder of real data; the test is skipped without it."""
    folder = REAL_DATA / name
    if not folder.is_dir():
        pytest.skip(f"real images are not here: {name} beside the repository")
    return folder


def class_map(folder: Path, classes: list[dict[str, Any]], **more: Any) -> Path:
    """A file of classes."""
    path = folder / "classes.json"
    path.write_text(json.dumps({"classes": classes, **more}))
    return path


def checked(data: Datalist, folder: Path) -> dict[str, Finding]:
    """What `check` finds of the cases, none of which it refuses."""
    write_datalist(data, folder / "datalist.json")
    report = check_place(folder / "datalist.json", progress=False)
    assert (report.outcome, report.twice) == (SOUND, ()), report.lines()
    return {one.case: one for one in report.findings}


def test_aerial_images_whose_masks_are_colours_and_palettes(tmp_path: Path) -> None:
    folder = real("dubai_aerial")
    own = find_cases(folder)  # its classes.json has other colours than its masks
    with pytest.raises(DataError, match=r"the mask has colours of no class: #3C1098 \(2779 pixels"):
        load_case(own.training[0], own.labels_in_files)
    named = [{"name": name, "color": colour} for name, colour in AERIAL.items()]
    classes = [*named, {"name": "Unlabeled", "color": IGNORED, "ignore": True}]
    data = find_cases(folder, classes=class_map(tmp_path, classes))
    assert (data.modality, data.labels) == ("RGB", dict(enumerate(AERIAL, start=1)))
    tiles = [case.patient for case in data.training]
    assert {one: tiles.count(one) for one in tiles} == {f"Tile {k}": 9 for k in range(1, 5)}
    found = checked(data, tmp_path)
    modes = set()
    for case in (data.training[0], data.training[-1]):
        image, label = load_case(case, data.labels_in_files)
        assert label is not None
        with Image.open(case.label) as file:
            modes.add(file.mode)
            mask = np.asarray(file.convert("RGB")).transpose(1, 0, 2)[:, :, None]
        assert (image.shape, image.meta["stored"]) == ((3, *mask.shape[:3]), "uint8")
        counts = {}
        for number, colour in enumerate((*AERIAL.values(), IGNORED), start=1):
            drawn = (mask == ImageColor.getrgb(colour)).all(-1)
            np.testing.assert_array_equal(label[0].numpy() == number, drawn)
            counts |= {number: int(drawn.sum())} if drawn.any() else {}
        assert found[case.id].labels == counts
    assert modes == {"RGB", "P"}
    assert {number for one in found.values() for number in one.labels} == {*range(1, 7)}


def test_nuclei_that_are_numbered(tmp_path: Path) -> None:
    folder = real("nuclei")
    classes = class_map(tmp_path, [{"id": 1, "name": "nucleus"}], instances=True)
    data = find_cases(folder, classes=classes)
    assert (data.modality, data.labels, len(data.training)) == ("RGB", {1: "nucleus"}, 40)
    found = checked(data, tmp_path)
    count = 0
    for case in data.training:
        image, label = load_case(case, data.labels)
        assert label is not None
        mask = np.asarray(Image.open(case.label)).T[..., None]
        np.testing.assert_array_equal(label.numpy(), [mask > 0, mask])
        assert image.meta["notes"] == ["the alpha channel is left out"]
        assert found[case.id].labels == {1: int((mask > 0).sum())}
        count += len(np.unique(mask)) - 1
    assert count == 1327
    assert len({one.shape for one in found.values()}) == 5


def test_a_scene_whose_houses_are_polygons(tmp_path: Path) -> None:
    """They are the data set's own raster of them, pixel by pixel; blocks are parts of it."""
    pytest.importorskip("rasterio", reason="the extra geo is not installed")
    folder = real("spacenet")
    pair = [folder / "sample_geotiff.tif", folder / "geotiff_labels.geojson"]
    with (tmp_path / "scene.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", "label"], pair])
    data = find_cases(tmp_path / "scene.csv")
    image, label = load_case(data.training[0], data.labels)
    assert label is not None
    assert (image.shape, image.meta["stored"]) == ((1, 900, 900, 1), "uint16")
    assert image.meta["spacing_known"]
    np.testing.assert_allclose(np.abs(np.diag(image.affine)[:2]), 500)  # millimetres
    assert "UTM zone 16N" in image.meta["georeference"].crs
    own = np.asarray(Image.open(folder / "sample_fp_mask_from_geojson.tif")).T[..., None]
    np.testing.assert_array_equal(label[0].numpy() > 0, own > 0)
    drawn = json.loads(pair[1].read_text())["features"]
    assert len(label[1].unique()) - 1 == len(drawn) == 43
    blocks = split_cases(in_blocks(data, side_from("75m")), (0.6, 0.1, 0.3), seed=0)
    found = checked(blocks, tmp_path)
    assert {one.shape for one in found.values()} == {(150, 150, 1)}
    assert len(found) == 36
    assert sum(one.labels.get(1, 0) for one in found.values()) == (own > 0).sum()


def test_chips_of_a_scene(tmp_path: Path) -> None:
    pytest.importorskip("rasterio", reason="the extra geo is not installed")
    data = find_cases(real("spacenet") / "tiles")
    found = checked(data, tmp_path)
    assert len(found) == 100
    assert {one.shape for one in found.values()} == {(90, 90, 1)}
    assert sum(bool(one.labels) for one in found.values()) == 57
