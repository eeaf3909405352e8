"""Size of pixels and shapes on the ground, by pyproj."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam_tune.formats.extra import geo
from medsam_tune.formats.volume import GeoReference

TRUE_SCALE = 0.01
"""Largest difference of a map's scale from the ground's at which its metres are taken as they are,
as a share; web maps far from the equator are off by more."""


def metres_of(
    reference: GeoReference, shape: Sequence[int], path: Path
) -> tuple[float, float] | None:
    """Width and height of a pixel on the ground, metres, at the image's centre.

    They are distances on the ellipsoid: of a geographic system, and of a map whose scale is not
    true (`TRUE_SCALE`); else those of the map.

    Args:
        reference: coordinate system and transform.
        shape: (W, H), pixels.
        path: the file, for messages.

    Returns:
        None where the file names no coordinate system, or one with no place on the earth.
    """
    if not reference.crs:
        return None
    pyproj = geo("pyproj", path, "a GeoTIFF")
    errors = pyproj.exceptions.ProjError
    try:
        crs = pyproj.CRS.from_wkt(reference.crs)
        across, down = reference.steps
        planar = None
        if crs.is_projected or crs.is_engineering:
            unit = crs.axis_info[0].unit_conversion_factor
            planar = float(unit * np.hypot(*across)), float(unit * np.hypot(*down))
        if crs.is_engineering or crs.geodetic_crs is None:
            return planar
        centre = np.array(reference.at(shape[0] / 2, shape[1] / 2))
        ends = np.stack([centre, centre + across, centre + down])
        to = pyproj.Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)
        lon, lat = to.transform(ends[:, 0], ends[:, 1], errcheck=True)
        line = crs.get_geod()
        ground = tuple(float(line.inv(lon[0], lat[0], lon[n], lat[n])[2]) for n in (1, 2))
    except errors:
        return None
    if not all(0 < one < np.inf for one in ground):
        return None
    if planar and all(abs(p / g - 1) <= TRUE_SCALE for p, g in zip(planar, ground, strict=True)):
        return planar
    return ground[0], ground[1]


def area_of(shapes: NDArray[Any], reference: GeoReference, path: Path) -> NDArray[np.float64]:
    """Areas (N,) of shapely's polygons on the ground, square metres; NaN where it is unknown.

    Args:
        shapes: polygons (N,) in the coordinates of the reference.
        reference: coordinate system and transform of the image that they are of.
        path: the file, for messages.
    """
    pyproj = geo("pyproj", path, "a file of polygons")
    shapely = geo("shapely", path, "a file of polygons")
    crs = pyproj.CRS.from_wkt(reference.crs)
    planar = np.asarray(shapely.area(shapes), dtype=np.float64)
    if crs.is_geographic:
        line = crs.get_geod()
        return np.array([abs(line.geometry_area_perimeter(one)[0]) for one in shapes])
    if not len(shapes):
        return planar
    across, down = reference.steps
    x0, y0, x1, y1 = shapely.total_bounds(shapes)
    a, b, _, d, e, _ = reference.transform
    middle = GeoReference(reference.crs, (a, b, (x0 + x1) / 2, d, e, (y0 + y1) / 2))
    metres = metres_of(middle, (0, 0), path)
    if metres is None:
        return np.full(len(shapes), np.nan)
    return planar * metres[0] * metres[1] / float(np.hypot(*across) * np.hypot(*down))
