"""A label map on the ground as polygons, simplified together: shared borders stay shared."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from medsam_tune.errors import DataError
from medsam_tune.formats import geotiff, vectors
from medsam_tune.formats.extra import geo
from medsam_tune.formats.ground import area_of
from medsam_tune.formats.volume import GeoReference

TOLERANCE = 1.5
"""How much borders are simplified, pixels: `shapely.coverage_simplify`'s tolerance. The stairs of
pixels become lines."""

_SIDE = 1024  # of the blocks that means are taken of, pixels
_NEAR = 4.0  # pixels; borders further apart do not meet, as simplifying moves them by 2 at most
_TOGETHER = 500  # polygons that are simplified together, at least


def write_polygons(
    output: Path,
    maps: Path,
    labels: Mapping[int, str],
    probability: Path | None = None,
    levels: float = 1.0,
    tolerance: float = TOLERANCE,
) -> None:
    """Write a polygon for each piece of a label, whole or not at all.

    They have the coordinate system of the map and the columns `label` (id), `name`, `area_m2` (on
    the ground; none where the size of a pixel is unknown) and `probability` (mean over its pixels).
    They are valid, and neighbours share their borders.

    Args:
        output: .gpkg or .geojson file.
        maps: GeoTIFF of label ids; it is read in blocks.
        labels: label id -> name.
        probability: GeoTIFF of the same size with the probability of each pixel's label.
        levels: value of probability 1 in it.
        tolerance: see `TOLERANCE`; 0 keeps the pixels' borders.

    Raises:
        DataError: the map has no coordinate system; another ending.
    """
    geopandas = geo("geopandas", output, "a file of polygons")
    shapely = geo("shapely", output, "a file of polygons")
    reference = geotiff.read_grid(maps).georeference
    if reference is None or not reference.crs:
        raise DataError(
            f"{output}: polygons need a scene with a coordinate system, and this one names none. "
            "Write .tif."
        )
    ids, shapes = _pieces(maps, shapely)
    means = None if probability is None else _means(probability, shapes, shapely) / levels
    if tolerance and len(shapes):
        shapes = _simplified(shapes, tolerance, shapely)
    placed = shapely.transform(shapes, lambda points: _placed(points, reference))
    kept = ~shapely.is_empty(placed)
    columns: dict[str, Any] = {
        "label": ids[kept],
        "name": [labels.get(int(number), "") for number in ids[kept]],
        "area_m2": area_of(placed[kept], reference, output),
    }
    if means is not None:
        columns["probability"] = means[kept].round(4)
    frame = geopandas.GeoDataFrame(columns, geometry=placed[kept], crs=reference.crs)
    vectors.write(output, frame)


def _pieces(maps: Path, shapely: Any) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Ids (N,) and shapes (N,) of the connected pieces, in pixels of the file."""
    features = geo("rasterio.features", maps, "a file of polygons")
    rasterio = geo("rasterio", maps, "a file of polygons")
    with geotiff.opened(maps) as file:
        found = [
            (int(value), shapely.geometry.shape(shape))
            for shape, value in features.shapes(rasterio.band(file, 1))  # in the file's coordinates
            if value
        ]
        back = GeoReference("", tuple(~file.transform)[:6])
    ids = np.array([value for value, _ in found], dtype=np.int64)
    shapes = np.empty(len(found), dtype=object)
    shapes[:] = [shape for _, shape in found]
    return ids, shapely.transform(shapes, lambda points: np.rint(_placed(points, back)))


def _means(path: Path, shapes: NDArray[Any], shapely: Any) -> NDArray[np.float64]:
    """Mean of a file's pixels in each shape (N,), block by block."""
    features = geo("rasterio.features", path, "a file of polygons")
    rasterio = geo("rasterio", path, "a file of polygons")
    sums, counts = np.zeros(len(shapes) + 1), np.zeros(len(shapes) + 1)
    tree = shapely.STRtree(shapes)
    with geotiff.opened(path) as file:
        for top in range(0, file.height, _SIDE):
            for left in range(0, file.width, _SIDE):
                down, right = min(top + _SIDE, file.height), min(left + _SIDE, file.width)
                near = np.sort(tree.query(shapely.box(left, top, right, down)))
                if not len(near):
                    continue
                numbers = features.rasterize(
                    zip(shapes[near], near + 1, strict=True),
                    out_shape=(down - top, right - left),
                    transform=rasterio.Affine.translation(left, top),
                    dtype="int32",
                ).ravel()
                values = file.read(1, window=((top, down), (left, right))).ravel()
                sums += np.bincount(numbers, values.astype(np.float64), len(sums))
                counts += np.bincount(numbers, minlength=len(sums))
    return sums[1:] / np.maximum(counts[1:], 1)


def _simplified(shapes: NDArray[Any], tolerance: float, shapely: Any) -> NDArray[Any]:
    """Shapes (N,) simplified, in pixels; those that touch or nearly touch together."""
    found = shapes.copy()
    for part in _parts(shapes, shapely):
        # A corner of a neighbour is a point of a straight side as well: all share all their points.
        dense = shapely.transform(shapely.segmentize(shapes[part], 1.0), np.rint)
        simple = shapely.coverage_simplify(dense, tolerance)
        broken = ~shapely.is_valid(simple)
        simple[broken] = shapely.make_valid(simple[broken])
        found[part] = simple
    return found


def _parts(shapes: NDArray[Any], shapely: Any) -> list[NDArray[np.int64]]:
    """Indices of shapes (N,) in parts of some hundreds, as time and memory grow faster than a part.

    Shapes of two parts lie further apart than simplifying moves a border. A part is larger where
    more shapes hang together.
    """
    near = shapely.STRtree(shapes).query(shapes, "dwithin", distance=_NEAR)
    count = len(shapes)
    links = coo_array((np.ones(near.shape[1], bool), (near[0], near[1])), shape=(count, count))
    _, group = connected_components(links, directed=False)
    order = np.argsort(group, kind="stable")
    cuts = [0]
    for start in (np.flatnonzero(np.diff(group[order])) + 1).tolist():
        if start - cuts[-1] >= _TOGETHER:
            cuts.append(start)
    return np.split(order, cuts[1:])


def _placed(points: NDArray[np.float64], reference: GeoReference) -> NDArray[np.float64]:
    """Points (N, 2) in pixels -> coordinates."""
    x, y = reference.at(points[:, 0], points[:, 1])
    return np.stack([x, y], axis=1)
