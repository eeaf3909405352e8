"""Geo-referenced images in the store: size of a pixel, bands, depth, pixels without data."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from PIL import Image

from medsam_tune.cases.datalist import Case, read_datalist
from medsam_tune.cases.folders import find_cases
from medsam_tune.cases.load import load_case
from medsam_tune.errors import DataError
from medsam_tune.formats.open import load_image
from medsam_tune.prompts import Prompts
from medsam_tune.sam.build import build_sam
from medsam_tune.sam.model import PromptableSam
from medsam_tune.slices.colours import Colours
from medsam_tune.slices.cut import cut, seen_by
from medsam_tune.slices.estimate import estimate
from medsam_tune.slices.frames import ModelFrame
from medsam_tune.slices.rules import ScanRules, rules_from
from medsam_tune.slices.sensor import for_sensor
from medsam_tune.slices.store import SliceStore
from tests import geo
from tests.conftest import REAL_DATA
from tests.images import deep_colours

RULES = ScanRules(Colours(4), modality="RGB")


def folder(path: Path, count: int = 2, nodata: float | None = None) -> Path:
    for k in range(count):
        bands, ids = geo.bands_and_ids(k)
        if nodata is not None:
            bands[:, :7] = nodata
        geo.write(path / "images" / f"s{k}.tif", bands, nodata=nodata)
        geo.write(path / "masks" / f"s{k}.tif", ids[None])
    return path


def test_pixels_get_one_size_on_the_ground(tmp_path):
    data = find_cases(folder(tmp_path / "d"))
    store = SliceStore(tmp_path / "s", replace(RULES, gsd=0.25), data.labels_in_files)
    case = store.prepare(data.training, False)[0]
    assert case.shape == (1, 96, 128)
    assert case.truth().shape == (1, 48, 64)  # scores are of the image's own pixels
    np.testing.assert_array_equal(case.truth()[0], geo.bands_and_ids(0)[1])
    np.testing.assert_array_equal(case.label()[0, ::2, ::2], geo.bands_and_ids(0)[1])


def test_the_grid_leads_back_and_keeps_the_place(tmp_path):
    path = geo.write(tmp_path / "a.tif", geo.bands_and_ids(0)[0])
    slices, grid = cut(load_image(path), replace(RULES, gsd=0.3))
    assert slices.shape == (1, 4, 80, 107)
    assert grid.to_file(slices[:, 0]).shape == (64, 48, 1)
    assert grid.georeference == load_image(path).meta["georeference"]


def test_shrunk_images_are_smoothed(tmp_path):
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)[None]
    path = geo.write(tmp_path / "a.tif", board)
    slices, _ = cut(load_image(path), ScanRules(Colours(1), gsd=1.5))
    middle = slices[0, 0, 2:-2, 2:-2].float()
    assert 115 < middle.min() <= middle.max() < 140


def test_an_unknown_size_is_kept_and_said(tmp_path):
    path = geo.write(tmp_path / "a.tif", geo.bands_and_ids(0)[0], None)
    with pytest.warns(UserWarning, match=r"size of a pixel is unknown: rules::gsd \(0\.3 m\) is"):
        slices, _ = cut(load_image(path), replace(RULES, gsd=0.3))
    assert slices.shape == (1, 4, 48, 64)


def test_a_given_size_stands_where_an_image_says_none(tmp_path, recwarn):
    bands, ids = geo.bands_and_ids(0)
    for name, pixels in (("images", bands[:3] // 8), ("masks", ids[None])):
        path = tmp_path / "d" / name / "a.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(pixels.astype(np.uint8).transpose(1, 2, 0).squeeze()).save(path)
    rules = ScanRules(Colours(3), modality="RGB", gsd=0.25, pixel=0.5)
    data = find_cases(tmp_path / "d")
    store = SliceStore(tmp_path / "s", rules, data.labels_in_files)
    case = store.prepare(data.training, False)[0]
    assert case.shape == (1, 96, 128)
    empty = SliceStore(tmp_path / "empty", rules, data.labels_in_files)
    assert estimate(empty, data.training, False).bytes == 96 * 128 * (3 + 1)
    np.testing.assert_array_equal(case.truth()[0], ids)  # scores are of the image's own pixels
    _, grid = cut(load_image(data.training[0].image), rules)
    np.testing.assert_array_equal(grid.to_file(torch.from_numpy(case.label()))[..., 0].T, ids)
    assert not [one for one in recwarn if "gsd" in str(one.message)]
    # What an image says itself counts.
    own = geo.write(tmp_path / "own.tif", bands[:3], where=geo.transform(0.25))
    assert cut(load_image(own), rules)[0].shape == (1, 3, 48, 64)
    with pytest.raises(DataError, match=r"a pixel is 5 m, and rules::gsd is 0\.25 m: 20 times"):
        cut(load_image(data.training[0].image), replace(rules, pixel=5.0))
    assert rules_from(rules.describe()) == rules


def test_the_middle_of_a_tile_is_a_region(tmp_path):
    """An entry of the datalist, of image and mask; then pixels get their size."""
    bands, ids = geo.bands_and_ids(0)
    Image.fromarray((bands[:3] // 8).astype(np.uint8).transpose(1, 2, 0)).save(tmp_path / "a.png")
    Image.fromarray(ids).save(tmp_path / "m.png")
    entry = {"image": "a.png", "label": "m.png", "patient": "p", "region": [16, 8, 48, 40]}
    content = {"labels": {"0": "background", "1": "house"}, "training": [entry]}
    (tmp_path / "d.json").write_text(json.dumps({"modality": {"0": "RGB"}, **content}))
    data = read_datalist(tmp_path / "d.json")
    rules = ScanRules(Colours(3), modality="RGB", gsd=0.25, pixel=0.5)
    store = SliceStore(tmp_path / "s", rules, data.labels_in_files)
    case = store.prepare(data.training, False)[0]
    assert case.shape == (1, 64, 64)
    np.testing.assert_array_equal(case.truth()[0], ids[8:40, 16:48])


def test_much_enlargement_is_refused_unless_asked_for(tmp_path):
    path = geo.write(tmp_path / "a.tif", geo.bands_and_ids(0)[0], where=geo.transform(5.0))
    text = r"a pixel is 5 m, and rules::gsd is 0\.3 m: 16\.7 times smaller; expected at most 4 tim"
    with pytest.raises(DataError, match=text) as refused:
        cut(load_image(path), replace(RULES, gsd=0.3))
    assert "Set rules::gsd to 1.25 or more" in str(refused.value)
    assert cut(load_image(path), replace(RULES, gsd=1.25))[0].shape == (1, 4, 192, 256)
    asked = replace(RULES, gsd=0.3, upsampling=20)
    assert cut(load_image(path), asked)[0].shape == (1, 4, 800, 1067)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"gsd": 0}, r"^gsd is 0; expected metres of a pixel after resampling, or null"),
        ({"gsd": "0.3"}, r"^gsd is '0.3'; expected metres"),
        ({"pixel": -1, "gsd": 0.3}, r"^pixel is -1; expected metres of a pixel of images that do"),
        ({"pixel": 0.5}, r"^pixel is 0\.5 and gsd is null; expected both"),
        ({"upsampling": None}, r"^upsampling is None; expected a factor"),
        ({"gsd": 0.3, "spacing": (1, 1, 0)}, r"^gsd is 0\.3 and spacing is .*expected one of them"),
    ],
)
def test_settings_of_size(options, match):
    with pytest.raises(DataError, match=match):
        replace(RULES, **options)


def test_rules_are_recorded():
    rules = replace(RULES, gsd=0.3, upsampling=6.0, intensity=Colours(3, bands=[4, 1, 2]))
    assert rules_from(rules.describe()) == rules
    assert rules.describe()["gsd"] == 0.3


def test_bands_are_chosen_by_number(tmp_path):
    bands = geo.bands_and_ids(0)[0] // 8
    image = load_image(geo.write(tmp_path / "a.tif", bands.astype(np.uint8)))
    slices, _ = cut(image, ScanRules(Colours(3, bands=[4, 1, 2])))
    np.testing.assert_array_equal(slices[0].numpy(), bands[[3, 0, 1]])
    with pytest.raises(DataError, match=r"an image of 4 bands; expected 5, as bands are \[1, 2, 5"):
        cut(image, ScanRules(Colours(3, bands=[1, 2, 5])))
    with pytest.raises(DataError, match=r"an image of 4 channels; expected 3, or grey\. Choose ba"):
        cut(image, ScanRules(Colours(3)))
    with pytest.raises(DataError, match=r"bands are \[0, 1, 2\]; expected 3 numbers from 1"):
        Colours(3, bands=[0, 1, 2])


def test_a_sensor_has_one_range(tmp_path):
    data = find_cases(folder(tmp_path / "d"))
    rule = for_sensor(data.training, 3, [4, 1, 2])
    both = np.stack([geo.bands_and_ids(k)[0] for k in range(2)])
    limits = [np.percentile(both[:, n], [0.5, 99.5]) for n in (3, 0, 1)]
    np.testing.assert_allclose(rule.limits, limits)
    assert rules_from(ScanRules(rule).describe()).intensity == rule


def test_a_sensor_has_one_range_of_png_and_tiff_without_a_place(tmp_path):
    both = np.stack([geo.bands_and_ids(k)[0][:3] for k in range(2)])
    png = deep_colours(tmp_path / "a.png", both[0].transpose(1, 2, 0))
    tif = geo.write(tmp_path / "b.tif", both[1], None, False)
    rule = for_sensor([Case(path, None, path.stem) for path in (png, tif)])
    limits = [np.percentile(both[:, n], [0.5, 99.5]) for n in range(3)]
    np.testing.assert_allclose(rule.limits, limits)


def test_eight_bits_are_taken_as_they_are(tmp_path):
    for k in range(2):
        bands, ids = geo.bands_and_ids(k)
        geo.write(tmp_path / "d/images" / f"{k}.tif", (bands // 8).astype(np.uint8))
        geo.write(tmp_path / "d/masks" / f"{k}.tif", ids[None])
    assert for_sensor(find_cases(tmp_path / "d").training, 4) == Colours(4)
    geo.write(tmp_path / "d/images" / "1.tif", bands)
    with pytest.raises(
        DataError, match=r"images of different depths: uint8 \(0\), uint16 \(1\); ex"
    ):
        for_sensor(find_cases(tmp_path / "d").training, 4)


def test_pixels_without_data_are_black_and_ignored(tmp_path):
    data = find_cases(folder(tmp_path / "d", nodata=0))
    assert data.ignore == 254
    store = SliceStore(tmp_path / "s", RULES, data.labels_in_files)
    case = store.prepare(data.training, False)[0]
    _, ids = geo.bands_and_ids(0)
    assert (case.image()[0, :, :7] == 0).all()
    assert (case.label()[0, :7] == 254).all()
    np.testing.assert_array_equal(case.label()[0, 7:], ids[7:])
    assert 254 not in data.labels
    # The range of values is that of pixels with data.
    assert np.median(case.image()[0, 3, 7:]) > 128


def test_without_a_label_to_ignore_it_is_said(tmp_path):
    place = folder(tmp_path / "d", nodata=0)
    case = Case(place / "images/s0.tif", place / "masks/s0.tif", "p")
    with pytest.warns(UserWarning, match="pixels without data count as background"):
        label = load_case(case, {1: "house"})[1]
    assert label is not None
    assert (label[0, :, :7] == 0).all()


def test_a_mask_of_another_place_is_refused(tmp_path):
    place = folder(tmp_path / "d", 1)
    geo.write(place / "masks/s0.tif", geo.bands_and_ids(0)[1][None], where=geo.transform(0.6))
    case = Case(place / "images/s0.tif", place / "masks/s0.tif", "p")
    with pytest.raises(DataError, match=r"^case s0: the mask lies elsewhere than the image \("):
        load_case(case, {1: "house"})


def rgb_and_infrared() -> tuple[PromptableSam, PromptableSam]:
    """nano for three bands, and for four: NIR's weights at zero, the others as they were in RGB."""
    torch.manual_seed(0)
    rgb, four = build_sam("nano"), build_sam("nano", in_channels=4)
    names = [name for name, one in four.image_encoder.named_parameters() if one.shape[1:2] == (4,)]
    assert len(names) == 1
    weight = dict(four.image_encoder.named_parameters())[names[0]]
    own = dict(rgb.image_encoder.named_parameters())[names[0]]
    torch.testing.assert_close(weight[:, :3], own * 3 / 4)
    torch.testing.assert_close(weight[:, 3], own.mean(1) * 3 / 4)
    with torch.no_grad():
        weight[:, 3] = 0
        weight[:, :3] = own
    return rgb, four


