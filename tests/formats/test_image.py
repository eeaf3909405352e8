"""2-D images of every mode that Pillow reads, as volumes of one slice."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, TiffImagePlugin

from medsam_tune.errors import DataError
from medsam_tune.formats import image as images
from medsam_tune.formats.mending import Mending
from medsam_tune.formats.open import load_image, load_label, read_grid, write_array
from medsam_tune.slices.cut import cut
from medsam_tune.slices.frames import ScanGrid
from medsam_tune.slices.intensity import for_modality
from medsam_tune.slices.rules import ScanRules
from tests.images import deep_colours, deep_grey_alpha, png_chunk

COLOURS = np.random.default_rng(0).integers(0, 256, (4, 6, 3)).astype(np.uint8)  # H, W, C
GREY = COLOURS[..., 0]


def save(path, array, mode=None, **options):
    found = Image.fromarray(array)
    found = found if mode is None else found.convert(mode)
    found.save(path, **options)
    return path


@pytest.mark.parametrize("ending", [".png", ".bmp", ".webp", ".tif", ".tiff", ".PNG"])
def test_rows_and_columns_are_those_of_the_file(tmp_path, ending):
    """Of the slice that training and prediction see, and on the way back."""
    options = {"lossless": True} if ending == ".webp" else {}
    path = save(tmp_path / f"a{ending}", COLOURS, **options)
    image = load_image(path)
    assert (image.shape, image.dtype.is_floating_point) == ((3, 6, 4, 1), True)
    assert (image.meta["channels"], image.meta["volumes"], image.meta["stored"]) == (3, 1, "uint8")
    assert not image.meta["spacing_known"]
    slices, grid = cut(image, ScanRules(for_modality("RGB"), modality="RGB"))
    np.testing.assert_array_equal(slices[0].permute(1, 2, 0).numpy(), COLOURS)
    np.testing.assert_array_equal(grid.to_file(slices[:, 0])[..., 0].T, COLOURS[..., 0])
    found = read_grid(path)
    assert found.shape == (6, 4, 1)
    box = np.array([1.0, 2, 0, 3, 4, 1])
    assert ScanGrid(found.affine, (6, 4, 1)).box_to_slices(box).tolist() == box.tolist()


@pytest.mark.parametrize(
    ("mode", "note"),
    [
        ("L", None),
        ("RGB", None),
        ("P", None),
        ("RGBA", "the alpha channel is left out"),
        ("LA", "the alpha channel is left out"),
        ("CMYK", "CMYK read as RGB"),
        ("1", None),
    ],
)
def test_every_mode_becomes_grey_or_rgb(tmp_path, mode, note):
    path = save(tmp_path / "a.tif", COLOURS, mode)
    image = load_image(path)
    expected = np.asarray(Image.open(path).convert("L" if mode in ("L", "LA", "1") else "RGB"))
    seen = expected[..., None] if expected.ndim == 2 else expected
    np.testing.assert_array_equal(image[..., 0].permute(2, 1, 0).numpy(), seen)
    assert image.meta["notes"] == ([] if note is None else [note])


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_depths_keep_their_values(tmp_path, dtype):
    array = (GREY.astype(np.float64) * 257).astype(dtype)
    image = load_image(save(tmp_path / "a.tif", array))
    np.testing.assert_array_equal(image[0, ..., 0].T.numpy(), array)
    assert image.meta["stored"] == np.dtype(dtype).name


DEEP = np.random.default_rng(1).integers(0, 2047, (4, 6, 4)).astype(np.uint16)  # 11 bits


@pytest.mark.parametrize("ending", [".png", ".tif"])
@pytest.mark.parametrize("channels", [3, 4])
def test_colours_of_more_than_8_bits_keep_their_values(tmp_path, ending, channels):
    deep = DEEP[..., :channels].copy()
    deep[..., 3:] = 65535
    path = deep_colours(tmp_path / f"a{ending}", deep)
    image = load_image(path)
    np.testing.assert_array_equal(image[..., 0].permute(2, 1, 0).numpy(), deep[..., :3])
    assert image.meta["stored"] == "uint16"
    assert image.meta["notes"] == ["the alpha channel is left out"] * (channels - 3)
    assert read_grid(path).shape == image.shape[1:]
    slices, _ = cut(image, ScanRules(for_modality("RGB"), modality="RGB"))
    for seen in slices[0]:  # the range of each channel, as of a GeoTIFF of 11 bits
        assert (int(seen.min()), int(seen.max())) == (0, 255)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_colours_of_16_bits(tmp_path, orientation):
    """As Pillow turns those of 8 bits."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    shallow = DEEP[..., :3].astype(np.uint8)
    expected = load_image(save(tmp_path / "a.png", shallow, exif=exif))
    path = deep_colours(tmp_path / "b.png", shallow.astype(np.uint16) * 257)
    content = path.read_bytes()
    chunk = png_chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    path.write_bytes(content[:33] + chunk + content[33:])  # behind the header
    found = load_image(path)
    np.testing.assert_array_equal(found.numpy(), expected.numpy() * 257)
    assert found.meta["notes"] == expected.meta["notes"]
    assert read_grid(path).shape == found.shape[1:]


