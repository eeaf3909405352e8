"""summary.json is what its schema says."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

import jsonschema
import pytest

from medsam_tune.evaluation.metrics import Measures
from medsam_tune.evaluation.scores import measured_by
from medsam_tune.evaluation.statistics import summarise_kinds
from tests.evaluation.test_statistics import score

SCHEMA = json.loads((files("medsam_tune.evaluation") / "summary.schema.json").read_text())


def summary() -> dict[str, Any]:
    scores = [score("a", 1, 0.8), score("b", 1, None), score("a", 2, 0.1, None)]
    kinds = {"slices": scores, "none": scores[:1]}
    said = summarise_kinds(kinds, {"site": {"a": "X"}})
    return {
        "format": 1,
        **said,
        "cases": 2,
        "seconds": 0.5,
        "stopped_by": None,
        **measured_by(Measures()),
    }


def test_a_summary_fits() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(summary(), SCHEMA)
    nothing = {
        "format": 1,
        **summarise_kinds({}),
        "cases": 0,
        "seconds": 0,
        "stopped_by": "KeyError: 'x'",
    }
    jsonschema.validate(nothing, SCHEMA)


@pytest.mark.parametrize(
    "change",
    [
        {"mean_dice": "0.7"},
        {"labels": {"1": {"name": "liver"}}},
        {"subset": None},
        {"format": 2},
        {"something": 1},
    ],
)
def test_anything_else_does_not(change: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**summary(), **change}, SCHEMA)
