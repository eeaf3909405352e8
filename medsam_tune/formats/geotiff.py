"""GeoTIFF: images of any number of bands with a place on the ground, by rasterio.

TIFF without a place whose bands Pillow does not read is read here, too, see `formats.tiff`.
An image of W x H pixels is a volume of one slice, (C, I=W, J=H, K=1), as of `formats.image`: rows
and columns are the file's, wherever north is. Its affine has the size of a pixel on the ground, in
millimetres as everywhere; the coordinate system and the transform are kept beside it for writing.
Pixels without data are NaN in all bands.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam_tune.errors import DataError, listed
from medsam_tune.files import written_whole
from medsam_tune.formats import shades, tiff
from medsam_tune.formats.extra import geo
from medsam_tune.formats.ground import metres_of
from medsam_tune.formats.image import blurred
from medsam_tune.formats.mending import Mending
from medsam_tune.formats.volume import (
    LPS_TO_RAS,
    GeoReference,
    Grid,
    Region,
    Volume,
    check_memory,
    exact,
    label_dtype,
)

ENDINGS = (".tif", ".tiff")
WRITTEN = (".tif", ".tiff")

TILE = 256
"""Side of the tiles that are written, pixels."""

SHEAR_TOLERANCE = 1e-3
"""Largest accepted cosine of the angle between rows and columns on the ground, dimensionless."""

CACHE = 64
"""Megabytes of decoded tiles that GDAL keeps; by default it takes a share of the memory."""

_ALPHA = 6  # rasterio's ColorInterp.alpha
_KINDS = "iuf"  # numpy's kinds of numbers that are read


def read(path: Path, mending: Mending, ids: bool = False, region: Region | None = None) -> Volume:
    """Read a GeoTIFF.

    A band of transparency is left out, a colour table applied, and the rest as `shades.shown`.
    Pixels that the file says to hold no data (its nodata value, its mask, its transparency, NaN in
    a band) become NaN.

    Args:
        path: .tif file.
        mending: nothing of it concerns an image.
        ids: keep the numbers, and the indices of a colour table, instead of float32; whatever they
            say of data.
        region: part to read; None reads all.

    Returns:
        (W, H, 1) float32, or (C, W, H, 1) of several bands.

    Raises:
        DataError: rasterio is missing; the file is damaged; it holds several images, complex
            numbers, rows and columns at no right angle, an image declared as transparency, or no
            pixel with data; its header turns it; it does not fit into memory; ids are asked of a
            lossy compression, or of more than one bit of which 0 is white.
    """
    with opened(path) as file:
        if ids and (kind := _lossy(file)):
            raise blurred(path, f"a TIFF compressed as {kind}")
        grid, notes = _placed(file, path, region)
        bands = bands_of(file)
        white_zero = len(bands) == 1 and shades.is_white_zero(file)
        if ids and white_zero and shades.bits_of(file) > 1:
            raise shades.white_zero_mask(path)
        table = None if ids or len(bands) > 1 else _table(file)
        check_memory(path, (*grid.shape[:2], 3 if table is not None else len(bands)))
        window = _window(region, file)
        values = file.read(bands, window=window)  # (C, H, W)
        valid = None if ids else file.dataset_mask(window=window) > 0
        if not ids:
            refuse_hidden_bands(file, path, window)
        if ids:
            array = exact(shades.inverted(values, 1) if white_zero else values)
        elif table is not None:
            array = np.moveaxis(table[values[0]], -1, 0).astype(np.float32)
        else:
            array = shades.shown(file, values)
    stored, missing = values.dtype.name if table is None else "uint8", 0
    if not ids:
        notes += (shades.WHITE_ZERO,) if white_zero else ()
        assert valid is not None
        valid &= ~np.isnan(array).any(0)
        missing = int((~valid).sum())
        if missing == valid.size:
            raise DataError(
                f"no pixel has data ({path}): all are the nodata value, or masked. Take the file "
                "out, or correct its nodata value."
            )
        if missing:
            array[:, ~valid] = np.nan
            notes += (f"{missing / valid.size:.1%} of the pixels without data",)
    array = array.transpose(0, 2, 1)[..., None]  # (C, W, H, 1)
    return Volume(
        np.ascontiguousarray(array[0] if len(array) == 1 else array),
        grid.affine,
        notes=notes,
        spacing_known=grid.spacing_known,
        channels=len(array),
        stored=stored,
        georeference=grid.georeference,
        gaps=missing > 0,
    )


def read_grid(path: Path, region: Region | None = None) -> Grid:
    """Size and place of an image by its header; no pixel is read.

    Raises:
        DataError: the header cannot be read, or `read` would refuse what it says.
    """
    with opened(path) as file:
        return _placed(file, path, region)[0]


def write(
    path: Path,
    array: NDArray[np.generic],
    affine: NDArray[np.float64],
    codes: tuple[int, int] | None = None,
    georeference: GeoReference | None = None,
) -> None:
    """Write a label map, or probabilities, of one slice: tiled, compressed, with overviews.

    Args:
        path: .tif file.
        array: (W, H, 1) label ids, or float.
        affine: not kept; the transform says the place.
        codes: of NIfTI; this format has no place for them.
        georeference: coordinate system and transform; None writes neither.

    Raises:
        DataError: several slices; ids that are none; rasterio is missing.
    """
    kind = np.dtype(np.float32) if array.dtype.kind == "f" else label_dtype(array)
    if array.ndim != 3 or array.shape[2] != 1:
        raise DataError(
            f"{path}: a GeoTIFF holds one slice, the label map has shape {array.shape}. Write it "
            "as .nii.gz."
        )
    shape = (array.shape[1], array.shape[0])
    with created(path, shape, kind, georeference) as file:
        file.write(np.ascontiguousarray(array[..., 0].T.astype(kind)), 1)


@contextmanager
def created(
    path: Path,
    shape: tuple[int, int],
    kind: np.dtype[Any],
    georeference: GeoReference | None,
    bands: int = 1,
    overviews: bool = True,
) -> Iterator[Any]:
    """A new GeoTIFF, open for writing; it gets its overviews and its name at the end.

    Args:
        path: .tif file.
        shape: (H, W), pixels.
        kind: type of its numbers.
        georeference: coordinate system and transform; None for neither.
        bands: number of bands.
        overviews: make them.

    Raises:
        DataError: rasterio is missing.
        OSError: the disk is full.
    """
    rasterio = geo("rasterio", path, "writing a GeoTIFF")
    place = {}
    if georeference is not None:
        place = {
            "crs": georeference.crs or None,
            "transform": rasterio.Affine(*georeference.transform),
        }
    with written_whole(path) as beside, rasterio.Env(GDAL_CACHEMAX=CACHE), _quiet():
        with rasterio.open(
            beside,
            "w",
            driver="GTiff",
            height=shape[0],
            width=shape[1],
            count=bands,
            dtype=kind.name,
            tiled=True,
            blockxsize=TILE,
            blockysize=TILE,
            compress="deflate",
            bigtiff="if_safer",
            **place,
        ) as file:
            yield file
        _refuse_torn(beside, path, rasterio)
        halvings = max(0, math.ceil(math.log2(max(shape) / TILE)))
        if halvings and overviews:
            with rasterio.open(beside, "r+", driver="GTiff") as file:
                way = "average" if kind.kind == "f" else "nearest"
                file.build_overviews(
                    [2**n for n in range(1, halvings + 1)], rasterio.enums.Resampling[way]
                )
            _refuse_torn(beside, path, rasterio, halvings - 1)


def _refuse_torn(beside: Path, path: Path, rasterio: Any, overview: int | None = None) -> None:
    """Refuse what does not read again: GDAL says nothing of a full disk when it closes a file."""
    level = {} if overview is None else {"overview_level": overview}
    try:
        with rasterio.open(beside, driver="GTiff", **level) as file:
            for _, window in file.block_windows(1):
                file.read(window=window)
    except rasterio.errors.RasterioError as error:
        raise OSError(f"{path}: cannot be written whole; is the disk full?") from error


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A GeoTIFF, open for reading by rasterio.

    Raises:
        DataError: here, and while it is read: rasterio is missing, the file is damaged, or holds
            several images or complex numbers.
    """
    rasterio = geo("rasterio", path, tiff.words(path))
    try:
        with rasterio.Env(GDAL_CACHEMAX=CACHE), _quiet():
            with rasterio.open(path, driver="GTiff") as file:
                _refuse(file, path)
                yield file
    except (rasterio.errors.RasterioError, rasterio._err.CPLE_BaseError) as error:  # GDAL's own
        cause = error.__cause__ or error
        reason = " ".join(str(cause).replace(str(path), path.name).split()).rstrip(".")
        raise DataError(
            f"cannot read {path}: {reason}. Expected a whole "
            f"{'GeoTIFF' if tiff.is_georeferenced(path) else 'TIFF'}; copy it again."
        ) from error


