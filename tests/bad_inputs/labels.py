"""Labels that no case of a subset has."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine

from medsam_tune.cases.datalist import Case
from medsam_tune.evaluation.cases import refuse_without_labels
from medsam_tune.evaluation.scores import CaseScores
from medsam_tune.inference.simulated import simulated_prompts
from medsam_tune.slices.intensity import Percentiles
from medsam_tune.slices.rules import ScanRules
from medsam_tune.slices.store import SliceStore
from tests.bad_inputs.table import NO_COUNTERPART, BadInput
from tests.scans import LABELS, small_scan, write_nifti


def pair(case: str, truth: int, predicted: int) -> dict[str, Any]:
    """A case of one voxel as `CaseDataset` gives it, and what a model makes of it."""
    label = torch.full((1, 1, 1), truth)
    return {
        "case": case,
        "image": torch.zeros(1, 1, 1, 1, dtype=torch.uint8),
        "prompts": {"slices": simulated_prompts(label, LABELS, "slices")},
        "truth": label,
        "predicted": {"slices": torch.full((1, 1, 1), predicted)},
    }


def evaluate(folder: Path, cases: list[dict[str, Any]]) -> tuple[list[str], dict[str, Any]]:
    """Dice cells of metrics.csv, and summary.json."""
    engine = Engine(lambda engine, case: {"pred": case["predicted"]})
    folder = folder / "evaluation"
    CaseScores(LABELS, folder).attach(engine)
    try:
        engine.run(cases)
    except KeyError:
        assert "predicted" not in cases[-1]  # the one that fails
    with (folder / "metrics.csv").open() as file:
        dice = [row["dice"] for row in csv.DictReader(file)]
    return dice, json.loads((folder / "summary.json").read_text())


def excluded_and_counted(found: tuple[list[str], dict[str, Any]]) -> None:
    dice, summary = found
    assert dice == ["1.0", "", "1.0", ""]
    assert summary["mean_dice"] == 1
    spleen = summary["labels"]["2"]
    assert (spleen["dice"]["mean"], spleen["n"], spleen["n_empty"]) == (None, 0, 2)


def zero(found: tuple[list[str], dict[str, Any]]) -> None:
    dice, summary = found
    assert dice == ["1.0", "", "0.0", "0.0"]
    assert summary["mean_dice"] == (0.5 + 0) / 2
    assert summary["labels"]["2"]["ellipse_dice"]["mean"] is None


def nothing_is_scored(found: tuple[list[str], dict[str, Any]]) -> None:
    dice, summary = found
    assert dice == [""] * 4
    assert (summary["mean_dice"], summary["stopped_by"]) == (None, None)


def part_is_kept(found: tuple[list[str], dict[str, Any]]) -> None:
    dice, summary = found
    assert dice == ["1.0", ""]
    assert (summary["mean_dice"], summary["stopped_by"]) == (1, "KeyError: 'predicted'")


def without_label(folder: Path) -> Any:
    """A prepared validation case whose label map is empty."""
    image, label = small_scan()
    case = Case(
        write_nifti(folder / "case_017.nii.gz", image),
        write_nifti(folder / "labels" / "case_017.nii.gz", label * 0),
        "p",
    )
    store = SliceStore(folder / "store", ScanRules(Percentiles()), LABELS)
    return store.prepare([case], progress=False)[0]


INPUTS: tuple[BadInput, ...] = (
    *(
        BadInput(
            86,
            name,
            what,
            lambda folder, ids=ids: (folder, [pair(f"c{n}", *one) for n, one in enumerate(ids)]),
            lambda made: evaluate(*made),
            NO_COUNTERPART,
            handled=handled,
            check=check,
        )
        for name, what, ids, handled, check in (
            (
                "label-in-no-case",
                "evaluation without a case of a label",
                [(1, 1), (1, 1)],
                "the label is excluded and counted",
                excluded_and_counted,
            ),
            (
                "predicted-only",
                "evaluation where a label is predicted and in no truth",
                [(1, 1), (1, 2)],
                "Dice 0",
                zero,
            ),
            (
                "no-label-at-all",
                "evaluation without any label, true or predicted",
                [(0, 0), (0, 0)],
                "both files are written, their means empty",
                nothing_is_scored,
            ),
        )
    ),
    BadInput(
        86,
        "evaluation-fails",
        "evaluation whose second case fails",
        lambda folder: (folder, [pair("c0", 1, 1), {"case": "c1"}]),
        lambda made: evaluate(*made),
        NO_COUNTERPART,
        handled="the files are written with what was scored, and the error",
        check=part_is_kept,
    ),
    BadInput(
        86,
        "validation-empty",
        "validation cases without any label",
        without_label,
        lambda case: refuse_without_labels([case], LABELS, "validation"),
        NO_COUNTERPART,
        r"^training needs a validation case with one of the labels 1 liver, 2 spleen, .* 1 "
        r"validation cases have no voxel of them: case_017\. Check their label maps",
    ),
)
