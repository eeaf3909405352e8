"""Made-up aerial images: buildings and roads with their outlines, in red, green, blue and infrared.

Lawns, soil, trees and shadows are what else is there. Roads run through the scene; buildings stand
along them, so that their outlines differ from boxes and ellipses.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from medsam_tune.cases.classes import FILE
from medsam_tune.cases.labels.polygons import fill
from medsam_tune.formats.extra import geo
from medsam_tune.formats.vectors import write

Polygon = NDArray[np.float64]
"""(N, 2) corners XY in pixels; (0, 0) is the upper left corner of the image."""

CLASSES = {1: "building", 2: "road", 3: "crop"}
COLOURS = {1: "#E24A33", 2: "#8EBA42", 3: "#FBC15E"}

# Reflectance of red, green, blue and near infrared, 0..1.
_LAWN, _SOIL = (0.26, 0.36, 0.20, 0.62), (0.48, 0.40, 0.30, 0.42)
_TREE, _ASPHALT = (0.12, 0.21, 0.11, 0.70), (0.42, 0.42, 0.43, 0.34)
_ROOFS = ((0.58, 0.32, 0.26), (0.48, 0.45, 0.44), (0.72, 0.70, 0.67), (0.36, 0.30, 0.28))
_SUN = np.array([-0.6, -0.8])  # towards the sun, XY
_LONG, _SHORT = (10.0, 20.0), (7.0, 12.0)  # sides of a building, metres
_ROAD = (5.0, 8.0)  # width, metres
_UTM = "EPSG:32616"
_CORNER = np.array([733600.0, 3725100.0])  # upper left, of the first scene, metres


@dataclass(frozen=True)
class Aerial:
    """A scene.

    Attributes:
        image: (4, H, W) uint8: red, green, blue, near infrared.
        label: (H, W) uint8, ids of `CLASSES`: pixels whose centre is in an outline; buildings lie
            over roads.
        outlines: class id -> polygons; they may reach out of the image.
    """

    image: NDArray[np.uint8]
    label: NDArray[np.uint8]
    outlines: dict[int, list[Polygon]]


def make_aerial(
    rng: np.random.Generator,
    size: tuple[int, int] = (256, 256),
    pixel: float = 0.3,
    crops: bool = False,
) -> Aerial:
    """One scene.

    Args:
        rng: source of randomness.
        size: (H, W) pixels.
        pixel: side of a pixel, metres.
        crops: add fields with a crop that looks like the soil around it, but for near infrared.
    """
    ground = _field(rng, size, 12 / pixel)
    image = np.where(ground > rng.normal(0, 0.5), *(_bands(c) for c in (_LAWN, _SOIL)))
    outlines: dict[int, list[Polygon]] = {1: [], 2: [], **({3: []} if crops else {})}
    if crops:
        for _ in range(max(2, round(size[0] * size[1] * pixel**2 / 2500))):
            field = _rectangle(rng, rng.uniform((0, 0), size[::-1]), rng.uniform(14, 26, 2) / pixel)
            around = _filled([_grown(field, 4 / pixel)], size)
            inside = _filled([field], size)
            image = np.where(around, _bands(_SOIL), image)
            image[3] = np.where(inside, 0.75, image[3])
            outlines[3].append(field)
    roads = [_road(rng, size, pixel) for _ in range(max(1, round(max(size) * pixel / 80)))]
    outlines[2] = [outline for outline, _ in roads]
    asphalt = _filled(outlines[2], size)
    image = np.where(asphalt, _bands(_ASPHALT) * rng.uniform(0.8, 1.1), image)
    image = _with_trees(rng, image, asphalt, pixel)
    outlines[1] = _buildings(rng, [line for _, line in roads], asphalt, size, pixel)
    for outline in outlines[1]:
        image = _with_building(rng, image, outline, pixel)
    label = np.zeros(size, np.uint8)
    for number in sorted(outlines, reverse=True):
        for outline in outlines[number]:
            label[_filled([outline], size)] = number
    image = image * (
        1 + 0.10 * _field(rng, size, 2 / pixel) + 0.05 * _field(rng, size, 0.5 / pixel)
    )
    image = ndimage.gaussian_filter(image, (0, 0.6, 0.6)) + rng.normal(0, 0.012, image.shape)
    return Aerial(np.clip(255 * image, 0, 255).astype(np.uint8), label, outlines)


def write_aerials(
    folder: Path,
    scenes: int = 10,
    parts: int = 4,
    seed: int = 0,
    size: tuple[int, int] = (256, 256),
) -> Path:
    """Write scenes in colours as folders of images and masks; the parts of a scene are its group.

    Args:
        folder: folder for `images/scene_00/part_0.png`, `masks/` and `classes.json`.
        scenes: number of scenes.
        parts: parts of each, of the same light.
        seed: seed; it fixes the files, byte by byte.
        size: (H, W) of a part, pixels.

    Returns:
        the folder.
    """
    folder = Path(folder)
    for scene in range(scenes):
        light = np.random.default_rng([seed, scene]).uniform(0.75, 1.15, (3, 1, 1))
        for part in range(parts):
            made = make_aerial(np.random.default_rng([seed, scene, part + 1]), size)
            colours = np.clip(made.image[:3] * light, 0, 255).astype(np.uint8).transpose(1, 2, 0)
            for name, pixels in (("images", colours), ("masks", made.label)):
                path = folder / name / f"scene_{scene:02d}" / f"part_{part}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.ascontiguousarray(pixels)).save(path)
    classes = [{"id": k, "name": CLASSES[k], "color": COLOURS[k]} for k in (1, 2)]
    (folder / FILE).write_text(json.dumps({"classes": classes}, indent=1))
    return folder


def write_satellite(
    folder: Path,
    scenes: int = 6,
    seed: int = 0,
    size: tuple[int, int] = (256, 256),
    pixel: float = 0.3,
    ending: str = ".geojson",
) -> Path:
    """Write scenes as GeoTIFF of four bands, and their outlines as polygons on the ground.

    Args:
        folder: folder for `images/scene_00.tif` (red, green, blue, near infrared; uint16 of 11
            bits), `labels/scene_00.geojson`, whose column `type` says the class, and
            `classes.json`.
        scenes: number of scenes, a kilometre apart.
        seed: seed; it fixes images and polygons.
        size: (H, W) of a scene, pixels.
        pixel: side of a pixel, metres.
        ending: ".geojson" or ".gpkg".

    Returns:
        the folder.

    Raises:
        DataError: the extra `geo` is not installed.
    """
    folder = Path(folder)
    rasterio = geo("rasterio", folder, "a GeoTIFF")
    geopandas = geo("geopandas", folder, "a file of polygons")
    shapely = geo("shapely", folder, "a file of polygons")
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    profile = {"driver": "GTiff", "count": 4, "height": size[0], "width": size[1]}
    # Else the fourth band would be transparency.
    profile |= {"dtype": "uint16", "crs": _UTM, "photometric": "minisblack"}
    for scene in range(scenes):
        rng = np.random.default_rng([seed, scene])
        made = make_aerial(rng, size, pixel)
        light = rng.uniform(0.75, 1.0)
        corner = _CORNER + np.array([1000.0 * scene, 0.0])
        where = rasterio.Affine(pixel, 0, corner[0], 0, -pixel, corner[1])
        path = folder / "images" / f"scene_{scene:02d}.tif"
        with rasterio.open(path, "w", transform=where, **profile) as file:
            file.write((8 * light * made.image).astype(np.uint16))
        kinds = [number for number, each in made.outlines.items() for _ in each]
        found = [one * [pixel, -pixel] + corner for each in made.outlines.values() for one in each]
        frame = geopandas.GeoDataFrame(
            {"type": [CLASSES[number] for number in kinds]},
            # Without a width, what crosses itself in a sharp bend is united.
            geometry=[shapely.Polygon(one).buffer(0) for one in found],
            crs=_UTM,
        )
        write(folder / "labels" / f"scene_{scene:02d}{ending}", frame)
    classes = [{"id": k, "name": CLASSES[k]} for k in (1, 2)]
    (folder / FILE).write_text(json.dumps({"column": "type", "classes": classes}, indent=1))
    return folder


def _bands(colour: tuple[float, ...]) -> NDArray[np.float64]:
    return np.array(colour)[:, None, None]


def _field(rng: np.random.Generator, size: tuple[int, int], width: float) -> NDArray[np.float64]:
    """(H, W) smooth noise of mean 0 and standard deviation 1, correlated over so many pixels."""
    coarse = max(1, int(width / 3))
    few = rng.normal(size=tuple(side // coarse + 8 for side in size))
    smooth = ndimage.gaussian_filter(few, width / 3 / coarse)
    grown = ndimage.zoom(smooth, coarse, order=1)[: size[0], : size[1]]
    return np.asarray((grown - smooth.mean()) / smooth.std())


def _filled(polygons: Iterable[Polygon], size: tuple[int, int]) -> NDArray[np.bool_]:
    """(H, W) pixels whose centre is in one of the polygons."""
    mask = np.zeros(size, bool)
    for polygon in polygons:
        window, inside, edge = fill([polygon - 0.5], size[::-1])
        mask[window[1], window[0]] |= (inside | edge).T
    return mask


def _turned(corners: Polygon, angle: float, centre: NDArray[np.float64]) -> Polygon:
    cos, sin = np.cos(angle), np.sin(angle)
    return np.asarray(corners @ np.array([[cos, sin], [-sin, cos]]) + centre)


def _rectangle(
    rng: np.random.Generator, centre: NDArray[np.float64], sides: NDArray[np.float64]
) -> Polygon:
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * sides / 2
    return _turned(corners, rng.uniform(0, np.pi), centre)


def _grown(polygon: Polygon, by: float) -> Polygon:
    away = polygon - polygon.mean(0)
    return np.asarray(
        polygon + by * np.sqrt(2) * away / np.linalg.norm(away, axis=1, keepdims=True)
    )


def _road(rng: np.random.Generator, size: tuple[int, int], pixel: float) -> tuple[Polygon, Polygon]:
    """Outline of a bent road through the scene, and its middle line."""
    height, width = size
    span = np.hypot(height, width)
    angle = rng.uniform(0, np.pi)
    along = np.array([np.cos(angle), np.sin(angle)])
    across = np.array([-along[1], along[0]])
    middle = np.array([width, height]) * rng.uniform(0.3, 0.7, 2)
    t = np.linspace(-1, 1, 25)
    bend = 0.06 * span * rng.normal() * np.sin(2.2 * t + rng.uniform(0, np.pi))
    line = middle + t[:, None] * along * span + bend[:, None] * across
    half = rng.uniform(*_ROAD) / pixel / 2
    normal = np.gradient(line, axis=0)[:, ::-1] * [-1, 1]
    normal *= half / np.linalg.norm(normal, axis=1, keepdims=True)
    return np.concatenate([line + normal, (line - normal)[::-1]]), line


def _buildings(
    rng: np.random.Generator,
    lines: list[Polygon],
    taken: NDArray[np.bool_],
    size: tuple[int, int],
    pixel: float,
) -> list[Polygon]:
    """Outlines along the roads, apart from them and from each other."""
    free = ~ndimage.binary_dilation(taken, iterations=max(1, round(1.5 / pixel)))
    found: list[Polygon] = []
    tries = round(60 * size[0] * size[1] * pixel**2 / 77**2) + 40
    for _ in range(tries):
        line = lines[rng.integers(len(lines))]
        k = rng.integers(1, len(line) - 1)
        along = line[k + 1] - line[k - 1]
        angle = np.arctan2(along[1], along[0]) + rng.normal(0, 0.05)
        centre = line[k] + rng.uniform(-26, 26, 2) / pixel
        outline = _turned(_plan(rng) / pixel, angle, centre)
        if not (0 < centre[0] < size[1] and 0 < centre[1] < size[0]):
            continue
        mask = _filled([_grown(outline, 1.0 / pixel)], size)
        if mask.sum() > 20 and free[mask].all():
            free &= ~mask
            found.append(outline)
    return found


def _plan(rng: np.random.Generator) -> Polygon:
    """Corners of a ground plan around 0, metres: a rectangle, or an L."""
    a, b = rng.uniform(*_LONG) / 2, rng.uniform(*_SHORT) / 2
    if rng.random() < 0.6:
        return np.array([[-a, -b], [a, -b], [a, b], [-a, b]])
    c, d = rng.uniform(-0.2, 0.3) * a, rng.uniform(0.7, 1.4) * b
    return np.array([[-a, -b], [a, -b], [a, b], [c, b], [c, b + d], [-a, b + d]])


def _with_building(
    rng: np.random.Generator, image: NDArray[np.float64], outline: Polygon, pixel: float
) -> NDArray[np.float64]:
    """The image with a roof of two sides, and its shadow beside it."""
    size = (image.shape[1], image.shape[2])
    roof = _filled([outline], size)
    shadow = np.zeros(size, bool)
    tall = rng.uniform(2.0, 5.0) / pixel
    for share in np.linspace(0.2, 1, 5):
        shadow |= _filled([outline - _SUN * tall * share], size)
    image = np.where(shadow & ~roof, 0.45 * image, image)
    red, green, blue = np.array(_ROOFS[rng.integers(len(_ROOFS))]) * rng.uniform(0.85, 1.15)
    edge = outline[1] - outline[0]  # the ridge runs along it
    normal = np.array([-edge[1], edge[0]]) / np.linalg.norm(edge)
    y, x = np.indices(size)
    side = ((np.stack([x + 0.5, y + 0.5], -1) - outline.mean(0)) @ normal) > 0
    shade = np.where(side, 1 - 0.22 * normal @ _SUN, 1 + 0.22 * normal @ _SUN)
    return np.where(roof, _bands((red, green, blue, 0.9 * red)) * shade, image)


def _with_trees(
    rng: np.random.Generator, image: NDArray[np.float64], roads: NDArray[np.bool_], pixel: float
) -> NDArray[np.float64]:
    size = (image.shape[1], image.shape[2])
    crowns = _field(rng, size, 5 / pixel) + 0.35 * _field(rng, size, 1.5 / pixel) > 1.5
    crowns &= ~roads
    shadow = ndimage.shift(crowns, -_SUN[::-1] * 2.5 / pixel, order=0) & ~crowns
    image = np.where(shadow, 0.55 * image, image)
    leaves = _bands(_TREE) * (1 + 0.25 * _field(rng, size, 1.0 / pixel))
    return np.where(crowns, leaves, image)
