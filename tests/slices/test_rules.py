"""Rules by which scans become slices."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch

from medsam_tune.cases.checks import Expected
from medsam_tune.errors import DataError
from medsam_tune.slices.frames import ModelFrame
from medsam_tune.slices.intensity import Percentiles, Window, Windows, for_modality
from medsam_tune.slices.rules import ScanRules, rules_from
from tests.slices.test_cut import placed

WINDOW = Window(100, 200)


@pytest.mark.parametrize(
    ("codes", "spacing", "axes"),
    [
        ("RAS", (1.0, 1.0, 1.0), "LPS"),
        ("RAS", (1.0, 1.0, 1.005), "LPS"),
        ("RAS", (5.0, 1.0, 1.0), "PIL"),
        ("RAS", (1.0, 5.0, 1.0), "LIP"),
        ("PSR", (1.0, 1.0, 5.0), "PIL"),
        ("RAS", (5.0, 1.0, 5.0), "LPS"),
        ("RAS", (5.0, 5.0, 1.0), "LIP"),
    ],
)
def test_finest_plane_has_the_coarse_axis_across(
    codes: str, spacing: tuple[float, float, float], axes: str
) -> None:
    assert ScanRules(WINDOW, "finest").grid((9, 9, 9), placed(codes, spacing, 0)).axes == axes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"plane": "oblique"}, "plane is 'oblique'; expected one of axial, coronal"),
        ({"spacing": [1, 1]}, r"spacing is \[1, 1\]; expected millimetres"),
        ({"spacing": [1, 1, -1]}, "expected millimetres"),
    ],
)
def test_impossible_readings_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        ScanRules(WINDOW, **options)  # type: ignore[arg-type]


def test_reading_comes_back_from_its_description() -> None:
    rules = ScanRules(WINDOW, "finest", [1, 1, 0], neighbours=True, squash=True, window=512)
    assert rules_from(json.loads(json.dumps(rules.describe()))) == rules
    with pytest.raises(DataError, match=r"are not those of a scan: .*'reading'"):
        rules_from({**rules.describe(), "reading": 1})


def test_squashed_frame_fills_the_square() -> None:
    frame = ModelFrame((20, 40), 80, squash=True)
    mask = torch.zeros(1, 1, 20, 40, dtype=torch.bool)
    mask[..., 5:10, 8:30] = True
    model = frame.masks(mask)
    assert model[0, 0].nonzero().amin(0).tolist() == [20, 16]
    assert model[0, 0].nonzero().amax(0).tolist() == [39, 59]
    box = torch.tensor([8.0, 5.0, 30.0, 10.0])
    assert frame.boxes(box).tolist() == [16, 20, 60, 40]
    assert torch.equal(frame.logits(model.float() - 0.5) > 0, mask)
    assert frame.image(torch.ones(1, 3, 20, 40)).min() == 1


def test_one_channel_is_repeated_and_several_must_fit() -> None:
    one, three = ScanRules(WINDOW), ScanRules(Windows())
    assert (one.channels, three.channels, ScanRules(WINDOW, neighbours=True).channels) == (1, 3, 3)
    assert [one.repeats(n) for n in (1, 3, 4)] == [1, 3, 4]
    assert three.repeats(3) == 1
    for n in (1, 4):
        with pytest.raises(DataError, match=rf"has 3 channels, the model takes {n}\. Choose other"):
            three.repeats(n)


def test_rules_by_default() -> None:
    assert ScanRules(WINDOW).describe() == {
        "intensity": {"name": "window", "center": 100.0, "width": 200.0, "hounsfield": False},
        "plane": "axial",
        "spacing": None,
        "neighbours": False,
        "squash": False,
        "modality": "",
        "window": None,
        "components": None,
        "gsd": None,
        "upsampling": 4.0,
        "pixel": None,
    }


def test_what_a_scan_has_to_be() -> None:
    assert ScanRules(WINDOW).expected == Expected("", False)
    rules = rules_from(ScanRules(for_modality("CT"), modality="CT").describe())
    assert rules.expected == Expected("CT", True)
    assert ScanRules(Percentiles(), modality="CT").expected == Expected("CT", False)
    with pytest.raises(DataError, match=r"modality is 'PT'; expected one of CT, MR, XR, US"):
        ScanRules(WINDOW, modality="PT")


@pytest.mark.parametrize("value", ["no", 1, None])
def test_words_are_not_taken_for_yes(value: Any) -> None:
    for name in ("neighbours", "squash"):
        with pytest.raises(DataError, match=f"{name} is {value!r}; expected true or false"):
            ScanRules(WINDOW, **{name: value})


@pytest.mark.parametrize("spacing", [1.0, "110", [1, None, 0], ["x", 1, 1]])
def test_spacing_is_three_numbers(spacing: Any) -> None:
    with pytest.raises(DataError, match=r"spacing is .*; expected millimetres along columns"):
        ScanRules(WINDOW, spacing=spacing)


@pytest.mark.parametrize("window", [31, 0, -512, 512.0, True, "512", [512, 512]])
def test_windows_are_a_whole_number_of_pixels(window: Any) -> None:
    message = f"window is {window!r}; expected null for whole slices, or the side of a window"
    with pytest.raises(DataError, match=f"^{re.escape(message)}.*, 32 or more\\.$"):
        ScanRules(WINDOW, window=window)
    assert ScanRules(WINDOW, window=32).window == 32


@pytest.mark.parametrize("description", [{}, {"intensity": "window"}, None])
def test_descriptions_of_another_version_are_named(description: Any) -> None:
    with pytest.raises(DataError, match="are not those of a scan"):
        rules_from(description)
