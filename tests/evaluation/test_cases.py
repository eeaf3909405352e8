"""Whole cases through an evaluator."""

from __future__ import annotations

import csv
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine
from monai.engines import SupervisedEvaluator
from torch import nn
from torch.utils.data import DataLoader

from medsam_tune.cases.datalist import Case
from medsam_tune.errors import DataError
from medsam_tune.evaluation.cases import (
    CaseDataset,
    prepare_case,
    refuse_kinds,
    refuse_other_labels,
    refuse_without_labels,
)
from medsam_tune.evaluation.folder import ResultFolder
from medsam_tune.evaluation.scores import CaseScores, write_scores
from medsam_tune.inference.canvas import Found
from medsam_tune.inference.embedded import KeptEmbeddings
from medsam_tune.inference.inferers import EllipseInferer, VolumeInferer
from medsam_tune.prompts import SlicePrompts
from medsam_tune.slices.intensity import Window
from medsam_tune.slices.rules import ScanRules
from medsam_tune.slices.store import SliceStore
from tests.evaluation.test_metrics import COLUMNS
from tests.evaluation.test_statistics import score
from tests.scans import LABELS, small_scan, write_nifti


def test_files(tmp_path: Path) -> None:
    scores = [score("a", 1, 0.5), score("b", 1, None, None)]
    further = [score("a", 1, 0.25, prompts="interpolated:5")]
    kinds = {"slices": scores, "interpolated:5": further}
    write_scores(tmp_path / "new", kinds, {"mean_dice": 0.5})
    lines = (tmp_path / "new" / "metrics.csv").read_text().splitlines()
    assert lines == [
        COLUMNS,
        f"a,slices,1,liver,0.5,{0.5 / 1.5},9,9,0.5,0",
        "b,slices,1,liver,,,0,0,,0",
    ]
    lines = (tmp_path / "new" / "interpolated-5" / "metrics.csv").read_text().splitlines()
    assert lines == [COLUMNS, f"a,interpolated:5,1,liver,0.25,{0.25 / 1.75},9,9,0.5,0"]
    content = json.loads((tmp_path / "new" / "summary.json").read_text())
    assert content == {"format": 1, "mean_dice": 0.5}
    names = ["interpolated-5", "metrics.csv", "summary.json"]
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == names


def test_borders_and_objects_have_columns_where_they_are(tmp_path: Path) -> None:
    rows = [replace(score("a", 1, 0.5), boundary_iou=0.25, true_objects=2), score("b", 1, 0.5)]
    write_scores(tmp_path, {"slices": rows}, {})
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert [line.removeprefix(COLUMNS) for line in lines[:1]] == [",boundary_iou,true_objects"]
    assert [line.split(",")[-2:] for line in lines[1:]] == [["0.25", "2"], ["", ""]]


def test_failing_write_leaves_the_old_files(tmp_path: Path) -> None:
    write_scores(tmp_path, {"slices": [score("a", 1, 0.5)]}, {"mean_dice": 0.5})
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_scores(
            tmp_path, {"slices": [score("a", 1, 0.9)]}, {"mean_dice": 0.9, "device": object()}
        )
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
    assert list(item["prompts"]) == ["slices", "box3d"]
    assert item["prompts"]["slices"].slices.tolist() == [1, 2, 2, 3, 3, 4]
    assert not item["prompts"]["box3d"].drawn.any()
    assert len(CaseDataset(cases, {2: "spleen"})[0]["prompts"]["slices"]) == 2
    assert len(CaseDataset(cases, LABELS)[2]["prompts"]["slices"]) == 0
    assert CaseDataset(cases, LABELS, kinds="none")[0]["prompts"] == {"none": None}
    with pytest.raises(ValueError, match="kind of prompts 'boxes' is unknown"):
        CaseDataset(cases, LABELS, kinds=["slices", "boxes"])


