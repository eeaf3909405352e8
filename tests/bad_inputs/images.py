"""2-D images and their masks; the plain stack is Pillow with numpy."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image

from medsam_tune.cases.classes import Coding
from medsam_tune.cases.datalist import Case
from medsam_tune.cases.load import load_case
from tests.bad_inputs.calls import Pair
from tests.bad_inputs.table import BadInput
from tests.images import (
    CLASSES,
    PALETTE,
    deep_colours,
    deep_grey_alpha,
    image_and_ids,
    png_chunk,
)

NAMES = {1: "road", 2: "house", 3: "ignore"}
COLOURS = Coding({one["color"]: one["id"] for one in CLASSES})
PHOTO, IDS = image_and_ids(0)


def pair(folder: Path, coding: Coding = COLOURS, photo: str = "a.png", mask: str = "m.png") -> Case:
    """The case of a photo and a mask; those that are not there yet are sound ones."""
    for name, array in ((photo, PHOTO), (mask, PALETTE[IDS])):
        if not (folder / name).exists():
            Image.fromarray(array).save(folder / name)
    return Case(folder / photo, folder / mask, "p", coding=coding)


def with_mask(array: np.ndarray, name: str = "m.png", coding: Coding = COLOURS) -> Callable:
    """Makes a case whose mask holds an array."""

    def make(folder: Path) -> Case:
        Image.fromarray(array).save(folder / name)
        return pair(folder, coding, mask=name)

    return make


def with_palette(folder: Path) -> Case:
    """A case whose mask has indices in another order than the ids."""
    mask = Image.fromarray(3 - IDS).convert("P")
    mask.putpalette(PALETTE[::-1].ravel().tolist())
    mask.save(folder / "m.png")
    return pair(folder)


def with_other_palette(folder: Path) -> Case:
    """A case whose mask has a palette that was made for this file alone."""
    mask = Image.fromarray(IDS).convert("P")
    mask.putpalette((PALETTE ^ 16).ravel().tolist())
    mask.save(folder / "m.png")
    return pair(folder)


def with_photo(image: Image.Image, name: str = "a.png", **options: Any) -> Callable:
    """Makes a case whose image is saved so."""

    def make(folder: Path) -> Case:
        image.save(folder / name, **options)
        return pair(folder, photo=name)

    return make


def cut_off(ending: str) -> Callable:
    """Makes a case whose image ends in its middle."""

    def make(folder: Path) -> Case:
        noise = np.random.default_rng(0).integers(0, 256, (*IDS.shape, 3)).astype(np.uint8)
        path = folder / f"a{ending}"
        Image.fromarray(noise).save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        return pair(folder, photo=path.name)

    return make


def bomb(folder: Path) -> Case:
    """A PNG of a few bytes whose header speaks of 10^12 pixels."""
    header = struct.pack(">IIBBBBB", 10**6, 10**6, 8, 2, 0, 0, 0)
    content = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(b"\0"))
    (folder / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content + png_chunk(b"IEND"))
    return pair(folder)


def load(case: Case) -> Pair:
    """Ours."""
    return load_case(case, NAMES)


def load_one(case: Case) -> Pair:
    """Ours, of a data set with one label."""
    return load_case(case, {1: "road"})


def pillow(case: Case) -> str:
    """What Pillow makes of the two files."""
    arrays = []
    for path in (case.image, case.label or case.image):
        with Image.open(path) as opened:
            arrays.append(np.asarray(opened))
    image, mask = arrays
    values = len(np.unique(mask.reshape(-1, *mask.shape[2:]), axis=0))
    shapes = [" x ".join(map(str, one.shape)) for one in (image, mask)]
    return f"image {shapes[0]}, mask {shapes[1]} of {values} values"


def ids_are_right(found: Pair) -> None:
    _, label = found
    assert label is not None
    torch.testing.assert_close(label[0, ..., 0].T.byte(), torch.from_numpy(IDS))


def photo_is(array: np.ndarray, note: str) -> Callable[[Pair], None]:
    """Checks the image (H, W, C) and what is said of it."""

    def check(found: Pair) -> None:
        image, _ = found
        np.testing.assert_array_equal(image[..., 0].permute(2, 1, 0).numpy(), array)
        assert image.meta["notes"] == ([note] if note else [])

    return check


def one_road(found: Pair) -> None:
    _, label = found
    assert label is not None
    assert int(label.sum()) == int((IDS == 1).sum())


def bad(name: str, what: str, make: Callable, **fields: Any) -> BadInput:
    fields = {"row": 115, "ours": load, "plain": pillow, **fields}
    return BadInput(name=name, what=what, make=make, **fields)


def _wrong_colour() -> np.ndarray:
    array = PALETTE[IDS]
    array[0, :4] = 1, 2, 3
    return array


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 3
    return exif


def _with_turned_photo(folder: Path) -> Case:
    Image.fromarray(PHOTO).save(folder / "a.png", exif=_turned())
    return pair(folder)


def _with_turned_photo_alone(folder: Path) -> Case:
    return replace(_with_turned_photo(folder), label=None)


def _tiff_jpeg(folder: Path) -> Case:
    grey = Image.fromarray((IDS == 1).astype(np.uint8) * 255)
    grey.save(folder / "m.tif", compression="jpeg")
    return pair(folder, Coding(), mask="m.tif")


_DEEP = PHOTO.astype(np.uint16) * 8


def _deep(folder: Path) -> Case:
    deep_colours(folder / "a.png", _DEEP)
    return pair(folder)


def _deep_mask(folder: Path) -> Case:
    deep_colours(folder / "m.png", PALETTE[IDS].astype(np.uint16) * 8)
    return pair(folder)


def _deep_grey_alpha(folder: Path) -> Case:
    pixels = np.stack([_DEEP[..., 0], np.full_like(_DEEP[..., 0], 65535)], axis=-1)
    deep_grey_alpha(folder / "a.png", pixels)
    return pair(folder)


_SEEN = np.repeat(np.arange(256, dtype=np.uint8)[None], 48, 0)[:, :56]
_PAGES = [Image.fromarray(PHOTO), Image.fromarray(PHOTO[::-1].copy())]

INPUTS: tuple[BadInput, ...] = (
    *(
        bad(
            f"truncated{ending}",
            f"an image that ends in its middle ({ending})",
            cut_off(ending),
            refused=rf"cannot read .*a\{ending}: .*Expected a whole PNG, JPEG, BMP, WebP or TIFF",
        )
        for ending in (".png", ".jpg", ".tif")
    ),
    bad(
        "bomb",
        "a PNG of 70 bytes that speaks of 10^12 pixels",
        bomb,
        refused="header speaks of 1000",
    ),
    bad(
        "pages",
        "a TIFF of two pages",
        with_photo(_PAGES[0], "a.tif", save_all=True, append_images=_PAGES[1:]),
        refused=r"it has 2 pages or frames \(.*a\.tif\)",
    ),
    bad(
        "exif",
        "a photo that EXIF turns by 180 degrees",
        _with_turned_photo_alone,
        check=photo_is(PHOTO[::-1, ::-1], "turned as EXIF says"),
        handled="turned, as a viewer shows it",
    ),
    bad(
        "alpha",
        "an image with an alpha channel",
        with_photo(Image.fromarray(PHOTO).convert("RGBA")),
        check=photo_is(PHOTO, "the alpha channel is left out"),
        handled="three channels; a note says so",
    ),
    bad(
        "deep",
        "colours of 11 bits, as PNG",
        _deep,
        check=photo_is(_DEEP, ""),
        handled="11 bits, scaled by percentiles of each channel",
    ),
    bad(
        "deep-grey-alpha",
        "grey of 11 bits with an alpha channel, as PNG",
        _deep_grey_alpha,
        refused=r"its grey of 16 bits has an alpha channel \(.*a\.png\)",
    ),
    bad(
        "palette-image",
        "an image with a palette",
        with_photo(Image.fromarray(PHOTO).quantize(256)),
        check=photo_is(np.asarray(Image.fromarray(PHOTO).quantize(256).convert("RGB")), ""),
        handled="its colours, not its indices",
    ),
    bad(
        "cmyk",
        "an image in CMYK",
        with_photo(Image.fromarray(PHOTO).convert("CMYK"), "a.tif"),
        check=photo_is(PHOTO, "CMYK read as RGB"),
        handled="RGB; a note says so",
    ),
    bad(
        "mask-size",
        "a mask of another size",
        with_mask(PALETTE[IDS][:, 1:]),
        refused=r"the mask has 55 x 48 pixels, the image 56 x 48 \(.*m\.png, .*a\.png\)",
    ),
    bad(
        "mask-turned",
        "a mask of the photo before EXIF turned it",
        with_photo(Image.fromarray(np.rot90(PHOTO)), exif=_turned()),
        refused="the mask has 56 x 48 pixels, the image 48 x 56 .*The image is turned, as its EXIF",
    ),
    bad(
        "mask-colour",
        "a mask with a colour of no class",
        with_mask(_wrong_colour()),
        refused=r"colours of no class: #010203 \(4 pixels\) \(.*m\.png\); expected #6EC1E4",
    ),
    bad(
        "mask-no-map",
        "a mask in colours without a class map",
        with_mask(PALETTE[IDS], coding=Coding()),
        refused="colours of no class: .*nothing says what colours mean",
    ),
    bad(
        "mask-deep",
        "a mask in colours of 16 bits that are none of 8",
        _deep_mask,
        refused=r"the mask has colours of 16 bits \(.*m\.png\); expected those of 8 bits",
    ),
    bad(
        "mask-jpeg",
        "a mask of 0 and 255 saved as JPEG",
        with_mask((IDS == 1).astype(np.uint8) * 255, "m.jpg", Coding()),
        ours=load_one,
        refused=r"a JPEG does not keep the values of a mask \(.*m\.jpg\)",
    ),
    bad(
        "mask-tiff-jpeg",
        "a mask of 0 and 255 saved as TIFF, compressed as JPEG",
        _tiff_jpeg,
        ours=load_one,
        refused=r"a TIFF compressed as jpeg does not keep the values of a mask \(.*m\.tif\)",
    ),
    bad(
        "mask-clear",
        "a mask with a colour in transparent pixels",
        with_mask(np.dstack([PALETTE[IDS], np.where(IDS == 2, 0, 255).astype(np.uint8)])),
        refused=r"\d+ transparent pixels of the mask have a colour, such as #3C1098 \(.*m\.png\)",
    ),
    bad(
        "mask-other-palette",
        "a mask with a palette of other colours than the classes'",
        with_other_palette,
        refused=r"colours of no class: .*m\.png\).*If the indices of palettes are the ids",
    ),
    bad(
        "mask-exif",
        "a mask of a photo that EXIF turns by 180 degrees",
        _with_turned_photo,
        refused=r"EXIF turns the image, and nothing says whether the label was drawn before or",
    ),
    bad(
        "mask-blurred",
        "a mask of two labels whose edges were smoothed",
        with_mask(_SEEN, coding=Coding()),
        refused=r"label has the values .*m\.png\); expected only 0, 1, 2, 3",
    ),
    bad(
        "mask-white",
        "a mask of 0 and 255, of a data set with one label",
        with_mask((IDS == 1).astype(np.uint8) * 255, coding=Coding()),
        ours=load_one,
        check=one_road,
        handled="255 is the label",
    ),
    bad(
        "mask-palette",
        "a mask with a palette in another order than the ids",
        with_palette,
        check=ids_are_right,
        handled="by the colours of the palette",
    ),
)
