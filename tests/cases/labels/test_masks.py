"""Masks of every encoding give the same label; wrong ones are refused by name."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from medsam_tune.cases.classes import Coding
from medsam_tune.cases.datalist import Case
from medsam_tune.cases.labels.masks import Mask
from medsam_tune.cases.labels.open import open_label
from medsam_tune.cases.load import load_case
from medsam_tune.errors import DataError
from tests.images import deep_colours

IDS = np.zeros((5, 7), np.uint8)  # H, W
IDS[1:3, 1:4], IDS[3:, 5:] = 1, 2
LABELS = {1: "road", 2: "house"}
RGB = np.array([[0, 0, 0], [110, 193, 228], [60, 16, 152]], np.uint8)
COLOURS = Coding({"#6EC1E4": 1, "#3C1098": 2})
GREYS = Coding({"#404040": 1, "#C8C8C8": 2})


def palette(ids, colours):
    found = Image.fromarray(ids).convert("P")
    found.putpalette(np.asarray(colours, np.uint8).ravel().tolist())
    return found


def save(folder, mask):
    mask = mask if isinstance(mask, Image.Image) else Image.fromarray(mask)
    mask.save(folder / "mask.png")
    return folder / "mask.png"


def case(folder, mask, coding=COLOURS, size=(7, 5)):
    Image.new("RGB", size, (9, 8, 7)).putpixel((0, 0), (1, 2, 3))
    photo = np.random.default_rng(0).integers(0, 255, (*size[::-1], 3)).astype(np.uint8)
    Image.fromarray(photo).save(folder / "photo.png")
    path = mask if isinstance(mask, type(folder)) else save(folder, mask)
    return Case(folder / "photo.png", path, "p", coding=coding)


def seen(label):
    return label[0, ..., 0].T.numpy()


@pytest.mark.parametrize(
    ("mask", "coding"),
    [
        (IDS, Coding()),
        (IDS, COLOURS),
        (IDS.astype(np.uint16), Coding()),
        (IDS.astype(np.int32), Coding()),
        (RGB[IDS], COLOURS),
        (np.dstack([RGB[IDS], np.full(IDS.shape, 255, np.uint8)]), COLOURS),
        (palette(IDS, RGB), Coding()),
        (palette(IDS, RGB), COLOURS),
        (palette(2 - IDS, RGB[::-1]), COLOURS),
        (palette(IDS, RGB[::-1]), Coding()),
        (np.array([0, 64, 200], np.uint8)[IDS], GREYS),
    ],
    ids=[
        *("ids", "ids, colours unused", "16 bit", "32 bit", "colours", "colours and alpha"),
        *("palette", "palette by colour", "palette in another order", "palette by index", "greys"),
    ],
)
def test_every_encoding_gives_the_same_label(tmp_path, mask, coding):
    mask = mask if isinstance(mask, Image.Image) else Image.fromarray(mask)
    path = tmp_path / ("mask.tif" if mask.mode == "I" else "mask.png")
    mask.save(path)
    _, label = load_case(case(tmp_path, path, coding), LABELS)
    assert (label.shape, label.dtype) == ((1, 7, 5, 1), torch.int32)
    np.testing.assert_array_equal(seen(label), IDS)
    kind = open_label(path, coding)
    assert isinstance(kind, Mask)
    assert kind.present(LABELS) == {1, 2}
    assert kind.present({2: "house"} if coding == Coding() else LABELS) <= {1, 2}


@pytest.mark.parametrize(
    "mask",
    [
        (IDS == 1).astype(np.uint8),
        (IDS == 1).astype(np.uint8) * 255,
        (IDS == 1).astype(np.uint16) * 65535,
        IDS == 1,
        np.repeat((IDS == 1)[..., None].astype(np.uint8) * 255, 3, 2),
        palette((IDS == 1).astype(np.uint8), RGB),
    ],
    ids=["0 and 1", "0 and 255", "0 and 65535", "1 bit", "white in RGB", "palette"],
)
def test_one_label_in_black_and_white(tmp_path, mask):
    one = case(tmp_path, mask, Coding())
    np.testing.assert_array_equal(seen(load_case(one, {1: "road"})[1]), IDS == 1)
    assert Mask(one.label).names() == {1: "label 1"}
    if mask is not None and open_label(one.label).names() and not isinstance(mask, Image.Image):
        if np.asarray(mask).max() in (255, 65535):
            np.testing.assert_array_equal(seen(load_case(one, {7: "road"})[1]), 7 * (IDS == 1))


def test_white_is_an_id_where_it_has_a_name(tmp_path):
    one = case(tmp_path, (IDS == 1).astype(np.uint8) * 255, Coding())
    np.testing.assert_array_equal(
        seen(load_case(one, {1: "a", 255: "ignore"})[1]), 255 * (IDS == 1).astype(int)
    )
    with pytest.raises(DataError, match=r"label has the values 255 .*expected only 0, 1, 2"):
        load_case(one, LABELS)


def test_white_is_the_only_label_beside_what_is_ignored(tmp_path):
    """Pixels without data get an id that no user chose."""
    one = case(tmp_path, (IDS == 1).astype(np.uint8) * 255, Coding())
    np.testing.assert_array_equal(
        seen(load_case(one, {1: "house", 254: "ignore"})[1]), (IDS == 1).astype(int)
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_numbers_of_objects(tmp_path, dtype):
    """Every value is an object of the only label, touching ones too."""
    numbers = np.zeros((5, 7), dtype)
    numbers[1:3, 1:3], numbers[1:3, 3:5], numbers[4, 6] = 3, 200, 7
    path = tmp_path / "mask.tif"
    Image.fromarray(numbers).save(path)
    _, label = load_case(case(tmp_path, path, Coding({}, instances=True)), {4: "nucleus"})
    assert label.shape == (2, 7, 5, 1)
    np.testing.assert_array_equal(seen(label), 4 * (numbers > 0))
    np.testing.assert_array_equal(seen(label[1:]), numbers)


def test_colours_that_no_class_has(tmp_path):
    mask = RGB[IDS]
    mask[0, :3] = 1, 2, 3
    with pytest.raises(
        DataError,
        match=r"^case photo: the mask has colours of no class: #010203 \(3 pixels\) \(.*mask\.png"
        r"\); expected #6EC1E4, #3C1098\. Name each colour in classes\.json in the folder, or",
    ):
        load_case(case(tmp_path, mask), LABELS)
    with pytest.raises(DataError, match=r"colours of no class: .*and nothing says what colours m"):
        load_case(case(tmp_path, RGB[IDS], Coding()), LABELS)
    other = palette(IDS + 5, np.repeat(RGB[1:2] + 1, 9, 0))
    with pytest.raises(DataError, match="colours of no class: #6FC2E5"):
        load_case(case(tmp_path, other), LABELS)


def test_a_palette_of_other_colours_is_no_list_of_ids(tmp_path):
    """Files of one data set may have palettes in different orders."""
    other = palette(IDS, RGB[[0, 2, 1]] ^ 8)
    with pytest.raises(
        DataError,
        match=r"of no class: #080808, #341890, #66C9EC .*If the indices of palettes are the ids, "
        "leave colours out of it",
    ):
        load_case(case(tmp_path, other), LABELS)
    greys = palette(IDS, np.repeat(np.arange(3, dtype=np.uint8)[:, None], 3, 1))
    np.testing.assert_array_equal(seen(load_case(case(tmp_path, greys), LABELS)[1]), IDS)


def test_colours_of_16_bits(tmp_path):
    """Those of 8 bits, as programs write them with 16, are the classes' colours; others none."""
    path = deep_colours(tmp_path / "mask.png", RGB[IDS].astype(np.uint16) * 257)
    np.testing.assert_array_equal(seen(load_case(case(tmp_path, path), LABELS)[1]), IDS)
    deep_colours(path, RGB[IDS].astype(np.uint16) * 256)
    with pytest.raises(DataError, match=r"the mask has colours of 16 bits \(.*mask\.png\); exp"):
        load_case(case(tmp_path, path), LABELS)


