from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from medsam_tune.errors import DataError
from medsam_tune.formats.volume import GeoReference
from medsam_tune.inference import polygons
from medsam_tune.inference.canvas import LogitCanvas
from medsam_tune.inference.output import write_masks
from medsam_tune.inference.polygons import write_polygons
from medsam_tune.inference.spool import Spool
from medsam_tune.slices.frames import ScanGrid
from tests import geo

geopandas = pytest.importorskip("geopandas", reason="the extra geo is not installed")
shapely = pytest.importorskip("shapely")

NAMES = {1: "house", 2: "yard"}


def made(folder: Path, ids: np.ndarray, probability: Any = None, **options: Any) -> Any:
    where = options.pop("where", geo.transform())
    crs = options.pop("crs", geo.UTM)
    maps = geo.write(folder / "labels.tif", ids[None].astype(np.uint8), crs, where)
    likely = None
    if probability is not None:
        likely = geo.write(folder / "likely.tif", probability[None], crs, where)
    write_polygons(folder / "a.gpkg", maps, NAMES, likely, **options)
    return geopandas.read_file(folder / "a.gpkg")


def wavy(size: int = 90) -> np.ndarray:
    """Two labels that meet along waves, and a third side of background."""
    row, column = np.indices((size, size))
    ids = np.where(column > size / 2 + 6 * np.sin(row / 5), 2, 1)
    ids[row < 10 + 3 * np.sin(column / 4)] = 0
    ids[30:40, 10:20] = 2  # a hole in the first
    return ids


def test_each_piece_is_a_polygon(tmp_path):
    ids = wavy()
    found = made(tmp_path, ids, tolerance=0)
    assert found.crs == geo.UTM
    assert found["label"].tolist().count(2) == 2
    assert dict(zip(found["label"], found["name"], strict=True)) == NAMES
    for label in NAMES:
        area = found[found["label"] == label]["area_m2"].sum()
        np.testing.assert_allclose(area, 0.25 * (ids == label).sum())
    assert [len(one.interiors) for one in found.geometry].count(1) == 1


def test_shared_borders_stay_shared(tmp_path):
    plain, simple = made(tmp_path, wavy(), tolerance=0), made(tmp_path, wavy())
    assert simple.geometry.is_valid.all()
    assert shapely.get_num_coordinates(simple.geometry.to_numpy()).sum() < 0.5 * (
        shapely.get_num_coordinates(plain.geometry.to_numpy()).sum()
    )
    pieces = simple.geometry.to_numpy()
    assert shapely.coverage_is_valid(pieces)  # neither a gap nor an overlap between neighbours
    whole = shapely.union_all(pieces)
    np.testing.assert_allclose(whole.area, shapely.area(pieces).sum())
    assert whole.geom_type == "Polygon"
    assert not whole.interiors
    np.testing.assert_allclose(whole.area, plain.area.sum(), rtol=0.01)


def test_parts_are_simplified_as_all_together(tmp_path, monkeypatch):
    """Pieces that touch, nearly touch or lie in another's bay stay in one part."""
    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(200, 260)), 2)
    ids = np.digitize(noise, np.quantile(noise, [0.75, 0.9]))
    calls = []
    simplify = shapely.coverage_simplify
    monkeypatch.setattr(
        shapely, "coverage_simplify", lambda dense, *more: calls.append(1) or simplify(dense, *more)
    )
    monkeypatch.setattr(polygons, "_TOGETHER", 10**9)
    whole = made(tmp_path, ids)
    assert len(calls) == 1
    monkeypatch.setattr(polygons, "_TOGETHER", 1)
    parts = made(tmp_path, ids)
    assert len(calls) > 10
    assert parts["label"].tolist() == whole["label"].tolist()
    assert parts.geometry.geom_equals_exact(whole.geometry, 0).all()
    assert shapely.coverage_is_valid(parts.geometry.to_numpy())


def test_a_neighbour_s_corner_on_a_straight_side(tmp_path):
    """The corner is no point of the long side, where simplifying it alone would leave a gap."""
    ids = np.zeros((60, 60))
    ids[20:40, 5:55] = 1
    rows, columns = np.indices(ids.shape)
    ids[(rows >= 40) & (np.abs(columns - 30) < 48 - rows)] = 2
    found = made(tmp_path, ids).geometry.to_numpy()
    assert shapely.coverage_is_valid(found)
    assert len(shapely.union_all(found).interiors) == 0


def test_a_mask_s_polygons_have_the_mean_of_its_logits(tmp_path):
    reference = GeoReference(geo.rasterio.CRS.from_string(geo.UTM).to_wkt(), geo.transform()[:6])
    grid = ScanGrid(np.diag([-500.0, -500, 1, 1]), (40, 30, 1), georeference=reference)
    labels = torch.zeros(1, 30, 40, dtype=torch.uint8)
    labels[0, 5:15, 5:15], labels[0, 5:15, 15:25] = 1, 2
    logits = LogitCanvas((1, 30, 40), NAMES, Spool())
    half = torch.full((2, 30, 40), 1.0)
    half[0, 10:], half[1, :, 20:] = 3.0, 2.0
    logits.paint(torch.tensor([0, 0]), torch.tensor([1, 2]), half)
    write_masks(labels, grid, tmp_path / "a.geojson", NAMES, logits=logits)
    found = geopandas.read_file(tmp_path / "a.geojson").sort_values("label")
    one, two, three = torch.tensor([1.0, 2.0, 3.0]).sigmoid().tolist()
    np.testing.assert_allclose(
        found["probability"], [(one + three) / 2, (one + two) / 2], atol=1e-3
    )
    assert [path.name for path in tmp_path.iterdir()] == ["a.geojson"]


def test_the_mean_probability_of_each(tmp_path):
    ids = np.zeros((1100, 1100))
    ids[10:20, 10:20] = 1
    ids[1000:1050, 1000:1060] = 2  # over blocks
    likely = np.zeros(ids.shape, np.uint16)
    likely[10:20, 10:15], likely[10:20, 15:20] = 500, 1000
    likely[1000:1050, 1000:1060] = 800
    found = made(tmp_path, ids, likely, levels=1000)
    assert dict(zip(found["label"], found["probability"], strict=True)) == {1: 0.75, 2: 0.8}


def test_areas_are_of_the_ground(tmp_path):
    ids = np.zeros((40, 40))
    ids[10:20, 10:30] = 1
    found = made(tmp_path, ids, crs="EPSG:4326", where=geo.transform(1e-5, (13.4, 60.0)))
    np.testing.assert_allclose(found["area_m2"], 200 * 0.558 * 1.114, rtol=0.01)
    found = made(tmp_path, ids, crs="EPSG:3857", where=geo.transform(1.0, (1.5e6, 8399737.9)))
    np.testing.assert_allclose(found["area_m2"], 200 * 0.5011**2, rtol=0.01)


def test_nothing_found_is_a_file_without_polygons(tmp_path):
    assert len(made(tmp_path, np.zeros((20, 20)))) == 0


def test_a_place_is_needed(tmp_path):
    with pytest.raises(DataError, match=r"a\.gpkg: polygons need a scene with a coordinate system"):
        made(tmp_path, wavy(), crs=None)
    assert GeoReference("", (1, 0, 0, 0, -1, 0)).at(2, 3) == (2, -3)
