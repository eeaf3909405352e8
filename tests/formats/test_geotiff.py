from __future__ import annotations

import sys

import numpy as np
import pytest
from PIL import Image

from medsam_tune.errors import DataError
from medsam_tune.formats import geotiff, image
from medsam_tune.formats.open import (
    load_image,
    load_label,
    palette_of,
    read_grid,
    reader_of,
    write_array,
)
from medsam_tune.formats.volume import GeoReference
from tests import geo

rasterio = geo.rasterio
BANDS, IDS = geo.bands_and_ids(0)


def test_bands_and_place(tmp_path):
    path = geo.write(tmp_path / "a.tif", BANDS)
    found = load_image(path)
    np.testing.assert_array_equal(found.numpy()[..., 0], BANDS.transpose(0, 2, 1))
    np.testing.assert_allclose(found.affine.numpy(), np.diag([-500.0, -500.0, 1, 1]), rtol=1e-12)
    grid = read_grid(path)
    assert grid.shape == (64, 48, 1)
    np.testing.assert_array_equal(grid.affine, found.affine)
    reference = found.meta["georeference"]
    assert reference == grid.georeference
    assert reference.transform == tuple(geo.transform())[:6]
    assert rasterio.crs.CRS.from_wkt(reference.crs) == rasterio.crs.CRS.from_string(geo.UTM)
    assert found.meta["channels"] == 4
    assert found.meta["stored"] == "uint16"
    assert found.meta["spacing_known"]
    assert not found.meta["notes"]


@pytest.mark.parametrize("kind", ["uint8", "uint16", "int16", "float32", "float64"])
def test_numbers_of_any_depth(tmp_path, kind):
    found = load_image(geo.write(tmp_path / "a.tif", BANDS[:2].astype(kind)))
    np.testing.assert_array_equal(found.numpy()[..., 0], BANDS[:2].astype(kind).transpose(0, 2, 1))
    assert found.meta["stored"] == kind


def test_a_part_is_read_where_it_lies(tmp_path):
    path = geo.write(tmp_path / "a.tif", BANDS)
    region = (10, 5, 30, 45)
    part = load_image(path, region=region)
    np.testing.assert_array_equal(part.numpy(), load_image(path).numpy()[:, 10:30, 5:45])
    assert part.meta["georeference"].transform[2] == geo.ORIGIN[0] + 5
    assert part.meta["georeference"].transform[5] == geo.ORIGIN[1] - 2.5
    assert read_grid(path, region=region).georeference == part.meta["georeference"]


def test_a_part_of_a_plain_image(tmp_path):
    Image.fromarray(IDS).save(tmp_path / "a.png")
    part = load_label(tmp_path / "a.png", region=(10, 5, 30, 45))
    np.testing.assert_array_equal(part.numpy()[0, ..., 0], IDS.T[10:30, 5:45])
    assert read_grid(tmp_path / "a.png", region=(10, 5, 30, 45)).shape == (20, 40, 1)


@pytest.mark.parametrize("nodata", [0, 2047])
def test_pixels_without_data(tmp_path, nodata):
    bands = BANDS.copy()
    bands[:, :10] = nodata
    bands[0, 20] = nodata  # of one band alone it is a value
    found = load_image(geo.write(tmp_path / "a.tif", bands, nodata=nodata))
    assert found.meta["gaps"]
    assert found.isnan().numpy()[..., 0].transpose(0, 2, 1)[:, :10].all()
    assert not found.isnan().numpy()[:, :, 10:].any()
    assert found.meta["notes"] == ["20.8% of the pixels without data"]


def test_a_hole_of_one_band_is_a_hole_of_all(tmp_path):
    bands = BANDS.astype(np.float32)
    bands[1, 3, 7] = np.nan
    found = load_image(geo.write(tmp_path / "a.tif", bands))
    assert found.isnan().numpy()[:, 7, 3, 0].all()
    assert found.isnan().sum() == 4


