"""Settings: what is typed reaches a recipe as data, and impossible values are named."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from fire.parser import DefaultParseValue
from hypothesis import example, given
from hypothesis import strategies as st
from monai.bundle import ConfigParser

from medsam_tune.settings import Typed, check, component_from, read_settings, word

SIGNS = ["$x", "@scan", "@other", "%a.yaml::b", "a#b", "@#b", "-x", "--no", "a,b", "{a: 1}", "None"]
TEXTS = st.text() | st.text("$@%#'\"\\\n-[]{}:,x", max_size=12)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS
VALUES = st.recursive(LEAVES, lambda c: st.lists(c) | st.dictionaries(st.text(), c), max_leaves=5)


def read_back(text: str) -> Any:
    """The value that a recipe gets for a word on the command line."""
    parser = ConfigParser({"other": 1, "copy": "@scan"})
    parser.update({"scan": DefaultParseValue(text)})
    value = parser.get_parsed_content("scan")
    assert parser.get_parsed_content("copy") == value
    return value


@given(TEXTS)
@example("$__import__('os').abort()")
@example("mask #2.nii.gz")
def test_a_path_comes_back_as_it_was(text: str) -> None:
    assert read_back(word(text)) == text
    if "\0" not in text:
        assert read_back(word(Path(text))) == str(Path(text))


@given(VALUES)
def test_values_come_back_as_they_were(value: Any) -> None:
    if value not in (float("inf"), float("-inf")) and "inf" not in str(value):
        assert read_back(word(value)) == value


@given(TEXTS)
def test_what_is_set_is_a_program_only_with_a_sign_in_front(text: str) -> None:
    typed = Typed(text)
    value = typed.value
    if not any(sign in str(value) for sign in ("$", "@", "%")) and "nan" not in str(value):
        assert read_back(str(typed)) == value


@pytest.mark.parametrize("text", SIGNS)
def test_names_with_signs_are_written_as_literals(text: str) -> None:
    assert read_back(word(text)) == text
    assert read_back(word(f"scans/{text}")) == f"scans/{text}"


def test_expressions_of_the_user_stay_expressions() -> None:
    assert str(Typed("$1 + 1")) == "$1 + 1"
    assert read_back(str(Typed("$1 + 1"))) == 2
    assert str(Typed("@other")) == "@other"


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ({"epochs": "three"}, "epochs is 'three'; expected a whole number, 1 or more"),
        ({"epochs": True}, "epochs is True; expected a whole number"),
        ({"lr": "abc"}, "lr is 'abc'; expected a number, above 0"),
        ({"token_lr": 0}, "token_lr is 0; expected a number, above 0"),
        ({"lr": float("nan")}, "lr is nan; expected a number, above 0"),
        ({"lr": float("inf")}, "lr is inf"),
        ({"objects": 0}, "objects is 0; expected a whole number, 1 or more"),
        ({"jitter": -1}, "jitter is -1; expected a number, 0 or more, at most 1"),
        ({"image_size": 0}, "image_size is 0; expected null, or a whole number of pixels"),
        ({"lr": 10**400}, "lr is 1000"),
        ({"resume": "yes"}, "resume is 'yes'; expected true or false"),
        ({"device": "gpu"}, "device is 'gpu'; expected the name of a device"),
        ({"device": 1.5}, r"device is 1.5; expected the name of a device"),
    ],
)
def test_impossible_values_are_named(setting: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        check(**setting)


def test_possible_values_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    check(epochs=1, lr=1e-4, jitter=0, image_size=None, resume=False, device=torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"device is 'cuda:0', but torch sees no GPU here"):
        check(device="cuda:0")


@pytest.mark.parametrize(
    ("text", "argument", "value"),
    [
        ("true", "True", True),
        ("False", "False", False),
        ("null", "$None", None),
        ("None", "$None", None),
        ("1e-3", "1e-3", 0.001),
        ("-5", "-5", -5),
        ("[0,6,0]", "[0,6,0]", [0, 6, 0]),
        ("coronal", "coronal", "coronal"),
        ("a=b", "a=b", "a=b"),
        ("", "", ""),
    ],
)
def test_settings_are_read_once_for_both_uses(text: str, argument: str, value: object) -> None:
    settings = read_settings([f"net::x={text}"])
    assert list(settings) == ["net::x"]
    assert str(settings["net::x"]) == argument
    assert settings["net::x"].value == value


def test_settings_of_another_form_are_refused() -> None:
    assert read_settings(None) == {}
    for pair in ("epochs", "=3", ""):
        with pytest.raises(ValueError, match=rf"--set '{pair}': expected key=value"):
            read_settings([pair])
    for key in ("-x", "a b", "a::", "a.b", "1x", "ключ"):
        with pytest.raises(ValueError, match=f"{key!r} is no name of a setting"):
            read_settings([f"{key}=1"])
    with pytest.raises(ValueError, match="output_dir is given by the command's own option"):
        read_settings(["output_dir=x"], ["output_dir"])
    with pytest.raises(ValueError, match="config_file belongs to the command, not to the recipe"):
        read_settings(["config_file=x.yaml"])
    with pytest.raises(ValueError, match="is nested too deep"):
        _ = read_settings(["x=" + "-" * 10000 + "1"])["x"].value


@dataclass
class Cut:
    """A component with two arguments."""

    plane: str = "axial"
    spacing: tuple[float, ...] = ()


def test_a_component_takes_its_own_settings_alone() -> None:
    assert component_from("cut", Cut, {}) == Cut()
    settings = read_settings(["cut::plane=coronal", "cut::spacing=(1,2)"])
    assert component_from("cut", Cut, settings) == Cut("coronal", (1, 2))
    for key in ("plane", "cut::plan", "lr", "cutplane"):
        message = f"--set {key}=1: expected cut::key=value, the key one of plane, spacing"
        with pytest.raises(ValueError, match=message):
            component_from("cut", Cut, read_settings([f"{key}=1"]))
