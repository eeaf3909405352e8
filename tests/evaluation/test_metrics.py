"""Scores by the written rules, from masks of known overlap to the files of a whole evaluation."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.engines import SupervisedEvaluator
from torch import nn
from torch.utils.data import DataLoader

from medsam_tune.cases.datalist import Case
from medsam_tune.errors import DataError
from medsam_tune.evaluation.metrics import (
    CaseDataset,
    CaseScores,
    Score,
    bootstrap_interval,
    format_summary,
    overlap,
    prepare_case,
    score_case,
    summarise,
    write_scores,
)
from medsam_tune.inference.inferers import EllipseInferer, PromptedSliceInferer
from medsam_tune.sam.model import PromptableSam
from medsam_tune.slices.intensity import Window
from medsam_tune.slices.rules import ScanRules
from medsam_tune.slices.store import SliceStore
from tests.scans import LABELS, small_scan, write_nifti

COLUMNS = "case,label,name,dice,iou,truth_voxels,predicted_voxels,ellipse_dice"


def mask(*ones: int) -> torch.Tensor:
    flat = torch.zeros(12, dtype=torch.bool)
    flat[list(ones)] = True
    return flat.view(2, 2, 3)


@pytest.mark.parametrize(
    ("prediction", "truth", "dice", "iou"),
    [
        pytest.param(mask(1, 2, 3), mask(1, 2, 3), 1.0, 1.0, id="equal"),
        pytest.param(mask(1, 2, 3), mask(4, 5), 0.0, 0.0, id="apart"),
        pytest.param(mask(1, 2), mask(2, 3, 4, 5), 1 / 3, 1 / 5, id="one-in-common"),
        pytest.param(mask(1), mask(1, 2, 3), 0.5, 1 / 3, id="inside"),
        pytest.param(mask(), mask(1), 0.0, 0.0, id="nothing-found"),
        pytest.param(mask(1), mask(), 0.0, 0.0, id="nothing-there"),
        pytest.param(mask(), mask(), None, None, id="both-empty"),
    ],
)
def test_overlap(
    prediction: torch.Tensor, truth: torch.Tensor, dice: float | None, iou: float | None
) -> None:
    assert overlap(prediction, truth) == pytest.approx((dice, iou))
    assert overlap(truth, prediction) == pytest.approx((dice, iou))


def test_one_score_per_label() -> None:
    truth = torch.tensor([[[1, 1, 1, 0, 2, 0]]])
    prediction = torch.tensor([[[1, 1, 0, 0, 0, 0]]]).short()
    ellipse = torch.tensor([[[1, 0, 0, 0, 2, 2]]]).short()
    liver, spleen, kidney = score_case(
        "a", prediction, truth, ellipse, {1: "liver", 2: "spleen", 3: "kidney"}
    )
    assert liver == Score("a", 1, "liver", 0.8, pytest.approx(2 / 3), 3, 2, 0.5)
    assert spleen == Score("a", 2, "spleen", 0.0, 0.0, 1, 0, pytest.approx(2 / 3))
    assert kidney == Score("a", 3, "kidney", None, None, 0, 0, None)


def score(case: str, label: int, dice: float | None, ellipse: float | None = 0.5) -> Score:
    iou = None if dice is None else dice / (2 - dice)
    return Score(case, label, LABELS.get(label, "other"), dice, iou, 9, 9, ellipse)


def test_mean_of_labels_of_means_of_cases() -> None:
    scores = [
        score("a", 1, 0.8, 0.6),
        score("b", 1, 0.6, 0.4),
        score("c", 1, None, None),
        score("a", 2, 0.2, 0.1),
        score("b", 2, None, None),
        score("a", 3, None, None),
    ]
    summary = summarise(scores)
    assert summary["mean_dice"] == pytest.approx((0.7 + 0.2) / 2)
    assert summary["mean_ellipse_dice"] == pytest.approx((0.5 + 0.1) / 2)
    assert summary["mean_iou"] == pytest.approx(((0.8 / 1.2 + 0.6 / 1.4) / 2 + 0.2 / 1.8) / 2)
    assert set(summary["labels"]) == {"1", "2"}
    liver, spleen = summary["labels"]["1"], summary["labels"]["2"]
    assert (liver["name"], liver["cases"], liver["excluded"]) == ("liver", 2, 1)
    assert (spleen["name"], spleen["cases"], spleen["excluded"]) == ("spleen", 1, 1)
    assert liver["dice"] == pytest.approx(0.7)
    assert liver["dice_interval"] == pytest.approx((0.6, 0.8))
    assert spleen["dice_interval"] == pytest.approx((0.2, 0.2))
    text = format_summary(summary)
    assert "liver" in text
    assert "0.450" in text.splitlines()[-1]


def test_one_empty_counts_as_zero() -> None:
    summary = summarise([score("a", 1, 1.0), score("b", 1, 0.0)])
    assert (summary["mean_dice"], summary["labels"]["1"]["cases"]) == (0.5, 2)


def test_a_mean_over_nothing_is_an_error() -> None:
    for scores in ([], [score("a", 1, None, None), score("b", 2, None, None)]):
        with pytest.raises(DataError, match="no label in any case and none predicted"):
            summarise(scores)
    # predicted where no annotator drew anything, so no box and no ellipse either
    with pytest.raises(DataError, match="liver: predicted, but in no case's truth"):
        summarise([score("a", 1, 0.0, None)])


def test_bootstrap_interval() -> None:
    values = np.random.default_rng(0).normal(0.8, 0.1, 40).tolist()
    low, high = bootstrap_interval(values)
    assert low < np.mean(values) < high
    assert high - low == pytest.approx(2 * 1.96 * np.std(values) / np.sqrt(40), rel=0.1)
    assert bootstrap_interval(values) == (low, high)
    assert bootstrap_interval(values, seed=1) != (low, high)
    assert bootstrap_interval([0.7] * 5) == pytest.approx((0.7, 0.7))
    assert bootstrap_interval([0.7]) == pytest.approx((0.7, 0.7))


def test_files(tmp_path: Path) -> None:
    scores = [score("a", 1, 0.5), score("b", 1, None, None)]
    write_scores(tmp_path / "new", scores, {"mean_dice": 0.5})
    lines = (tmp_path / "new" / "metrics.csv").read_text().splitlines()
    assert lines == [COLUMNS, f"a,1,liver,0.5,{0.5 / 1.5},9,9,0.5", "b,1,liver,,,9,9,"]
    assert json.loads((tmp_path / "new" / "summary.json").read_text()) == {"mean_dice": 0.5}
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["metrics.csv", "summary.json"]


def test_failing_write_leaves_the_old_files(tmp_path: Path) -> None:
    write_scores(tmp_path, [score("a", 1, 0.5)], {"mean_dice": 0.5})
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_scores(tmp_path, [score("a", 1, 0.9)], {"mean_dice": 0.9, "device": object()})
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.fixture
def cases(tmp_path: Path) -> list[Any]:
    """Three prepared cases; the second has no label 2, the third none at all."""
    image, label = small_scan()
    store = SliceStore(tmp_path / "store", ScanRules(Window(100, 200)), LABELS)
    found = []
    for name, ids in (("a", label), ("b", label * (label == 1)), ("c", label * 0)):
        path = write_nifti(tmp_path / "images" / f"{name}.nii", image)
        found.append(Case(path, write_nifti(tmp_path / "labels" / f"{name}.nii", ids), name))
    return store.prepare(found, progress=False)


def test_items(cases: list[Any]) -> None:
    item = CaseDataset(cases, LABELS)[0]
    assert (item["image"].shape, item["image"].dtype) == ((6, 1, 12, 10), torch.uint8)
    assert (item["label"].shape, item["label"].dtype) == ((6, 12, 10), torch.int64)
    assert item["case"] == "a"
    assert item["prompts"].slices.tolist() == [1, 2, 2, 3, 3, 4]
    assert len(CaseDataset(cases, {2: "spleen"})[0]["prompts"]) == 2
    assert len(CaseDataset(cases, LABELS)[2]["prompts"]) == 0


def test_same_seed_same_boxes(cases: list[Any]) -> None:
    def boxes(seed: int, index: int = 0, jitter: float = 0.1) -> torch.Tensor:
        return CaseDataset(cases, LABELS, jitter=jitter, seed=seed)[index]["prompts"].boxes

    first = boxes(0)
    torch.manual_seed(7)
    assert torch.equal(first, boxes(0))
    assert not torch.equal(first, boxes(1))
    assert not torch.equal(first, boxes(0, jitter=0.0))
    # the same liver on the same slice in another case
    assert torch.equal(boxes(0, 0, 0.0)[0], boxes(0, 1, 0.0)[0])
    assert not torch.equal(first[0], boxes(0, 1)[0])


def evaluate(
    dataset: CaseDataset, network: nn.Module, inferer: object, *handlers: object
) -> SupervisedEvaluator:
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(dataset, batch_size=None),
        network=network,
        inferer=inferer,
        prepare_batch=prepare_case,
        val_handlers=list(handlers),
        decollate=False,
    )
    evaluator.run()
    return evaluator


def test_evaluation_of_ellipses_scores_as_ellipses(cases: list[Any], tmp_path: Path) -> None:
    handler = CaseScores(LABELS, tmp_path / "out", about={"method": "ellipse"})
    dataset = CaseDataset(cases, LABELS, jitter=0.05)
    evaluator = evaluate(dataset, nn.Identity(), EllipseInferer(), handler)
    metrics = evaluator.state.metrics
    assert metrics["mean_dice"] == metrics["mean_ellipse_dice"] > 0.5
    assert set(metrics) == {"mean_dice", "mean_iou", "mean_ellipse_dice"}
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["method"] == "ellipse"
    assert summary["mean_dice"] == metrics["mean_dice"]
    assert {k: (v["cases"], v["excluded"]) for k, v in summary["labels"].items()} == {
        "1": (2, 1),
        "2": (1, 2),
    }
    with (tmp_path / "out" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert ",".join(rows[0]) == COLUMNS
    assert [(r["case"], r["label"]) for r in rows] == [(c, n) for c in "abc" for n in "12"]
    assert all(r["dice"] == r["ellipse_dice"] for r in rows)
    assert rows[3]["dice"] == rows[4]["dice"] == ""
    truth = int((dataset[0]["label"] == 1).sum())
    assert int(rows[0]["truth_voxels"]) == truth


def test_second_run_starts_anew(
    cases: list[Any], tiny_sam: Callable[..., PromptableSam], tmp_path: Path
) -> None:
    handler = CaseScores(LABELS)
    dataset = CaseDataset(cases, LABELS)
    evaluator = evaluate(dataset, tiny_sam(), PromptedSliceInferer(), handler)
    first, metrics = list(handler.scores), dict(evaluator.state.metrics)
    evaluator.run()
    assert handler.scores == first
    assert evaluator.state.metrics == metrics
    assert len(first) == 6
    assert not (tmp_path / "out").exists()


def test_evaluation_of_nothing_is_an_error(cases: list[Any]) -> None:
    with pytest.raises(DataError, match="there is no Dice to report"):
        evaluate(
            CaseDataset(cases[2:], LABELS), nn.Identity(), EllipseInferer(), CaseScores(LABELS)
        )
