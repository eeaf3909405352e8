"""`medsam-tune split` as a user types it."""

from __future__ import annotations

import csv
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from medsam_tune.cases.datalist import SUBSETS, read_datalist
from medsam_tune.evaluation.label_maps import annotated
from medsam_tune.failures import DISK
from medsam_tune.sam.model import Masks
from medsam_tune.training.batches import IGNORED as IGNORED_PIXEL
from medsam_tune.training.losses import PromptLoss
from tests.bad_inputs.descriptions import IGNORED, nnunet
from tests.dicom_series import stored, write_series
from tests.scans import plain_folder, write_nifti

Tune = Callable[..., tuple[int, str, str]]
VISITS = ["p1_visit1", "p1_visit2", "p2_visit1", "p3_pre", "p3_post", "p4", "p5"]


@pytest.fixture
def visits(tmp_path: Path) -> Path:
    return plain_folder(tmp_path / "scans", VISITS)


def patients(path: Path) -> dict[str, str]:
    return {case.id: case.patient for case in read_datalist(path).cases}


def refused(outcome: tuple[int, str, str], text: str, exit_code: int = 1) -> None:
    code, _, err = outcome
    assert code == exit_code
    assert text in err
    assert len(err.strip().splitlines()) == 1
    assert err.startswith("medsam-tune: ")


def test_visits_of_a_patient_stay_together(tune: Tune, visits: Path, tmp_path: Path) -> None:
    out = tmp_path / "d.json"
    code, said, _ = tune("split", visits, "--modality", "CT", "--out", out)
    assert code == 0
    first, second = said.splitlines()
    assert first.startswith("patients: 5 for 7 scans, guessed from the names; e.g. p")
    assert first.endswith("If that is wrong: --patient-regex or --patients FILE.csv.")
    assert "labels: 1 label 1, 2 label 2" in second
    assert patients(out)["p3_post"] == "p3"


def test_patients_by_option(tune: Tune, visits: Path, tmp_path: Path) -> None:
    flags = ("split", visits, "--modality", "CT", "--out")
    code, said, _ = tune(*flags, tmp_path / "r.json", "--patient-regex", r"p\d_[a-z]|.*")
    assert code == 0
    assert "patients: 5 for 7 scans, by --patient-regex" in said
    assert patients(tmp_path / "r.json")["p1_visit1"] == "p1_v"
    table = tmp_path / "t.csv"
    table.write_text("case,patient\n" + "".join(f"{n},P{i // 2}\n" for i, n in enumerate(VISITS)))
    assert tune(*flags, tmp_path / "t.json", "--patients", table)[0] == 0
    assert patients(tmp_path / "t.json") == {n: f"P{i // 2}" for i, n in enumerate(VISITS)}
    both = ("--patients", table, "--patient-regex", ".*")
    refused(tune(*flags, tmp_path / "b.json", *both), "are both given; expected one of them")
    refused(tune(*flags, tmp_path / "b.json", "--patient-regex", "visit"), "finds no patient in")
    assert not (tmp_path / "b.json").exists()


def test_labels_by_name(tune: Tune, visits: Path, tmp_path: Path) -> None:
    out = tmp_path / "d.json"
    flags = ("split", visits, "--modality", "CT", "--out", out, "--labels")
    refused(tune(*flags, "1=liver"), "values without a name: 2 (case p1_visit1)")
    refused(tune(*flags, "liver"), "'liver' is not an id and a name")
    assert tune(*flags, "1=liver,2=spleen")[0] == 0
    assert read_datalist(out).labels == {1: "liver", 2: "spleen"}


def test_anonymous(tune: Tune, visits: Path, tmp_path: Path) -> None:
    folder, plain = tmp_path / "lists", tmp_path / "plain.json"
    flags = ("split", visits, "--modality", "CT", "--seed", 1)
    assert tune(*flags, "--out", plain)[0] == 0
    assert tune(*flags, "--out", folder / "d.json", "--anonymous")[0] == 0
    key = folder / "d.key.csv"
    assert stat.S_IMODE(os.stat(key).st_mode) == 0o600
    rows = {row["case"]: row for row in csv.DictReader(key.open())}
    hidden, known = read_datalist(folder / "d.json"), read_datalist(plain)
    for subset in SUBSETS:
        names = {rows[case.id]["name"] for case in getattr(hidden, subset)}
        assert names == {case.id for case in getattr(known, subset)}  # the split is the same
    assert all(case.id.startswith("case_0") for case in hidden.cases)
    assert all(case.patient.startswith("patient_0") for case in hidden.cases)
    assert "scans" not in json.loads((folder / "d.json").read_text())["name"]
    (folder / "d.json").unlink()
    refused(tune(*flags, "--out", folder / "d.json", "--anonymous"), "d.key.csv: is there already")
    code, _, _ = tune(*flags, "--folds", 4, "--out", folder / "cv.json", "--anonymous")
    assert code == 0
    rows = {row["case"]: row for row in csv.DictReader((folder / "cv.key.csv").open())}
    for i in range(4):
        for case in read_datalist(folder / f"cv_{i}.json").cases:
            assert rows[case.id]["image"] == str(case.image)


