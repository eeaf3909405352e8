"""Recipes with SAM's own weights: their commands exist, and their check tells good from bad."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from medsam_tune.cli import app

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks" / "real_weights"
sys.path.insert(0, str(FOLDER))

from in_range import RANGES, verdicts  # noqa: E402

SCRIPTS = sorted(FOLDER.glob("*.sh"))


def summary(model: str, **dice: float) -> dict[str, Any]:
    return {
        "base": {"name": model},
        "by_prompts": {k: {"mean_dice": v, "mean_ellipse_dice": 0.7} for k, v in dice.items()},
    }


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_commands_of_a_script_exist(path: Path) -> None:
    known = get_command(app).commands  # type: ignore[attr-defined]
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = re.findall(r"medsam-tune ([a-z].*)$", text, re.MULTILINE)
    assert {"train", "evaluate"} <= {line.split()[0] for line in lines}
    for line in lines:
        name, *words = shlex.split(line)
        known[name].make_context(name, words)
    assert f'in_range.py" {path.stem} ' in text


def test_the_page_has_every_script_and_range() -> None:
    page = (ROOT / "docs" / "real_weights.md").read_text(encoding="utf-8")
    assert set(re.findall(r"real_weights/(\w+\.sh)\)", page)) == {path.name for path in SCRIPTS}
    for (data, model), each in RANGES.items():
        row = (
            f"| {data} | {model} | `{each.prompts}` | {each.dice} | {each.apart} | {each.source} |"
        )
        assert row in page


@pytest.mark.parametrize(
    ("dice", "good", "word"),
    [
        (0.82, True, "in range 0.779 to 0.859"),
        (0.70, False, "BELOW range"),
        (0.95, False, "ABOVE: a leak? range"),
    ],
)
def test_a_score_is_in_its_range_or_not(dice: float, good: bool, word: str) -> None:
    ((found, line),) = verdicts("synapse", summary("vit_b", none=dice))
    assert found is good
    assert word in line


def test_boxes_must_beat_the_ellipse() -> None:
    (boxes, line), (unknown, _) = verdicts("publaynet", summary("vit_b", slices=0.6, none=0.5))
    assert (boxes, unknown) == (False, True)
    assert "NOT above" in line


def test_a_missing_kind_of_prompts_is_said() -> None:
    _, (found, line) = verdicts("spleen", summary("vit_b", slices=0.9))
    assert not found
    assert "evaluate --prompts none" in line
