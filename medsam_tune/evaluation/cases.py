"""Evaluation of whole cases: prompts of several kinds from their labels, scores to files."""

from __future__ import annotations

import csv
import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from itertools import chain, groupby, zip_longest
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from ignite.engine import Engine, Events
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from medsam_tune.errors import DataError, listed, warn
from medsam_tune.evaluation.folder import ResultFolder
from medsam_tune.evaluation.metrics import Score, annotated, score_case
from medsam_tune.evaluation.statistics import format_summary, summarise_kinds
from medsam_tune.files import written_whole
from medsam_tune.inference.canvas import Found, labels_of
from medsam_tune.inference.inferers import EllipseInferer
from medsam_tune.inference.simulated import parse_kind, parse_kinds, simulated_prompts
from medsam_tune.prompts import SlicePrompts
from medsam_tune.ranks import gathered, is_main
from medsam_tune.slices.frames import resized
from medsam_tune.slices.objects import numbered
from medsam_tune.slices.store import PreparedCase


class CaseDataset(Dataset[dict[str, Any]]):
    """Whole prepared cases with prompts from their own labels, for validation and evaluation.

    An item is `image` (Z, C, H, W) uint8, `label` (Z, H, W) int64, `truth`, the label in the scan's
    own grid (equal to `label` unless slices are resampled), `prompts` (a dict from each kind to its
    `SlicePrompts`, or to None for "none"), `case`, and `objects` (Z, H, W) int32 and `components`,
    see `PreparedCase`; both None where a label is one object. The same case, kind, seed and jitter
    give the same prompts for every model. Cases without a label map are left out with a warning.

    Args:
        cases: cases from `SliceStore.prepare`, with labels.
        labels: label id -> name.
        jitter: standard deviation of each box side's shift as a share of the side.
        seed: seed of the jitter.
        kinds: kinds of prompts, see `inference.simulated`.

    Raises:
        DataError: no case has a label map.
        ValueError: an unknown kind, one twice, or none at all.
    """

    def __init__(
        self,
        cases: Sequence[PreparedCase],
        labels: Mapping[int, str],
        jitter: float = 0.0,
        seed: int = 0,
        kinds: str | Sequence[str] = ("slices", "box3d"),
    ) -> None:
        self.kinds = parse_kinds(kinds)
        self.cases = [case for case in cases if case.has_label]
        left_out = [case.id for case in cases if not case.has_label]
        if left_out and not self.cases:
            raise DataError(
                f"none of {len(left_out)} cases has a label map: {listed(left_out)}; expected one "
                "to score a prediction by. Name it in the datalist. `medsam-tune predict` needs "
                "none."
            )
        if left_out:
            warn(f"{len(left_out)} cases without a label map are left out: {listed(left_out)}.")
        self.labels = labels
        self.jitter = jitter
        self.seed = seed

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> dict[str, Any]:
        case = self.cases[index]
        label = torch.from_numpy(case.label().astype(np.int64))
        numbers = case.objects()
        objects = None if numbers is None else torch.from_numpy(numbers)
        prompts = {
            kind: simulated_prompts(
                label, self.labels, kind, self.jitter, self.seed, case.id, objects
            )
            for kind in self.kinds
        }
        return {
            "image": torch.from_numpy(case.image()),
            "label": label,
            "objects": numbers,
            "components": case.components,
            "truth": torch.from_numpy(case.truth().astype(np.int64)) if case.has_truth else label,
            "prompts": prompts,
            "case": case.id,
        }


def refuse_without_labels(
    cases: Sequence[PreparedCase], labels: Mapping[int, str], subset: str
) -> None:
    """Refuse cases by which no checkpoint can be chosen, before the first epoch.

    Labels that some of them lack are logged: they are not scored where they are not predicted.

    Args:
        cases: prepared cases of the subset.
        labels: label id -> name.
        subset: its name.

    Raises:
        DataError: no case has a voxel of one of the labels.
    """
    present = {k for case in cases for ids in case.labels_in_slice for k in ids}
    missing = [f"{k} {name}" for k, name in labels.items() if k not in present]
    if len(missing) == len(labels):
        raise DataError(
            f"training needs a {subset} case with one of the labels {listed(missing)}, as their "
            f"Dice chooses the checkpoint; {len(cases)} {subset} cases have no voxel of them: "
            f"{listed(case.id for case in cases)}. Check their label maps, or split again: "
            "medsam-tune split"
        )
    if missing:
        logging.getLogger(__name__).info(
            f"no {subset} case has {listed(missing)}: not counted where it is not predicted"
        )


