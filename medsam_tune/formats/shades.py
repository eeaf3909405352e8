"""Values of a TIFF as they are shown: 0 may be white, and fewer bits than 8 fill 8."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medsam_tune.errors import DataError
from medsam_tune.formats.deep import raw_mode

INTERPRETATION = 262
"""TIFF tag that is 0 where 0 is white."""

WHITE_ZERO = "0 is white in the file: inverted"
"""Note of an image whose large values are dark."""


def inverted(values: NDArray[Any], bits: int | None = None) -> NDArray[Any]:
    """Values of which 0 is white, so that large ones are bright.

    Args:
        values: of any shape and real type.
        bits: those of each value; None for those of the type.

    Returns:
        from 0 to the highest of so many bits; negated, where the type has a sign.
    """
    if values.dtype.kind != "u":
        return np.asarray(-values)
    highest = np.iinfo(values.dtype).max if bits is None else 2**bits - 1
    return (highest - values).astype(values.dtype)


def white_zero_mask(path: Path) -> DataError:
    """Refusal of a mask of more than one bit of which 0 is white."""
    return DataError(
        f"its header says that 0 is white ({path}), so the mask's numbers differ from what is "
        "shown, and either may be meant; expected 0 as black. Save it so: gdal_translate -co "
        "PHOTOMETRIC=MINISBLACK IN OUT keeps the numbers."
    )


def step_of(image: Image.Image) -> int:
    """By how much Pillow multiplies grey of 2 and 4 bits, to fill 8; 1 of all other images.

    Args:
        image: opened by Pillow, its pixels not read yet.
    """
    few = re.search(r"L;([24])", raw_mode(image))
    return 255 // (2 ** int(few[1]) - 1) if few else 1


def is_white_zero(file: Any) -> bool:
    """Whether a file, open in rasterio, says that 0 is white."""
    return bool(file.tags(ns="IMAGE_STRUCTURE").get("MINISWHITE") == "YES")


def bits_of(file: Any) -> int:
    """Bits of each value of a file, open in rasterio; its type may have more."""
    said = file.tags(1, ns="IMAGE_STRUCTURE").get("NBITS")
    return int(said or 8 * np.dtype(file.dtypes[0]).itemsize)


def shown(file: Any, values: NDArray[Any]) -> NDArray[np.float32]:
    """Values of all bands, or a part of them, as they are shown.

    Args:
        file: open in rasterio, without a colour table.
        values: (C, H, W) as stored.

    Returns:
        (C, H, W) float32: fewer bits than 8 fill 0 to 255, as Pillow has them; one band of which 0
        is white is inverted, several are of no shades.
    """
    bits = bits_of(file)
    if len(values) == 1 and is_white_zero(file):
        values = inverted(values, bits)
    if bits < 8:
        values = np.rint(values * (255 / (2**bits - 1)))
    return values.astype(np.float32)
