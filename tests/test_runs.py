"""Run folders and the overrides that a run was started with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from medsam_tune.errors import DataError
from medsam_tune.runs import (
    RunRecord,
    read_record,
    refuse_other_run,
    refuse_unknown_overrides,
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


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A config with three settings, one of them a group."""
    path = tmp_path / "a.yaml"
    path.write_text("epochs: 1\nlr: 0.1\ntrain: {trainer: {max_epochs: 3}}\n")
    return path


@pytest.mark.parametrize(
    "options",
    [
        ["--epochs", "2"],
        ["--lr=0.2", "--epochs", "2"],
        ["--train::trainer::max_epochs", "9"],
        ["--train#trainer#max_epochs", "9"],
        [],
    ],
)
def test_known_overrides_pass(config: Path, options: list[str]) -> None:
    refuse_unknown_overrides(["run", "--config_file", str(config), *options])


def test_keys_of_all_config_files_are_known(config: Path) -> None:
    other = config.with_name("b.yaml")
    other.write_text("rank: 4\n")
    files = f"['{config}','{other}']"
    refuse_unknown_overrides(["run", "--config_file", files, "--rank", "8", "--epochs=2"])
    with pytest.raises(ValueError, match="--rank is no setting of this config"):
        refuse_unknown_overrides(["run", "--config_file", str(config), "--rank", "8"])


def test_unknown_overrides_are_named_with_the_nearest(config: Path) -> None:
    with pytest.raises(ValueError, match="--epoch is no setting of this config; did you mean: ep"):
        refuse_unknown_overrides(["run", "--config_file", str(config), "--epoch", "2"])
    with pytest.raises(ValueError, match="did you mean: epochs, lr, train"):
        refuse_unknown_overrides(["run", "--config_file", str(config), "--zzz=2"])


def test_unknown_arguments_of_a_component_are_named(tmp_path: Path) -> None:
    config = tmp_path / "a.yaml"
    config.write_text(
        "rules: {_target_: medsam_tune.slices.rules.ScanRules, plane: axial}\n"
        "net: {_target_: medsam_tune.apply_method, sam: 1, method: lora}\n"
        "mending::strict: true\n"
    )
    run = ["run", "--config_file", str(config)]
    refuse_unknown_overrides([*run, "--rules::neighbours", "True", "--net::rank", "4"])
    with pytest.raises(ValueError, match=r"rules::plan is no setting of rules; .*: plane"):
        refuse_unknown_overrides([*run, "--rules::plan", "coronal"])


def test_other_programs_are_let_alone() -> None:
    refuse_unknown_overrides(["tests", "--maxfail", "2"])