def refuse_other_labels(
    trained: Mapping[int, str], labels: Mapping[int, str], datalist: str | Path
) -> None:
    """Refuse a datalist whose labels mean something else than those of the training.

    Args:
        trained: label id -> name of the model.
        labels: label id -> name of the datalist.
        datalist: its path, for the message.

    Raises:
        DataError: an id with two names.
    """
    other = [
        f"{k} is {name!r} there, {trained[k]!r} in the training"
        for k, name in labels.items()
        if k in trained and trained[k] != name
    ]
    if other:
        raise DataError(
            f"{datalist}: its labels are not those of the run: {listed(other, separator='; ')}. "
            "Give a datalist of the same labels."
        )


def refuse_kinds(kinds: str | Sequence[str], prompted: bool | None) -> None:
    """Refuse kinds of prompts that a model cannot do, before any work.

    Args:
        kinds: kinds of prompts, see `inference.simulated`.
        prompted: whether the model needs prompts, see `RunRecord.prompted`.

    Raises:
        ValueError: an unknown kind, one twice, none at all, or one that the model cannot do.
    """
    wanted = parse_kinds(kinds)
    if "none" in wanted and prompted:
        raise ValueError(
            "prompts: 'none' asks for every label without a prompt, but the model segments what is "
            "prompted. Leave 'none' out, or evaluate a run that was trained for it."
        )
    others = [kind for kind in wanted if kind != "none"]
    if others and prompted is False:
        raise ValueError(
            f"prompts: {', '.join(others)}: the model was trained without prompts; expected 'none'."
        )


def prepare_case(
    item: dict[str, Any], device: torch.device, non_blocking: bool = False, **_: Any
) -> tuple[Tensor, Tensor, tuple[dict[str, SlicePrompts | None]], dict[str, Any]]:
    """`prepare_batch` of an evaluator over `CaseDataset`; volumes stay where they are loaded."""
    return item["image"], item["label"], (item["prompts"],), {}


class CaseScores:
    """Handler of an evaluator: scores each case by each kind of prompts, and at the end the set.

    The evaluator's `pred` is a dict from the kinds of `CaseDataset` to (Z, H, W) label slices, or
    to a `Found` of such.

    `engine.state.metrics` gets `mean_dice`, `mean_iou` and `mean_ellipse_dice`, the means over the
    kinds, as far as there is something to score; of several kinds also those of each, as
    `mean_dice/box3d`. An evaluation that an error ends writes its files as well, unless those of
    an earlier one are there; `stopped_by` in `summary.json` is then the error, else null. Several
    ranks score their cases each, and have all scores at the end; the first writes.

    Args:
        labels: label id -> name.
        output_dir: folder for the files of `write_scores`, replaced as a whole at the end; None
            writes nothing.
        about: more entries of `summary.json`, such as the model.
        ignore: id of voxels that nobody annotated; they are left out of the scores.
    """

    def __init__(
        self,
        labels: Mapping[int, str],
        output_dir: str | Path | ResultFolder | None = None,
        about: Mapping[str, Any] | None = None,
        ignore: int | None = None,
    ) -> None:
        self.labels = labels
        self.ignore = ignore
        if isinstance(output_dir, (str, Path)):
            output_dir = ResultFolder(output_dir)
        self.results = output_dir
        self.about = dict(about or {})
        self.scores: dict[str, list[Score]] = {}  # by kind of prompts
        self._ellipse = EllipseInferer()

    def attach(self, engine: Engine) -> None:
        """Attach to an engine; MONAI calls it."""
        engine.add_event_handler(Events.STARTED, lambda _: self._start())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._score)
        engine.add_event_handler(Events.COMPLETED, self._finish)
        if self.results is not None:
            engine.add_event_handler(Events.EXCEPTION_RAISED, self._stop)

    def _start(self) -> None:
        self.scores.clear()
        if self.results is not None:
            self.results.open()

    def _score(self, engine: Engine) -> None:
        state: Any = engine.state
        for kind, prediction in state.output["pred"].items():
            found = self._score_kind(state.batch, kind, prediction)
            self.scores.setdefault(kind, []).extend(found)

    def _score_kind(
        self, batch: Mapping[str, Any], kind: str, answer: Tensor | Found
    ) -> list[Score]:
        """Scores of one case by one kind of prompts, in the scan's own grid."""
        prediction = cast(Tensor, labels_of(answer))
        maps = [prediction]
        if parse_kind(kind).boxed:
            maps.append(self._ellipse(batch["image"], None, batch["prompts"][kind]))
        truth = batch["truth"].to(prediction.device)
        own = (truth.shape[0], truth.shape[1], truth.shape[2])
        maps = [resized(one[None].to(truth.device), own, nearest=True)[0] for one in maps]
        truth, prediction, *ellipse = annotated(truth, *maps, truth=truth, ignore=self.ignore)
        given: SlicePrompts | None = batch["prompts"][kind]
        asked = {*zip(given.labels.tolist(), given.objects.tolist(), strict=True)} if given else ()
        objects = Counter(label for label, _ in asked)
        only = ellipse[0] if ellipse else None
        found = answer.numbers if isinstance(answer, Found) else None
        numbers = _numbers(batch, prediction, truth, found)
        return score_case(
            batch["case"], kind, prediction, truth, only, self.labels, objects, numbers
        )

    def _finish(self, engine: Engine) -> None:
        self.scores = together(gathered(self.scores))
        summary = summarise_kinds(self.scores)
        engine.state.metrics |= _means(summary["by_prompts"])
        self._write(engine, summary, None)

    def _stop(self, engine: Engine, error: BaseException) -> None:
        """Write what was scored before the error, unless an evaluation is there; let it go on."""
        if self.results is not None and not self.results.path.exists():
            self._write(engine, summarise_kinds(self.scores), f"{type(error).__name__}: {error}")
        raise error

    def _write(self, engine: Engine, summary: Mapping[str, Any], stopped_by: str | None) -> None:
        if self.results is not None and is_main():
            content = {**self.about, **summary, "stopped_by": stopped_by}
            write_scores(self.results.scratch, self.scores, content)
            self.results.finish()
            table = format_summary(summary["by_prompts"])
            engine.logger.info(f"{self.results.path}:\n{table}")


