"""A scene that is segmented window by window gets the label map of one in memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from medsam_tune.errors import DataError
from medsam_tune.formats import geotiff
from medsam_tune.formats.open import load_image
from medsam_tune.inference.inferers import VolumeInferer
from medsam_tune.inference.scenes import Scene
from medsam_tune.prompts import Prompts
from medsam_tune.sam.model import Masks
from medsam_tune.slices.colours import Colours
from medsam_tune.slices.cut import cut
from medsam_tune.slices.rules import ScanRules
from medsam_tune.slices.streamed import streamed
from tests import geo

geopandas = pytest.importorskip("geopandas", reason="the extra geo is not installed")
shapely = pytest.importorskip("shapely")

LABELS = {1: "house", 4: "road"}
RULES = ScanRules(Colours(4, limits=[(0, 2000)] * 4), modality="RGB", window=48)


class Shades:
    """A network of two classes: what is bright in red, and in infrared, in a window's own light."""

    image_size = 32
    classes = 2

    def __init__(self) -> None:
        self.pixel_mean = torch.zeros(3, 1, 1)
        self.base = SimpleNamespace(in_channels=4)

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        assert image.shape[1:] == (4, 32, 32)
        return image

    def decode(self, embedding: torch.Tensor, prompts: Prompts) -> Masks:
        kinds = prompts.classes[:, 0]
        shades = embedding[torch.arange(len(kinds)), 3 * kinds]
        small = F.avg_pool2d(shades[:, None], 4)
        level = small.amax((2, 3), keepdim=True) * 0.5 + small.mean((2, 3), keepdim=True) * 0.3
        presence = torch.where(kinds == 0, small.amax((1, 2, 3)) - 0.5, shades.mean((1, 2)) - 0.5)
        return Masks(20 * (small - level), torch.ones(len(kinds), 1), presence[:, None])


def scene(folder: Path, size: tuple[int, int] = (130, 90), **options: Any) -> Path:
    return geo.write(folder / "a.tif", geo.bands_and_ids(0, size)[0], **options)


def in_memory(path: Path, net: Any, rules: ScanRules) -> np.ndarray:
    slices, grid = cut(load_image(path), rules)
    with torch.inference_mode():
        found = VolumeInferer(LABELS, rules)(slices, net)
    return grid.to_file(found)[..., 0].T


@pytest.mark.parametrize("gsd", [None, 0.3, 0.9])
@pytest.mark.parametrize("strip", [32, 4096])
@pytest.mark.parametrize("batch", [1, 3])
def test_it_is_the_label_map_of_a_volume_in_memory(tmp_path, monkeypatch, gsd, strip, batch):
    monkeypatch.setattr(geotiff, "TILE", 16)
    path, net, rules = scene(tmp_path), Shades(), replace(RULES, gsd=gsd)
    expected = in_memory(path, net, rules)
    assert len(np.unique(expected)) > 1
    made = Scene(path, net, rules, LABELS, batch=batch, strip=strip)
    counts = made.write(tmp_path / "m.tif")[tmp_path / "m.tif"]
    with geo.rasterio.open(tmp_path / "m.tif") as file, geo.rasterio.open(path) as own:
        found = file.read(1)
        assert file.crs == own.crs
        assert file.transform == own.transform
        assert file.bounds == own.bounds
    assert (found != expected).mean() < 0.002  # where a logit is 0 but for rounding
    assert counts == {n: int((found == n).sum()) for n in (1, 4) if (found == n).any()}


@pytest.mark.parametrize(("amp", "on"), [(None, False), (True, True), (False, False)])
def test_it_is_in_bfloat16_where_it_is_asked_for(tmp_path, monkeypatch, amp, on):
    monkeypatch.setattr("medsam_tune.engines.has_bfloat16", lambda: True)
    seen = set()

    class Watched(Shades):
        def encode(self, image: torch.Tensor) -> torch.Tensor:
            seen.add(torch.is_autocast_enabled("cpu"))
            return super().encode(image)

    inferer = VolumeInferer(LABELS, RULES)
    inferer.scene(scene(tmp_path), Watched(), LABELS, amp).write(tmp_path / "m.tif")
    assert seen == {on}


def test_blocks_cover_the_scene_once(tmp_path, monkeypatch):
    monkeypatch.setattr(geotiff, "TILE", 16)
    path = scene(tmp_path)
    rules = replace(RULES, gsd=0.4)
    covered = np.zeros((90, 130), int)
    with streamed(path, rules) as slice_:
        for one in Scene(path, Shades(), rules, LABELS, strip=32).blocks(slice_):
            height, width = one.labels.shape
            assert one.probability.shape == (height, width)
            covered[one.row : one.row + height, one.column : one.column + width] += 1
    assert (covered == 1).all()


def test_pixels_without_data_are_background(tmp_path):
    bands = geo.bands_and_ids(0, (130, 90))[0]
    bands[:, :20] = 0
    path = geo.write(tmp_path / "a.tif", bands, nodata=0)
    Scene(path, Shades(), RULES, LABELS).write(tmp_path / "m.tif")
    with geo.rasterio.open(tmp_path / "m.tif") as file:
        found = file.read(1)
    assert not found[:20].any()
    assert found[20:].any()


def test_memory_does_not_grow_with_the_scene(tmp_path):
    """What is held is of a strip: no part that is read or made is larger than it."""
    path = scene(tmp_path, (700, 300))
    largest = []
    with streamed(path, RULES) as slice_:
        made = Scene(path, Shades(), RULES, LABELS, batch=2, strip=256)
        part = slice_.part

        def watched(*where: int) -> Any:
            largest.append(where[2] * where[3])
            return part(*where)

        slice_.part = watched
        for block in made.blocks(slice_):
            assert block.labels.size <= 256 * 48
    assert max(largest) == 48 * 48


@pytest.mark.parametrize("ending", [".gpkg", ".geojson"])
def test_polygons(tmp_path, ending):
    path, net = scene(tmp_path), Shades()
    made = Scene(path, net, RULES, LABELS)
    made.write(tmp_path / "m.tif")
    made.write(tmp_path / f"m{ending}")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a.tif", f"m{ending}", "m.tif"]
    found = geopandas.read_file(tmp_path / f"m{ending}")
    assert found.crs == geo.UTM
    assert found.geometry.is_valid.all()
    assert set(found["name"]) <= set(LABELS.values())
    np.testing.assert_allclose(found["area_m2"], found.area)
    assert found["probability"].between(0.5, 1).all()
    with geo.rasterio.open(tmp_path / "m.tif") as file:
        pixels = file.read(1)
        bounds = shapely.box(*file.bounds)
    assert shapely.box(*found.total_bounds).within(bounds.buffer(1e-6))
    np.testing.assert_allclose(found.area.sum(), 0.25 * (pixels > 0).sum(), rtol=0.05)


def test_the_network_has_the_classes_of_the_labels(tmp_path):
    made = Scene(scene(tmp_path), Shades(), RULES, {1: "house"})
    with pytest.raises(DataError, match=r"the model has 2 classes, and 1 labels are given"):
        made.write(tmp_path / "m.tif")
    assert not (tmp_path / "m.tif").exists()