def test_four_bands_without_weights_for_the_fourth_are_three():
    rgb, four = rgb_and_infrared()
    image = torch.rand(1, 4, rgb.image_size, rgb.image_size)
    with torch.no_grad():
        torch.testing.assert_close(four.encode(image), rgb.encode(image[:, :3]))


@pytest.mark.real_data
@pytest.mark.parametrize(
    "name", ["naip/m_4709963_se_14_1_20090818.tif", "spacenet/ms1.tif"], ids=["naip", "spacenet"]
)
def test_real_images_of_four_bands(name):
    """The path of satellite_nir.yaml at step 0 gives the masks of RGB."""
    path = REAL_DATA / name
    if not path.is_file():
        pytest.skip(f"real scenes are not here: {path.parent.name} beside the repository")
    case = Case(path, None, "p")
    image, _ = load_case(case, {})
    assert (image.shape[0], image.meta["spacing_known"]) == (4, True)
    both = [for_sensor([case], 3, [1, 2, 3]), for_sensor([case], 4)]
    three, four = (cut(image, ScanRules(rule, modality="RGB"))[0] for rule in both)
    assert four.shape[1] == 4
    assert torch.equal(four[:, :3], three)
    assert four[:, 3].float().std() > 5  # infrared is an image
    prompts = Prompts(boxes=torch.tensor([[[40.0, 50.0, 120.0, 140.0]]]))
    masks = []
    for model, slices in zip(rgb_and_infrared(), (three, four), strict=True):
        frame = ModelFrame((slices.shape[2], slices.shape[3]), model.image_size)
        with torch.no_grad():
            masks.append(model.decode(model.encode(frame.image(slices / 255)), prompts).logits)
    torch.testing.assert_close(*masks)


def test_a_rule_says_nothing_of_pixels_without_data():
    class White:
        def __call__(self, image):
            return torch.full(image.shape, 255, dtype=torch.uint8)

    values = torch.ones(1, 3, 2, 1)
    values[:, 0] = torch.nan
    rules = replace(RULES, intensity=White())
    found = seen_by(rules, MetaTensor(values, meta={"gaps": True}))
    assert (found[:, 0] == 0).all()
    assert (found[:, 1:] == 255).all()