def bands_of(file: Any) -> list[int]:
    """Numbers of a file's bands from 1, without one of transparency."""
    return [n for n, kind in enumerate(file.colorinterp, start=1) if int(kind) != _ALPHA]


def has_gaps(path: Path) -> bool:
    """Whether the header says that pixels may hold no data.

    Raises:
        DataError: the header cannot be read.
    """
    with opened(path) as file:
        flags = [[int(one) for one in band] for band in file.mask_flag_enums]
        return any(1 not in band for band in flags)  # rasterio's MaskFlags.all_valid


def palette_of(path: Path) -> list[tuple[int, int, int]] | None:
    """Colours of a colour table by index; None of an image without one.

    Raises:
        DataError: the header cannot be read.
    """
    with opened(path) as file:
        table = _table(file)
    return None if table is None else [(int(r), int(g), int(b)) for r, g, b in table]


def _lossy(file: Any) -> str:
    """The name of a compression that does not keep values; empty of others."""
    said = file.tags(ns="IMAGE_STRUCTURE")
    kind = str(said.get("COMPRESSION", ""))
    lossy = kind.endswith("JPEG") or said.get("COMPRESSION_REVERSIBILITY", "").startswith("LOSSY")
    return kind if lossy else ""


def _refuse(file: Any, path: Path) -> None:
    """Refuse several images, and numbers that are no values."""
    if file.subdatasets:
        names = listed((name.rpartition(":")[0] or name for name in file.subdatasets), 3)
        raise DataError(
            f"it holds {len(file.subdatasets)} images ({path}): {names}; expected one. Save each "
            "as a file of its own, e.g. by gdal_translate."
        )
    if tiff.is_turned(path):
        raise DataError(
            f"its header turns it ({path}); expected {tiff.words(path)} that lies as it is shown. "
            "Turn its pixels, e.g. by magick IN -auto-orient OUT."
        )
    odd = sorted({kind for kind in file.dtypes if np.dtype(kind).kind not in _KINDS})
    if odd:
        raise DataError(
            f"its values are {', '.join(odd)} ({path}); expected whole numbers or float. Save the "
            "amplitude, or each part as a band."
        )
    if not bands_of(file):
        raise DataError(f"it has no band but that of transparency ({path}). Export it again.")


