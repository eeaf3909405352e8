"""The run folder: whose it is, what it keeps, and what it refuses."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from medsam_tune.errors import DataError
from medsam_tune.runs import (
    RunFolder,
    RunRecord,
    read_record,
    tuned_file,
    write_record,
    write_state,
)
from medsam_tune.slices.intensity import Percentiles
from medsam_tune.slices.rules import ScanRules

RECORD = RunRecord(
    *("d.json", "d.slices", None, ScanRules(Percentiles()).describe(), {}, 0.05, 3),
    labels={1: "liver"},  # type: ignore[dict-item]
    base={"name": "nano", "sha256": "ab"},
    recipe={"objects": 4, "augment::0::prob": 0.5},
)


def stopped(path: Path, record: RunRecord = RECORD) -> Path:
    """A run that was stopped after its first checkpoint."""
    folder = RunFolder(path, record)
    folder.open()
    assert folder._lock is not None
    folder._lock.release()
    folder.last.write_bytes(b"checkpoint")
    return path


def test_record_comes_back(tmp_path: Path) -> None:
    write_record(tmp_path / "run", RECORD)
    back = read_record(tmp_path / "run")
    assert back.datalist == str(Path("d.json").absolute())
    assert back.slices_dir == str(Path("d.slices").absolute())
    assert not RECORD.differences(back)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["run.json"]
    write_record(tmp_path / "run", replace(RECORD, checkpoint="random"))  # a word, not a path
    assert read_record(tmp_path / "run").checkpoint == "random"


def test_the_record_says_whether_the_model_needs_prompts() -> None:
    for mixture, prompted in (
        ({}, True),
        ({"box": 3, "none": 0}, True),
        ({"box": 3, "none": 3}, None),
        ({"box": 0, "none": 1}, False),
    ):
        assert replace(RECORD, mixture=mixture).prompted is prompted


def test_a_folder_that_moved_with_its_data_finds_them(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "d.json").write_text("{}")
    write_record(tmp_path / "a" / "run", replace(RECORD, datalist=str(tmp_path / "a" / "d.json")))
    (tmp_path / "a").rename(tmp_path / "b")
    assert read_record(tmp_path / "b" / "run").datalist == str(tmp_path / "b" / "d.json")


@pytest.mark.parametrize(
    "content",
    [
        '{"datalist": "d.json"}',
        "[]",
        "{",
        {"datalist": 3},
        {"rules": "axial"},
        {"seed": True},
        {"seed": "0"},
        {"checkpoint": "a\0"},
        {"labels": None},
        {"places": {"rules": "../x"}},
        {"places": {"datalist": 3}},
        {"more": 1},
        {"mending": {"x": 1}},
    ],
)
def test_a_damaged_record_is_named(tmp_path: Path, content: str | dict[str, Any]) -> None:
    write_record(tmp_path, RECORD)
    path = tmp_path / "run.json"
    if isinstance(content, dict):
        content = json.dumps(json.loads(path.read_text()) | content)
    path.write_text(content)
    with pytest.raises(
        DataError, match=r"run.json: (is damaged or of another version|.* JSON|has no format)"
    ):
        read_record(tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=5,
)


@given(key=st.sampled_from([field.name for field in fields(RunRecord)]), value=JSON)
@example(key="datalist", value="a\0")
@example(key="places", value={"datalist": "\0"})
@settings(derandomize=True, deadline=None, max_examples=200)
def test_any_value_at_any_place_of_a_record(
    tmp_path_factory: pytest.TempPathFactory, key: str, value: Any
) -> None:
    """A record of that value, or one line; the record of a stranger is compared all the same."""
    run = tmp_path_factory.mktemp("run", numbered=True)
    write_record(run, RECORD)
    path = run / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    said = str(path)
    try:
        RECORD.differences(read_record(run))
    except DataError as error:
        said = str(error)
    assert str(path) in said
    shutil.rmtree(run)


def test_an_empty_folder_holds_no_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no training run in it \(no run.json\)"):
        read_record(tmp_path)
    with pytest.raises(DataError, match="no run to resume in it; leave --resume out"):
        RunFolder(tmp_path, RECORD, resume=True).open()


def test_a_run_is_not_written_over(tmp_path: Path) -> None:
    run = stopped(tmp_path / "run")
    before = (run / "run.json").read_bytes()
    for refuse in (RunFolder.refuse, RunFolder.open):
        with pytest.raises(DataError, match="holds a run already; choose another output folder"):
            refuse(RunFolder(run, replace(RECORD, seed=4)))
    assert (run / "run.json").read_bytes() == before
    RunFolder(run, RECORD, resume=True).open()
    assert (run / "run.json").read_bytes() == before


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match=r"holds other files \(notes.txt, scans\); expected a new"):
        RunFolder(tmp_path, RECORD).open()
    with pytest.raises(DataError, match=r"notes.txt: is a file; expected a folder"):
        RunFolder(tmp_path / "notes.txt", RECORD).open()
    RunFolder(tmp_path / "new", RECORD).refuse()
    assert {path.name for path in tmp_path.iterdir()} == {"scans", "notes.txt"}


def test_a_run_without_a_checkpoint_starts_again(tmp_path: Path) -> None:
    run = stopped(tmp_path / "run")
    (run / "last.pt").unlink()
    (run / ".last.pt.x1").mkdir()  # what a killed process leaves
    (run / ".last.pt.x1" / "last.pt").write_bytes(b"half")
    for resume in (True, False):
        folder = RunFolder(run, RECORD, resume)
        folder.open()
        assert folder._lock is not None
        folder._lock.release()
    assert not (run / ".last.pt.x1").exists()


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", RECORD)
    folder.open()
    code = (
        "from medsam_tune.runs import RunFolder, RunRecord; import sys\n"
        "folder = RunFolder(sys.argv[1], RunRecord(None, None, None, {}, {}, 0.0, 0))\n"
        "for take in (folder.refuse, folder.open):\n"
        "    try: take()\n"
        "    except ValueError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "run"], capture_output=True, text=True, check=False
    )
    assert done.stdout.count("run: another process trains into it") == 2, done.stderr


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"seed": 4}, "seed was 3, now 4"),
        ({"jitter": 0.1}, "jitter was 0.05, now 0.1"),
        ({"labels": {1: "spleen"}}, "labels::1 was 'liver', now 'spleen'"),
        ({"labels": {}}, "labels::1 was 'liver', now not there"),
        ({"base": {"name": "nano", "sha256": "cd"}}, "base::sha256 was 'ab', now 'cd'"),
        ({"recipe": {"objects": 2, "augment::0::prob": 0.5}}, "objects was 4, now 2"),
        ({"mending": {"fill_nan": 0.0}}, "mending::fill_nan was not there, now 0.0"),
        (
            {"rules": ScanRules(Percentiles(), plane="coronal").describe()},
            "rules::plane was 'axial', now 'coronal'",
        ),
        ({"version": "0"}, "version was .*, now '0'"),
    ],
)
def test_another_training_is_not_a_continuation(
    tmp_path: Path, other: dict[str, Any], message: str
) -> None:
    run = stopped(tmp_path / "run")
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    with pytest.raises(DataError, match=f"is another training, .* {message}"):
        RunFolder(run, replace(RECORD, **other), resume=True).open()
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


@pytest.mark.parametrize("processes", [2, 1])
def test_another_number_of_processes_is_not_a_continuation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    """Its epochs would have another number of steps, and the schedule another length."""

    def record() -> RunRecord:
        return RunRecord(None, None, None, {}, {}, 0.05, 3)

    def started_by(number: int) -> None:
        for name, value in (("RANK", 0), ("WORLD_SIZE", number)):
            monkeypatch.setenv(name, str(value))

    monkeypatch.setattr("medsam_tune.runs.wait", lambda: None)
    started_by(processes)
    run = stopped(tmp_path / "run", record())
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    RunFolder(run, record(), resume=True).refuse()
    started_by(3)
    for refuse in (RunFolder.refuse, RunFolder.open):
        with pytest.raises(
            DataError,
            match=rf"trained by {processes} process.*, and this is 3: .* with --gpus {processes} ",
        ):
            refuse(RunFolder(run, record(), resume=True))
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_places_may_change(tmp_path: Path) -> None:
    run = stopped(tmp_path / "run")
    RunFolder(run, replace(RECORD, datalist="e.json", slices_dir="e"), resume=True).open()


def test_slices_go_nowhere_that_a_record_alone_names(tmp_path: Path) -> None:
    """The record may be a stranger's."""
    record = replace(RECORD, datalist=str(tmp_path / "d.json"), slices_dir=str(tmp_path / "else"))
    write_record(tmp_path / "run", record)
    assert read_record(tmp_path / "run").slices_dir == str(tmp_path / "d.slices")
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "slice_store.txt").write_text("")
    assert read_record(tmp_path / "run").slices_dir == str(tmp_path / "else")


def test_weights_of_an_unfinished_training_are_asked_for(tmp_path: Path) -> None:
    run = stopped(tmp_path / "run")
    with pytest.raises(DataError, match=r"no tuned.safetensors in it yet: no epoch was validated"):
        tuned_file(run)
    (run / "tuned.safetensors").write_bytes(b"")
    for state, epoch, epochs in (("started", 0, None), ("stopped", 2, 5)):
        write_state(run, state, epoch, epochs)
        message = rf"training is not finished \({epoch} of {epochs} epochs\)"
        with pytest.raises(DataError, match=message):
            tuned_file(run)
    assert tuned_file(run, unfinished=True) == run / "tuned.safetensors"
    write_state(run, "finished", 5, 5)
    assert tuned_file(run) == run / "tuned.safetensors"
