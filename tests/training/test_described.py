"""Objects as JSON: equal where they do the same, in every process, and other where they do not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from monai.bundle import ConfigParser
from monai.transforms import Lambdad, ScaleIntensity

from medsam_tune.training.described import described

STEP = 1


def helper(x: Any) -> Any:
    return x + STEP


def calls_a_helper(x: Any) -> Any:
    return helper(x)


def bound(number: float) -> Callable[[float], float]:
    return lambda x: x * number


class Sharpened:
    """A step of a user's own."""

    strength = 1

    def __init__(self, by: float = 2.0) -> None:
        self.by = by

    def __call__(self, x: float) -> float:
        return x * self.by + self.strength


def of_config(gamma: float) -> Any:
    """A step of an overlay whose function names another entry."""
    parser = ConfigParser({"gamma": gamma, "other": np.ones(3), "step": {"_target_": "Lambdad"}})
    parser["step"] |= {"keys": "image", "func": "$lambda x: x ** @gamma"}
    return parser.get_parsed_content("step")


PAIRS = {
    "code": (lambda x: x + 1, lambda x: x + 2),
    "code within": (lambda x: [y + 1 for y in x], lambda x: [y + 2 for y in x]),
    "what is bound": (bound(1), bound(2)),
    "defaults": (lambda x, by=1: x * by, lambda x, by=2: x * by),
    "defaults by name": (lambda x, *, by=1: x * by, lambda x, *, by=2: x * by),
    "partial": (partial(helper, 1), partial(helper, 2)),
    "partial of another": (partial(helper, 1), partial(calls_a_helper, 1)),
    "attributes": (Sharpened(1.0), Sharpened(2.0)),
    "methods": (Sharpened(1.0).__call__, Sharpened(2.0).__call__),
    "a config's entry": (of_config(1.0), of_config(3.0)),
    "known classes": (ScaleIntensity(), Lambdad("image", helper)),
    "known functions": (np.mean, np.median),
    "arrays": (np.ones(3), np.zeros(3)),
}


@pytest.mark.parametrize(("one", "other"), PAIRS.values(), ids=PAIRS)
def test_what_does_other_things_is_other(one: Any, other: Any) -> None:
    assert json.dumps(described(one)) == json.dumps(described(one))
    assert described(one) != described(other)


def test_the_same_twice_is_the_same() -> None:
    assert described(bound(2)) == described(bound(2))
    assert described(of_config(2.0)) == described(of_config(2.0))
    assert described(lambda x: x + 1) == described(lambda x: x + 1)


def test_a_function_is_other_with_its_helpers_globals(monkeypatch: pytest.MonkeyPatch) -> None:
    before = described(calls_a_helper)
    monkeypatch.setattr(f"{__name__}.STEP", 2)
    assert described(calls_a_helper) != before


def test_a_class_is_other_with_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    before = described(Sharpened())
    monkeypatch.setattr(Sharpened, "strength", 3)
    after = described(Sharpened())
    assert after != before
    monkeypatch.setattr(Sharpened, "__call__", lambda self, x: x)
    assert described(Sharpened()) != after


def test_what_holds_itself_ends() -> None:
    one: list[Any] = [1]
    one.append(one)
    assert described(one) == [1, "itself"]
    assert json.dumps(described(described))  # it calls itself


CODE = """
import json
from medsam_tune.training.described import described
print(json.dumps(described(lambda x: x in {"a", "b", "c"} and [y for y in x if y in ("d", "e")])))
"""


def test_processes_agree() -> None:
    """Whatever the order in which they have words of a set."""
    found = {
        subprocess.run(
            [sys.executable, "-c", CODE],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1
