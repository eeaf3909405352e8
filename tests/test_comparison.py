"""`compare`: what it runs, what it does not run again, and that a failure loses no other."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medsam_tune import comparison
from medsam_tune.cases.datalist import Case, Datalist, read_datalist, write_datalist
from medsam_tune.comparison import Plan, compare
from medsam_tune.errors import DataError
from medsam_tune.files import read_json
from medsam_tune.runs import RunRecord, read_state, write_record, write_state
from medsam_tune.settings import Typed
from tests.evaluation.test_compare import evaluated
from tests.scans import write_nifti

Calls = list[tuple[list[str], dict[str, str]]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """The bundle runs, as configs and settings; a training of `full` fails."""
    seen: Calls = []

    def run(_: str, configs: list[str], given: dict[str, Any]) -> None:
        seen.append((configs, {key: str(value) for key, value in given.items()}))
        if "run_dir" in given:
            place = Path(given["run_dir"])
            fold = f"fold{place.name[-1]}" if "-fold" in place.name else "case"
            evaluated(place, 0.5, *given["prompts"], prefix=fold)
        elif "method_full.yaml" in configs:
            raise DataError("full: no memory for it.")
        else:
            folder, epochs = Path(given["output_dir"]), given.get("epochs", 20)
            folder.mkdir(exist_ok=True)
            record = RunRecord(None, None, None, {}, {}, 0.05, 0, mixture={"box": 1, "none": 1})
            write_record(folder, record)
            write_state(folder, "finished", epochs, epochs, 60.0 * epochs)

    monkeypatch.setattr(comparison, "run_bundle", run)
    return seen


def plan(folder: Path, **changes: Any) -> Plan:
    (folder / "d.json").write_text("{}")
    given: dict[str, Any] = {"methods": ["zero_shot", "full", "lora"], "epochs": 2, "seeds": 2}
    return Plan(folder / "d.json", folder / "O", **(given | changes))


def listed_cases(folder: Path, count: int) -> Datalist:
    """Patients with a scan each; the last two are for validation and test."""
    files = [folder / f"{n:02}.nii" for n in range(count)]
    for file in files:
        write_nifti(file, np.ones((2, 2, 2), np.uint8))
    *training, validation, test = (Case(file, file, file.stem) for file in files)
    return Datalist("d", "MR", {1: "liver"}, tuple(training), (validation,), (test,))


def test_what_is_done_is_not_done_again(calls: Calls, tmp_path: Path) -> None:
    settings = {"lr": Typed("1e-3"), "tolerance": Typed("3"), "jitter": Typed("0.1")}
    table, failed = compare(plan(tmp_path, settings=settings))
    assert {*failed} == {"full", "full-seed1"}
    assert "failed: full: full: no memory for it." in table
    zero, _, _, lora, scored, second, _ = calls
    assert zero[0] == ["evaluate.yaml", "zero_shot.yaml"]
    assert zero[1]["prompts"] == "['slices', 'box3d']"
    assert (zero[1]["jitter"], zero[1]["tolerance"], "lr" in zero[1]) == ("0.1", "3", False)
    assert lora[0] == ["train.yaml", "method_lora.yaml"]
    assert (lora[1]["epochs"], lora[1]["seed"], second[1]["seed"]) == ("2", "0", "1")
    assert (lora[1]["lr"], lora[1]["jitter"], "tolerance" in lora[1]) == ("1e-3", "0.1", False)
    assert scored[1]["prompts"] == "['slices', 'box3d', 'none']"
    assert (scored[1]["seed"], scored[1]["tolerance"], "jitter" in scored[1]) == ("0", "3", False)
    calls.clear()
    compare(plan(tmp_path, settings=settings))
    assert [configs for configs, _ in calls] == [["train.yaml", "method_full.yaml"]] * 2
    calls.clear()
    write_state(tmp_path / "O" / "lora", "stopped", 1, 2)
    compare(plan(tmp_path, settings=settings, methods=["lora"]))
    assert [given.get("resume") for _, given in calls] == ["True"]
    with pytest.raises(DataError, match="holds another comparison: epochs was 2, now 3"):
        compare(plan(tmp_path, settings=settings, epochs=3))


def test_numbers_of_patients(calls: Calls, tmp_path: Path) -> None:
    """Each number and seed is drawn once; patients of fewer are among those of more."""
    data = listed_cases(tmp_path, 12)
    asked = plan(tmp_path, methods=["zero_shot", "lora"], few_shot=[2, 8, 4])
    write_datalist(data, asked.datalist)
    table, failed = compare(asked)
    assert not failed
    assert [line.split()[0] for line in table.splitlines() if line.startswith("lora")] == [
        *("lora-2", "lora-4", "lora-8")
    ]
    trainings = [given for configs, given in calls if configs[0] == "train.yaml"]
    assert [configs for configs, _ in calls if configs[0] == "train.yaml"] == [
        ["train.yaml", "method_lora.yaml", "few_shot.yaml"]
    ] * 6
    drawn = {}
    for given in trainings:
        few = read_datalist(Path(given["datalist"]))
        drawn[Path(given["output_dir"]).name] = {case.patient for case in few.training}
        assert (few.validation, few.test) == (data.validation, data.test)
        assert given["slices_dir"] == str(tmp_path / "d.slices")
    assert [len(one) for one in drawn.values()] == [2, 2, 4, 4, 8, 8]
    assert drawn["lora-2"] < drawn["lora-4"] < drawn["lora-8"]
    assert drawn["lora-4"] != drawn["lora-4-seed1"]
    page = (asked.output / "compare.html").read_text()
    assert "Learning curve" in page
    assert "the scores do not rise" in page  # every double scores alike
    calls.clear()
    compare(asked)
    assert not calls


def test_folds(calls: Calls, tmp_path: Path) -> None:
    """Each case is held out once, for every method alike; the tables are of all."""
    asked = plan(tmp_path, methods=["zero_shot", "lora"], folds=3, seeds=1)
    data = listed_cases(tmp_path, 9)
    write_datalist(data, asked.datalist)
    table, failed = compare(asked)
    assert not failed
    assert [line.split()[0] for line in table.splitlines() if line.startswith("lora")] == ["lora"]
    trained = [given for configs, given in calls if configs[0] == "train.yaml"]
    assert [Path(given["output_dir"]).name for given in trained] == [
        *("lora-fold0", "lora-fold1", "lora-fold2")
    ]
    lists = [read_datalist(Path(given["datalist"])) for given in trained]
    held_out = [case.id for one in lists for case in one.test]
    assert sorted(held_out) == sorted(case.id for case in data.cases)
    judged = [given for configs, given in calls if "run_dir" in given]
    assert [given["datalist"] for given in judged] == [given["datalist"] for given in trained] * 2
    assert {given["slices_dir"] for given in trained} == {str(tmp_path / "d.slices")}
    calls.clear()
    compare(asked)
    assert not calls
    with pytest.raises(DataError, match="folds was 3, now 4"):
        compare(replace(asked, folds=4))


def test_groups_are_those_of_the_datalist(calls: Calls, tmp_path: Path) -> None:
    """Asked for at once, or of a comparison that is done; of folds, every case has its group."""
    data = listed_cases(tmp_path, 5)
    data = replace(data, test=(replace(data.test[0], name="case_0", columns={"site": "A"}),))
    asked = plan(tmp_path, methods=["zero_shot"], seeds=1)
    write_datalist(data, asked.datalist)
    bad = replace(asked, settings={"by": Typed("[ward]")})
    with pytest.raises(ValueError, match=r"by names the column 'ward', .*; there are: site. Give"):
        compare(bad)
    assert (asked.output.exists(), calls) == (False, [])
    with pytest.raises(ValueError, match="by names the column '3'"):
        compare(replace(asked, settings={"by": Typed("3")}))
    compare(asked)
    calls.clear()
    compare(replace(asked, settings={"by": Typed("site")}))
    assert not calls
    groups = read_json(asked.output / "compare.json")["groups"]["site"]
    assert {k: len(v["methods"]) for k, v in groups.items()} == {"": 1, "A": 1}
    assert groups["A"]["methods"]["zero_shot"]["by_prompts"]["slices"]["dice"]["n_patients"] == 1
    folds = replace(asked, output=tmp_path / "F", folds=3, settings={"by": Typed("site")})
    everywhere = [replace(case, columns={"site": "A"}) for case in listed_cases(tmp_path, 9).cases]
    write_datalist(
        replace(data, training=tuple(everywhere[:-2]), validation=(), test=()), folds.datalist
    )
    compare(folds)
    assert {given["by"] for _, given in calls} == {"site"}
    assert [*read_json(folds.output / "compare.json")["groups"]] == ["site"]


def test_each_step_is_said_where_the_log_goes(
    calls: Calls, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    handlers = logging.getLogger().handlers[:]
    compare(plan(tmp_path, seeds=1))
    assert logging.getLogger().handlers == handlers
    said = [record.message for record in caplog.records]
    assert [line for line in said if line.startswith("compare: ")] == [
        *("compare: zero_shot", "compare: full", "compare: lora")
    ]


def test_minutes_become_epochs(calls: Calls, tmp_path: Path) -> None:
    compare(plan(tmp_path, methods=["lora"], epochs=None, minutes=5.5, seeds=1))
    assert [given.get("epochs") for _, given in calls] == ["1", "5", None]
    assert read_state(tmp_path / "O" / "lora")["epoch"] == 5


def test_another_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "O").mkdir()
    (tmp_path / "O" / "mine.txt").write_text("")
    with pytest.raises(DataError, match=r"holds other files \(mine.txt\)"):
        compare(plan(tmp_path))


def test_masks_are_scored_as_the_methods_are(
    tmp_path: Path, tune: Callable[..., tuple[int, str, str]]
) -> None:
    """By their settings, and again once the masks change; else the scores are kept."""
    data = listed_cases(tmp_path, 3)
    write_datalist(data, tmp_path / "d.json")
    mask = np.zeros((2, 2, 2), np.uint8)
    mask[0] = 1
    for number in "01":
        write_nifti(tmp_path / "theirs" / f"0{number}.nii", mask)
    write_nifti(tmp_path / "theirs" / "02.nii", mask)
    words = ["compare", "--datalist", tmp_path / "d.json", "--output", tmp_path / "O"]
    words += ["--methods", "zero_shot", "--masks", f"reader={tmp_path / 'theirs'}"]
    words += ["--set", "tolerance=0.5", "--set", "empty=one", "--set", "lr=1e-3"]
    summary = tmp_path / "O" / "reader" / "evaluation" / "summary.json"

    def compared() -> dict[str, Any]:
        code, _, said = tune(*words)
        assert code == 0, said
        found: dict[str, Any] = read_json(summary)
        return found

    first = compared()
    assert (first["labels"]["1"]["tolerance"], first["empty_rule"]["name"]) == (0.5, "one")
    zero = read_json(tmp_path / "O" / "zero_shot" / "evaluation" / "summary.json")
    assert zero["labels"]["1"]["tolerance"] == 0.5
    assert zero["empty_rule"] == first["empty_rule"]
    assert first["mean_dice"] == pytest.approx(2 / 3)
    assert compared() == first
    write_nifti(tmp_path / "theirs" / "02.nii", np.ones_like(mask))
    assert compared()["mean_dice"] == 1
