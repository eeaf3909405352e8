"""The test cases are read by evaluation only: no training, search or calibration opens a file."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from medsam_tune.cases.datalist import Case, Datalist, write_datalist
from medsam_tune.cases.folders import find_cases
from medsam_tune.cases.splits import split_cases
from medsam_tune.cli import tuning
from medsam_tune.inference.confidence import CALIBRATION
from medsam_tune.synthetic.phantom import write_phantoms
from tests.evaluation.test_confidence import evaluated

Tune = Callable[..., tuple[int, str, str]]
SMALL = ["--image-size", "64", "--set", "epochs=1", "--set", "num_workers=0"]

_OPENED: list[str] = []


def _listen(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
        _OPENED.append(os.path.abspath(os.fsdecode(arguments[0])))


@pytest.fixture(scope="module")
def opened() -> list[str]:
    """Every file that Python opens from here on; an audit hook cannot be taken away."""
    sys.addaudithook(_listen)
    return _OPENED


@pytest.fixture
def data(tmp_path: Path) -> Datalist:
    """Seven phantoms in `d.json`; the files of the test cases are no scans any more."""
    write_phantoms(tmp_path, count=7, shape=(48, 40, 8), spacing=(7.2, 6.4, 15.0))
    datalist = split_cases(find_cases(tmp_path), (0.15, 0.7, 0.15))
    write_datalist(datalist, tmp_path / "d.json")
    for file in files_of(*datalist.test):
        Path(file).write_bytes(b"not to be read")
    return datalist


def files_of(*cases: Case) -> set[str]:
    return {str(file) for case in cases for file in (case.image, case.label)}


def test_training_and_calibration_open_no_test_file(
    tmp_path: Path, data: Datalist, opened: list[str], tune: Tune, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search of learning rates is trainings (`benchmarks/rates.py`)."""
    datalist, run = tmp_path / "d.json", tmp_path / "run"
    held_out = files_of(*data.test)
    opened.clear()
    code, _, said = tune("train", "decoder", "--datalist", datalist, "--output", run, *SMALL)
    assert code == 0, said
    assert files_of(*data.training, *data.validation) <= {*opened}
    assert not held_out & {*opened}

    # The evaluation of the test cases, which the calibration is judged by, is the only one that
    # may read them; here it is made up.
    run_bundle = tuning.run_bundle

    def without_test(
        bundle: str, configs: list[str], settings: Mapping[str, Any], gpus: int = 1
    ) -> None:
        if settings.get("subset") == "validation":
            run_bundle(bundle, configs, settings, gpus)
        else:
            evaluated(run / "evaluation", 0.0, 20)

    monkeypatch.setattr(tuning, "run_bundle", without_test)
    opened.clear()
    code, _, said = tune("evaluate", "--run", run, "--confidence", "--prompts", "slices")
    assert code == 0, said
    assert (run / CALIBRATION).is_file()
    assert (run / "evaluation_validation" / "summary.json").is_file()
    assert not held_out & {*opened}


def test_the_guard_sees_an_evaluation(
    tmp_path: Path, data: Datalist, opened: list[str], tune: Tune
) -> None:
    """What the test above relies on: reading a test case is seen, and is refused."""
    opened.clear()
    flags = ("--datalist", tmp_path / "d.json", "--image-size", 64, "--output", tmp_path / "zero")
    code, _, said = tune("evaluate", "--zero-shot", *flags)
    assert code != 0, said
    assert files_of(*data.test) & {*opened}
