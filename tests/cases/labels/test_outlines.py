"""Polygons on the ground give the tensor that a mask gives."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medsam_tune.cases.classes import Coding
from medsam_tune.cases.datalist import Case, read_datalist, write_datalist
from medsam_tune.cases.description import Labels
from medsam_tune.cases.folders import find_cases
from medsam_tune.cases.labels.open import open_label
from medsam_tune.cases.load import load_case
from medsam_tune.errors import DataError
from medsam_tune.formats.open import files_of
from medsam_tune.formats.vectors import is_in_pixels
from tests import geo

geopandas = pytest.importorskip("geopandas", reason="the extra geo is not installed")
shapely = pytest.importorskip("shapely")

BANDS, IDS = geo.bands_and_ids(1)
WHERE = geo.transform()
BOXES = geo.outlines(IDS, WHERE)


def frame(shapes: Any = None, crs: Any = geo.UTM, **columns: Any) -> Any:
    shapes = [one for one, _ in BOXES] if shapes is None else shapes
    return geopandas.GeoDataFrame(columns, geometry=list(shapes), crs=crs)


def save(path: Path, found: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    found.to_file(path)
    return path


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    return geo.write(tmp_path / "images" / "a.tif", BANDS)


def label(scene: Path, path: Path, names: dict[int, str] | None = None, **options: Any) -> Any:
    case = Case(scene, path, "p", **options)
    return load_case(case, names or {1: "house"})[1]


@pytest.mark.parametrize("ending", [".gpkg", ".geojson", ".shp"])
def test_polygons_are_pixels_and_objects(scene, tmp_path, ending):
    found = label(scene, save(tmp_path / f"a{ending}", frame()))
    np.testing.assert_array_equal(found[0, ..., 0].numpy().T, IDS)
    assert sorted(np.unique(found[1].numpy())) == list(range(len(BOXES) + 1))
    assert ((found[1] > 0) == (found[0] > 0)).all()


def test_another_coordinate_system_is_brought_to_the_image_s(scene, tmp_path):
    path = save(tmp_path / "a.geojson", frame().to_crs("EPSG:4326"))
    found = label(scene, path)
    np.testing.assert_array_equal(found[0, ..., 0].numpy().T, IDS)
    assert found.meta["notes"] == ["polygons brought from EPSG:4326 to EPSG:32616"]


def test_what_lies_outside_of_the_image_is_left_out_and_said(scene, tmp_path):
    x, y = geo.ORIGIN
    beside = shapely.box(x - 20, y - 10, x - 10, y)
    path = save(tmp_path / "a.gpkg", frame([*(one for one, _ in BOXES), beside]))
    found = label(scene, path)
    np.testing.assert_array_equal(found[0, ..., 0].numpy().T, IDS)
    said = f"1 of {len(BOXES) + 1} polygons outside of the image left out"
    assert found.meta["notes"] == [said]
    assert label(scene, path, region=(5, 3, 40, 30)).meta["notes"] == []  # others have the rest


def test_a_part_of_the_scene_has_its_polygons(scene, tmp_path):
    path = save(tmp_path / "a.gpkg", frame())
    found = label(scene, path, region=(5, 3, 40, 30))
    np.testing.assert_array_equal(found[0, ..., 0].numpy().T, IDS[3:30, 5:40])


def test_a_part_without_polygons_is_empty(scene, tmp_path):
    path = save(tmp_path / "a.gpkg", frame())
    assert not label(scene, path, region=(63, 47, 64, 48)).any()


@pytest.mark.parametrize("values", [["barn", "house", "barn"], [2, 1, 2], [2.0, 1.0, 2.0]])
def test_a_column_says_the_class(scene, tmp_path, values):
    path = save(tmp_path / "a.gpkg", frame(kind=values))
    names = {1: "house", 2: "barn"}
    found = label(scene, path, names, coding=Coding(column="kind"))
    numbers = found[1, ..., 0].numpy().T
    for n, (box, _) in enumerate(BOXES):
        inside = geo.rasterio.features.geometry_mask([box], IDS.shape, WHERE, invert=True)
        expected = 1 if values[n] in ("house", 1) else 2
        assert set(found[0, ..., 0].numpy().T[inside]) == {expected}
        assert len(set(numbers[inside])) == 1
    opened = open_label(path, Coding(column="kind"))
    assert opened.numbered == (values[0] != "barn")
    assert opened.present(names) == {1, 2}


def test_the_smallest_polygon_lies_on_top(scene, tmp_path):
    around = shapely.box(*shapely.union_all([one for one, _ in BOXES]).bounds).buffer(1)
    path = save(tmp_path / "a.gpkg", frame([*(one for one, _ in BOXES), around], kind=[1, 1, 1, 2]))
    found = label(scene, path, {1: "house", 2: "yard"}, coding=Coding(column="kind"))
    np.testing.assert_array_equal(found[0, ..., 0].numpy().T == 1, IDS == 1)
    assert (found[0] == 2).any()


def test_what_crosses_itself_is_mended_and_said(scene, tmp_path):
    x, y = geo.ORIGIN
    bow = shapely.Polygon([(x, y), (x + 8, y - 8), (x + 8, y), (x, y - 8)])
    found = label(scene, save(tmp_path / "a.gpkg", frame([bow])))
    assert found.meta["notes"] == ["1 polygons that cross themselves mended"]
    assert 100 < (found[0] > 0).sum() < 156


def test_lines_of_a_mended_polygon_are_not_burnt(scene, tmp_path):
    x, y = geo.ORIGIN
    square = [(x, y), (x + 8, y), (x + 8, y - 8), (x, y - 8)]
    spike = [*square[:3], (x + 16, y - 16), *square[2:]]
    sound = label(scene, save(tmp_path / "sound.gpkg", frame([shapely.Polygon(square)])))
    shapes = [shapely.Polygon(spike), shapely.Polygon([(x, y), (x + 20, y - 20), (x, y)])]
    found = label(scene, save(tmp_path / "a.gpkg", frame(shapes)))
    np.testing.assert_array_equal(found[0], sound[0])
    assert found.meta["notes"] == [
        "2 polygons that cross themselves mended",
        "1 polygons without an area left out",
    ]


def test_a_folder_of_polygons(tmp_path):
    for k in range(4):
        bands, ids = geo.bands_and_ids(k)
        geo.write(tmp_path / "d/images" / f"s{k}.tif", bands)
        shapes = [one for one, _ in geo.outlines(ids, WHERE)]
        kinds = ["house"] * (len(shapes) - 1) + ["unclear"]
        save(tmp_path / "d/labels" / f"s{k}.geojson", frame(shapes, kind=kinds))
    classes = [{"id": 1, "name": "house"}, {"id": 2, "name": "unclear", "ignore": True}]
    (tmp_path / "d/classes.json").write_text(json.dumps({"column": "kind", "classes": classes}))
    data = find_cases(tmp_path / "d")
    assert data.labels == {1: "house"}
    assert data.ignore == 2
    assert data.modality == "RGB"
    write_datalist(data, tmp_path / "d.json")
    case = read_datalist(tmp_path / "d.json").training[0]
    found = load_case(case, data.labels_in_files)[1]
    assert set(np.unique(found[0].numpy())) == {0, 1, 2}


def test_spacenet_s_polygons_need_no_table(tmp_path):
    """A chip without buildings has a file without features."""
    geo.write(tmp_path / "d/images/img1.tif", BANDS)
    geo.write(tmp_path / "d/images/img2.tif", BANDS)
    save(tmp_path / "d/masks/img1.geojson", frame().to_crs("EPSG:4326"))
    (tmp_path / "d/masks/img2.geojson").write_text(
        json.dumps({"type": "FeatureCollection", "features": []})
    )
    first, second = find_cases(tmp_path / "d").training
    assert (first.id, second.id) == ("img1", "img2")
    np.testing.assert_array_equal(load_case(first, {1: "b"})[1][0, ..., 0].numpy().T, IDS)
    assert not load_case(second, {1: "b"})[1].any()


DAMAGE = {"no-damage": 1, "destroyed": 2}


def xbd(folder: Path, name: str, *damages: str, **changes: Any) -> Path:
    """An image in PNG and its labels as xBD has them: rectangles of 9 x 6 pixels."""
    for place in ("images", "labels"):
        (folder / place).mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((40, 60, 3), 90, np.uint8)).save(folder / "images" / f"{name}.png")
    xy = []
    for k, damage in enumerate(damages):
        box = shapely.box(2 + 15 * k, 5, 11 + 15 * k, 11)
        properties = {"feature_type": "building", "subtype": damage, "uid": f"u{k}"}
        xy.append({"properties": properties, "wkt": box.wkt})
    metadata = {"width": 60, "height": 40, "img_name": f"{name}.png"}
    content = {"features": {"lng_lat": [], "xy": xy}, "metadata": metadata, **changes}
    path = folder / "labels" / f"{name}.json"
    path.write_text(json.dumps(content))
    return path


def test_xbd_as_it_is_published(tmp_path):
    xbd(tmp_path, "santa-rosa-wildfire_00000001_post_disaster", *DAMAGE)
    xbd(tmp_path, "santa-rosa-wildfire_00000002_post_disaster")
    classes = [{"id": k, "name": name} for name, k in DAMAGE.items()]
    (tmp_path / "classes.json").write_text(json.dumps({"column": "subtype", "classes": classes}))
    data = find_cases(tmp_path)
    assert (data.modality, data.labels) == ("RGB", {1: "no-damage", 2: "destroyed"})
    first, second = data.training
    image, label = load_case(first, data.labels)
    assert (image.shape, label.shape) == ((1, 60, 40, 1), (2, 60, 40, 1))
    drawn = np.zeros((40, 60), int)
    drawn[5:11, 2:11], drawn[5:11, 17:26] = 1, 2
    np.testing.assert_array_equal(label[0, ..., 0].numpy().T, drawn)
    assert sorted(np.unique(label[1].numpy())) == [0, 1, 2]
    assert not load_case(second, data.labels)[1].any()
    part = load_case(replace(first, region=(4, 6, 20, 30)), data.labels)[1]
    np.testing.assert_array_equal(part[0, ..., 0].numpy().T, drawn[6:30, 4:20])


def test_xbd_s_polygons_outside_of_the_image_are_said(tmp_path):
    path = xbd(tmp_path, "a_pre_disaster", *DAMAGE)
    content = json.loads(path.read_text())
    content["features"]["xy"][1]["wkt"] = shapely.box(90, 90, 99, 99).wkt
    path.write_text(json.dumps(content))
    data = find_cases(tmp_path, labels=Labels({1: "building"}))
    found = load_case(data.training[0], data.labels)[1]
    assert (found[0] > 0).sum() == 54
    assert "1 of 2 polygons outside of the image left out" in found.meta["notes"]


def test_without_a_column_xbd_has_buildings(tmp_path):
    xbd(tmp_path, "a_pre_disaster", *DAMAGE)
    given = Labels({1: "building"})
    data = find_cases(tmp_path, labels=given)
    assert (load_case(data.training[0], data.labels)[1][0] > 0).sum() == 2 * 54


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"metadata": {"width": 61, "height": 40}}, "says 61 x 40 pixels of the image, it has 60"),
        ({"metadata": None}, r"has no list features\.xy, or no metadata"),
        ({"features": {"xy": [{"properties": {}, "wkt": "POLYGON"}]}}, "feature 0 has no wkt"),
        ({"features": {"xy": [{"wkt": "POLYGON EMPTY"}]}}, "feature 0 has no wkt, or no propert"),
        ({"features": {"xy": [{"properties": {}, "wkt": "POINT (1 1)"}]}}, "feature 0 is a Point"),
        (
            {"features": {"xy": [{"properties": {}, "wkt": shapely.box(70, 5, 80, 9).wkt}]}},
            "all 1 polygons lie outside of the image of 60 x 40 pixels",
        ),
    ],
)
def test_what_is_no_label_of_xbd(tmp_path, changes, match):
    path = xbd(tmp_path, "a", **changes)
    case = Case(tmp_path / "images/a.png", path, "p")
    with pytest.raises(DataError, match=rf"^case a: .*a\.json.* ?{match}"):
        load_case(case, {1: "building"})


@pytest.mark.parametrize("indent", [None, 4])
def test_xbd_whose_keys_stand_in_another_order(tmp_path, indent):
    path = xbd(tmp_path, "a_pre_disaster", *DAMAGE)
    said = {"made_by": {"name": "x" * 400}}  # more than a head holds
    content = {**said, **dict(reversed(json.loads(path.read_text()).items()))}
    path.write_text(json.dumps(content, indent=indent))
    data = find_cases(tmp_path, labels=Labels({1: "building"}))
    assert (load_case(data.training[0], data.labels)[1][0] > 0).sum() == 2 * 54


@pytest.mark.parametrize(
    "content",
    [
        {"type": "FeatureCollection", "features": []},
        {"images": [], "annotations": [{"attributes": {"features": {"a": 1}}}], "categories": []},
        {"metadata": {"width": 60, "height": 40}},
    ],
)
def test_other_json_is_no_polygon(tmp_path, content):
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert not is_in_pixels(tmp_path / "a.json")
    assert not is_in_pixels(tmp_path / "none.json")


def test_damaged_json_of_xbd_is_refused_as_such(tmp_path):
    path = xbd(tmp_path, "a", *DAMAGE)
    path.write_text(path.read_text()[:-9])
    with pytest.raises(DataError, match=r"^case a: .*a\.json: is not JSON"):
        load_case(Case(tmp_path / "images/a.png", path, "p"), {1: "building"})


def test_without_a_class_map_all_are_one_label(tmp_path):
    geo.write(tmp_path / "d/images/a.tif", BANDS)
    save(tmp_path / "d/labels/a.gpkg", frame())
    assert find_cases(tmp_path / "d").labels == {1: "label 1"}


def test_a_shapefile_is_all_its_files(tmp_path):
    path = save(tmp_path / "a.shp", frame())
    assert {one.suffix for one in files_of(path)} >= {".shp", ".dbf", ".shx", ".prj"}


def move(shapes: Any) -> Any:
    return [shapely.transform(one, lambda xy: xy + 1e5) for one, _ in shapes]


@pytest.mark.parametrize(
    ("name", "found", "coding", "match"),
    [
        (
            "a.gpkg",
            lambda: frame(move(BOXES)),
            {},
            r"a\.gpkg: all 3 polygons, such as feature 0, l",
        ),
        (
            "a.shp",
            lambda: frame(crs=None),
            {},
            r"a\.shp: defines no coordinate system; expected .*a\.prj",
        ),
        (
            "a.gpkg",
            lambda: frame([shapely.Point(1, 1)]),
            {},
            r"feature 0 is a Point; expected poly",
        ),
        (
            "a.gpkg",
            lambda: frame(kind=["x"] * 3),
            {"column": "k"},
            r"has no column 'k'; it has kin",
        ),
        (
            "a.gpkg",
            lambda: frame(kind=["x"] * 3),
            {"column": "kind"},
            r"kind is 'x' of some polygons; expected house\. Name each in classes\.json",
        ),
        (
            "a.gpkg",
            lambda: frame(k=["x", None, "x"]),
            {"column": "k"},
            r"feature 1 has no k; expec",
        ),
    ],
    ids=["outside", "no-crs", "point", "no-column", "unknown-class", "no-class"],
)
def test_what_is_refused(scene, tmp_path, name, found, coding, match):
    path = save(tmp_path / name, found())
    with pytest.raises(DataError, match=match):
        label(scene, path, coding=Coding(**coding))


def test_several_layers_are_refused(scene, tmp_path):
    for layer in ("roads", "houses"):
        frame().to_file(tmp_path / "a.gpkg", layer=layer)
    with pytest.raises(DataError, match=r"has 2 layers with shapes, roads, houses; expected one\."):
        label(scene, tmp_path / "a.gpkg")


def test_an_image_without_a_place_is_refused(tmp_path):
    path = save(tmp_path / "a.gpkg", frame())
    with pytest.raises(DataError, match=r"and the image names none; expected both to have one"):
        label(geo.write(tmp_path / "b.tif", BANDS, None), path)
    with pytest.raises(DataError, match=r"need an image with a place on the ground, and .*b\.tif"):
        label(geo.write(tmp_path / "b.tif", BANDS, where=False), path)


def test_a_damaged_file_is_refused(scene, tmp_path):
    (tmp_path / "a.gpkg").write_bytes(b"nothing of the kind" * 99)
    with pytest.raises(DataError, match=r"a\.gpkg: is no readable GeoPackage, GeoJSON or shapefil"):
        label(scene, tmp_path / "a.gpkg")
