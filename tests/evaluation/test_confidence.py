"""Expected beside true Dice: what is learnt from validation cases and judged on others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from medsam_tune.cli import tuning
from medsam_tune.errors import DataError
from medsam_tune.evaluation.confidence import write_confidence
from medsam_tune.evaluation.folder import ResultFolder
from medsam_tune.evaluation.metrics import Score
from medsam_tune.evaluation.scores import _qualities, write_scores
from medsam_tune.evaluation.statistics import summarise_kinds
from medsam_tune.files import read_json
from medsam_tune.inference.canvas import FoundObject
from medsam_tune.inference.confidence import read_calibration
from medsam_tune.runs import TUNED


def evaluated(folder: Path, offset: float, count: int) -> Path:
    scores = [
        Score(
            *(f"case_{n}", "slices", 1, "liver", 0.4 + 0.02 * n + offset, 0.5, 9, 9, None, 1),
            quality=0.5 + 0.02 * n,
        )
        for n in range(count)
    ]
    nothing = Score("case_x", "slices", 1, "liver", 0.0, 0.0, 9, 0, None, 1)
    summary = summarise_kinds({"slices": [*scores, nothing]})
    write_scores(folder, {"slices": [*scores, nothing]}, {"stopped_by": None, **summary})
    return folder


def test_expected_and_true(tmp_path: Path) -> None:
    (tmp_path / TUNED).write_bytes(b"weights")
    known = evaluated(tmp_path / "evaluation_validation", 0.0, 25)
    test = evaluated(tmp_path / "evaluation", -0.05, 20)
    write_confidence(tmp_path, known, test)
    found = read_json(test / "confidence.json")["slices"]
    assert (found["n"], found["calibrated_on"]) == (20, 25)
    assert found["error"] == pytest.approx(0.05)
    assert found["bias"] == pytest.approx(0.05)
    assert (found["worst"], found["caught"], found["flagged"]) == (2, 2, 5)
    page = (test / "report.html").read_text()
    assert "off by 0.050 on average (+0.050 with its sign), over 20 masks" in page
    assert "5 are flagged for review; among them are 2 of the 2 worst" in page
    words = (test / "report.md").read_text()
    assert "## Does the model know how good its masks are?" in words
    assert "5 are flagged for review; among them are 2 of the 2 worst" in words
    calibration = read_calibration(tmp_path)
    assert calibration is not None
    assert calibration.least(1, 0.6, prompted=True) == (pytest.approx(0.5), False)


def test_too_few_validation_masks(tmp_path: Path) -> None:
    (tmp_path / TUNED).write_bytes(b"weights")
    known = evaluated(tmp_path / "evaluation_validation", 0.0, 9)
    test = evaluated(tmp_path / "evaluation", 0.0, 20)
    with pytest.raises(DataError, match="has 9 masks by the same prompts; expected 10 or more"):
        write_confidence(tmp_path, known, test)
    assert read_calibration(tmp_path) is None
    assert not (test / "confidence.json").exists()


def test_quality_of_a_label_is_the_mean_over_slices() -> None:
    objects = [FoundObject(1, 3, 0.9), FoundObject(1, 1, 0.5), FoundObject(2, 0, 0.0)]
    assert _qualities(objects) == {1: pytest.approx(0.8)}


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tune: Callable[..., tuple[int, str, str]]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / TUNED).write_bytes(b"weights")
    seen: list[Any] = []

    def record(bundle: str, configs: object, settings: Mapping[str, Any], gpus: int = 1) -> None:
        subset = settings.get("subset", "test")
        seen.append((subset, settings["run_dir"], settings["prompts"]))
        evaluated(run / ("evaluation" if subset == "test" else f"evaluation_{subset}"), 0.0, 20)

    monkeypatch.setattr(tuning, "run_bundle", record)
    monkeypatch.setattr(tuning, "bundle_of_run", lambda bundle, run: "volume")
    words = ("evaluate", "--run", run, "--confidence", "--prompts", "slices")
    code, _, said = tune(*words)
    assert code == 0, said
    assert seen == [("test", run, ["slices"]), ("validation", run, ["slices"])]
    assert read_calibration(run) is not None
    ResultFolder(run / "evaluation").refuse_others()
    code, _, said = tune(*words, "--set", "subset=training")
    assert (code, "--confidence needs --run, finished, its test cases" in said) == (1, True)