def test_ids_in_three_equal_channels_of_16_bits(tmp_path):
    path = deep_colours(tmp_path / "mask.png", np.repeat(IDS[..., None], 3, 2))
    np.testing.assert_array_equal(seen(load_case(case(tmp_path, path, Coding()), LABELS)[1]), IDS)


def test_a_mask_of_several_bands_is_refused(tmp_path):
    geo = pytest.importorskip("tests.geo")
    path = geo.write(tmp_path / "mask.tif", np.stack([IDS, IDS + 1]), None, False)
    with pytest.raises(DataError, match=r"the mask has 2 bands \(.*mask\.tif\); expected one"):
        load_case(case(tmp_path, path), LABELS)


def test_greys_that_are_ids_and_colours(tmp_path):
    """Black is the first class: a grey 1 is the id 1, or the colour of the second."""
    coding = Coding({"#000000": 1, "#010101": 2})
    grey = (IDS > 0).astype(np.uint8)
    with pytest.raises(
        DataError, match=r"the mask's value 0 may be the id 0, or the colour of the class 1 \(.*mas"
    ):
        load_case(case(tmp_path, grey, coding), LABELS)
    coloured = case(tmp_path, np.repeat(grey[..., None], 3, 2), coding)
    np.testing.assert_array_equal(seen(load_case(coloured, LABELS)[1]), grey + 1)


