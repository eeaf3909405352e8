"""Scores of an evaluation, from each case to the files."""

from __future__ import annotations

import csv
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from itertools import chain, groupby, zip_longest
from pathlib import Path
from typing import Any, cast

import numpy as np
from ignite.engine import Engine, Events
from numpy.typing import NDArray
from torch import Tensor

from medsam_tune.cases.datalist import Case
from medsam_tune.errors import listed
from medsam_tune.evaluation.folder import ResultFolder
from medsam_tune.evaluation.label_maps import annotated
from medsam_tune.evaluation.metrics import EMPTY_RULES, Answer, Measures, Score, score_case
from medsam_tune.evaluation.report import write_report
from medsam_tune.evaluation.results import SUMMARY_FORMAT
from medsam_tune.evaluation.statistics import format_summary, summarise_kinds
from medsam_tune.evaluation.surfaces import IMPLEMENTATION
from medsam_tune.evaluation.words import people
from medsam_tune.evaluation.worst import worst_masks
from medsam_tune.files import FORMAT, written_whole
from medsam_tune.inference.canvas import Found, FoundObject, labels_of
from medsam_tune.inference.inferers import EllipseInferer
from medsam_tune.inference.simulated import parse_kind
from medsam_tune.prompts import SlicePrompts
from medsam_tune.ranks import gathered, is_main
from medsam_tune.slices.frames import resized
from medsam_tune.slices.objects import numbered


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
        output_dir: folder for the files of `write_scores` and the report, replaced as a whole
            at the end; None writes nothing.
        about: more entries of `summary.json`, such as the model.
        ignore: id of voxels that nobody annotated; they are left out of the scores.
        measures: what is measured beside the overlap; None for nothing.
        cases: cases of the datalist, which say the patients; without them, each case is a patient.
        by: columns of the datalist, such as the site, that the summary has groups of.

    Raises:
        ValueError: a column that no case has.
    """

    def __init__(
        self,
        labels: Mapping[int, str],
        output_dir: str | Path | ResultFolder | None = None,
        about: Mapping[str, Any] | None = None,
        ignore: int | None = None,
        measures: Measures | None = None,
        cases: Sequence[Case] = (),
        by: Sequence[str] = (),
    ) -> None:
        self.labels = labels
        self.ignore = ignore
        if isinstance(output_dir, (str, Path)):
            output_dir = ResultFolder(output_dir)
        self.results = output_dir
        self.about = dict(about or {})
        self.measures = measures
        if measures is not None:
            measures.warn_of_others(labels.values())
        self.scores: dict[str, list[Score]] = {}  # by kind of prompts
        self._dice: dict[str, dict[str, float | None]] = {}  # by case and kind, of its labels
        self._patients = patient_numbers(cases)
        self._columns = columns_of(cases, by)
        self._ellipse = EllipseInferer()
        self._since = 0.0
        self._summary: dict[str, Any] = {}
        self._deepest = 0  # slices of a case, at most

    def attach(self, engine: Engine) -> None:
        """Attach to an engine; MONAI calls it."""
        engine.add_event_handler(Events.STARTED, lambda _: self._start())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._score)
        # The metrics are there when handlers of TensorBoard and MLflow log an epoch's.
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._summarise)
        engine.add_event_handler(Events.COMPLETED, self._finish)
        if self.results is not None:
            engine.add_event_handler(Events.EXCEPTION_RAISED, self._stop)

    def _start(self) -> None:
        self._since = time.perf_counter()
        self._deepest = 0
        self.scores.clear()
        self._dice.clear()
        if self.results is not None:
            self.results.open()

    def _score(self, engine: Engine) -> None:
        state: Any = engine.state
        self._deepest = max(self._deepest, len(state.batch["truth"]))
        for kind, prediction in state.output["pred"].items():
            found = self._score_kind(state.batch, kind, prediction)
            self.scores.setdefault(kind, []).extend(found)
            dice = [score.dice for score in found if score.dice is not None]
            mean = float(np.mean(dice)) if dice else None
            self._dice.setdefault(state.batch["case"], {})[kind] = mean

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
        found = answer.numbers if isinstance(answer, Found) else None
        case = Answer(
            case=batch["case"],
            prompts=kind,
            prediction=prediction,
            truth=truth,
            ellipse=ellipse[0] if ellipse else None,
            objects=Counter(label for label, _ in asked),
            numbers=_numbers(batch, prediction, truth, found),
            spacing=batch.get("spacing"),
            patient=self._patients.get(batch["case"], ""),
            qualities=_qualities(answer.objects) if isinstance(answer, Found) else {},
        )
        return score_case(case, self.labels, self.measures)

    def mean_dice(self, case: str) -> dict[str, float | None]:
        """Kind of prompts -> Dice of a case, the mean of its labels; None where there is none."""
        return self._dice[case]

    def _summarise(self, engine: Engine) -> None:
        self.scores = together(gathered(self.scores))
        self._deepest = max(gathered(self._deepest))
        self._summary = summarise_kinds(self.scores, self._columns)
        engine.state.metrics |= _means(self._summary["by_prompts"])

    def _finish(self, engine: Engine) -> None:
        self._write(engine, self._summary, None)

    def _stop(self, engine: Engine, error: BaseException) -> None:
        """Write what was scored before the error, unless an evaluation is there; let it go on."""
        if self.results is not None and not self.results.path.exists():
            summary = summarise_kinds(self.scores, self._columns)
            self._write(engine, summary, f"{type(error).__name__}: {error}")
        raise error

    def _write(self, engine: Engine, summary: Mapping[str, Any], stopped_by: str | None) -> None:
        if self.results is not None and is_main():
            content = {
                **self.about,
                "cases": len({s.case for each in self.scores.values() for s in each}),
                "seconds": time.perf_counter() - self._since,
                "flat": self._deepest == 1,
                **measured_by(self.measures),
                **summary,
                "stopped_by": stopped_by,
            }
            write_scores(self.results.scratch, self.scores, content)
            self.results.finish()
            write_report(self.results.path)
            flat = self._deepest == 1
            lines = [format_summary(summary["by_prompts"], flat, people(content))]
            for kind, scores in [*self.scores.items()][:1]:
                if worst := worst_masks(scores):
                    lines += [f"the worst, {parse_kind(kind).words(flat)}", *worst]
            text = "\n".join(lines)
            engine.logger.info(f"{self.results.path}:\n{text}")


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


def patient_numbers(cases: Sequence[Case]) -> dict[str, str]:
    """Case -> number of its patient, from 1; results name no patient."""
    numbers: dict[str, str] = {}
    for case in cases:
        numbers.setdefault(case.patient, str(len(numbers) + 1))
    return {case.id: numbers[case.patient] for case in cases}


def columns_of(cases: Sequence[Case], by: Sequence[str]) -> dict[str, dict[str, str]]:
    """Columns of the datalist: name -> case -> value, "" where a case has none.

    Raises:
        ValueError: a column that no case has.
    """
    known = sorted({name for case in cases for name in case.columns})
    names = [str(name) for name in (by if isinstance(by, (list, tuple)) else [by])]
    for name in names:
        if name not in known:
            raise ValueError(
                f"by names the column {name!r}, which no case of the datalist has; there are: "
                f'{listed(known) or "none"}. Give each entry e.g. "site": "A".'
            )
    return {name: {case.id: case.columns.get(name, "") for case in cases} for name in names}


def measured_by(measures: Measures | None) -> dict[str, Any]:
    """Entries of `summary.json` on how it was measured."""
    if measures is None:
        return {}
    return {
        "measured_by": IMPLEMENTATION,
        "empty_rule": {"name": measures.empty, "both_empty": EMPTY_RULES[measures.empty]},
    }


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


def _qualities(objects: Sequence[FoundObject]) -> dict[int, float]:
    """Label -> mean of the qualities of its objects, by their numbers of slices."""
    found = {}
    for label in {one.label for one in objects if one.slices}:
        own = [one for one in objects if one.label == label]
        weights = [one.slices for one in own]
        found[label] = float(np.average([one.quality for one in own], weights=weights))
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
    content = json.dumps({FORMAT: SUMMARY_FORMAT, **summary}, indent=2) + "\n"
    tables: dict[Path, Sequence[Score]] = {}
    for kind, each in scores.items():
        place = folder / parse_kind(kind).file_name if tables else folder
        tables[place / "metrics.csv"] = each
    for path, each in (tables or {folder / "metrics.csv": ()}).items():
        with written_whole(path) as table, table.open("w", newline="") as file:
            # What is measured of images alone, or only on request, has a column where it is there.
            columns = [
                f.name
                for f in fields(Score)
                if f.default not in (None, "")
                or any(getattr(s, f.name) not in (None, "") for s in each)
            ]
            writer = csv.DictWriter(file, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(asdict(s) for s in each)
    with written_whole(folder / "summary.json") as text:
        text.write_text(content)
