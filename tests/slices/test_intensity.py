from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from medsam_tune.errors import DataError
from medsam_tune.slices.colours import Colours
from medsam_tune.slices.intensity import (
    WINDOWS,
    Percentiles,
    Window,
    Windows,
    ZScore,
    for_modality,
    full_range,
    intensity_from,
    window_of,
)


def volume(*values: float) -> torch.Tensor:
    return torch.tensor(values).reshape(1, 1, 1, -1)


def test_window_known_values():
    out = Window(40, 400)(volume(-1000, -160, 40, 240, 3000, -159.3))
    assert out.dtype == torch.uint8
    assert out.flatten().tolist() == [0, 0, 128, 255, 255, 0]


def test_window_does_not_change_its_input():
    image = volume(-1000, 40, 300)
    Window(40, 400)(image)
    assert image.flatten().tolist() == [-1000, 40, 300]


@pytest.mark.parametrize("name", list(WINDOWS))
def test_presets_reach_black_and_white(name):
    window = WINDOWS[name]
    low, high = window.center - window.width / 2, window.center + window.width / 2
    assert window(volume(low, high)).flatten().tolist() == [0, 255]


def test_full_range_keeps_12_bits():
    low = WINDOWS["full"].center - WINDOWS["full"].width / 2
    assert (low, low + WINDOWS["full"].width) == (-1024, 3071)


def test_percentiles_follow_medsam():
    image = torch.cat([torch.zeros(500), torch.arange(1.0, 1001)]).reshape(1, 10, 15, 10)
    inside = image[image > 0].numpy()
    low, high = np.percentile(inside, [0.5, 99.5])
    expected = np.rint(np.clip((image.numpy() - low) / (high - low), 0, 1) * 255)
    np.testing.assert_allclose(Percentiles()(image).numpy(), expected, atol=1)
    assert (Percentiles()(image)[image == 0] == 0).all()


def test_percentiles_do_not_depend_on_scale():
    image = torch.rand(1, 8, 9, 10)
    torch.testing.assert_close(Percentiles()(image), Percentiles()(image * 65536))


@pytest.mark.parametrize("value", [0.0, -3.0, 7.0])
def test_row_17_constant_image_is_black(value):
    out = Percentiles()(torch.full((1, 3, 4, 5), value))
    assert out.dtype == torch.uint8
    assert not out.any()


@pytest.mark.parametrize("rule", [Window(50, 350), Percentiles(), Percentiles(1, 99)])
def test_description_round_trip(rule):
    assert intensity_from(json.loads(json.dumps(rule.describe()))) == rule


def test_for_modality():
    assert for_modality("CT") == Window(40, 400)
    assert for_modality("MR") == for_modality("XR") == Percentiles(0.5, 99.5)
    stored = torch.arange(256.0).reshape(1, 16, 16, 1)
    assert torch.equal(for_modality("US")(stored).float(), stored)


def test_unknown_modality():
    with pytest.raises(DataError, match="no intensity rule for modality 'PET'; known: CT, MR"):
        for_modality("PET")


@pytest.mark.parametrize("width", [0, -5, float("nan")])
def test_bad_width(width):
    with pytest.raises(DataError, match=r"window width is .* HU; expected a positive number"):
        Window(40, width)


@pytest.mark.parametrize("pair", [(5, 5), (-1, 99), (1, 101)])
def test_bad_percentiles(pair):
    with pytest.raises(DataError, match="expected 0 <= lower < upper <= 100"):
        Percentiles(*pair)


def test_unknown_description():
    with pytest.raises(DataError, match="intensity rule 'gamma' is not known; known: window"):
        intensity_from({"name": "gamma"})
    with pytest.raises(DataError, match="'window' does not take"):
        intensity_from({"name": "window", "level": 3})


def test_windows_are_channels():
    image = volume(-1350, -160, 240, 1300)
    out = Windows(("lung", (40, 400), "bone"))(image)
    assert tuple(out.shape) == (3, 1, 1, 4)
    for channel, name in zip(out, ("lung", "abdomen", "bone"), strict=True):
        assert torch.equal(channel[None], WINDOWS[name](image))
    rule = intensity_from(json.loads(json.dumps(Windows().describe())))
    assert rule.describe() == Windows().describe()
    assert torch.equal(rule(image), Windows()(image))
    with pytest.raises(DataError, match="window 'liber' is not known; known: abdomen, liver"):
        Windows(("liber",))
    with pytest.raises(DataError, match=r"windows is \(\); expected a list"):
        Windows(())
    with pytest.raises(DataError, match="expected a name, or center and width"):
        window_of((1.0, 2.0, 3.0))


def test_z_score_known_values():
    image = volume(0.0, 90, 100, 110, 0)
    out = ZScore(2)(image).flatten().tolist()  # mean 100, deviation 10
    assert out == [0, 64, 128, 191, 0]
    assert ZScore(2)(volume(-10.0, 0, 10)).flatten().tolist() == [64, 128, 191]  # no background
    assert ZScore()(volume(0.0, 0, 7)).flatten().tolist() == [0, 0, 0]
    torch.testing.assert_close(ZScore()(image * 1000), ZScore()(image))
    rule = ZScore(2.5)
    assert intensity_from(json.loads(json.dumps(rule.describe()))) == rule
    with pytest.raises(DataError, match="deviations is 0"):
        ZScore(0)


