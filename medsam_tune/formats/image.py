"""2-D images by Pillow: PNG, JPEG, BMP, WebP, and TIFF without a geo-reference.

Colours of 16 bits are read by `formats.deep`, as Pillow keeps 8 of them.

An image of W x H pixels is a volume of one slice: (C, I=W, J=H, K=1). Its affine makes an axial
slice of it whose rows and columns are those of the file; nothing says how large a pixel is, so it
is taken as 1 mm.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, ImageOps

from medsam_tune.errors import DataError
from medsam_tune.files import written_whole
from medsam_tune.formats import deep, shades, tiff
from medsam_tune.formats.mending import Mending
from medsam_tune.formats.volume import (
    LPS_TO_RAS,
    Grid,
    Volume,
    check_memory,
    check_not_empty,
    exact,
    label_dtype,
)

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
WRITTEN = (".png",)

TURNED = "turned as EXIF says"
"""Note of an image that is turned or mirrored."""

HIGHEST_ID = 2**16 - 1
"""Highest id that a PNG holds."""

_LOSSY = {"JPEG": "a JPEG", "MPO": "a JPEG"}  # Pillow's names of formats
_LOSSY_TIFF = ("jpeg", "tiff_jpeg", "webp")  # and of what a TIFF is compressed by
_KINDS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF")  # of Pillow; a file's content tells, not its name
_FIRST_BYTES = 16
_FAULTS = (
    *(OSError, SyntaxError, ValueError, struct.error, zlib.error),
    *(EOFError, IndexError, KeyError, TypeError, OverflowError, RuntimeError),
)
_BITS_16 = ("I;16", "I;16L", "I;16B", "I;16N")
_KEPT = ("L", "I", "F", "RGB", *_BITS_16)
# Mode -> the mode it is read as, and what is said of it.
_MADE = {
    "1": ("L", ""),
    "P": ("RGB", ""),
    "CMYK": ("RGB", "CMYK read as RGB"),
    "YCbCr": ("RGB", ""),
    "RGBX": ("RGB", ""),
    "LA": ("L", "the alpha channel is left out"),
    "La": ("L", "the alpha channel is left out"),
    "PA": ("RGB", "the alpha channel is left out"),
    "RGBA": ("RGB", "the alpha channel is left out"),
}
# Values of EXIF's orientation: those that keep rows and columns, those that swap them.
_MIRRORED, _TURNED = range(2, 5), range(5, 9)


def read(path: Path, mending: Mending, ids: bool = False) -> Volume:
    """Read an image.

    Colours whose three channels are equal everywhere become one grey channel. EXIF's orientation is
    applied.

    Args:
        path: file of one of `ENDINGS`.
        mending: nothing of it concerns an image.
        ids: keep the numbers of a grey image, and the indices of a palette, instead of float32; see
            `volume.exact`. Colours are as they are, (3, W, H, 1).

    Returns:
        (W, H, 1) float32, or (3, W, H, 1) of a colour image; the values are the file's own.

    Raises:
        DataError: the file is truncated, damaged or of another kind; it has several pages or moves;
            it does not fit into memory; ids are asked of a format that does not keep values, of
            colours that are transparent, or of grey of which 0 is white; an image is declared as
            transparency; grey of 16 bits has an alpha channel.
    """
    with _reading(path), path.open("rb") as file:
        image = _opened(path, file)
        if ids and (kind := _lossy(image, file)):
            raise blurred(path, kind)
        is_deep = deep.is_deep(path, image)
        step = shades.step_of(image) if ids else 1
        image.load()
        if ids:
            _refuse_clear(path, image)
        if is_deep:
            return _deep_volume(path, image, ids)
        if not ids:
            _refuse_hidden(path, image, np.asarray(image))
        return volume_of(image, path, ids, step)


def volume_of(image: Image.Image, path: Path, ids: bool = False, step: int = 1) -> Volume:
    """An image that Pillow opened, as `read` returns it; EXIF's orientation is applied.

    Args:
        image: image of any mode.
        path: its file, for messages.
        ids: see `read`.
        step: see `shades.step_of`; values are divided by it.

    Raises:
        DataError: a mode that is neither grey, colours nor a palette; ids are asked of more than
            one bit of which 0 is white.
    """
    said = []
    oriented = ImageOps.exif_transpose(image)
    if oriented is not image and image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        said.append(TURNED)
    if not (ids and oriented.mode in ("1", "P")):
        oriented, note = _plain(path, oriented)
        said.append(note)
    values = np.asarray(oriented)
    if values.dtype == bool:
        values = values.astype(np.uint8)
    white_zero = getattr(image, "tag_v2", {}).get(shades.INTERPRETATION) == 0
    if white_zero and image.mode != "1":
        if ids:
            raise shades.white_zero_mask(path)
        values = values if image.mode == "L" else shades.inverted(values)  # Pillow inverts 8 bits
        said.append(shades.WHITE_ZERO)
    return volume_from(values if step == 1 else values // step, ids, said)


def volume_from(values: NDArray[Any], ids: bool = False, notes: Iterable[str] = ()) -> Volume:
    """An image as an array, as `read` returns it.

    Args:
        values: (H, W) or (H, W, C) of any real type.
        ids: see `read`.
        notes: what was changed before.
    """
    stored = values.dtype.newbyteorder("=").name
    if values.ndim == 3 and (values == values[..., :1]).all():
        values = values[..., 0]
    array = exact(values) if ids else values.astype(np.float32)
    array = array.T[..., None] if array.ndim == 2 else array.transpose(2, 1, 0)[..., None]
    return Volume(
        np.ascontiguousarray(array),
        affine_of(),
        notes=tuple(note for note in notes if note),
        spacing_known=False,
        channels=len(array) if array.ndim == 4 else 1,
        stored=stored,
    )


def read_grid(path: Path) -> Grid:
    """Size of an image as it is read, by its header; no pixel is read.

    Raises:
        DataError: the header cannot be read, or `read` would refuse what it says.
    """
    with _reading(path), path.open("rb") as file:
        image = _opened(path, file)
        width, height = image.size
        if image.getexif().get(ExifTags.Base.Orientation) in _TURNED:
            width, height = height, width
    return Grid((width, height, 1), affine_of(), spacing_known=False)


def write(
    path: Path,
    array: NDArray[np.generic],
    affine: NDArray[np.float64],
    codes: tuple[int, int] | None = None,
) -> None:
    """Write a label map of one slice as grey PNG of 8 or 16 bits, whole or not at all.

    Args:
        path: .png file.
        array: (W, H, 1) label ids.
        affine: not kept, as a PNG has no place in the world.
        codes: those of NIfTI, not kept either.

    Raises:
        DataError: several slices, fractions, or ids below 0 or above `HIGHEST_ID`.
    """
    if array.dtype.kind == "f":
        raise DataError(f"{path}: a PNG holds label ids, no fractions. Write them as .nii.gz.")
    label_dtype(array)
    if array.ndim != 3 or array.shape[2] != 1:
        raise DataError(
            f"{path}: a PNG holds one slice, the label map has shape {array.shape}. Write it as "
            ".nii.gz."
        )
    highest = int(array.max(initial=0))
    if highest > HIGHEST_ID:
        raise DataError(
            f"{path}: label id {highest}; expected at most {HIGHEST_ID} in a PNG. Write it as "
            ".nii.gz."
        )
    pixels = array[..., 0].T.astype(np.uint8 if highest < 256 else np.uint16)
    with written_whole(path) as beside:
        Image.fromarray(np.ascontiguousarray(pixels)).save(beside, format="PNG")


def palette_of(path: Path) -> list[tuple[int, int, int]] | None:
    """Colours of a palette by index; None of an image without one.

    Raises:
        DataError: the header cannot be read.
    """
    with _reading(path), path.open("rb") as file:
        image = _opened(path, file)
        if image.mode != "P":
            return None
        image.load()
        colours = image.getpalette("RGB") or []
    return [(r, g, b) for r, g, b in zip(*[iter(colours)] * 3, strict=True)]


def affine_of(pixel: float = 1.0) -> NDArray[np.float64]:
    """(4, 4) of an image's columns, rows and slice to RAS+ millimetres.

    Args:
        pixel: side of a pixel, millimetres.
    """
    return LPS_TO_RAS @ np.diag([pixel, pixel, 1.0, 1.0])


def is_coloured(path: Path) -> bool:
    """Whether an image is stored as red, green and blue, even if all of it is grey.

    Raises:
        DataError: the header cannot be read.
    """
    with _reading(path), path.open("rb") as file:
        return len(_opened(path, file).getbands()) >= 3


def is_turned_unseen(path: Path) -> bool:
    """Whether EXIF turns or mirrors an image to the same size, so that no size tells it.

    Raises:
        DataError: the header cannot be read.
    """
    with _reading(path), path.open("rb") as file:
        image = _opened(path, file)
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        width, height = image.size
    return orientation in _MIRRORED or (orientation in _TURNED and width == height)


def blurred(path: Path, kind: str) -> DataError:
    """Refusal of a mask in a format that does not keep values, such as "a JPEG"."""
    return DataError(
        f"{kind} does not keep the values of a mask ({path}): edges are blurred into other "
        "ids; expected PNG. Export the masks again as PNG; grey ones of two values may be "
        "thresholded: Image.open(a).convert('L').point(lambda v: 255 * (v > 127)).save(b)."
    )


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except _FAULTS as error:
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        raise DataError(
            f"cannot read {path}: {reason}. Expected a whole PNG, JPEG, BMP, WebP or TIFF image; "
            "copy or export it again."
        ) from error


def _opened(path: Path, file: BinaryIO) -> ImageFile.ImageFile:
    """The image, its pixels not read; checked by its header.

    Not by `Image.open`, whose limit of pixels is one for the whole process.
    """
    Image.init()
    first = file.read(_FIRST_BYTES)
    file.seek(0)
    for name in _KINDS:
        factory, accepts = Image.OPEN[name]
        if accepts is not None and accepts(first) is True:
            image = cast(ImageFile.ImageFile, cast(Any, factory)(file, str(path)))
            break
    else:
        raise OSError("its first bytes are of no image")
    check_not_empty(path, image.size)
    _refuse_several(path, image)
    check_memory(path, (*image.size, len(image.getbands())))
    return image


def _refuse_several(path: Path, image: ImageFile.ImageFile) -> None:
    """Refuse several pages and moving pictures; a photo's own preview is no page."""
    count = int(getattr(image, "n_frames", 1))
    if count > 1 and image.format != "MPO":
        raise DataError(
            f"it has {count} pages or frames ({path}); expected one image. Save each as a file of "
            "its own."
        )


