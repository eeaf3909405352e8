"""`medsam-tune predict` of a GeoTIFF: streamed, and in memory by prompts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from medsam_tune.cases.datalist import read_datalist
from medsam_tune.errors import DataError
from medsam_tune.inference.prompt_files import read_prompts
from medsam_tune.inference.segmenter import Segmenter
from medsam_tune.slices.colours import Colours
from medsam_tune.slices.rules import ScanRules
from medsam_tune.slices.streamed import streamed
from medsam_tune.synthetic.aerial import write_satellite
from tests import geo
from tests.images import image_and_ids
from tests.inference.made import write_run

geopandas = pytest.importorskip("geopandas", reason="the extra geo is not installed")
shapely = pytest.importorskip("shapely")

LABELS = {1: "house", 2: "road"}
RULES = ScanRules(Colours(3, bands=[1, 2, 3]), modality="RGB", window=64, gsd=0.4)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_run(tmp_path / "run", RULES, classes=2, labels=LABELS)
    return tmp_path / "run"


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    return geo.write(tmp_path / "scene.tif", geo.bands_and_ids(0, (150, 110))[0])


def predict(tune: Any, scene: Path, run: Path, output: Path, *more: object) -> tuple[int, str]:
    words = ("predict", scene, "--run", run, "--output", output, "--bundle", "image", *more)
    code, _, err = tune(*words)
    return code, err


def test_four_bands_from_polygons_to_polygons(tune, tmp_path):
    """The whole job by satellite_nir.yaml: infrared is a channel, and its range is the sensor's."""
    folder = write_satellite(tmp_path / "d", scenes=6, size=(96, 96), pixel=0.5)
    datalist, run = tmp_path / "d.json", tmp_path / "run"
    sensor = "$medsam_tune.slices.sensor.for_sensor(@data.subset('training'), 4)"
    for words in (
        ("split", folder, "--out", datalist, "--fractions", 0.5, 0.25, 0.25),
        ("check", datalist),
        ("prepare", datalist, "--set", f"intensity={sensor}"),
        (
            *("train", "adapter", "--datalist", datalist, "--output", run),
            *("--overlay", "satellite_nir", "--image-size", 64, "--set", "epochs=1"),
            *("--set", "epoch_slices=2", "--set", "batch_size=2", "--set", "num_workers=0"),
        ),
        ("evaluate", "--run", run),
    ):
        code, out, err = tune(*words)
        assert code == 0, out + err
        if words[0] == "train":
            assert "validation mean_iou" in out + err
    record = json.loads((run / "run.json").read_text())
    assert record["base"]["in_channels"] == 4
    limits = record["rules"]["intensity"]["limits"]
    assert len(limits) == 4
    assert all(0 < low < high <= 2040 for low, high in limits)
    summary = json.loads((run / "evaluation" / "summary.json").read_text())
    assert summary["mean_iou"] is not None
    scene = read_datalist(datalist).test[0].image
    for name in ("m.tif", "polygons.gpkg"):
        code, err = predict(tune, scene, run, tmp_path / name)
        assert code == 0, err
    with geo.rasterio.open(tmp_path / "m.tif") as file, geo.rasterio.open(scene) as own:
        assert (file.crs, file.transform, file.shape) == (own.crs, own.transform, own.shape)
        assert set(np.unique(file.read(1))) <= {0, 1, 2}
    assert geopandas.read_file(tmp_path / "polygons.gpkg").crs.to_epsg() == 32616


def test_a_tile_without_a_place_has_the_pixel_of_the_run(tune, tmp_path):
    tile, rules = tmp_path / "tile.png", replace(RULES, window=None, pixel=0.5)
    Image.fromarray(image_and_ids(0, (64, 48))[0]).save(tile)
    for name, one in (("said", rules), ("unsaid", replace(rules, pixel=None))):
        write_run(tmp_path / name, one, classes=2, labels=LABELS)
        code, err = predict(tune, tile, tmp_path / name, tmp_path / f"{name}.png")
        assert code == 0, err
        assert Image.open(tmp_path / f"{name}.png").size == (64, 48)
        left_out = "rules::gsd (0.4 m) is left out. rules::pixel gives it, in metres."
        assert (left_out in err) is (name == "unsaid")


def test_a_scene_becomes_a_geotiff_or_polygons(tune, tmp_path, run, scene):
    for name in ("m.tif", "m2.gpkg"):
        code, err = predict(tune, scene, run, tmp_path / name)
        assert code == 0, err
    with geo.rasterio.open(tmp_path / "m.tif") as file, geo.rasterio.open(scene) as own:
        assert (file.crs, file.transform, file.bounds) == (own.crs, own.transform, own.bounds)
        pixels = file.read(1)
    found = geopandas.read_file(tmp_path / "m2.gpkg")
    assert set(found["label"]) == set(np.unique(pixels)) - {0}
    record = json.loads((tmp_path / "m.prediction.json").read_text())
    assert record["masks"] == ["m.tif"]
    assert record["prompts"] is None
    # By prompts, the scene is in memory, and the result has its place as well.
    code, err = predict(tune, scene, run, tmp_path / "b.gpkg", "--box", "20,20,60,50,1")
    assert code == 0, err
    boxed = geopandas.read_file(tmp_path / "b.gpkg")
    assert boxed.crs == found.crs
    assert boxed["probability"].between(0.5, 1).all()
    assert not [*tmp_path.glob("*_probability*")]  # files of them were not asked for
    box = {"objects": [{"label": 1, "slices": {"0": {"box": [20, 20, 60, 50]}}}]}
    written = Segmenter.from_run(run, device="cpu").predict(scene, box, tmp_path / "c.gpkg")
    assert written == [tmp_path / "c.gpkg"]
    same = geopandas.read_file(tmp_path / "c.gpkg")
    assert same["probability"].tolist() == boxed["probability"].tolist()


