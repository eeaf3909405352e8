"""Polygons, by geopandas: on the ground (GeoPackage, GeoJSON, shapefile), or in pixels (xBD)."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from medsam_tune.errors import DataError, listed
from medsam_tune.files import JSON_LIMIT, parse_json, read_json, written_whole
from medsam_tune.formats.extra import geo
from medsam_tune.formats.volume import GeoReference

ENDINGS = (".gpkg", ".geojson", ".shp")
WRITTEN = (".gpkg", ".geojson")
IN_PIXELS = ".json"
"""Ending of polygons in pixels, see `is_in_pixels`."""

_FEATURES = re.compile(rb'"features"\s*:\s*\{')  # GeoJSON has a list of them
_DRIVERS = {".gpkg": "GPKG", ".geojson": "GeoJSON"}
_POLYGONS = ("Polygon", "MultiPolygon")


def is_vector(path: Path) -> bool:
    """Whether a path is named like a file of polygons."""
    return path.name.lower().endswith(ENDINGS)


def is_in_pixels(path: Path) -> bool:
    """Whether a file is of polygons in the pixels of one image, as xBD has them, by its keys.

    It is if it cannot be read, and what is there looks so: reading it says what is wrong.
    """
    if path.suffix.lower() != IN_PIXELS or not path.is_file():
        return False
    status = path.stat()
    if status.st_size > JSON_LIMIT:
        return False
    return _has_features(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=2**16)
def _has_features(path: Path, changed: int, size: int) -> bool:
    """Whether JSON holds an object `features`; a file that did not change is read once."""
    text = path.read_bytes()
    if _FEATURES.search(text) is None:
        return False
    try:
        return isinstance(parse_json(text.decode("utf-8-sig"), str(path)).get("features"), dict)
    except (DataError, UnicodeDecodeError):
        return True


def parts_of(path: Path) -> list[Path]:
    """The files that a file of polygons is made of: of a shapefile, all of its name."""
    if path.suffix.lower() != ".shp":
        return [path]
    return sorted(one for one in path.parent.iterdir() if one.stem == path.stem)


def footprint(reference: GeoReference, size: tuple[int, int], path: Path) -> Any:
    """shapely's polygon around an image of (W, H) pixels, in its own coordinates."""
    shapely = geo("shapely", path, "a file of polygons")
    width, height = size
    corners = [(0, 0), (width, 0), (width, height), (0, height)]
    return shapely.Polygon([reference.at(*corner) for corner in corners])


def read(
    path: Path,
    reference: GeoReference | None = None,
    size: tuple[int, int] | None = None,
    part: bool = False,
) -> tuple[Any, tuple[str, ...]]:
    """Read polygons.

    Polygons that cross themselves are mended, those outside of the image left out; both is said.

    Args:
        path: file of one of `ENDINGS`.
        reference: place of an image: polygons that touch it alone are read, in its coordinate
            system; None for all, as they are.
        size: (W, H) of that image, pixels.
        part: the image is part of the one that the polygons belong to, so none may touch it.

    Returns:
        geopandas' GeoDataFrame, whose index counts the file's features from 0, and what was
        changed.

    Raises:
        DataError: the file cannot be read, or its packages are missing; it has several layers, no
            coordinate system, or features that are no polygons; all its polygons lie outside of the
            image.
    """
    geopandas = geo("geopandas", path, "a file of polygons")
    pyogrio = geo("pyogrio", path, "a file of polygons")
    try:
        layers = [str(name) for name, kind in pyogrio.list_layers(path) if kind is not None]
        if len(layers) > 1:
            raise DataError(
                f"{path}: has {len(layers)} layers with shapes, {listed(layers, 5)}; expected one. "
                "Save each as a file of its own."
            )
        frame = geopandas.read_file(path)
    except (RuntimeError, ValueError, OSError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{path}: is no readable GeoPackage, GeoJSON or shapefile ({error}). Export it again."
        ) from error
    if frame.crs is None:
        raise DataError(
            f"{path}: defines no coordinate system; expected one, so that its polygons have a "
            f"place. {_way_of_crs(path)}"
        )
    frame, notes = _polygons(frame, path)
    if reference is not None and size is not None:
        frame, said = _around(frame, path, reference, size, part)
        notes += said
    frame, said = _mended(frame, path)
    return frame, notes + said