def test_rules_for_hounsfield_units() -> None:
    for rule in (*WINDOWS.values(), window_of((50.0, 350.0)), Windows(), for_modality("CT")):
        assert rule.hounsfield
        assert intensity_from(rule.describe()).hounsfield
    for rule in (Window(50, 350), Percentiles(), ZScore(), for_modality("MR"), for_modality("US")):
        assert not rule.hounsfield
        assert not intensity_from(rule.describe()).hounsfield


def test_rules_by_default() -> None:
    assert ZScore().describe() == {"name": "z_score", "deviations": 3.0}
    assert Percentiles().describe() == {"name": "percentiles", "lower": 0.5, "upper": 99.5}
    assert Windows() == Windows(("lung", "abdomen", "bone"))


def test_a_window_may_be_narrow() -> None:
    image = torch.tensor([[[[0.2, 0.25, 0.5, 0.75, 0.9]]]])
    assert Window(0.5, 0.5)(image).flatten().tolist() == [0, 0, 128, 255, 255]


@pytest.mark.parametrize("rule", [Window(-600, 1500), Windows(), ZScore(), Percentiles()])
@pytest.mark.parametrize("dtype", ["int16", "uint8", "float16", "float64", "bfloat16"])
def test_rules_take_every_type(rule: Any, dtype: str) -> None:
    image = torch.arange(250).view(1, 5, 5, 10)
    expected = rule(image.float()).int()
    found = rule(image.to(getattr(torch, dtype))).int()
    assert (found - expected).abs().max() <= 1
    if dtype != "bfloat16":
        assert torch.equal(rule(image.numpy().astype(dtype)).int(), found)


@pytest.mark.parametrize("rule", [ZScore(), Percentiles(0, 100)])
def test_an_infinite_voxel_does_not_blacken_a_scan(rule: Any) -> None:
    image = torch.arange(250.0).view(1, 5, 5, 10)
    expected = rule(image)
    image[0, 0, 0, 0] = torch.inf
    found = rule(image)
    assert found.flatten()[0] == 255
    assert torch.equal(found.flatten()[1:], expected.flatten()[1:])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Window(float("nan"), 4), "center is nan HU; expected a finite"),
        (lambda: Window(0, float("inf")), "width is inf HU"),
        (lambda: ZScore(float("inf")), "deviations is inf"),
        (lambda: Windows("lung"), "windows is 'lung'; expected a list"),
        (lambda: Windows((40, 400)), "window 40: expected a name"),
    ],
)
def test_impossible_rules_are_refused(make: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        make()


def test_windows_from_yaml_are_those_that_come_back() -> None:
    rule = Windows([[40, 400], "bone"])  # type: ignore[arg-type,list-item]
    assert intensity_from(rule.describe()) == rule
    assert hash(rule) == hash(Windows(((40.0, 400.0), "bone")))


def test_windows_of_workstations() -> None:
    assert {name: (rule.center, rule.width) for name, rule in WINDOWS.items()} == {
        "abdomen": (40, 400),
        "liver": (30, 150),
        "lung": (-600, 1500),
        "mediastinum": (50, 350),
        "bone": (400, 1800),
        "spine": (50, 250),
        "brain": (40, 80),
        "subdural": (75, 215),
        "stroke": (40, 40),
        "temporal bone": (600, 2800),
        "full": (1023.5, 4095),
    }


def test_the_full_range_keeps_steps_of_two_hounsfield_units() -> None:
    values = torch.arange(-1100.0, 3200.0)[None, :, None, None]
    rule = full_range()
    found = rule(values)
    assert found.dtype == torch.float16
    assert float(found.min()) == 0
    assert float(found.max()) == 255
    back = found.float() / 255 * 4095 - 1024
    assert float((back - values.clamp(-1024, 3071)).abs().max()) <= 1.01
    coarse = WINDOWS["full"](values).float() / 255 * 4095 - 1024
    assert float((coarse - values.clamp(-1024, 3071)).abs().max()) > 7
    assert intensity_from(rule.describe()) == rule != WINDOWS["full"]
    assert "fine" not in WINDOWS["full"].describe()


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (WINDOWS["abdomen"], "window, centre 40, width 400 HU"),
        (Window(100, 200), "window, centre 100, width 200"),
        (Windows(["abdomen", [0, 80]]), "windows of centre and width 40 and 400, 0 and 80 HU"),
        (ZScore(), "3 standard deviations around the mean of each scan"),
        (Percentiles(), "percentiles 0.5 to 99.5 of each scan"),
        (Colours(), "8 bits as they are, other depths by percentiles 0.5 to 99.5 of each channel"),
        (Colours(2, limits=[[0, 9], [1, 2000]]), "0 to 9, 1 to 2000 by channel"),
    ],
)
def test_rules_are_said(rule: Any, words: str) -> None:
    assert rule.words == words