def test_boxes_on_the_ground_are_prompts(tune, tmp_path, run, scene):
    x, y = geo.ORIGIN
    boxes = [shapely.box(x + 5, y - 20, x + 20, y - 5), shapely.box(x + 40, y - 50, x + 55, y - 30)]
    frame = geopandas.GeoDataFrame({"label": ["road", "house"]}, geometry=boxes, crs=geo.UTM)
    frame.to_crs("EPSG:4326").to_file(tmp_path / "boxes.geojson")
    with streamed(scene, RULES) as slice_:
        grid = slice_.grid
    found = read_prompts(tmp_path / "boxes.geojson", grid, LABELS, components=1)
    assert found.labels.tolist() == [1, 2]
    pixels = found.boxes * 0.4 / 0.5  # of the scene
    torch.testing.assert_close(
        pixels, torch.tensor([[80.0, 60, 110, 100], [10, 10, 40, 40]]), atol=0.9, rtol=0
    )
    code, err = predict(
        tune, scene, run, tmp_path / "m.tif", "--prompts", tmp_path / "boxes.geojson"
    )
    assert code == 0, err
    record = json.loads((tmp_path / "m.prediction.json").read_text())
    assert record["prompts"]["kind"] == "polygons"
    assert "boxes.geojson: polygons brought from EPSG:4326 to EPSG:32616" in err
    assert "left out" not in err
    frame.loc[2] = {"label": "road", "geometry": shapely.box(x - 20, y - 10, x - 10, y)}
    frame.to_file(tmp_path / "more.geojson")
    with pytest.warns(UserWarning, match=r"more\.geojson: 1 of 3 polygons outside of the image le"):
        more = read_prompts(tmp_path / "more.geojson", grid, LABELS, components=1)
    assert more.labels.tolist() == [1, 2]
    frame.drop(columns="label").to_file(tmp_path / "bare.geojson")
    with pytest.raises(
        DataError, match=r"nothing says which polygons are of which label, house, r"
    ):
        read_prompts(tmp_path / "bare.geojson", grid, LABELS)


def test_a_scene_larger_than_what_was_trained_on(tune, tmp_path, scene):
    """It is not shrunk in silence; in windows it is what a run with these windows makes of it."""
    for name, window in (("plain", None), ("windowed", 64)):
        write_run(tmp_path / name, replace(RULES, window=window), classes=2, labels=LABELS)
    entry = {"case": "a", "patient": "a", "content": "x", "size": [64, 50]}
    split = {"training": [entry], "validation": []}
    (tmp_path / "plain" / "split.json").write_text(json.dumps(split))
    code, err = predict(tune, scene, tmp_path / "plain", tmp_path / "whole.tif")
    assert code == 0, err
    said = "case scene: its 188 x 138 pixels are shrunk to one input of the model, and the run was "
    assert f"{said}trained on images of at most 64." in err
    assert "--set window=64; or train with --overlay scenes" in err
    for name, *more in (("plain", "--set", "window=64"), ("windowed",)):
        code, err = predict(tune, scene, tmp_path / name, tmp_path / f"{name}.tif", *more)
        assert code == 0, err
        assert "shrunk" not in err
    maps = [geo.rasterio.open(tmp_path / f"{name}.tif").read(1) for name in ("plain", "windowed")]
    assert (maps[0] == maps[1]).all()
    record = json.loads((tmp_path / "plain.prediction.json").read_text())
    assert record["settings"]["window"] == 64
    small = geo.write(tmp_path / "small.tif", geo.bands_and_ids(0, (100, 60))[0])
    code, err = predict(tune, small, tmp_path / "plain", tmp_path / "s.tif")  # 125 x 75 pixels
    assert code == 0, err
    assert "shrunk" not in err
    code, err = predict(tune, small, tmp_path / "plain", tmp_path / "t.tif", "--set", "window=x")
    assert code == 1
    assert "window is 'x'; expected null for whole slices" in err


def test_what_is_refused(tune, tmp_path, run, scene):
    code, err = predict(tune, scene, run, tmp_path / "m.gpkg", "--separate")
    assert code == 1
    assert "separate masks are a file each" in err
    plain = geo.write(tmp_path / "plain.tif", geo.bands_and_ids(0)[0], None)
    code, err = predict(tune, plain, run, tmp_path / "m.gpkg")
    assert code == 1
    assert "polygons need an image with a coordinate system" in err
    code, err = predict(tune, scene, run, tmp_path / "m.tif", "--set", "fill_holes=true")
    assert code == 1
    assert "needs a whole mask, and a scene is written part by part" in err
    assert not list(tmp_path.glob("m.*"))