def read_in_pixels(
    path: Path, size: tuple[int, int] | None = None, corner: tuple[int, int] | None = None
) -> tuple[Any, tuple[str, ...]]:
    """Read polygons of `is_in_pixels`: WKT in `features.xy`, with the properties as columns.

    Args:
        path: the file.
        size: (W, H) of the image, or of the part of it, whose polygons are read; None for all.
        corner: XY of that part in the image, pixels; None where it is all of it.

    Returns:
        geopandas' GeoDataFrame in pixels from the upper left corner of the image or part, and what
        was changed; see `read`.

    Raises:
        DataError: the file cannot be read, or its packages are missing; features that are no
            polygons; an image of another size; all polygons lie outside of the image.
    """
    geopandas = geo("geopandas", path, "a file of polygons")
    shapely = geo("shapely", path, "a file of polygons")
    content = read_json(path)
    found, said = content.get("features"), content.get("metadata")
    features = found.get("xy") if isinstance(found, dict) else None
    if not isinstance(features, list) or not isinstance(said, dict):
        raise DataError(
            f"{path}: has no list features.xy, or no metadata; expected both, as xBD's labels have "
            "them. Take the file as it was published."
        )
    shapes, rows = [], []
    for number, one in enumerate(features):
        try:
            shapes.append(shapely.from_wkt(one["wkt"]))
            rows.append(dict(one["properties"]))
        except (TypeError, KeyError, ValueError, shapely.errors.ShapelyError) as error:
            raise DataError(
                f"{path}: feature {number} has no wkt, or no properties ({error}); expected a "
                "polygon as text. Correct it, or take it out."
            ) from error
    own = (said.get("width"), said.get("height"))
    if size is not None and corner is None and None not in own and own != size:
        raise DataError(
            f"{path} says {own[0]} x {own[1]} pixels of the image, it has {size[0]} x {size[1]}; "
            "expected the same size. Take the image that was annotated."
        )
    frame, notes = _polygons(geopandas.GeoDataFrame(rows, geometry=shapes), path)
    if size is not None:
        x, y = corner or (0, 0)
        frame = frame.set_geometry(frame.geometry.translate(-x, -y))
        touching = frame.geometry.intersects(shapely.box(0, 0, *size))
        if len(frame) and corner is None and not touching.any():
            raise DataError(
                f"{path}: all {len(frame)} polygons lie outside of the image of {size[0]} x "
                f"{size[1]} pixels. Take the polygons of this image."
            )
        frame, outside = _kept(frame, touching, corner is not None)
        notes += outside
    frame, mended = _mended(frame, path)
    return frame, notes + mended


def _polygons(frame: Any, path: Path) -> tuple[Any, tuple[str, ...]]:
    """The features that have a shape; others than polygons are refused."""
    notes: tuple[str, ...] = ()
    empty = frame.geometry.isna() | frame.geometry.is_empty
    if empty.any():
        notes = (f"{int(empty.sum())} features without a shape left out",)
        frame = frame[~empty]
    odd = frame[~frame.geom_type.isin(_POLYGONS)]
    if len(odd):
        raise DataError(
            f"{path}: feature {odd.index[0]} is a {odd.geom_type.iloc[0]}; expected polygons alone."
            " Take it out, or draw a polygon around it."
        )
    return frame, notes