def refuse_hidden_bands(file: Any, path: Path, window: Any) -> None:
    """Refuse transparency that holds an image, see `tiff.refuse_hidden_band`.

    Args:
        file: the open file.
        path: its path, for messages.
        window: rasterio's window that is looked at.
    """
    for band in {*file.indexes} - {*bands_of(file)}:
        tiff.refuse_hidden_band(path, band, file.read(band, window=window))


def _placed(file: Any, path: Path, region: Region | None) -> tuple[Grid, tuple[str, ...]]:
    """Size and place, and what is said of them."""
    notes: tuple[str, ...] = ()
    transform = tuple(map(float, file.transform[:6]))
    crs = "" if file.crs is None else str(file.crs.to_wkt())
    x0, y0, x1, y1 = region or (0, 0, file.width, file.height)
    reference = None
    metres = None
    if file.transform.is_identity:
        if tiff.is_georeferenced(path):
            said = "no transform, so read as a plain image: no place, no size of a pixel"
            notes += (said,)
    else:
        reference = GeoReference(crs, transform).moved(x0, y0)  # type: ignore[arg-type]
        across, down = reference.steps
        area = np.hypot(*across) * np.hypot(*down)
        if not np.isfinite(transform).all() or area <= 0:
            raise DataError(
                f"the transform {transform} gives pixels no size ({path}). Export it again."
            )
        if abs(across @ down) > SHEAR_TOLERANCE * area:
            raise DataError(
                f"rows and columns are at no right angle on the ground ({path}): the transform is "
                f"{transform}. Warp it to a grid first, e.g. by gdalwarp."
            )
        metres = metres_of(reference, (x1 - x0, y1 - y0), path)
        if metres is None:
            why = "its coordinate system has no metres" if crs else "it names no coordinate system"
            notes += (f"{why}, so the size of a pixel is unknown",)
    width, height = metres or (1e-3, 1e-3)
    affine = LPS_TO_RAS @ np.diag([1000 * width, 1000 * height, 1.0, 1.0])
    shape = (x1 - x0, y1 - y0, 1)
    return Grid(shape, affine, metres is not None, reference), notes


def _window(region: Region | None, file: Any) -> Any:
    """rasterio's window ((row, row), (column, column)) of a region."""
    x0, y0, x1, y1 = region or (0, 0, file.width, file.height)
    return (y0, y1), (x0, x1)


def _table(file: Any) -> NDArray[np.uint8] | None:
    """(256 or 65536, 3) colours of the first band's table; None where it has none.

    GDAL makes up one of 8 bits where 0 is white.
    """
    if file.dtypes[0] not in ("uint8", "uint16") or shades.is_white_zero(file):
        return None
    try:
        colours = file.colormap(1)
    except ValueError:
        return None
    table = np.zeros((np.iinfo(file.dtypes[0]).max + 1, 3), np.uint8)
    for index, colour in colours.items():
        table[index] = colour[:3]
    return table


@contextmanager
def _quiet() -> Iterator[None]:
    """Without rasterio's warning of files that have no transform; it is said in the notes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*no geotransform.*")
        yield
