"""GeoTIFF and polygons; the plain stack is rasterio with geopandas."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from medsam_tune.cases.datalist import Case
from medsam_tune.cases.load import load_case
from medsam_tune.slices.colours import Colours
from medsam_tune.slices.cut import cut
from medsam_tune.slices.rules import ScanRules
from tests.bad_inputs.table import BadInput
from tests.geo import bands_and_ids, outlines, rasterio, transform, write

BANDS, IDS = bands_and_ids(1)
NAMES = {1: "house", 255: "ignore"}
SHAPES = outlines(IDS, transform())


def scene(bands: np.ndarray = BANDS, **options: Any) -> Callable[[Path], Case]:
    """Makes a case of an image and a sound mask."""

    def make(folder: Path) -> Case:
        image = write(folder / "a.tif", bands, **options)
        return Case(image, write(folder / "m.tif", IDS[None], **options), "p")

    return make


def polygons(
    name: str, change: Callable[[Any], Any], crs: Any = "EPSG:32616", image: Any = None
) -> Callable:
    """Makes a case of polygons and an image; `image` has options of `write`, by default none."""

    def make(folder: Path) -> Case:
        import geopandas

        frame = geopandas.GeoDataFrame(geometry=[one for one, _ in SHAPES], crs=crs)
        change(frame).to_file(folder / name)
        return Case(write(folder / "a.tif", BANDS, **(image or {})), folder / name, "p")

    return make


def turned(folder: Path) -> Case:
    """A case whose image has four bands, no place, and a header that turns it."""
    path = write(folder / "a.tif", BANDS, crs=None, where=False)
    content = bytearray(path.read_bytes())
    planes = content.index(struct.pack("<HHI", 284, 3, 1))  # a tag that may be missing
    content[planes : planes + 12] = struct.pack("<HHIHH", 274, 3, 1, 6, 0)
    path.write_bytes(content)
    return Case(path, None, "p")


def damaged(folder: Path) -> Case:
    """A case whose image has a broken tile."""
    steps = np.arange(600 * 600, dtype=np.uint16).reshape(1, 600, 600) // 7
    path = write(folder / "a.tif", steps, tiled=True, compress="deflate")
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 900] = b"\xff" * 900
    path.write_bytes(content)
    return Case(path, None, "p")


def several(folder: Path) -> Case:
    """A case whose image file holds two."""
    path = write(folder / "a.tif", BANDS)
    return Case(write(path, BANDS, APPEND_SUBDATASET="YES"), None, "p")


def moved_mask(folder: Path) -> Case:
    """A case whose mask lies elsewhere."""
    mask = write(folder / "m.tif", IDS[None], where=transform(0.5, (733620.0, 3725100.0)))
    return Case(write(folder / "a.tif", BANDS), mask, "p")


def white_zero_mask(folder: Path) -> Case:
    """A case whose mask says that 0 is white."""
    mask = write(folder / "m.tif", IDS[None], photometric="miniswhite")
    return Case(write(folder / "a.tif", BANDS), mask, "p")


def load(case: Case) -> Any:
    """What `load_case` gives."""
    return load_case(case, NAMES)


def in_scene_bands(found: Any) -> None:
    """Assert that the image has all bands, in their depth."""
    np.testing.assert_array_equal(found[0].numpy()[..., 0].transpose(0, 2, 1), BANDS)


def at_30_cm(case: Case) -> Any:
    """What `rules::gsd` 0.3 makes of it."""
    return cut(load(case)[0], ScanRules(Colours(4), modality="RGB", gsd=0.3))


def opened(case: Case) -> str:
    """What rasterio and geopandas give, in words."""
    with rasterio.open(case.image) as file:
        image = file.read()
    size = " x ".join(map(str, image.shape))
    if case.label is None:
        return f"bands of {size}"
    if case.label.suffix == ".tif":
        with rasterio.open(case.label) as file:
            mask = file.read(1)
    else:
        import geopandas
        from rasterio.features import rasterize

        frame = geopandas.read_file(case.label)
        mask = rasterize(frame.geometry, out_shape=IDS.shape, transform=transform())
    return f"bands of {size}, a mask of {int((mask > 0).sum())} pixels"


def moved(frame: Any) -> Any:
    """Polygons 100 km away."""
    return frame.set_geometry(frame.translate(1e5, 0))


def right(found: Any) -> None:
    """Assert that the label is that of the mask."""
    np.testing.assert_array_equal(found[1][0, ..., 0].numpy().T, IDS)


def bad(name: str, what: str, make: Callable, **options: Any) -> BadInput:
    """A row of the table."""
    return BadInput(
        **{"row": 117, "name": name, "what": what, "make": make, "ours": load} | options
    )


def _empty_band() -> np.ndarray:
    bands = BANDS.copy()
    bands[:, :7] = 0
    return bands


def _ignored(found: Any) -> None:
    image, label = found
    assert image.isnan().numpy()[:, :, :7].all()
    assert (label[0, :, :7] == 255).all()


INPUTS: tuple[BadInput, ...] = (
    bad(
        "geo-tile",
        "a GeoTIFF with a broken tile",
        damaged,
        plain=opened,
        refused=r"^case a: cannot read .*a\.tif: .*Expected a whole GeoTIFF",
    ),
    bad(
        "geo-several",
        "a GeoTIFF of two images",
        several,
        plain=opened,
        refused=r"it holds 2 images \(.*a\.tif\)",
    ),
    bad(
        "geo-nodata",
        "a GeoTIFF with pixels without data",
        scene(_empty_band(), nodata=0),
        plain=opened,
        check=_ignored,
        handled="they are black in input, and left out of loss and scores",
    ),
    bad(
        "geo-enlarged",
        "a GeoTIFF of 5 m, at 0.3 m",
        scene(where=transform(5.0)),
        ours=at_30_cm,
        plain=opened,
        refused=r"a pixel is 5 m, and rules::gsd is 0\.3 m: 16\.7 times smaller",
    ),
    bad(
        "geo-mask-moved",
        "a mask of the same size, 20 m beside the image",
        moved_mask,
        plain=opened,
        refused=r"the mask lies elsewhere than the image \(.*m\.tif, .*a\.tif\)",
    ),
    bad(
        "geo-outside",
        "polygons outside of the image",
        polygons("a.gpkg", moved),
        plain=opened,
        refused=r"a\.gpkg: all 3 polygons, such as feature 0, lie outside of the image",
    ),
    bad(
        "geo-degrees",
        "polygons in degrees, over an image in metres",
        polygons("a.geojson", lambda frame: frame.to_crs("EPSG:4326")),
        plain=opened,
        check=right,
        handled="brought to the image's coordinate system, and said",
    ),
    bad(
        "geo-no-system",
        "a shapefile without its .prj",
        polygons("a.shp", lambda frame: frame, crs=None),
        plain=opened,
        refused=r"a\.shp: defines no coordinate system; .*Add a\.prj",
    ),
    bad(
        "geo-points",
        "points in place of polygons",
        polygons("a.gpkg", lambda frame: frame.set_geometry(frame.centroid)),
        plain=opened,
        refused=r"feature 0 is a Point; expected polygons",
    ),
    bad(
        "geo-no-place",
        "polygons over a TIFF without a place",
        polygons("a.gpkg", lambda frame: frame, image={"crs": None, "where": False}),
        plain=opened,
        refused=r"a\.gpkg: polygons need an image with a place on the ground, and .*a\.tif",
    ),
    bad(
        "geo-no-transform",
        "polygons over a GeoTIFF without a transform",
        polygons("a.gpkg", lambda frame: frame, image={"where": False}),
        plain=opened,
        refused=r"a\.gpkg: polygons need an image with a place on the ground, and .*a\.tif",
    ),
    bad(
        "tiff-bands",
        "a TIFF of four bands of 11 bits, without a place",
        scene(crs=None, where=False),
        plain=opened,
        check=in_scene_bands,
        handled="all bands, in their depth",
    ),
    bad(
        "tiff-turned",
        "a TIFF of four bands, without a place, that its header turns",
        turned,
        plain=opened,
        refused=r"its header turns it \(.*a\.tif\); expected a TIFF of 4 bands of 16 bits",
    ),
    bad(
        "tiff-hidden",
        "a TIFF without a place, whose near infrared is declared as transparency",
        scene((BANDS // 8).astype(np.uint8), crs=None, where=False, photometric="rgb", alpha="yes"),
        plain=opened,
        refused=r"band 4 is declared as transparency, and has \d+ values, as an image has",
    ),
    bad(
        "tiff-white-zero",
        "a mask as TIFF whose header says that 0 is white",
        white_zero_mask,
        plain=opened,
        refused=r"its header says that 0 is white \(.*m\.tif\), so the mask's numbers differ",
    ),
)
