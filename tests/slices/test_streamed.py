"""A scene that is read part by part is the slice that `cut` gives."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from medsam_tune.errors import DataError
from medsam_tune.formats.open import load_image
from medsam_tune.slices.colours import Colours
from medsam_tune.slices.cut import cut
from medsam_tune.slices.intensity import for_modality
from medsam_tune.slices.rules import ScanRules
from medsam_tune.slices.streamed import is_streamed, streamed
from tests import geo

RULES = ScanRules(Colours(4, limits=[(0, 2000)] * 4), modality="RGB", window=32)
BANDS = geo.bands_and_ids(0, (90, 70))[0]


@pytest.mark.parametrize("gsd", [None, 0.3, 0.5, 0.21, 0.83, 2.0])
def test_parts_are_those_of_the_whole(tmp_path, gsd):
    path = geo.write(tmp_path / "a.tif", BANDS)
    rules = replace(RULES, gsd=gsd)
    whole = cut(load_image(path), rules)[0][0]
    with streamed(path, rules) as scene:
        height, width = scene.size
        assert (4, height, width) == whole.shape
        assert scene.native == (70, 90)
        for top, left, h, w in (
            (0, 0, height, width),
            (3, 5, 9, 12),
            (height - 8, width - 9, 8, 9),
        ):
            part, gaps = scene.part(top, left, h, w)
            difference = part.int() - whole[:, top : top + h, left : left + w].int()
            assert difference.abs().max() <= 1  # of 255, where a value lies between two
            assert (difference != 0).float().mean() < 0.01
            assert not gaps.any()


@pytest.mark.parametrize("gsd", [None, 0.3, 1.1])
def test_pixels_without_data(tmp_path, gsd):
    bands = BANDS.copy()
    bands[:, 20:40, 30:60] = 0
    path = geo.write(tmp_path / "a.tif", bands, nodata=0)
    rules = replace(RULES, gsd=gsd)
    whole = cut(load_image(path), rules)[0][0]
    with streamed(path, rules) as scene:
        part, gaps = scene.part(0, 0, *scene.size)
        assert (part[:, gaps] == 0).all()
        assert ((whole == 0).all(0) == gaps).float().mean() > 0.98
        torch.testing.assert_close(part[:, ~gaps], whole[:, ~gaps], atol=1, rtol=0)


def test_one_range_for_all_parts(tmp_path):
    path = geo.write(tmp_path / "a.tif", BANDS)
    rules = replace(RULES, intensity=Colours(3, bands=[4, 1, 2]))
    whole = cut(load_image(path), rules)[0][0]
    with streamed(path, rules) as scene:
        torch.testing.assert_close(scene.part(10, 10, 20, 30)[0], whole[:, 10:30, 10:40])


def test_which_images_are_streamed(tmp_path):
    path = geo.write(tmp_path / "a.tif", BANDS)
    assert is_streamed(path, RULES)
    for other in (
        {"window": None},
        {"plane": "finest"},
        {"intensity": for_modality("XR")},
        {"spacing": (1, 1, 0)},
    ):
        assert not is_streamed(path, replace(RULES, **other))
    assert not is_streamed(tmp_path, RULES)
    from PIL import Image

    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "b.tif")
    assert not is_streamed(tmp_path / "b.tif", RULES)


def test_a_colour_table_is_refused(tmp_path):
    table = {0: (0, 0, 0), 1: (255, 0, 9)}
    ids = geo.bands_and_ids(0)[1][None]
    path = geo.write(tmp_path / "a.tif", ids, colours=table)
    with pytest.raises(DataError, match=r"a\.tif: has a colour table; expected bands"):
        with streamed(path, RULES):
            pass


def test_a_band_that_is_declared_as_transparency_is_refused_here_too(tmp_path):
    bands = (BANDS[:4] // 8).astype(np.uint8)
    path = geo.write(tmp_path / "a.tif", bands, photometric="RGB", alpha="YES")
    rules = replace(RULES, intensity=Colours(3))
    text = "band 4 is declared as transparency"
    with pytest.raises(DataError, match=text):
        load_image(path)
    with pytest.raises(DataError, match=text), streamed(path, rules) as scene:
        scene.part(0, 0, *scene.size)