def _mended(frame: Any, path: Path) -> tuple[Any, tuple[str, ...]]:
    """The polygons, without any that crosses itself; what has no area is left out."""
    shapely = geo("shapely", path, "a file of polygons")
    invalid = ~frame.geometry.is_valid
    if not invalid.any():
        return frame, ()
    frame = frame.copy()
    try:
        whole = frame.geometry[invalid].make_valid()
    except shapely.errors.GEOSException as error:
        raise DataError(
            f"{path}: a polygon cannot be mended ({error}); expected numbers as coordinates. "
            "Correct it, or take it out."
        ) from error
    areas = [
        shapely.union_all([one for one in shapely.get_parts(shape) if one.area > 0])
        for shape in whole
    ]
    frame.loc[invalid, frame.geometry.name] = areas
    notes: tuple[str, ...] = (f"{int(invalid.sum())} polygons that cross themselves mended",)
    flat = frame.geometry.is_empty
    if flat.any():
        notes += (f"{int(flat.sum())} polygons without an area left out",)
    return frame[~flat], notes


def columns_of(path: Path) -> list[str]:
    """Names of the columns, besides the shapes.

    Raises:
        DataError: as by `read`.
    """
    frame, _ = read(path)
    return [str(one) for one in frame.columns if one != frame.geometry.name]


def write(path: Path, frame: Any) -> None:
    """Write polygons, whole or not at all.

    Args:
        path: file of one of `WRITTEN`.
        frame: geopandas' GeoDataFrame, with a coordinate system.

    Raises:
        DataError: another ending.
    """
    driver = _DRIVERS.get(path.suffix.lower())
    if driver is None:
        raise DataError(f"{path}: expected a name that ends in {' or '.join(WRITTEN)}.")
    with written_whole(path) as beside:
        frame.to_file(beside, driver=driver)


def _around(
    frame: Any, path: Path, reference: GeoReference, size: tuple[int, int], part: bool
) -> tuple[Any, tuple[str, ...]]:
    """The polygons that touch an image, in its coordinates."""
    if not reference.crs:
        raise DataError(
            f"{path}: its polygons have a coordinate system, and the image names none; expected "
            "both to have one. Declare that of the image, e.g. by gdal_edit -a_srs."
        )
    pyproj = geo("pyproj", path, "a file of polygons")
    crs = pyproj.CRS.from_wkt(reference.crs)
    notes: tuple[str, ...] = ()
    if not frame.crs.equals(crs, ignore_axis_order=True):
        notes += (f"polygons brought from {_named(frame.crs)} to {_named(crs)}",)
        frame = frame.to_crs(crs)
    image = footprint(reference, size, path)
    touching = frame.geometry.intersects(image)
    if len(frame) and not (touching.any() or part):
        shapely = geo("shapely", path, "a file of polygons")
        bounds = frame.total_bounds
        if not shapely.box(*bounds).intersects(image):
            there, here = (
                ", ".join(f"{one:.9g}" for one in each) for each in (bounds, image.bounds)
            )
            raise DataError(
                f"{path}: all {len(frame)} polygons, such as feature {frame.index[0]}, lie outside "
                f"of the image: they span {there}, the image {here} ({_named(crs)}). Take the "
                "polygons of this image, or correct their coordinate system."
            )
    frame, outside = _kept(frame, touching, part)
    return frame, notes + outside


def _kept(frame: Any, touching: Any, part: bool) -> tuple[Any, tuple[str, ...]]:
    """The polygons that touch an image, and how many do not; of a part, they lie elsewhere."""
    if part or touching.all():
        return frame[touching], ()
    outside = int((~touching).sum())
    said = f"{outside} of {len(frame)} polygons outside of the image left out"
    return frame[touching], (said,)


def _named(crs: Any) -> str:
    """A coordinate system's code, or its name."""
    found = crs.to_authority()
    return ":".join(found) if found else str(crs.name)


def _way_of_crs(path: Path) -> str:
    if path.suffix.lower() == ".shp":
        return f"Add {path.stem}.prj, which belongs to the shapefile."
    return "Declare it in the program that exported the file."
