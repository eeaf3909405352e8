"""Scores of masks that somebody else made: another tool, or a second reader."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from numpy.typing import NDArray
from torch import Tensor

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
from medsam_tune.files import named_hash, read_json
from medsam_tune.formats.mending import Mending
from medsam_tune.formats.open import case_id, read_grid
from medsam_tune.formats.volume import Region
from medsam_tune.inference.canvas import Found
from medsam_tune.inference.simulated import MASKS
from medsam_tune.slices.cut import cut, cut_label
from medsam_tune.slices.frames import ScanGrid
from medsam_tune.slices.intensity import for_modality
from medsam_tune.slices.objects import numbered
from medsam_tune.slices.rules import ScanRules

NAMES = "dataset.json"
"""File beside the masks that names their labels."""
_BESIDE = (".json", ".pkl", ".csv", ".npz")  # what nnU-Net writes beside its masks, too


def evaluate_masks(
    masks: str | Path,
    datalist: str | Path,
    output: str | Path,
    subset: str = "test",
    tolerance: float | Mapping[str, float] | None = None,
    empty: str = "exclude",
    by: Sequence[str] = (),
    mending: Mending | None = None,
    pictures: int = 2,
    components: int | None = None,
) -> Path:
    """Score the masks of a folder by the labels of a datalist, with every metric and the report.

    A mask is known by its name: that of the case, or of its image without nnU-Net's `_0000`. It may
    be of any kind that a label may be. Where a dataset.json in the folder names the labels, they
    are matched by name, else by id. A case without a mask counts as nothing predicted.

    Args:
        masks: folder of the masks.
        datalist: datalist, .json.
        output: folder for the results, `evaluation` in it; of another subset than test
            `evaluation_validation` or `evaluation_training`.
        subset: subset that is scored.
        tolerance: of NSD, see `Measures`; None for the datalist's, or else 2 mm.
        empty: what a label counts that neither the truth nor the mask has, see `EMPTY_RULES`.
        by: columns of the datalist that the scores are grouped by.
        mending: choice of faults to mend in scans and masks.
        pictures: number of cases with a picture in the report, of each: worst, median, best.
        components: pixels of the smallest piece of a label that is an object of its own, see
            `ScanRules`; None: a label is one object, and objects are not counted.

    Returns:
        folder of the results.

    Raises:
        DataError: no such folder, no mask of any case, no label in common, no case with a label, or
            a refusal of a scan, label or mask.
        ValueError: see `Measures` and `CaseScores`.
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
    rules = ScanRules(for_modality(data.modality), modality=data.modality, components=components)
    place = "evaluation" if subset == "test" else f"evaluation_{subset}"
    results = ResultFolder(Path(output) / place)
    results.refuse_others()
    if tolerance is None:
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
            "masks": masks_hash(masks),
        },
        data.ignore,
        Measures(tolerance, empty=empty),
        cases,
        by,
    )
    overlays = Overlays(
        results.scratch / "overlays",
        labels,
        ignore=data.ignore,
        window=rules.intensity.words,
        count=pictures,
        scores=scores,
    )
    engine = Engine(lambda _, item: {"pred": {MASKS: item["mask"]}})
    engine.logger.setLevel(logging.INFO)
    for handler in (overlays, scores, EngineProgress("evaluate")):
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


def masks_hash(folder: Path) -> str:
    """Hash of all masks of a folder and of what names their labels, which a summary keeps.

    Raises:
        DataError: no such folder.
    """
    names = [folder / NAMES] if (folder / NAMES).is_file() else []
    inside = [path for one in _masks_in(folder) for path in (one, *one.rglob("*"))]
    return named_hash(folder, [path for path in (*names, *inside) if path.is_file()])


def _masks_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; expected one with a mask for each case.")
    there = (path for path in sorted(folder.iterdir()) if not path.name.startswith("."))
    return [path for path in there if path.suffix.lower() not in _BESIDE]


def _masks_of(folder: Path, cases: Sequence[Case]) -> dict[str, Path]:
    """Case -> its mask in the folder."""
    by_name: dict[str, list[Path]] = {}
    for path in _masks_in(folder):
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
    path = folder / NAMES
    if not path.is_file():
        return dict(data.labels), {**{k: k for k in data.labels}, **data.coding.united}
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
    if path is None:
        mask = Found(torch.zeros_like(truth), ())
    else:
        with about(f"mask of case {case.id}"):
            names = {k: data.labels.get(v, f"label {k}") for k, v in numbers.items()}
            region = None if case.region is None else _region_in(path, case.region)
            given = open_label(path, region=region).onto(image, case.image, names, mending)
        theirs = torch.from_numpy(renumbered(cut_label(given, grid)[0].numpy(), numbers))
        pieces = _objects(theirs, given, grid, rules.components)
        mask = Found(theirs, (), numbers=None if pieces is None else torch.from_numpy(pieces))
    known = image.meta.get("spacing_known", True)
    return {
        "case": case.id,
        "image": slices,
        "label": truth,
        "truth": truth,
        "objects": _objects(truth, label, grid, rules.components),
        "components": rules.components,
        "mask": mask,
        "prompts": {MASKS: None},
        "spacing": tuple(map(float, np.flip(grid.spacing))) if known else None,
        "axes": grid.axes,
    }


def _region_in(mask: Path, region: Region) -> Region | None:
    """The part of a mask that belongs to a part of an image; None for a mask of that part alone."""
    x0, y0, x1, y1 = region
    return None if tuple(read_grid(mask).shape[:2]) == (x1 - x0, y1 - y0) else region


def _objects(
    slices: Tensor, label: MetaTensor, grid: ScanGrid, smallest: int | None
) -> NDArray[np.int32] | None:
    """Numbers of the objects of a label map in slices; None: a label is one object.

    Args:
        slices: (Z, H, W) label ids.
        label: (C, X, Y, Z) the same as it was read; a second channel tells objects apart.
        grid: grid of the slices.
        smallest: see `ScanRules.components`.
    """
    if smallest is None:
        return None
    apart = cut_label(cast(MetaTensor, label[1:]), grid)[0].numpy() if len(label) > 1 else None
    return numbered(slices.numpy(), smallest, apart)
