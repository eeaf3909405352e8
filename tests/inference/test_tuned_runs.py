"""Runs that are opened together fit together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from medsam_tune.errors import DataError
from medsam_tune.files import file_hash, write_json
from medsam_tune.formats.mending import Mending
from medsam_tune.inference.ensembles import Ensemble
from medsam_tune.inference.tuned_runs import TunedRuns
from medsam_tune.sam.model import PromptableSam
from medsam_tune.slices.intensity import Window
from medsam_tune.slices.rules import ScanRules
from tests.inference.made import LABELS, write_run

RULES = ScanRules(Window(100, 200))


def test_one_run_or_several(tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        write_run(tmp_path / name, RULES, classes=2, seed=seed)
    one = TunedRuns(tmp_path / "a")
    assert isinstance(one.network(), PromptableSam)
    assert (one.labels, one.rules, one.mending, one.prompted) == (LABELS, RULES, Mending(), None)
    both = TunedRuns([tmp_path / "a", str(tmp_path / "b")])
    network = both.network()
    assert isinstance(network, Ensemble)
    assert (len(network.networks), network.classes, network.training) == (2, 2, False)
    hashes = [file_hash(tmp_path / name / "tuned.safetensors") for name in "ab"]
    assert hashes[0] != hashes[1]
    assert both.description == [
        {"run": "a", "tuned_sha256": hashes[0]},
        {"run": "b", "tuned_sha256": hashes[1]},
    ]


def test_windows_of_prediction(tmp_path: Path) -> None:
    for name, side in (("a", 48), ("b", 64)):
        write_run(tmp_path / name, RULES, classes=2)
        entry = {"case": "c", "patient": "p", "content": "x", "size": [side, 30]}
        write_json(tmp_path / name / "split.json", {"training": [entry], "validation": []})
    write_run(tmp_path / "c", RULES, classes=2)
    runs = TunedRuns([tmp_path / name for name in "abc"], window=48)
    assert runs.rules == replace(RULES, window=48)
    network = runs.network()
    assert isinstance(network, Ensemble)
    assert {rules.window for rules in network.rules} == {48}
    assert runs.trained_side == 64
    assert TunedRuns(tmp_path / "c").trained_side is None


def test_runs_that_differ_are_refused(tmp_path: Path) -> None:
    write_run(tmp_path / "a", RULES, classes=2)
    others = {
        "labels": ({"labels": {1: "liver", 3: "spleen"}}, "label 2 is None there, 'spleen' here"),
        "rules": ({"rules": ScanRules(Window(100, 200), "coronal")}, "plane is 'coronal' there"),
        "mending": ({"mending": Mending(fill_nan=0)}, "mending is {'fill_nan': 0"),
        "classes": ({"classes": None}, "it has 0 classes there, 2 here"),
    }
    for name, (options, message) in others.items():
        write_run(tmp_path / name, **{"rules": RULES, "classes": 2, **options})  # type: ignore[arg-type]
        with pytest.raises(DataError, match=f"{name}: cannot be averaged with .*a: ") as refused:
            TunedRuns([tmp_path / "a", tmp_path / name])
        assert message in str(refused.value)
    with pytest.raises(DataError, match="no training run in it"):
        TunedRuns([tmp_path / "a", tmp_path])


def test_prompts_that_all_runs_take(tmp_path: Path) -> None:
    mixtures = {"never": {"none": 1}, "always": {"box": 1}, "either": {"box": 1, "none": 1}}
    for name, mixture in mixtures.items():
        write_run(tmp_path / name, RULES, classes=2, mixture=mixture)
    assert TunedRuns([tmp_path / "either", tmp_path / "never"]).prompted is False
    assert TunedRuns([tmp_path / "always", tmp_path / "either"]).prompted is True
    with pytest.raises(DataError, match="never: takes no prompts, and another run needs them"):
        TunedRuns([tmp_path / "always", tmp_path / "never"])
    write_run(tmp_path / "agnostic", RULES, mixture={"none": 1})
    assert TunedRuns(tmp_path / "agnostic").prompted is True  # it knows no labels