@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        ("mask.jpg", "a JPEG", {}),
        ("mask.webp", "a lossy WebP", {}),
        ("mask.tif", "a TIFF compressed as jpeg", {"compression": "jpeg"}),
    ],
)
def test_formats_that_do_not_keep_values_are_refused(tmp_path, name, kind, options):
    Image.fromarray((IDS == 1).astype(np.uint8) * 255).save(tmp_path / name, **options)
    with pytest.raises(DataError, match=rf"{kind} does not keep the values of a mask .*{name}.*P"):
        load_case(case(tmp_path, tmp_path / name, Coding()), {1: "road"})


def test_a_lossless_webp_is_a_mask(tmp_path):
    Image.fromarray(RGB[IDS]).save(tmp_path / "mask.webp", lossless=True)
    _, label = load_case(case(tmp_path, tmp_path / "mask.webp"), LABELS)
    np.testing.assert_array_equal(seen(label), IDS)


def test_transparent_pixels_with_a_colour_are_refused(tmp_path):
    clear = np.dstack([RGB[IDS], np.where(IDS == 2, 0, 255).astype(np.uint8)])
    with pytest.raises(
        DataError, match=r"4 transparent pixels of the mask have a colour, such as #3C1098 \(.*mask"
    ):
        load_case(case(tmp_path, clear), LABELS)
    clear[..., 3] = np.where(IDS == 0, 0, 255)  # black below
    np.testing.assert_array_equal(seen(load_case(case(tmp_path, clear), LABELS)[1]), IDS)


@pytest.mark.parametrize(("orientation", "size"), [(2, (7, 5)), (3, (7, 5)), (6, (6, 6))])
def test_an_image_that_exif_turns_to_the_same_size(tmp_path, orientation, size):
    """No size says whether the mask was drawn before or after."""
    mask = np.zeros(size[::-1], np.uint8)
    mask[:2, :1] = 1
    one = case(tmp_path, mask, Coding(), size)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    with Image.open(one.image) as photo:
        photo.save(one.image, exif=exif)
    with pytest.raises(DataError, match=r"EXIF turns the image, .*photo\.png, .*mask\.png\); e"):
        load_case(one, LABELS)
    Image.fromarray(mask).save(one.label, exif=exif)
    load_case(one, LABELS)


def test_sizes_must_be_the_same(tmp_path):
    with pytest.raises(
        DataError, match=r"the mask has 7 x 5 pixels, the image 5 x 7 \(.*mask\.png, .*photo\.png\)"
    ):
        load_case(case(tmp_path, IDS, size=(5, 7)), LABELS)


def test_fractions_and_negative_values_are_no_ids(tmp_path):
    for values in (IDS / 2, IDS.astype(np.float32) - 1):
        Image.fromarray(values.astype(np.float32)).save(tmp_path / "mask.tif")
        with pytest.raises(DataError, match="the mask has values that are no ids, from"):
            load_case(case(tmp_path, tmp_path / "mask.tif"), LABELS)


def test_a_file_for_each_class(tmp_path):
    folder = tmp_path / "masks" / "photo"
    folder.mkdir(parents=True)
    for number, name in LABELS.items():
        Image.fromarray((number == IDS).astype(np.uint8) * 255).save(folder / f"{name}.png")
    _, label = load_case(case(tmp_path, folder, Coding()), LABELS)
    np.testing.assert_array_equal(seen(label), IDS)
