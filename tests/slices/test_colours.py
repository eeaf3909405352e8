"""Colours of images to 8 bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medsam_tune.errors import DataError
from medsam_tune.slices.colours import Colours
from medsam_tune.slices.intensity import for_modality, intensity_from

EIGHT = torch.arange(24.0).reshape(3, 4, 2, 1) * 10


def test_8_bits_stay_and_grey_is_repeated():
    rule = for_modality("RGB")
    assert rule == Colours()
    assert rule(EIGHT).dtype == torch.uint8
    torch.testing.assert_close(rule(EIGHT), EIGHT.byte())
    assert rule(EIGHT[:1]).shape == (3, 4, 2, 1)
    assert (rule(EIGHT[:1]) == EIGHT[:1].byte()).all()


def test_the_file_says_its_depth():
    """A dark image of 16 bits is no image of 8 bits; a resampled one of 8 bits still is."""
    dark = MetaTensor(EIGHT, meta={"stored": "uint16"})
    assert Colours(lower=0, upper=100)(dark)[0].max() == 255
    resampled = MetaTensor(EIGHT + 0.4, meta={"stored": "uint8"})
    torch.testing.assert_close(torch.as_tensor(Colours()(resampled)), EIGHT.byte())


def test_other_depths_by_percentiles_of_each_channel():
    values = torch.rand(3, 50, 40, 1, generator=torch.Generator().manual_seed(0))
    values = values * torch.tensor([1.0, 100, 60000])[:, None, None, None]
    found = Colours()(values)
    for channel, own in zip(found, values, strict=True):
        low, high = np.percentile(own, [0.5, 99.5])
        expected = ((own - low) / (high - low)).clamp(0, 1) * 255
        assert (channel.float() - expected).abs().max() <= 0.5 + 1e-3


def test_recorded_limits_hold_for_every_image():
    rule = Colours(limits=[[0, 100], [0, 200], [50, 150]])
    found = rule(torch.full((3, 2, 2, 1), 100.0))
    assert found[:, 0, 0, 0].tolist() == [255, 128, 128]
    assert rule(torch.full((1, 2, 2, 1), 100.0))[:, 0, 0, 0].tolist() == [255, 128, 128]
    assert intensity_from(rule.describe()) == rule


def test_constant_and_missing_values():
    assert not Colours()(torch.full((3, 4, 4, 1), 0.5)).any()
    assert Colours()(torch.full((3, 4, 4, 1), torch.nan)).shape == (3, 4, 4, 1)


@pytest.mark.parametrize("channels", [2, 4])
def test_another_number_of_channels(channels):
    with pytest.raises(DataError, match=f"an image of {channels} channels; expected 3, or grey"):
        Colours()(torch.zeros(channels, 4, 4, 1))
    assert Colours(channels)(torch.zeros(channels, 4, 4, 1)).shape[0] == channels


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"channels": 0}, "channels is 0; expected"),
        ({"channels": 3.0}, r"channels is 3\.0"),
        ({"lower": 60, "upper": 40}, "percentiles are 60 and 40"),
        ({"limits": [[0, 1]]}, "limits are .*; expected for each of 3 channels"),
        ({"limits": [[0, 1], [1, 0], [0, 1]]}, "limits are"),
    ],
)
def test_settings_that_are_none(options, text):
    with pytest.raises(DataError, match=text):
        Colours(**options)