def test_same_seed_same_boxes(cases: list[Any]) -> None:
    def boxes(seed: int, index: int = 0, jitter: float = 0.1) -> torch.Tensor:
        item = CaseDataset(cases, LABELS, jitter=jitter, seed=seed)[index]
        return item["prompts"]["slices"].boxes

    first = boxes(0)
    torch.manual_seed(7)
    assert torch.equal(first, boxes(0))
    assert not torch.equal(first, boxes(1))
    assert not torch.equal(first, boxes(0, jitter=0.0))
    # the same liver on the same slice in another case
    assert torch.equal(boxes(0, 0, 0.0)[0], boxes(0, 1, 0.0)[0])
    assert not torch.equal(first[0], boxes(0, 1)[0])


def ellipses(inputs: torch.Tensor, network: object, prompts: Any, **_: object) -> dict[str, Any]:
    """An inferer that fills boxes; nothing without them."""
    nothing = SlicePrompts.none()
    return {
        kind: EllipseInferer()(inputs, network, one or nothing) for kind, one in prompts.items()
    }


def evaluate(
    dataset: CaseDataset, inferer: object, *handlers: object, network: nn.Module | None = None
) -> SupervisedEvaluator:
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(dataset, batch_size=None),
        network=network or nn.Identity(),
        inferer=inferer,
        prepare_batch=prepare_case,
        val_handlers=list(handlers),
        decollate=False,
    )
    evaluator.run()
    return evaluator


def test_a_second_validation_encodes_nothing(cases: list[Any], tiny_sam: Any) -> None:
    network = tiny_sam(image_size=32)
    encoded: list[int] = []
    network.image_encoder.register_forward_hook(lambda *_: encoded.append(1))
    found = []
    for kept in (KeptEmbeddings(), None):
        inferer = VolumeInferer(kept=kept)
        for _ in range(2):
            encoded.clear()
            dataset = CaseDataset(cases, LABELS, jitter=0.1, kinds="slices,box3d")
            evaluator = evaluate(dataset, inferer, CaseScores(LABELS), network=network)
            found.append((len(encoded), evaluator.state.metrics))
    (first, scores), (second, again), (third, plain), (fourth, _) = found
    assert first == third == fourth > 0
    assert second == 0
    assert scores == again == plain


