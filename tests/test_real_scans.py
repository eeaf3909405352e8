"""The way from real MR cases to Dice, without a model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from monai.engines import SupervisedEvaluator

from medsam_tune.cases.folders import find_cases
from medsam_tune.cases.splits import split_cases
from medsam_tune.evaluation.cases import CaseDataset, prepare_case
from medsam_tune.evaluation.scores import CaseScores
from medsam_tune.evaluation.statistics import summarise
from medsam_tune.inference.inferers import EllipseInferer
from medsam_tune.slices.intensity import for_modality
from medsam_tune.slices.rules import ScanRules
from medsam_tune.slices.store import SliceStore


@pytest.mark.real_data
def test_ellipse_baseline_of_the_hippocampus(hippocampus: Path, tmp_path: Path) -> None:
    data = split_cases(find_cases(hippocampus), (0.7, 0.15, 0.15), seed=0)
    assert [len(data.subset(name)) for name in ("training", "validation", "test")] == [126, 27, 27]
    assert (data.modality, data.labels) == ("MR", {1: "Anterior", 2: "Posterior"})
    store = SliceStore(tmp_path / "s", ScanRules(for_modality(data.modality)), data.labels)
    cases = store.prepare(data.test, progress=False)
    dataset = CaseDataset(cases, data.labels, jitter=0.05, kinds="slices")
    scores = CaseScores(data.labels)
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=torch.utils.data.DataLoader(dataset, batch_size=None),
        network=torch.nn.Identity(),
        inferer=lambda image, _, by, **__: {
            kind: EllipseInferer()(image, _, by[kind]) for kind in by
        },
        prepare_batch=prepare_case,
        val_handlers=[scores],
        decollate=False,
    )
    evaluator.run()
    summary = summarise(scores.scores["slices"])
    # 0.76 and 0.78 over all cases: Dice of an ellipse in a hippocampus's box
    assert abs(summary["labels"]["1"]["dice"]["mean"] - 0.76) < 0.03
    assert abs(summary["labels"]["2"]["dice"]["mean"] - 0.79) < 0.03
    assert {entry["n"] for entry in summary["labels"].values()} == {27}
