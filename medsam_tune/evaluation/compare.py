"""Comparison of methods on the same cases: means, their intervals, what they cost, paired tests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, cast

import numpy as np

from medsam_tune.errors import DataError, listed
from medsam_tune.evaluation.learning import foretell
from medsam_tune.evaluation.results import Results, read_results
from medsam_tune.evaluation.statistics import (
    Row,
    bootstrap_interval,
    interval_note,
    paired_tests,
)
from medsam_tune.evaluation.words import people
from medsam_tune.inference.simulated import MASKS
from medsam_tune.methods.tuned import tuned_size
from medsam_tune.runs import RECORD, TUNED, read_state

ZERO_SHOT = "zero_shot"
"""Name of the untuned model among methods; they are tested against it."""

SCORES = {"dice": "Dice", "nsd": "NSD"}
"""Measures that are compared -> their names."""

NEARLY = 0.95
"""Share of the best validation Dice whose time is told."""

COSTS = (
    *("parameters", "bytes", "epochs", "minutes_per_epoch", "minutes_to_nearly_best"),
    "peak_bytes",
)
"""What a training costs."""


@dataclass(frozen=True)
class Method:
    """What a comparison knows of a method.

    Attributes:
        name: name in every table.
        runs: the evaluations of all its runs.
        results: for each seed, what its run was evaluated to; of a cross-validation, the held-out
            cases of all folds together.
        family: the method of a learning curve, whose point this is; None for no curve.
        patients: number of patients that it was trained with there.
    """

    name: str
    runs: tuple[Results, ...] = field(repr=False)
    results: tuple[Results, ...] = field(repr=False)
    family: str | None = None
    patients: int = 0

    @property
    def folders(self) -> list[Path]:
        """Folders of its runs, or of evaluations without a run."""
        return [
            one.folder.parent if one.folder.name == "evaluation" else one.folder
            for one in self.runs
        ]

    @property
    def kinds(self) -> list[str]:
        """Kinds of prompts that every seed was evaluated by."""
        first, *others = (one.rows for one in self.results)
        return [kind for kind in first if all(kind in each for each in others)]

    def values(self, kind: str, key: str, seed: int | None = None) -> dict[Hashable, float]:
        """A measure of each case and label, the mean over the seeds.

        Args:
            kind: kind of prompts; masks that somebody made count for every kind.
            key: key of `SCORES`.
            seed: place of the seed; None for all.

        Returns:
            (case, label) -> value; without the cases that have none.
        """
        found: dict[Hashable, list[float]] = {}
        for one in self.results if seed is None else [self.results[seed]]:
            for row in one.rows.get(self._own(kind), []):
                if row.get(key):
                    found.setdefault((row["case"], row["label"]), []).append(float(row[key]))
        return {place: float(np.mean(values)) for place, values in found.items()}

    def counts(self, kind: str) -> dict[str, tuple[int, float]]:
        """Label -> cases empty in truth and by every seed, and missed ones, mean of the seeds."""
        empty: dict[tuple[str, str], bool] = {}
        missed: Counter[str] = Counter()
        for row in (row for one in self.results for row in one.rows.get(self._own(kind), [])):
            true, found = (int(row[key]) > 0 for key in ("truth_voxels", "predicted_voxels"))
            place = (row["case"], row["label"])
            empty[place] = empty.get(place, True) and not true and not found
            missed[row["label"]] += true and not found
        empties = Counter(label for (_, label), none in empty.items() if none)
        return {one: (empties[one], count / len(self.results)) for one, count in missed.items()}

    def _own(self, kind: str) -> str:
        return MASKS if self.kinds == [MASKS] else kind


def read_method(
    name: str,
    folders: Sequence[str | Path | Sequence[str | Path]],
    family: str | None = None,
    patients: int = 0,
) -> Method:
    """Read the evaluations of a method.

    Args:
        name: name of the method.
        folders: folder of a run or of an evaluation for each seed, or those of its folds.
        family: the method of a learning curve, whose point this is.
        patients: number of patients that it was trained with there.

    Raises:
        DataError: no evaluation in a folder, see `read_results`.
    """
    seeds = [[one] if isinstance(one, (str, Path)) else one for one in folders]
    runs = [[read_results(one) for one in folds] for folds in seeds]
    return Method(name, (*chain(*runs),), tuple(map(_pooled, runs)), family, patients)


def _pooled(folds: Sequence[Results]) -> Results:
    """The cases of all folds; the patients of each have numbers of their own."""
    if len(folds) == 1:
        return folds[0]
    kinds = [kind for kind in folds[0].rows if all(kind in one.rows for one in folds)]
    rows = {
        kind: [
            {**row, "patient": f"{number}.{row.get('patient') or row['case']}"}
            for number, one in enumerate(folds)
            for row in one.rows[kind]
        ]
        for kind in kinds
    }
    return Results(folds[0].folder, folds[0].summary, rows)


def compare_methods(methods: Sequence[Method]) -> dict[str, Any]:
    """Compare methods, by each kind of prompts, as JSON.

    Means are over the labels of the means over their cases; intervals are over patients, who keep
    their cases; of several seeds, a case's score is the mean of theirs.

    Args:
        methods: in the order of the tables.

    Returns:
        `flat`: whether the cases are 2-D images; `grouped_by`: "patient", or "group" of pictures;
        `methods`: name -> `seeds`, their number; `COSTS` of a training (None of what was not
        trained); `by_prompts`: kind ->
        measure -> `n`, `n_empty`, `n_missed` (see `Method.counts`), `n_patients`, `mean`,
        `interval`, `note`, `seeds` (the mean of each), and `labels`: name -> the same.
        `tolerances`: name of a label -> `name`, `tolerance` of the NSD and its `unit`.
        `by_prompts`: kind -> `reference`, whom the others are tested against: the untuned model,
        or else the best; and `tests`: measure -> see `paired_tests`.
        `learning`: method of a learning curve -> kind -> `points` (`patients`, `name`, and `n`,
        `mean`, ... of the Dice as above), and what `foretell` gives.

    Raises:
        DataError: fewer than one method, or one that was scored on other cases, at another
            tolerance or by another rule for empty masks.
    """
    if not methods:
        raise DataError("no method was evaluated; there is nothing to compare.")
    _refuse_other_cases(methods)
    tolerances = _tolerances(methods)
    patients, names = _patients(methods), _label_names(methods)
    summary = methods[0].results[0].summary
    said = {"flat": summary.get("flat", False), "grouped_by": people(summary)}
    found: dict[str, Any] = {**said, "tolerances": tolerances, "methods": {}, "by_prompts": {}}
    for method in methods:
        by_prompts = {
            kind: {key: _measure(method, kind, key, patients, names) for key in SCORES}
            for kind in method.kinds
        }
        about = {"seeds": len(method.results), **_cost(method.folders)}
        found["methods"][method.name] = {**about, "by_prompts": by_prompts}
    kinds = dict.fromkeys(kind for one in methods for kind in one.kinds if kind != MASKS)
    for kind in kinds or [MASKS]:
        there = [one for one in methods if one.values(kind, "dice")]
        tests = {
            key: paired_tests({one.name: one.values(kind, key) for one in there}, patients)
            for key in SCORES
        }
        entry = {"reference": _reference(there, kind), "tests": tests}
        found["by_prompts"][kind] = entry
    found["learning"] = _learning(methods, found, patients)
    return found


def _learning(
    methods: Sequence[Method], found: Mapping[str, Any], patients: Mapping[Hashable, Hashable]
) -> dict[str, Any]:
    """The learning curves, by method and kind of prompts."""
    curves: dict[str, Any] = {}
    for family in dict.fromkeys(one.family for one in methods if one.family):
        members = sorted(
            (one for one in methods if one.family == family), key=lambda one: one.patients
        )
        curves[family] = {}
        for kind in members[0].kinds:
            there = [one for one in members if kind in one.kinds]
            trainings = {
                one.patients: [one.values(kind, "dice", n) for n in range(len(one.results))]
                for one in there
            }
            points = [
                {
                    **{"patients": one.patients, "name": one.name},
                    **found["methods"][one.name]["by_prompts"][kind]["dice"],
                }
                for one in there
            ]
            told = foretell(trainings, patients, of=found["grouped_by"])
            curves[family][kind] = {"points": points, **told}
    return curves


def test_against(tests: Sequence[Mapping[str, Any]], name: str, other: str) -> dict[str, Any]:
    """The test of a method against another one, of `paired_tests`; empty for the same method.

    Its `difference`, `interval` and `effect` are positive where `name` is better.
    """
    for test in tests:
        if (test["first"], test["second"]) == (other, name):
            return dict(test)
        if (test["first"], test["second"]) == (name, other):
            low_high = test["interval"]
            return {
                **test,
                "difference": _negative(test["difference"]),
                "interval": low_high and [-low_high[1], -low_high[0]],
                "effect": _negative(test["effect"]),
            }
    return {}


def _negative(value: float | None) -> float | None:
    return None if value is None else -value


def _refuse_other_cases(methods: Sequence[Method]) -> None:
    cases = {
        f"{method.name}, {one.folder}": {row["case"] for row in one.first}
        for method in methods
        for one in method.results
    }
    first, *others = cases
    for folder in others:
        if other := cases[folder] ^ cases[first]:
            raise DataError(
                f"{folder}: was evaluated on other cases than {first}: {listed(sorted(other), 3)} "
                "in one of them alone. Evaluate both on the same datalist."
            )


def _tolerances(methods: Sequence[Method]) -> dict[str, dict[str, Any]]:
    """Name of a label -> its `name`, and the `tolerance` and `unit` of the NSD."""
    found: dict[str, dict[str, Any]] = {}
    rules: dict[str, str] = {}
    for method in methods:
        for one in method.runs:
            rule = (one.summary.get("empty_rule") or {}).get("name")
            said = {"": f"{rule or 'no rule'} of empty masks"}
            for label in one.labels.values():
                said[label["name"]] = f"NSD at {label['tolerance']}"
                found[label["name"]] = {key: label[key] for key in ("name", "tolerance", "unit")}
            for name, how in said.items():
                if (before := rules.setdefault(name, how)) != how:
                    raise DataError(
                        f"{method.name}, {one.folder}: was scored by {how}{name and f' ({name})'}, "
                        f"and {methods[0].name} by {before}. Evaluate both by the same settings."
                    )
    return found


def _patients(methods: Sequence[Method]) -> dict[Hashable, Hashable]:
    """(Case, label) -> patient, as the first evaluation numbers them."""
    of_case: dict[str, str] = {}
    found: dict[Hashable, Hashable] = {}
    for method in methods:
        for one in method.results:
            for row in (row for rows in one.rows.values() for row in rows):
                patient = row.get("patient") or row["case"]
                found[(row["case"], row["label"])] = of_case.setdefault(row["case"], patient)
    return found


def _label_names(methods: Sequence[Method]) -> dict[str, str]:
    return {
        row["label"]: row["name"]
        for method in methods
        for one in method.results
        for rows in one.rows.values()
        for row in rows
    }


def _measure(
    method: Method,
    kind: str,
    key: str,
    patients: Mapping[Hashable, Hashable],
    names: Mapping[str, str],
) -> dict[str, Any]:
    values, counts = method.values(kind, key), method.counts(kind)
    by_label: dict[str, list[Row]] = {}
    for place, value in values.items():
        label = _label(place)
        by_label.setdefault(label, []).append((patients[place], label, value))
    seeds = [_mean(method.values(kind, key, seed)) for seed in range(len(method.results))]
    every = [row for rows in by_label.values() for row in rows]
    return {
        **_spread(every, _mean(values), [*counts.values()]),
        "seeds": seeds,
        "labels": {
            names[label]: _spread(rows, float(np.mean([row[2] for row in rows])), [counts[label]])
            for label, rows in by_label.items()
        },
    }


def _spread(
    rows: Sequence[Row], mean: float | None, counts: Sequence[tuple[int, float]]
) -> dict[str, Any]:
    patients = len({row[0] for row in rows})
    return {
        "n": len(rows),
        "n_empty": sum(empty for empty, _ in counts),
        "n_missed": sum(missed for _, missed in counts),
        "n_patients": patients,
        "mean": mean,
        "interval": bootstrap_interval(rows),
        "note": interval_note(patients),
    }


def _label(place: Hashable) -> str:
    """Label of a (case, label)."""
    return cast(tuple[str, str], place)[1]


def _mean(values: Mapping[Hashable, float]) -> float | None:
    """Mean over labels of the means over cases."""
    by_label: dict[Hashable, list[float]] = {}
    for place, value in values.items():
        by_label.setdefault(_label(place), []).append(value)
    return float(np.mean([np.mean(one) for one in by_label.values()])) if by_label else None


def _reference(methods: Sequence[Method], kind: str) -> str | None:
    """The untuned model; else the method with the best Dice."""
    names = [one.name for one in methods]
    if ZERO_SHOT in names or not names:
        return ZERO_SHOT if names else None
    return max(methods, key=lambda one: _mean(one.values(kind, "dice")) or 0.0).name


def _cost(folders: Sequence[Path]) -> dict[str, Any]:
    """What the trainings in some folders took; the mean of the seeds."""
    trained = [path for path in folders if (path / RECORD).is_file() and (path / TUNED).is_file()]
    if not trained:
        return dict.fromkeys(COSTS)
    states = [read_state(path) for path in trained]
    epochs = [state.get("epoch", 0) for state in states]
    seconds = sum(state.get("seconds", 0.0) for state in states)
    parameters, size = tuned_size(trained[0] / TUNED)
    peaks = [state["peak_bytes"] for state in states if state.get("peak_bytes")]
    reached = [minutes for state in states if (minutes := _minutes_to(NEARLY, state)) is not None]
    return {
        "parameters": parameters,
        "bytes": size,
        "epochs": float(np.mean(epochs)),
        "minutes_per_epoch": seconds / 60 / sum(epochs) if sum(epochs) and seconds else None,
        "minutes_to_nearly_best": float(np.mean(reached)) if reached else None,
        "peak_bytes": max(peaks, default=None),
    }


def _minutes_to(share: float, state: Mapping[str, Any]) -> float | None:
    """Minutes until a validation had so much of the best Dice; None of a training without one."""
    validations = state.get("validations") or ()
    best = max((one["dice"] for one in validations), default=0.0)
    reached = (one["seconds"] / 60 for one in validations if one["dice"] >= share * best)
    return next(reached, None)