def test_evaluation_of_ellipses_scores_as_ellipses(cases: list[Any], tmp_path: Path) -> None:
    handler = CaseScores(LABELS, tmp_path / "out", about={"method": "ellipse"})
    dataset = CaseDataset(cases, LABELS, jitter=0.05, kinds="slices")
    evaluator = evaluate(dataset, ellipses, handler)
    metrics = evaluator.state.metrics
    assert metrics["mean_dice"] == metrics["mean_ellipse_dice"] > 0.5
    assert set(metrics) == {"mean_dice", "mean_iou", "mean_ellipse_dice"}
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["method"] == "ellipse"
    assert summary["mean_dice"] == metrics["mean_dice"]
    assert {k: (v["n"], v["n_empty"]) for k, v in summary["labels"].items()} == {
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


def test_row_101_each_kind_of_prompts_has_its_scores(cases: list[Any], tmp_path: Path) -> None:
    handler = CaseScores(LABELS, tmp_path / "out")
    dataset = CaseDataset(
        cases, LABELS, jitter=0.1, kinds="box3d,slices,interpolated:2,middle,none"
    )
    metrics = evaluate(dataset, ellipses, handler).state.metrics
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert list(summary["by_prompts"]) == dataset.kinds
    assert summary["prompts"] == "box3d"
    dice = {kind: each["mean_dice"] for kind, each in summary["by_prompts"].items()}
    assert summary["mean_dice"] == dice["box3d"]
    assert dice["none"] == 0
    assert len({*dice.values()}) == 5
    for kind in ("middle", "none"):  # without a box on every slice
        assert summary["by_prompts"][kind]["mean_ellipse_dice"] is None
    assert summary["by_prompts"]["slices"]["mean_ellipse_dice"] == dice["slices"]
    assert metrics["mean_dice"] == pytest.approx(sum(dice.values()) / 5)  # by it a run is chosen
    assert metrics["mean_dice/interpolated-2"] == dice["interpolated:2"]
    assert "mean_ellipse_dice/none" not in metrics
    folders = {path.parent.name for path in tmp_path.rglob("metrics.csv")}
    assert folders == {"out", "slices", "interpolated-2", "middle", "none"}
    for path in tmp_path.rglob("metrics.csv"):
        (kind,) = {row["prompts"] for row in csv.DictReader(path.open())}
        assert kind.replace(":", "-") == path.parent.name.replace("out", "box3d")
    ResultFolder(tmp_path / "out").refuse_others()


@pytest.mark.parametrize(
    ("kinds", "prompted", "message"),
    [
        (["slices", "none"], True, "prompts: 'none' asks for every label without a prompt, but"),
        (["slices", "points"], False, "slices, points: the model was trained without prompts"),
        (["slices", "slices"], None, "prompts name slices twice; name each kind once"),
        ([], None, r"prompts are \[\]; expected at least one of slices, box3d"),
        ("slice", None, r"'slice' is unknown; .* Did you mean 'slices'\?"),
    ],
)
def test_row_101_kinds_that_a_model_cannot_do_are_refused(
    kinds: str | list[str], prompted: bool | None, message: str
) -> None:
    refuse_kinds("[slices, 'interpolated:3']", prompted=True)
    refuse_kinds(["none"], prompted=False)
    refuse_kinds(["none", "middle"], prompted=None)
    with pytest.raises(ValueError, match=message):
        refuse_kinds(kinds, prompted)


def test_kinds_of_scans_are_refused_on_images() -> None:
    refuse_kinds("slices,points,none", prompted=None, flat=True)
    message = "prompts: box3d, middle: for scans; an image has one slice. Expected some of slices"
    with pytest.raises(ValueError, match=message):
        refuse_kinds("box3d,slices,middle", prompted=None, flat=True)


@pytest.mark.parametrize(
    ("labels", "kinds", "message"),
    [
        ({1: "liver"}, "slices", r"d.json: .*: 1 is 'liver' there, 'spleen' in the training"),
        ({3: "Spleen"}, "slices", "'Spleen' is 3 there, 1 in the training. Give a datalist of the"),
        ({1: "spleen", 3: "spleen"}, "none", "'spleen' is 3 there, 1 in the training"),
        ({3: "tumour"}, ["box3d", "none"], "not trained for 3 tumour, .* gives only 1 spleen"),
    ],
)
def test_labels_that_a_run_does_not_know_are_no_silent_zero(
    labels: dict[int, str], kinds: str | list[str], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        refuse_other_labels({1: "spleen"}, labels, "d.json", kinds)


def test_further_labels_are_told() -> None:
    refuse_other_labels({1: "spleen"}, {3: "tumour"}, "d.json", "box3d")
    with pytest.warns(UserWarning, match="3 tumour, and without prompts gives none of them"):
        refuse_other_labels({1: "spleen"}, {1: "spleen", 3: "tumour"}, "d.json", "none")


def test_voxels_that_nobody_annotated_are_left_out(tmp_path: Path) -> None:
    image, label = small_scan()
    label[:, 5:] = 9  # the upper half of both organs, and the background there
    store = SliceStore(tmp_path / "store", ScanRules(Window(100, 200)), {**LABELS, 9: "ignore"})
    path = write_nifti(tmp_path / "images" / "a.nii", image)
    case = Case(path, write_nifti(tmp_path / "labels" / "a.nii", label), "a")
    dataset = CaseDataset(store.prepare([case], progress=False), LABELS, kinds="slices")
    item = dataset[0]
    assert set(item["prompts"]["slices"].labels.tolist()) == set(LABELS)

    def everywhere(inputs: object, network: object, prompts: object, **_: object) -> Any:
        return {"slices": torch.ones_like(item["label"])}

    handler, strict = CaseScores(LABELS, ignore=9), CaseScores(LABELS)
    for one in (handler, strict):
        evaluate(dataset, everywhere, one)
    known = int((item["truth"] != 9).sum())
    assert [score.predicted_voxels for score in handler.scores["slices"]] == [known, 0]
    assert [score.predicted_voxels for score in strict.scores["slices"]] == [
        item["label"].numel(),
        0,
    ]
    true = int((item["truth"] == 1).sum())
    (liver, _), (same, _) = handler.scores["slices"], strict.scores["slices"]
    assert liver.dice == 2 * true / (true + known)
    assert liver.truth_voxels == same.truth_voxels == true


def test_second_run_starts_anew(cases: list[Any], tmp_path: Path) -> None:
    handler = CaseScores(LABELS)
    dataset = CaseDataset(cases, LABELS)
    evaluator = evaluate(dataset, ellipses, handler)
    first, metrics = dict(handler.scores), dict(evaluator.state.metrics)
    evaluator.run()
    assert handler.scores == first
    assert evaluator.state.metrics == metrics
    assert {kind: len(each) for kind, each in first.items()} == {"slices": 6, "box3d": 6}
    assert not (tmp_path / "out").exists()


def test_row_86_evaluation_of_nothing_writes_its_files(cases: list[Any], tmp_path: Path) -> None:
    handler = CaseScores(LABELS, tmp_path / "out")
    evaluator = evaluate(CaseDataset(cases[2:], LABELS), ellipses, handler)
    assert not evaluator.state.metrics
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["mean_dice"], summary["labels"]["1"]["n_empty"]) == (None, 1)
    assert len((tmp_path / "out" / "metrics.csv").read_text().splitlines()) == 3


def test_row_86_an_error_ends_the_evaluation_but_not_its_files(
    cases: list[Any], tmp_path: Path
) -> None:
    def second(*given: Any, **_: object) -> dict[str, Any]:
        if handler.scores:
            raise DataError("the second case")
        return ellipses(*given)

    handler = CaseScores(LABELS, tmp_path / "out")
    with pytest.raises(DataError, match="the second case"):
        evaluate(CaseDataset(cases, LABELS), second, handler)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["stopped_by"] == "DataError: the second case"
    assert summary["labels"]["1"]["n"] == 1


def test_row_86_cases_without_a_label_map_are_left_out(cases: list[Any]) -> None:
    bare = replace(cases[1], has_label=False)
    with pytest.warns(UserWarning, match="1 cases without a label map are left out: b"):
        dataset = CaseDataset([cases[0], bare], LABELS)
    assert [case.id for case in dataset.cases] == ["a"]
    with pytest.raises(DataError, match="none of 1 cases has a label map: b; expected one"):
        CaseDataset([bare], LABELS)


def test_row_86_validation_needs_a_label(
    cases: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    refuse_without_labels(cases, LABELS, "validation")
    assert not caplog.messages
    refuse_without_labels(cases[1:], LABELS, "validation")
    assert caplog.messages == [
        "no validation case has 2 spleen: not counted where it is not predicted"
    ]
    with pytest.raises(DataError, match="validation case with one of the labels 1 liver, 2 spleen"):
        refuse_without_labels(cases[2:], LABELS, "validation")


def test_objects_are_those_of_the_prompts_or_else_pieces() -> None:
    """Two houses that touch, both found: one piece, but two objects."""
    label = torch.tensor([[[1, 1, 1, 1, 0]]])
    numbers = torch.tensor([[[1, 1, 2, 2, 0]]], dtype=torch.int32)
    case = {"case": "a", "image": torch.zeros(1, 1, 1, 5), "label": label, "truth": label}
    case |= {"objects": numbers.numpy(), "components": 1, "prompts": {"none": None}}
    counts = []
    for answer in (label, Found(label, ()), Found(label, (), numbers=numbers)):
        scores = CaseScores({1: "house"})
        engine = Engine(lambda _, item, answer=answer: {"pred": {"none": answer}})
        scores.attach(engine)
        engine.run([case])
        (score,) = scores.scores["none"]
        counts.append((score.true_objects, score.found_objects, score.paired_objects))
    assert counts == [(2, 1, 0), (2, 1, 0), (2, 2, 2)]
