"""The curve of Dice over the noise of the boxes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from medsam_tune.cli import tuning
from medsam_tune.evaluation.folder import ResultFolder
from medsam_tune.evaluation.jitter import parse_jitters, write_curve
from medsam_tune.evaluation.results import JITTER
from tests.evaluation.test_report import Page, evaluated


def test_the_curve_is_in_the_report(tmp_path: Path) -> None:
    folder = evaluated(tmp_path / "run" / "evaluation")
    worse = evaluated(tmp_path / "worse")
    summary = json.loads((worse / "summary.json").read_text())
    summary["by_prompts"]["slices"]["mean_dice"] = 0.25
    (worse / "summary.json").write_text(json.dumps(summary))
    write_curve(folder, {0.2: worse, 0.0: folder})
    points = json.loads((folder / JITTER).read_text())["points"]
    assert [point["jitter"] for point in points] == [0, 0.2]
    assert points[1]["dice"]["slices"]["mean"] == 0.25
    text = (folder / "report.html").read_text()
    tables = dict(zip(Page(text).captions, Page(text).tables, strict=True))
    head, first, second = tables["Mean Dice by noise of the boxes"]
    assert head == ["noise", "by a box on every slice", "without prompts"]
    mean = points[0]["dice"]["slices"]["mean"]
    assert first[1].startswith(f"{mean:.3f} (")
    assert (second[0], second[1][:5]) == ("0.2", "0.250")
    assert "0.250 at 0.2" in text
    assert "Mean Dice by noise" in (folder / "report.md").read_text()
    ResultFolder(folder).refuse_others()
    assert "off by a random share." in text
    for place in (folder, worse):
        summary = json.loads((place / "summary.json").read_text())
        summary["by_prompts"]["points"] = summary["by_prompts"].pop("none")
        (place / "summary.json").write_text(json.dumps(summary))
    (folder / "none").rename(folder / "points")
    write_curve(folder, {0.0: folder, 0.2: worse})
    text = (folder / "report.html").read_text()
    assert "off by a random share, and a point by that share of the object&#39;s box." in text
    assert "by one point: 0." in text


@pytest.mark.parametrize("text", ["", "a", "0,0", "-0.1", "0.1,2", "nan"])
def test_no_noise(text: str) -> None:
    with pytest.raises(ValueError, match="expected numbers from 0 to 1, each once"):
        parse_jitters(text)


def test_the_command(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tune: Callable[..., tuple[int, str, str]],
) -> None:
    run = tmp_path / "run"
    seen: list[Any] = []

    def record(bundle: str, configs: object, settings: Mapping[str, Any], gpus: int = 1) -> None:
        seen.append((settings.get("jitter"), settings["run_dir"], settings["prompts"]))
        evaluated(Path(settings.get("output_dir", run / "evaluation")))

    monkeypatch.setattr(tuning, "run_bundle", record)
    monkeypatch.setattr(tuning, "bundle_of_run", lambda bundle, run: "volume")
    kinds = ["slices", "middle", "points"]
    words = ("--prompts", ",".join(kinds), "--jitter", "0.1,0")
    code, _, said = tune("evaluate", "--run", run, *words)
    assert code == 0, said
    assert seen == [(noise, run, kinds) for noise in (None, 0.0, 0.1)]  # every kind, each time
    assert (run / "evaluation" / JITTER).is_file()
    code, _, said = tune("evaluate", "--jitter", "0.1", "--zero-shot")
    assert (code, "--jitter needs --run" in said) == (1, True)