def test_a_damaged_file_of_16_bits_is_refused(tmp_path):
    noise = np.random.default_rng(0).integers(0, 65536, (80, 90, 3))
    path = deep_colours(tmp_path / "a.png", noise)
    path.write_bytes(path.read_bytes()[:20000])
    with pytest.raises(DataError, match=r"cannot read .*a\.png: .*truncated.*Expected a whole PNG"):
        load_image(path)


def test_grey_of_16_bits_with_an_alpha_channel_is_refused(tmp_path):
    path = deep_grey_alpha(tmp_path / "a.png", DEEP[..., :2])
    with pytest.raises(DataError, match=r"grey of 16 bits has an alpha channel \(.*a\.png\)"):
        load_image(path)


def test_a_band_that_a_tiff_declares_as_transparency(tmp_path):
    """Of 11 bits as well, of which the upper 8 have few values."""
    bands = np.random.default_rng(2).integers(0, 256, (8, 8, 4)).astype(np.uint8)
    for path in (save(tmp_path / "a.tif", bands), deep_colours(tmp_path / "b.tif", bands)):
        said = r"band 4 is declared as transparency, and has \d+ values"
        with pytest.raises(DataError, match=said):
            load_image(path)


def test_colours_that_are_all_grey_are_grey(tmp_path):
    path = save(tmp_path / "a.png", np.repeat(GREY[..., None], 3, 2))
    np.testing.assert_array_equal(load_image(path)[0, ..., 0].T.numpy(), GREY)


