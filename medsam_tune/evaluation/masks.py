"""Scores of masks that somebody else made: another tool, or a second reader."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine

from medsam_tune.cases.datalist import Case, Datalist, read_datalist
from medsam_tune.cases.description import labels_said
from medsam_tune.cases.labels.open import open_label
from medsam_tune.cases.load import load_case
from medsam_tune.console import EngineProgress
from medsam_tune.errors import DataError, about, listed, warn
from medsam_tune.evaluation.about import about_data, about_machine
from medsam_tune.evaluation.folder import ResultFolder
from medsam_tune.evaluation.label_maps import renumbered
from medsam_tune.evaluation.metrics import Measures
from medsam_tune.evaluation.overlays import Overlays
from medsam_tune.evaluation.scores import CaseScores
from medsam_tune.files import read_json
from medsam_tune.formats.mending import Mending
from medsam_tune.formats.open import case_id
from medsam_tune.inference.simulated import MASKS
from medsam_tune.slices.cut import cut, cut_label
from medsam_tune.slices.intensity import for_modality
from medsam_tune.slices.rules import ScanRules


def evaluate_masks(
    masks: str | Path,
    datalist: str | Path,
    output: str | Path,
    subset: str = "test",
    measures: Measures | None = None,
    by: Sequence[str] = (),
    mending: Mending | None = None,
) -> Path:
    """Score the masks of a folder by the labels of a datalist, with every metric and the report.

    A mask is known by its name: that of the case, or of its image without nnU-Net's `_0000`. It may
    be of any kind that a label may be. Where a dataset.json in the folder names the labels, they
    are matched by name, else by id. A case without a mask counts as nothing predicted.

    Args:
        masks: folder of the masks.
        datalist: datalist, .json.
        output: folder for the results, `evaluation` in it.
        subset: subset that is scored.
        measures: what is measured; by default with the datalist's tolerance.
        by: columns of the datalist that the scores are grouped by.
        mending: choice of faults to mend in scans and masks.

    Returns:
        folder of the results.

    Raises:
        DataError: no such folder, no mask of any case, no label in common, no case with a label, or
            a refusal of a scan, label or mask.
    """
    masks, mending = Path(masks), mending or Mending()
    data = read_datalist(Path(datalist))
    cases = [case for case in data.subset(subset) if case.label is not None]
    without = len(data.subset(subset)) - len(cases)
    if not cases:
        raise DataError(f"{datalist}: no {subset} case has a label to score a mask by.")
    if without:
        warn(f"{without} cases without a label map are left out.")
    found = _masks_of(masks, cases)
    labels, numbers = _labels_of(masks, data)
    missing = [case.id for case in cases if case.id not in found]
    if missing:
        warn(f"{masks}: no mask of {listed(missing)}; counted as nothing predicted.")
    rules = ScanRules(for_modality(data.modality), modality=data.modality)
    results = ResultFolder(Path(output) / "evaluation")
    results.refuse_others()
    tolerance = 2.0 if data.tolerance is None else data.tolerance
    said = about_data(datalist, data, subset)
    scores = CaseScores(
        labels,
        results,
        {
            "subset": subset,
            "base": None,
            "tuning": None,
            "data": {**said, "without_label": without},
            "machine": about_machine(),
            "missing": missing,
        },
        data.ignore,
        measures or Measures(tolerance),
        cases,
        by,
    )
    pictures = Overlays(
        results.scratch / "overlays",
        labels,
        ignore=data.ignore,
        window=rules.intensity.words,
        scores=scores,
    )
    engine = Engine(lambda _, item: {"pred": {MASKS: item["mask"]}})
    engine.logger.setLevel(logging.INFO)
    for handler in (pictures, scores, EngineProgress("evaluate")):
        handler.attach(engine)
    items = (_item(case, found.get(case.id), data, numbers, rules, mending) for case in cases)
    engine.run(_Counted(items, len(cases)))
    return results.path


class _Counted:
    """An iterator with a length, as an engine wants it; read once."""

    def __init__(self, items: Iterator[dict[str, Any]], length: int) -> None:
        self.items, self.length = items, length

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self.items


def _masks_of(folder: Path, cases: Sequence[Case]) -> dict[str, Path]:
    """Case -> its mask in the folder."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; expected one with a mask for each case.")
    by_name: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if not path.name.startswith(".") and path.suffix.lower() not in (".json", ".pkl", ".csv"):
            by_name.setdefault(case_id(path), []).append(path)
    found = {}
    for case in cases:
        names = dict.fromkeys((case.id, case_id(case.image), case.id.removesuffix("_0000")))
        paths = next((by_name[name] for name in names if name in by_name), [])
        if len(paths) > 1:
            raise DataError(
                f"{folder}: case {case.id} has several masks: {listed(p.name for p in paths)}; "
                "expected one. Move the others away."
            )
        if paths:
            found[case.id] = paths[0]
    if not found:
        raise DataError(
            f"{folder}: no mask of any of {len(cases)} cases; expected files that are named like "
            f"the cases, such as {cases[0].id}.nii.gz. There are: {listed(by_name) or 'none'}."
        )
    return found


def _labels_of(folder: Path, data: Datalist) -> tuple[dict[int, str], dict[int, int]]:
    """Labels to score (id -> name), and id in the masks -> id in the datalist."""
    path = folder / "dataset.json"
    if not path.is_file():
        return dict(data.labels), {label: label for label in data.labels}
    theirs = labels_said(read_json(path), path).names
    ours = {name.casefold(): label for label, name in data.labels.items()}
    numbers = {k: ours[name.casefold()] for k, name in theirs.items() if name.casefold() in ours}
    if not numbers:
        raise DataError(
            f"{path}: its labels, {listed(theirs.values())}, are none of the datalist's: "
            f"{listed(data.labels.values())}. Give both the same names."
        )
    left = [name for label, name in data.labels.items() if label not in numbers.values()]
    if left:
        warn(f"{path}: the masks have no label {listed(left)}; it is not scored.")
    kept = {label: name for label, name in data.labels.items() if label in numbers.values()}
    others = {k: k for k in theirs if k not in numbers}  # known, and not scored
    return kept, {**dict.fromkeys(others, 0), **numbers}


def _item(
    case: Case,
    path: Path | None,
    data: Datalist,
    numbers: Mapping[int, int],
    rules: ScanRules,
    mending: Mending,
) -> dict[str, Any]:
    """A case as `CaseDataset` has it, with its mask."""
    image, label = load_case(case, data.labels_in_files, mending, rules.expected)
    if label is None:
        raise DataError(f"case {case.id}: has no label; expected one in the datalist.")
    slices, grid = cut(image, rules)
    truth = cut_label(label, grid)[0]
    mask = torch.zeros_like(truth)
    if path is not None:
        with about(f"mask of case {case.id}"):
            names = {k: data.labels.get(v, f"label {k}") for k, v in numbers.items()}
            given = open_label(path).onto(image, case.image, names, mending)
        mask = torch.from_numpy(renumbered(cut_label(given, grid)[0].numpy(), numbers))
    known = image.meta.get("spacing_known", True)
    return {
        "case": case.id,
        "image": slices,
        "label": truth,
        "truth": truth,
        "mask": mask,
        "prompts": {MASKS: None},
        "spacing": tuple(map(float, np.flip(grid.spacing))) if known else None,
        "axes": grid.axes,
    }
