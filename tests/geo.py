"""Small made-up scenes as GeoTIFF: houses on open ground, 4 bands of 11 bits, and outlines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

rasterio = pytest.importorskip("rasterio", reason="the extra geo is not installed")

UTM = "EPSG:32616"
ORIGIN = (733600.0, 3725100.0)


def transform(pixel: float = 0.5, origin: tuple[float, float] = ORIGIN) -> Any:
    return rasterio.Affine(pixel, 0, origin[0], 0, -pixel, origin[1])


def write(
    path: Path,
    bands: np.ndarray,
    crs: str | None = UTM,
    where: Any = None,
    nodata: float | None = None,
    colours: dict[int, tuple[int, int, int]] | None = None,
    **options: Any,
) -> Path:
    """A GeoTIFF of bands (C, H, W); `where` is its transform."""
    path.parent.mkdir(parents=True, exist_ok=True)
    place = {} if where is False else {"transform": where or transform()}
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=len(bands),
        height=bands.shape[1],
        width=bands.shape[2],
        dtype=bands.dtype,
        crs=crs,
        nodata=nodata,
        **place,
        **{"photometric": "minisblack", **options},  # else the fourth band would be transparency
    ) as file:
        file.write(bands)
        if colours is not None:
            file.write_colormap(1, colours)
    return path


def bands_and_ids(seed: int, size: tuple[int, int] = (64, 48)) -> tuple[np.ndarray, np.ndarray]:
    """Bands (4, H, W) uint16 of up to 11 bits and ids (H, W) uint8: three houses."""
    rng = np.random.default_rng(seed)
    width, height = size
    ids = np.zeros((height, width), np.uint8)
    for k in range(3):
        x, y = (int(rng.integers(2, side - 14)) for side in (width, height))
        x = k * width // 3 + int(rng.integers(0, max(1, width // 3 - 10)))
        ids[y : y + 8, x : x + 8] = 1
    shades = np.array([[300, 400, 350, 1500], [1200, 1100, 1000, 500]])
    bands = shades[ids].transpose(2, 0, 1) + rng.normal(0, 30, (4, height, width))
    return bands.clip(1, 2047).astype(np.uint16), ids


def outlines(ids: np.ndarray, where: Any) -> Sequence[Any]:
    """Polygons of ids above 0, and their ids."""
    from rasterio.features import shapes
    from shapely.geometry import shape

    found = shapes(ids, mask=ids > 0, transform=where)
    return [(shape(one), int(value)) for one, value in found]