def _numbers(
    batch: Mapping[str, Any], prediction: Tensor, truth: Tensor, found: Tensor | None
) -> tuple[NDArray[np.int32], NDArray[np.int32]] | None:
    """Numbers of the objects of a prediction and of its truth; None where a label is one object.

    The prediction's are `found`, those of the prompts, or else its connected components.
    """
    smallest, objects = batch.get("components"), batch.get("objects")
    if smallest is None or objects is None or objects.shape != truth.shape:
        return None
    if found is not None and found.shape == truth.shape:
        return found.cpu().numpy().astype(np.int32), objects
    return numbered(prediction.cpu().numpy(), smallest), objects


def together(parts: Sequence[Mapping[str, Sequence[Score]]]) -> dict[str, list[Score]]:
    """The scores of all cases, as one process would have them.

    Args:
        parts: of each rank, kind of prompts -> scores of its share of the cases, see `ranks.Share`.
    """
    found: dict[str, list[Score]] = {}
    for kind in parts[0]:
        cases = [
            [list(group) for _, group in groupby(part[kind], key=lambda score: score.case)]
            for part in parts
        ]
        in_turn = [group for row in zip_longest(*cases, fillvalue=[]) for group in row if group]
        # The last ones of some are those of others once more.
        found[kind] = [*chain(*{group[0].case: group for group in in_turn}.values())]
    return found


def _means(by_prompts: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Metrics of an evaluator: means over the kinds, and of several kinds those of each."""
    metrics: dict[str, float] = {}
    for key in ("mean_dice", "mean_iou", "mean_ellipse_dice"):
        found = {k: each[key] for k, each in by_prompts.items() if each[key] is not None}
        if found:
            metrics[key] = sum(found.values()) / len(found)
        if len(by_prompts) > 1:
            metrics |= {f"{key}/{parse_kind(k).file_name}": value for k, value in found.items()}
    return metrics


def write_scores(
    folder: Path, scores: Mapping[str, Sequence[Score]], summary: Mapping[str, Any]
) -> None:
    """Write `summary.json`, and a `metrics.csv` for each kind, each whole or not at all.

    Args:
        folder: folder for the files; that of the first kind lies in it, those of further kinds in
            folders of theirs, such as `interpolated-5/metrics.csv`.
        scores: kind of prompts -> scores.
        summary: content of `summary.json`.
    """
    content = json.dumps(summary, indent=2) + "\n"
    tables: dict[Path, Sequence[Score]] = {}
    for kind, each in scores.items():
        place = folder / parse_kind(kind).file_name if tables else folder
        tables[place / "metrics.csv"] = each
    for path, each in (tables or {folder / "metrics.csv": ()}).items():
        with written_whole(path) as table, table.open("w", newline="") as file:
            # Borders and objects are columns of images alone.
            columns = [
                f.name
                for f in fields(Score)
                if f.default is not None or any(getattr(s, f.name) is not None for s in each)
            ]
            writer = csv.DictWriter(file, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(asdict(s) for s in each)
    with written_whole(folder / "summary.json") as text:
        text.write_text(content)