def test_transparency_is_no_band(tmp_path):
    bands = np.concatenate([BANDS[:3] // 8, np.full((1, 48, 64), 255)]).astype(np.uint8)
    bands[3, :6] = 0
    path = geo.write(tmp_path / "a.tif", bands, photometric="rgb", alpha="yes")
    found = load_image(path)
    assert found.shape == (3, 64, 48, 1)
    assert found.isnan().numpy()[..., 0].transpose(0, 2, 1)[:, :6].all()
    assert geotiff.has_gaps(path)


def test_near_infrared_declared_as_transparency(tmp_path):
    path = geo.write(
        tmp_path / "a.tif", (BANDS // 8).astype(np.uint8), photometric="rgb", alpha="yes"
    )
    with pytest.raises(DataError, match=r"band 4 is declared as transparency, and has \d+ values"):
        load_image(path)


@pytest.mark.parametrize(
    ("kind", "bands", "options"),
    [
        *(("uint8", bands, {}) for bands in (2, 4, 5)),
        *((kind, bands, {}) for kind in ("uint16", "float32") for bands in (2, 3, 4, 5)),
        ("uint8", 4, {"photometric": "rgb", "alpha": "no"}),
        ("uint16", 4, {"photometric": "rgb", "alpha": "no"}),
        ("uint16", 3, {"photometric": "rgb", "interleave": "band"}),
        ("uint16", 3, {"photometric": "rgb", "tiled": True, "blockxsize": 16, "blockysize": 16}),
        ("uint16", 3, {"photometric": "rgb", "compress": "zstd"}),
        ("uint16", 3, {"photometric": "rgb", "interleave": "pixel"}),
        ("uint16", 3, {"photometric": "rgb", "interleave": "pixel", "compress": "lzw"}),
        ("uint16", 3, {"photometric": "rgb", "interleave": "pixel", "BIGTIFF": "YES"}),
        ("uint16", 1, {"interleave": "band"}),
        ("uint8", 3, {"photometric": "rgb", "interleave": "band"}),
    ],
)
def test_bands_of_a_tiff_without_a_place(tmp_path, kind, bands, options):
    """All of them, in their depth; Pillow and SimpleITK alone leave out bands, or bits."""
    values = np.stack([BANDS[n % 4] // (8 if kind == "uint8" else 1) + n for n in range(bands)])
    path = geo.write(tmp_path / "a.tif", values.astype(kind), None, False, **options)
    found = load_image(path)
    np.testing.assert_array_equal(found.numpy()[..., 0], values.astype(kind).transpose(0, 2, 1))
    assert found.meta["stored"] == kind
    assert found.meta["channels"] == bands
    assert not found.meta["notes"]
    assert not found.meta["spacing_known"]
    assert read_grid(path).shape == (64, 48, 1)
    part = load_image(path, region=(10, 5, 30, 45))
    np.testing.assert_array_equal(part.numpy(), found.numpy()[:, 10:30, 5:45])


def test_bands_without_rasterio(tmp_path, monkeypatch):
    path = geo.write(tmp_path / "a.tif", BANDS, None, False)
    monkeypatch.setitem(sys.modules, "rasterio", None)
    with pytest.raises(
        DataError, match=r"a\.tif: a TIFF of 4 bands of 16 bits needs rasterio\. Install the extra"
    ):
        load_image(path)


def test_an_error_of_gdal_itself_is_a_refusal(tmp_path):
    """Those of some headers are none of rasterio's."""
    path = geo.write(tmp_path / "a.tif", BANDS, None, False)
    said = r"cannot read .*a\.tif: .*StripOffsets.*Expected a whole TIFF; copy it again"
    with pytest.raises(DataError, match=said), geotiff.opened(path):
        raise rasterio._err.CPLE_AppDefinedError(3, 1, "TIFFFetchStripThing: StripOffsets")


def test_damaged_bands_are_refused(tmp_path):
    path = geo.write(tmp_path / "a.tif", BANDS, None, False, compress="deflate")
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(DataError, match=r"cannot read .*a\.tif: .*Expected a whole TIFF; copy it"):
        load_image(path)


def test_a_colour_table(tmp_path):
    table = {0: (0, 0, 0), 1: (255, 0, 9)}
    path = geo.write(tmp_path / "a.tif", IDS[None], colours=table)
    assert palette_of(path)[:2] == [(0, 0, 0), (255, 0, 9)]
    assert load_image(path).shape == (3, 64, 48, 1)
    np.testing.assert_array_equal(load_label(path).numpy()[0, ..., 0], IDS.T)


@pytest.mark.parametrize(
    ("crs", "pixel", "origin", "metres"),
    [
        ("EPSG:32616", 0.5, geo.ORIGIN, (0.5, 0.5)),
        ("EPSG:2264", 1.0, (2e6, 6e5), (0.3048006, 0.3048006)),  # US survey feet
        ("EPSG:4326", 1e-5, (13.4, 60.0), (0.558, 1.114)),  # half a degree of longitude at 60 N
        ("EPSG:3857", 1.0, (1.5e6, 8399737.9), (0.5011, 0.5011)),  # the web's map is twice as large
    ],
)
def test_metres_on_the_ground(tmp_path, crs, pixel, origin, metres):
    path = geo.write(tmp_path / "a.tif", BANDS, crs, geo.transform(pixel, origin))
    spacing = np.linalg.norm(read_grid(path).affine[:3, :2], axis=0) / 1000
    np.testing.assert_allclose(spacing, metres, rtol=2e-3)


def test_a_turned_image_is_read_as_it_lies(tmp_path):
    where = geo.transform() @ rasterio.Affine.rotation(30)
    found = load_image(geo.write(tmp_path / "a.tif", BANDS, where=where))
    np.testing.assert_array_equal(found.numpy()[..., 0], BANDS.transpose(0, 2, 1))
    np.testing.assert_allclose(np.linalg.norm(found.affine[:3, :2], axis=0), 500)
    assert found.meta["georeference"].transform == pytest.approx(tuple(where)[:6])


def test_without_a_coordinate_system_pixels_have_no_size(tmp_path):
    found = load_image(geo.write(tmp_path / "a.tif", BANDS, None))
    assert not found.meta["spacing_known"]
    assert found.meta["georeference"].crs == ""
    assert found.meta["notes"] == [
        "it names no coordinate system, so the size of a pixel is unknown"
    ]


def test_without_a_transform_it_is_a_plain_image(tmp_path):
    path = geo.write(tmp_path / "a.tif", BANDS[:1].astype(np.uint8), where=False)
    assert reader_of(path) is geotiff
    found = load_image(path)
    assert "georeference" not in found.meta
    assert not found.meta["spacing_known"]
    assert found.meta["notes"][0].startswith("no transform, so read as a plain image")


def test_the_content_tells_a_plain_tiff(tmp_path):
    Image.fromarray(IDS).save(tmp_path / "a.tif")
    assert reader_of(tmp_path / "a.tif") is image
    for options in ({"bigtiff": "yes"}, {"endianness": "big"}):
        path = geo.write(tmp_path / "b.tif", BANDS, **options)
        assert reader_of(path) is geotiff
        np.testing.assert_array_equal(load_image(path).numpy()[..., 0], BANDS.transpose(0, 2, 1))


def test_it_is_written_with_its_place_tiled_and_with_overviews(tmp_path):
    reference = GeoReference(
        rasterio.crs.CRS.from_string(geo.UTM).to_wkt(), tuple(geo.transform())[:6]
    )
    ids = np.random.default_rng(0).integers(0, 3, (700, 300, 1))
    write_array(tmp_path / "m.tif", ids, np.eye(4), georeference=reference)
    with rasterio.open(tmp_path / "m.tif") as file:
        assert file.crs == rasterio.crs.CRS.from_string(geo.UTM)
        assert file.transform == geo.transform()
        assert file.shape == (300, 700)
        assert file.dtypes == ("uint8",)
        assert file.compression.name == "deflate"
        assert file.block_shapes == [(256, 256)]
        assert file.overviews(1) == [2, 4]
        np.testing.assert_array_equal(file.read(1), ids[..., 0].T)


def test_a_damaged_tile(tmp_path):
    steps = np.arange(600 * 600, dtype=np.uint16).reshape(1, 600, 600) // 7
    path = geo.write(tmp_path / "a.tif", steps, tiled=True, compress="deflate")
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 900] = b"\xff" * 900
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"^cannot read .*a\.tif: .*Expected a whole GeoTIFF; copy"):
        load_image(path)
    path.write_bytes(content[:middle])
    with pytest.raises(DataError, match=r"^cannot read .*a\.tif: .*Expected a whole GeoTIFF; copy"):
        load_image(path)


def test_several_images(tmp_path):
    path = geo.write(tmp_path / "a.tif", BANDS)
    geo.write(path, BANDS, APPEND_SUBDATASET="YES")
    with pytest.raises(DataError, match=r"^it holds 2 images \(.*a\.tif\): .*expected one\. Save"):
        load_image(path)


@pytest.mark.parametrize(
    ("bands", "options", "match"),
    [
        (BANDS.astype(np.complex64), {}, r"its values are complex64 \(.*expected whole numbers"),
        (np.zeros_like(BANDS), {"nodata": 0}, r"no pixel has data \(.*a\.tif\): all are the nod"),
        (
            BANDS,
            {"where": rasterio.Affine(0.5, 0.3, 0, 0, -0.5, 0)},
            r"rows and columns are at no right angle on the ground \(.*by gdalwarp",
        ),
    ],
    ids=["complex", "empty", "sheared"],
)
def test_what_is_refused(tmp_path, bands, options, match):
    path = geo.write(tmp_path / "a.tif", bands, **options)
    with pytest.raises(DataError, match=match):
        load_image(path)


def test_without_the_extra_it_says_what_to_install(tmp_path, monkeypatch):
    path = geo.write(tmp_path / "a.tif", BANDS)
    monkeypatch.setitem(sys.modules, "rasterio", None)
    with pytest.raises(DataError, match=r"needs rasterio\. Install the extra: pip install medsam_"):
        load_image(path)