@pytest.mark.parametrize("orientation", [3, 6])
def test_exif_turns(tmp_path, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = save(tmp_path / "a.png", COLOURS, exif=exif)
    image = load_image(path)
    turned = np.rot90(COLOURS, {3: 2, 6: 3}[orientation])
    np.testing.assert_array_equal(image[..., 0].permute(2, 1, 0).numpy(), turned)
    assert image.meta["notes"] == ["turned as EXIF says"]
    assert read_grid(path).shape == image.shape[1:]


def test_pages_and_moving_pictures_are_refused(tmp_path):
    frames = [
        Image.fromarray(np.roll(np.kron(GREY, np.ones((9, 9), np.uint8)), k)) for k in range(3)
    ]
    for name in ("a.tif", "a.png", "a.webp"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        for reads in (load_image, read_grid):
            with pytest.raises(DataError, match=rf"it has 3 pages or frames \(.*{name}\); expect"):
                reads(tmp_path / name)


@pytest.mark.parametrize("ending", [".png", ".jpg", ".bmp", ".webp", ".tif"])
def test_damaged_files_are_refused_by_name(tmp_path, ending):
    noise = np.random.default_rng(0).integers(0, 256, (80, 90, 3)).astype(np.uint8)
    path = save(tmp_path / f"a{ending}", noise)
    whole = path.read_bytes()
    for part in (whole[: len(whole) // 2], whole[:20], b"\x00" * 40, b"hello"):
        path.write_bytes(part)
        with pytest.raises(DataError, match=rf"cannot read .*a\{ending}: .*Expected a whole PNG"):
            load_image(path)


def test_a_bomb_is_refused_by_its_header(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png", np.zeros((1000, 1000), np.uint8))
    assert load_image(path).shape == (1, 1000, 1000, 1)
    free = type("Memory", (), {"available": 10**6})
    monkeypatch.setattr("medsam_tune.formats.volume.psutil.virtual_memory", lambda: free)
    for reads in (load_image, read_grid):
        with pytest.raises(DataError, match=r"the header speaks of 1000 x 1000 x 1 voxels"):
            reads(path)


def test_pillows_own_limit_is_not_in_the_way(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4)
    assert load_image(save(tmp_path / "a.png", GREY)).shape == (1, 6, 4, 1)


def test_a_geo_reference_is_not_lost(tmp_path, monkeypatch):
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[33550] = (0.3, 0.3, 0.0)
    tags.tagtype[33550] = 12
    Image.fromarray(GREY).save(tmp_path / "a.tif", tiffinfo=tags)
    monkeypatch.setitem(sys.modules, "rasterio", None)
    with pytest.raises(
        DataError,
        match=r"a\.tif: a GeoTIFF needs rasterio. Install the extra: pip install medsam_",
    ):
        load_image(tmp_path / "a.tif")


def test_the_content_tells_the_kind(tmp_path):
    save(tmp_path / "a.jpg", GREY)
    (tmp_path / "a.jpg").rename(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png").shape == (1, 6, 4, 1)
    with pytest.raises(DataError, match=r"a JPEG does not keep the values of a mask \(.*a\.png\)"):
        load_label(tmp_path / "a.png")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_ids_of_grey_and_palettes_are_kept(tmp_path, dtype):
    ids = (GREY.astype(np.int64) * (1 if dtype is np.uint8 else 200)).astype(dtype)
    path = save(tmp_path / "a.tif", ids)
    np.testing.assert_array_equal(load_label(path)[0, ..., 0].T.numpy(), ids)
    palette = Image.fromarray(GREY // 100)
    palette = palette.convert("P")
    palette.putpalette([0, 0, 0, 200, 10, 20, 30, 40, 250])
    palette.save(tmp_path / "p.png")
    np.testing.assert_array_equal(load_label(tmp_path / "p.png")[0, ..., 0].T.numpy(), GREY // 100)
    assert images.palette_of(tmp_path / "p.png")[:3] == [(0, 0, 0), (200, 10, 20), (30, 40, 250)]
    assert images.palette_of(path) is None


def test_what_a_png_does_not_hold(tmp_path):
    for array, text in (
        (
            np.zeros((3, 3, 2), np.int32),
            r"a PNG holds one slice, the label map has shape \(3, 3, 2",
        ),
        (np.full((3, 3, 1), 65536), "label id 65536; expected at most 65535 in a PNG"),
    ):
        with pytest.raises(DataError, match=text):
            write_array(tmp_path / "a.png", array, np.eye(4))
    assert not [*tmp_path.iterdir()]


def test_nothing_of_the_header_is_kept(tmp_path):
    """EXIF may name a photographer, and a PNG's texts a patient."""
    exif = Image.Exif()
    exif[ExifTags.Base.Artist] = "Doe^Jane"
    path = save(tmp_path / "a.png", GREY, exif=exif)
    assert "Doe" not in str(images.read(path, Mending()).meta())


def test_cmyk_of_16_bits_is_refused(tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio", reason="the extra geo is not installed")
    values = np.arange(256, dtype=np.uint16).reshape(4, 8, 8) * 200
    options = {"driver": "GTiff", "width": 8, "height": 8, "count": 4, "dtype": "uint16"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it has no place
        with rasterio.open(tmp_path / "a.tif", "w", photometric="CMYK", **options) as file:
            file.write(values)
    with pytest.raises(DataError, match=r"its colours are CMYK of 16 bits .* Save it as RGB"):
        load_image(tmp_path / "a.tif")
