"""Files that are read again hold the number of their format; another number is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from medsam_tune.cases.datalist import read_datalist, write_datalist
from medsam_tune.comparison import _refuse_others, _said
from medsam_tune.errors import DataError
from medsam_tune.evaluation.results import read_results
from medsam_tune.evaluation.scores import write_scores
from medsam_tune.files import write_json
from medsam_tune.inference.prompt_files.ours import read_ours
from medsam_tune.inference.prompt_files.write import objects_to_fill, write_prompts
from medsam_tune.inference.records import begin_record, own_files
from medsam_tune.methods import apply_method
from medsam_tune.methods.header import header_text, parse_header
from medsam_tune.runs import read_record, write_record
from medsam_tune.sam.build import build_sam
from tests.inference.made import LPS_GRID
from tests.scans import listed
from tests.test_comparison import plan
from tests.test_runs import RECORD


def run_record(path: Path) -> None:
    write_record(path.parent, RECORD)
    (path.parent / "run.json").rename(path)


def evaluation(path: Path) -> None:
    write_scores(path.parent, {}, {"by_prompts": {}, "intervals": None})


def tuned(path: Path) -> None:
    model = apply_method(build_sam("nano", "random", image_size=32), "decoder")
    path.write_text(header_text(model, {1: "liver"}))


def prompts(path: Path) -> None:
    write_prompts(path, LPS_GRID, {1: "liver"}, objects_to_fill({1: "liver"}))


FILES: dict[str, tuple[Callable[[Path], Any], Callable[[Path], Any]]] = {
    "run.json": (run_record, lambda path: read_record(path.parent)),
    "summary.json": (evaluation, lambda path: read_results(path.parent)),
    "m.prediction.json": (lambda path: begin_record(path, []), own_files),
    "datalist.json": (
        lambda path: write_datalist(listed(3), path),
        lambda path: read_datalist(path, with_missing=True),
    ),
    "boxes.json": (
        prompts,
        lambda path: read_ours(json.loads(path.read_text()), LPS_GRID, {1: "liver"}, path.name),
    ),
    "settings.json": (
        lambda path: write_json(path, _said(plan(path.parent))),
        lambda path: _refuse_others(replace(plan(path.parent), output=path.parent)),
    ),
    "tuned.safetensors": (tuned, lambda path: parse_header(path.read_text(), path.name)),
}
"""Name -> what writes the file, and what reads it again."""
BY_HAND = ("datalist.json", "boxes.json")  # a person's or another tool's may have no number


@pytest.mark.parametrize("name", FILES)
def test_another_format_is_refused_by_name(tmp_path: Path, name: str) -> None:
    write, read = FILES[name]
    path = tmp_path / name
    write(path)
    content = json.loads(path.read_text())
    number = content["format"]
    for other, said in (
        (number + 1, f"has format {number + 1}, of a newer version"),
        (number - 1, f"has format {number - 1}, of an older version"),
        (None, "has no format number, of an older version"),
    ):
        if other is None and name in BY_HAND:
            continue
        path.write_text(json.dumps({**content, "format": other}))
        with pytest.raises(DataError, match=rf"{name}: {said} .* expected format {number}"):
            read(path)
