"""Colours of 16 bits in PNG and TIFF, by SimpleITK; Pillow keeps 8 bits of them."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from medsam_tune.errors import DataError

_SIGNATURE = 8  # bytes of a PNG before its first chunk


def raw_mode(image: Image.Image) -> str:
    """How an image's values are stored, as Pillow says it, such as "L;2"; "" where it does not.

    Args:
        image: opened by Pillow, its pixels not read yet.
    """
    tiles = getattr(image, "tile", ())
    return str(tiles[0].args if tiles else "")


def is_deep(path: Path, image: ImageFile.ImageFile) -> bool:
    """Whether an image has colours of 16 bits.

    Args:
        path: its file, for messages.
        image: opened by Pillow, its pixels not read yet.

    Raises:
        DataError: 16 bits that SimpleITK does not read as they are: grey with an alpha channel,
            CMYK, LAB.
    """
    raw = raw_mode(image)
    if "LA;16" in raw:
        raise DataError(
            f"its grey of 16 bits has an alpha channel ({path}), and would be read with 8 bits; "
            "expected grey alone. Save it without the alpha channel."
        )
    if ";16" in raw and image.mode in ("CMYK", "LAB"):
        raise DataError(
            f"its colours are {image.mode} of 16 bits ({path}), and would be read with 8 bits; "
            "expected RGB. Save it as RGB."
        )
    return ";16" in raw and image.mode in ("RGB", "RGBA")


def values_of(path: Path, image: ImageFile.ImageFile) -> NDArray[np.uint16]:
    """The values of an image that `is_deep`, as they are stored.

    Args:
        path: PNG or TIFF.
        image: opened by Pillow.

    Returns: (H, W, 3) or, with transparency, (H, W, 4).

    Raises:
        OSError, RuntimeError: the file is damaged.
    """
    import SimpleITK as sitk  # takes long to import

    reader = sitk.ImageFileReader()
    reader.SetImageIO(f"{image.format}ImageIO")
    with tempfile.TemporaryDirectory() as folder:
        reader.SetFileName(str(_unshifted(path, image, Path(folder))))
        values: NDArray[np.uint16] = sitk.GetArrayFromImage(reader.Execute())
    if values.dtype != np.uint16 or values.shape[1::-1] != image.size:
        raise OSError("its colours cannot be read with 16 bits")
    return values


def _unshifted(path: Path, image: ImageFile.ImageFile, folder: Path) -> Path:
    """The file, or a copy in a folder without a PNG's chunk sBIT, by which ITK shifts values.

    It says how many bits were significant before they were scaled, and comes before the pixels.
    """
    if image.format != "PNG":
        return path
    with path.open("rb") as file:
        start = file.seek(_SIGNATURE)
        while len(head := file.read(8)) == 8 and head[4:] != b"IDAT":
            end = start + 12 + int.from_bytes(head[:4], "big")  # length, kind, data, checksum
            if head[4:] == b"sBIT":
                file.seek(0)
                before = file.read(start)
                file.seek(end)
                copy = folder / "a.png"
                copy.write_bytes(before + file.read())
                return copy
            start = file.seek(end)
    return path