def _lossy(image: ImageFile.ImageFile, file: BinaryIO) -> str:
    """The kind of an image whose format does not keep values; empty of others."""
    if image.format == "TIFF" and image.info.get("compression") in _LOSSY_TIFF:
        return f"a TIFF compressed as {str(image.info['compression']).removeprefix('tiff_')}"
    if image.format == "WEBP":
        here = file.tell()
        file.seek(12)
        while len(head := file.read(8)) == 8 and head[:4] != b"VP8 ":
            length = int.from_bytes(head[4:], "little")
            file.seek(length + length % 2, 1)
        file.seek(here)
        return "a lossy WebP" if head[:4] == b"VP8 " else ""
    return _LOSSY.get(image.format or "", "")


def _refuse_clear(path: Path, image: Image.Image) -> None:
    """Refuse a mask of which transparent pixels have a colour as well: either may be meant."""
    if image.mode == "P" or not image.has_transparency_data:
        return
    colours = np.asarray(image.convert("RGBA"))
    clear = colours[..., 3] == 0
    odd = clear & colours[..., :3].any(-1)
    if odd.any() and not clear.all():
        red, green, blue = (int(value) for value in colours[odd][0, :3])
        raise DataError(
            f"{int(odd.sum())} transparent pixels of the mask have a colour, such as "
            f"#{red:02X}{green:02X}{blue:02X} ({path}); expected a mask without transparency. If "
            "they are background, make them black; else flatten the image."
        )


