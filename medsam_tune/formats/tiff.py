"""What the header of a TIFF says, and who reads it whole; Pillow reads the header."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import TiffImagePlugin

from medsam_tune.errors import DataError

GEO_TAGS = (33550, 33922, 34264, 34735)
"""TIFF tags of a geo-reference: pixel scale, tie points, transformation, keys."""

_BITS, _COMPRESSION, _ORIENTATION, _SAMPLES, _PLANES, _TILE = 258, 259, 274, 277, 284, 322
_PLAIN = (1, 5, 8, 32773, 32946)  # compressions that SimpleITK reads in full depth
_PILLOWS = 4  # bands that Pillow has at most; it logs an error of many more
_SHADES = 16  # of transparency: opaque, clear, and soft edges
_BIG = 43  # version of BigTIFF in its header
_FAULTS = (OSError, SyntaxError, ValueError, TypeError, IndexError, KeyError, struct.error)


def is_georeferenced(path: Path) -> bool:
    """Whether a TIFF has a geo-reference.

    False of files that are no TIFF, or damaged: reading them says what is wrong.
    """
    tags = _directory(path)
    return any(tag in tags for tag in GEO_TAGS)


def needs_rasterio(path: Path) -> bool:
    """Whether a TIFF has a geo-reference, or bands or a depth that only rasterio reads.

    Pillow leaves out bands that no photograph has, and keeps 8 bits of colours; SimpleITK reads
    colours of 16 bits that are stored in the usual way. False of damaged files, see
    `is_georeferenced`.
    """
    tags = _directory(path)
    apart, samples = _number(tags, _PLANES) != 1, _number(tags, _SAMPLES)
    if not tags or any(tag in tags for tag in GEO_TAGS) or samples > _PILLOWS:
        return bool(tags)
    try:
        with path.open("rb") as file:
            kept = len(TiffImagePlugin.TiffImageFile(file).getbands())
    except SyntaxError:  # a mode, or a number of bands, that Pillow has not
        return True
    except _FAULTS:
        return False
    if samples > kept or (apart and samples == 2):
        return True
    if _number(tags, _BITS) <= 8:
        return False
    usual = _number(tags, _COMPRESSION) in _PLAIN and _number(tags, _ORIENTATION) == 1
    return apart or (samples > 1 and (_TILE in tags or not usual))


def is_turned(path: Path) -> bool:
    """Whether a TIFF without a geo-reference says that it is stored turned or mirrored."""
    return not is_georeferenced(path) and _number(_directory(path), _ORIENTATION) != 1


def words(path: Path) -> str:
    """What a TIFF is, for messages, such as "a TIFF of 4 bands of 16 bits"."""
    tags = _directory(path)
    if any(tag in tags for tag in GEO_TAGS):
        return "a GeoTIFF"
    samples = _number(tags, _SAMPLES)
    bands = f"{samples} bands" if samples > 1 else "one band"
    return f"a TIFF of {bands} of {_number(tags, _BITS)} bits"


def refuse_hidden_band(path: Path, band: int, values: NDArray[Any]) -> None:
    """Refuse a band that is declared as transparency and holds an image, such as near infrared.

    Args:
        path: its file, for messages.
        band: its number, from 1.
        values: its values, of any shape.

    Raises:
        DataError: more values than transparency has.
    """
    shades = len(np.unique(values))
    if shades > _SHADES:
        raise DataError(
            f"band {band} is declared as transparency, and has {shades} values, as an image "
            f"has ({path}); expected opaque or clear pixels. If it is a band, such as near "
            f"infrared, declare it: gdal_edit -colorinterp_{band} undefined FILE. Else leave "
            "it out."
        )


def _number(tags: Mapping[int, Any], tag: int) -> int:
    """The largest number of a tag; 1, the usual default, where it is missing or holds none."""
    try:
        return int(np.max(tags.get(tag, 1)))
    except _FAULTS:
        return 1


def _directory(path: Path) -> Mapping[int, Any]:
    """The first directory's tags; empty of files that are no TIFF, or damaged."""
    try:
        with path.open("rb") as file:
            head = file.read(8)
            head += file.read(8) if head[2] == _BIG else b""
            directory = TiffImagePlugin.ImageFileDirectory_v2(head)
            file.seek(directory.next)
            directory.load(file)
            return cast(Mapping[int, Any], directory)
    except _FAULTS:
        return {}
