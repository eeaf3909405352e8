"""Small 2-D images with masks on disk: bright shapes on a dark ground."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from PIL import Image

CLASSES = [
    {"id": 1, "name": "road", "color": "#6EC1E4"},
    {"id": 2, "name": "house", "color": "#3C1098"},
    {"id": 3, "name": "unlabeled", "color": "#9B9B9B", "ignore": True},
]
PALETTE = np.array([[0, 0, 0], [110, 193, 228], [60, 16, 152], [155, 155, 155]], np.uint8)


def image_and_ids(seed: int, size: tuple[int, int] = (56, 48)) -> tuple[np.ndarray, np.ndarray]:
    """Colours (H, W, 3) uint8 and ids (H, W) uint8 of an image of so many columns and rows.

    A road across, three houses in separate pieces, and a corner that nobody annotated.
    """
    rng = np.random.default_rng(seed)
    width, height = size
    ids = np.zeros((height, width), np.uint8)
    top = int(rng.integers(2, height // 4))
    ids[top : top + 6] = 1
    for k in range(3):
        x = k * width // 3 + int(rng.integers(2, width // 6))
        y = height // 2 + int(rng.integers(0, height // 6))
        ids[y : y + 9, x : x + 10] = 2
    ids[-5:, -5:] = 3
    shades = np.array([[60, 70, 50], [190, 180, 170], [200, 90, 60], [120, 120, 120]])
    image = shades[ids] + rng.normal(0, 8, (height, width, 3))
    return image.clip(0, 255).astype(np.uint8), ids


def deep_colours(path: Path, array: np.ndarray) -> Path:
    """A PNG or TIFF of colours (H, W, 3 or 4) uint16, which Pillow does not write."""
    image = sitk.GetImageFromArray(array.astype(np.uint16), isVector=True)
    sitk.WriteImage(image, str(path))
    return path


def png_chunk(kind: bytes, data: bytes = b"") -> bytes:
    """A part of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def deep_grey_alpha(path: Path, array: np.ndarray) -> Path:
    """A PNG of grey and transparency (H, W, 2) uint16, which no library here writes."""
    return _png(path, array.shape[:2], 16, 4, [line.astype(">u2").tobytes() for line in array])


def grey_png(path: Path, array: np.ndarray, bits: int) -> Path:
    """A PNG of grey (H, W) in so few bits a pixel, 2 or 4, which no library here writes."""
    planes = np.unpackbits(array[..., None], axis=-1)[..., 8 - bits :]
    lines = np.packbits(planes.reshape(len(array), -1), axis=1)
    return _png(path, array.shape, bits, 0, [line.tobytes() for line in lines])


def _png(
    path: Path, size: tuple[int, ...], bits: int, colours: int, lines: Iterable[bytes]
) -> Path:
    height, width = size
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0))
    pixels = png_chunk(b"IDAT", zlib.compress(b"".join(b"\0" + line for line in lines)))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + pixels + png_chunk(b"IEND"))
    return path


def image_folder(folder: Path, groups: int = 6, each: int = 1) -> Path:
    """`classes.json`, and `tile K/images` and `tile K/masks` with masks in colours."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "classes.json").write_text(json.dumps({"classes": CLASSES}))
    for group in range(groups):
        for name in ("images", "masks"):
            (folder / f"tile {group}" / name).mkdir(parents=True)
        for k in range(each):
            image, ids = image_and_ids(100 * group + k)
            place = folder / f"tile {group}"
            Image.fromarray(image).save(place / "images" / f"part_{k}.jpg", quality=95)
            Image.fromarray(PALETTE[ids]).save(place / "masks" / f"part_{k}.png")
    return folder