def _refuse_hidden(path: Path, image: ImageFile.ImageFile, values: NDArray[Any]) -> None:
    """Refuse a TIFF whose transparency, the last of (H, W, C), holds an image."""
    if image.format == "TIFF" and image.mode in ("LA", "RGBA"):
        tiff.refuse_hidden_band(path, values.shape[2], values[..., -1])


def _deep_volume(path: Path, image: ImageFile.ImageFile, ids: bool) -> Volume:
    """Colours of 16 bits as `read` returns them; Pillow read them whole, with 8 bits."""
    values = deep.values_of(path, image)
    if not ids:
        _refuse_hidden(path, image, values)
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    if orientation in _TURNED:
        values = values.swapaxes(0, 1)
    upright = values[:: -1 if orientation in (3, 4, 7, 8) else 1]
    upright = upright[:, :: -1 if orientation in (2, 3, 6, 7) else 1, :3]
    said = [TURNED if orientation in (*_MIRRORED, *_TURNED) else ""]
    said += [_MADE["RGBA"][1] if image.mode == "RGBA" else ""]
    return volume_from(upright, ids, said)


def _plain(path: Path, image: Image.Image) -> tuple[Image.Image, str]:
    """The image in grey or RGB, and what is said of it."""
    if image.mode in _KEPT:
        return image, ""
    if image.mode not in _MADE:
        raise DataError(
            f"its colours are {image.mode} ({path}); expected grey, RGB, a palette or CMYK. Save "
            "it as RGB."
        )
    mode, said = _MADE[image.mode]
    if image.mode == "P" and "transparency" in image.info:
        said = "the alpha channel is left out"
    if image.mode == "CMYK":
        return image.convert(mode), said
    return image.convert("RGBA").convert(mode) if image.mode == "PA" else image.convert(mode), said
