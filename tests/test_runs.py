"""A run folder gives back what was recorded in it, and is not written over."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from medsam_tune.errors import DataError
from medsam_tune.runs import (
    RunRecord,
    read_record,
    refuse_other_run,
    write_record,
)
from medsam_tune.slices.intensity import Percentiles
from medsam_tune.slices.rules import ScanRules

RECORD = RunRecord("d.json", "d.slices", None, ScanRules(Percentiles()).describe(), {}, 0.05, 3)


def test_record_comes_back(tmp_path: Path) -> None:
    write_record(tmp_path / "run", RECORD)
    absolute = replace(RECORD, datalist=str(Path("d.json").absolute()))
    absolute = replace(absolute, slices_dir=str(Path("d.slices").absolute()))
    assert read_record(tmp_path / "run") == absolute
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["run.json"]
    write_record(tmp_path / "run", replace(RECORD, checkpoint="random"))  # a word, not a path
    assert read_record(tmp_path / "run").checkpoint == "random"


def test_folders_without_or_with_a_run_are_told_apart(tmp_path: Path) -> None:
    refuse_other_run(tmp_path)
    with pytest.raises(DataError, match="no run to resume in it"):
        refuse_other_run(tmp_path, resume=True)
    with pytest.raises(DataError, match=r"no training run in it \(no run.json\)"):
        read_record(tmp_path)
    write_record(tmp_path, RECORD)
    refuse_other_run(tmp_path, resume=True)
    with pytest.raises(DataError, match="holds a run already; choose another output folder"):
        refuse_other_run(tmp_path)
    (tmp_path / "run.json").write_text('{"datalist": "d.json"}')
    with pytest.raises(DataError, match=r"run.json: is damaged or of another version"):
        read_record(tmp_path)