def test_patients_of_dicom_are_hashed_by_a_key_beside_the_datalist(
    tune: Tune, tmp_path: Path
) -> None:
    for name in "ab":
        write_series(tmp_path / "scans" / "images" / name)
        label = (stored().transpose(2, 1, 0) > 500).astype(np.uint8)
        write_nifti(tmp_path / "scans" / "labels" / f"{name}.nii.gz", label)
    flags = ("split", tmp_path / "scans", "--fractions", 0, 0, 1, "--out")
    for name in ("one/d.json", "one/e.json", "two/d.json"):
        code, said, _ = tune(*flags, tmp_path / name)
        assert code == 0
        assert "patients: 1 for 2 scans, by DICOM headers or dataset.json" in said
    key = tmp_path / "one" / ".medsam_tune.key"
    assert stat.S_IMODE(os.stat(key).st_mode) == 0o600
    first, again, other = (
        patients(tmp_path / n) for n in ("one/d.json", "one/e.json", "two/d.json")
    )
    assert first == again != other
    assert read_datalist(tmp_path / "one" / "d.json").modality == "CT"


def test_all_folds_are_written_or_none(
    tune: Tune, visits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "lists"
    replace, calls = os.replace, []

    def third_fails(*paths: object) -> None:
        calls.append(paths)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        replace(*paths)  # type: ignore[arg-type]

    monkeypatch.setattr("medsam_tune.files.os.replace", third_fails)
    flags = ("split", visits, "--modality", "CT", "--folds", 4, "--out", folder / "cv.json")
    refused(tune(*flags), "the disk is full", DISK)
    assert list(folder.iterdir()) == []
    monkeypatch.undo()


def test_outputs_that_cannot_be(tune: Tune, visits: Path, tmp_path: Path) -> None:
    flags = ("split", visits, "--modality", "CT", "--out")
    refused(tune(*flags, tmp_path / "d"), "expected a name that ends in .json")
    (tmp_path / "file").write_text("")
    refused(tune(*flags, tmp_path / "file" / "d.json"), "file: file exists.")
    refused(tune(*flags, tmp_path / "d.json", "--fractions", "nan", 0.5, 0.5), "add up to 1")


def test_only_test_cases(tune: Tune, visits: Path, tmp_path: Path) -> None:
    out = tmp_path / "d.json"
    flags = ("--modality", "CT", "--fractions", 0, 0, 1, "--out", out)
    code, said, _ = tune("split", visits, *flags)
    assert code == 0
    assert "0 training, 0 validation and 7 test cases" in said
    assert "no training cases: `train` will refuse this datalist" in said
    code, _, err = tune("train", "decoder", "--datalist", out, "--output", tmp_path / "run")
    assert code == 1
    assert "subset 'training' has no case; there are: test (7)" in err.strip().splitlines()[-1]
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "d.slices").exists()
    assert tune("check", out)[0] == 0
    assert tune("prepare", out)[0] == 0


def test_without_validation_or_test_cases(tune: Tune, visits: Path, tmp_path: Path) -> None:
    out = tmp_path / "d.json"
    code, said, _ = tune(
        *("split", visits, "--modality", "CT", "--fractions", 1, 0, 0, "--out", out)
    )
    assert code == 0
    assert "no validation cases: `train` will refuse this datalist" in said
    assert "no test cases: `evaluate` will refuse this datalist, nothing is held out" in said
    code, _, err = tune("train", "decoder", "--datalist", out, "--output", tmp_path / "run")
    assert code == 1
    last = err.strip().splitlines()[-1]
    assert "subset 'validation' has no case; there are: training (7)" in last
    assert "--fractions 0.7 0.15 0.15" in last
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "d.slices").exists()
    zero = ("evaluate", "--zero-shot", "--datalist", out, "--output", tmp_path / "zero")
    code, _, err = tune(*zero)
    assert code == 1
    assert "subset 'test' has no case" in err.strip().splitlines()[-1]


def test_what_nobody_annotated_is_left_out(
    tune: Tune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learnt, scored = [], []
    forward = PromptLoss.forward

    def noted(self: PromptLoss, logits: Masks, masks: torch.Tensor) -> torch.Tensor:
        learnt.append(set(masks.unique().tolist()))
        return forward(self, logits, masks)

    def counted(*maps: torch.Tensor, **options: object) -> tuple[torch.Tensor, ...]:
        scored.append(options["ignore"])
        return annotated(*maps, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(PromptLoss, "forward", noted)
    monkeypatch.setattr("medsam_tune.evaluation.scores.annotated", counted)
    monkeypatch.setattr("medsam_tune.evaluation.overlays.annotated", counted)
    out, run = tmp_path / "d.json", tmp_path / "run"
    folder = nnunet(tmp_path / "scans", list("abcd"))
    code, said, _ = tune("split", folder, "--out", out, "--fractions", 0.5, 0.25, 0.25)
    assert code == 0
    assert f"label {IGNORED}, ignore, is left out of training and of scores" in said
    small = ("--image-size", 64, "--set", "epochs=1", "--set", "num_workers=0")
    code, _, err = tune("train", "decoder", "--datalist", out, "--output", run, *small)
    assert code == 0, err
    assert set.union(*learnt) == {0, 1, IGNORED_PIXEL}
    assert set(scored) == {IGNORED}
    scored.clear()
    code, _, err = tune("evaluate", "--run", run)
    assert code == 0, err
    assert scored == [IGNORED] * 3  # the test case by two kinds of prompts, and its picture
    rows = list(csv.DictReader((run / "evaluation" / "metrics.csv").open()))
    assert [row["name"] for row in rows] == ["liver", "spleen"]
    assert np.isfinite([float(row["dice"]) for row in rows]).all()
