"""Left and right in the names of labels."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigParser

from medsam_tune.cases.datalist import Datalist
from medsam_tune.slices.rules import ScanRules
from medsam_tune.training.sides import labels_of_a_side, mirror_pairs, mirror_probability

TRAIN = str(Path(__file__).parents[2] / "bundles" / "sam_volume" / "configs" / "train.yaml")


@pytest.mark.parametrize(
    "names",
    [
        ("left kidney", "right kidney"),
        ("kidney_left", "kidney_right"),
        ("kidney left", "right kidney"),
        ("L lung", "R lung"),
        ("femur_l", "femur_r"),
        ("LeftKidney", "RightKidney"),
        ("leftkidney", "rightkidney"),
        ("kidneyL", "kidneyR"),
        ("station 4L", "station 4R"),
        ("linke Niere", "rechte Niere"),
        ("rein gauche", "rein droit"),
    ],
)
def test_row_88_pairs(names: tuple[str, str]) -> None:
    labels = {3: names[0], 5: names[1], 7: "liver"}
    assert mirror_pairs(labels) == {3: 5, 5: 3}
    assert labels_of_a_side(labels) == [3, 5]
    assert mirror_probability(labels) == 0


def test_row_88_one_side_alone() -> None:
    labels = {1: "heart_atrium_left", 2: "liver"}
    assert mirror_pairs(labels) == {}
    assert mirror_probability(labels) == 0


def test_row_88_many_pairs() -> None:
    labels = dict(enumerate(("rib_left_1", "rib_right_1", "rib_right_2", "rib_left_2"), 1))
    assert mirror_pairs(labels) == {1: 2, 2: 1, 3: 4, 4: 3}


@pytest.mark.parametrize(
    "names",
    [
        ("liver", "spleen"),
        ("vertebrae_L1", "vertebrae_L2"),
        ("bright lesion", "dark lesion"),
        ("leftover", "upright"),
        ("Anterior", "Posterior"),
        ("L", "M"),
        ("1", "2"),
    ],
)
def test_row_88_names_without_a_side(names: tuple[str, str]) -> None:
    labels = dict(enumerate(names, 1))
    assert labels_of_a_side(labels) == []
    assert mirror_probability(labels) == 0.5
    assert mirror_probability(labels, 0.2) == 0.2


def test_row_88_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    mirror_probability({1: "left kidney", 2: "right kidney"})
    assert caplog.messages == [
        "slices are not mirrored in training, as labels have sides: 'left kidney' and 1 more; "
        "flip_prob=0.5 mirrors them nevertheless."
    ]


def recipe(name: str, **settings: Any) -> Any:
    """A setting of train.yaml."""
    parser = ConfigParser({**ConfigParser.load_config_file(TRAIN), **settings})
    parser.get_parsed_content("imports")
    return parser.get_parsed_content(name)


def test_row_88_the_recipe_mirrors_by_the_labels() -> None:
    sided = Datalist("d", "CT", {1: "kidney_left", 2: "kidney_right"})
    assert recipe("flip_prob", data=sided) == 0
    assert recipe("flip_prob", data=Datalist("d", "CT", {1: "liver"})) == 0.5


def test_row_81_the_recipe_expects_the_datalists_modality() -> None:
    rules = recipe("rules", data=Datalist("d", "CT", {1: "liver"}))
    assert isinstance(rules, ScanRules)
    assert (rules.expected.modality, rules.expected.hounsfield) == ("CT", True)
    told = "$medsam_tune.slices.intensity.Percentiles()"
    rules = recipe("rules", data=Datalist("d", "CT", {1: "liver"}), intensity=told)
    assert (rules.expected.modality, rules.expected.hounsfield) == ("CT", False)


def test_row_86_the_recipe_looks_at_the_validation_cases_first() -> None:
    steps = ConfigParser.load_config_file(TRAIN)["initialize"]
    words = [step if isinstance(step, str) else "" for step in steps]
    check = next(i for i, word in enumerate(words) if "refuse_without_labels" in word)
    assert check < next(i for i, word in enumerate(words) if "run_folder.open()" in word)
