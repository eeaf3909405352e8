"""Trainings and evaluations of many methods on one split, and their comparison.

    O/settings.json         what the comparison is of; another one is refused
    O/zero_shot             the untuned model
    O/lora, O/lora-seed1    a run for each method and seed
    O/lora-5, O/lora-5-seed1, O/few_shot/5-seed0.json
                            the same with 5 training patients, and which ones; each seed has others
    O/lora-fold1, O/folds/0.json
                            the same of each fold of a cross-validation
    O/NAME                  the evaluation of masks that somebody else made
    O/compare.html          with .md, .csv and .json

What is done is not done again: a finished training is kept, a stopped one is continued, and an
evaluation by all kinds of prompts is read. Masks of others are scored again once they change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from medsam_tune.bundle import run_bundle, training_configs
from medsam_tune.cases.datalist import read_datalist, write_datalist
from medsam_tune.cases.splits import few_shots, fold_cases, labels_of_patients, write_splits
from medsam_tune.errors import DataError, listed
from medsam_tune.evaluation.compare import ZERO_SHOT, Method, read_method
from medsam_tune.evaluation.compare_page import write_comparison
from medsam_tune.evaluation.masks import evaluate_masks, masks_hash
from medsam_tune.evaluation.results import read_results
from medsam_tune.evaluation.scores import columns_of
from medsam_tune.files import FORMAT, file_hash, hold_folder, write_json
from medsam_tune.runs import RECORD, read_record, read_state
from medsam_tune.settings import Typed
from medsam_tune.tasks import (
    SETTINGS,
    for_evaluation,
    for_masks,
    for_training,
    is_evaluated,
    refuse_other_tasks,
    tried,
)

COMPARISON_FORMAT = 1
"""Format of a comparison's folder."""
BY = "by"
"""Setting of an evaluation: the columns that the scores are grouped by."""
KINDS = ("slices", "box3d", "none")
"""Kinds of prompts by default, as far as a model takes them: of scans, and of 2-D images."""


@dataclass(frozen=True)
class Plan:
    """What is compared.

    Attributes:
        datalist: datalist, .json.
        output: folder of the comparison.
        methods: "zero_shot" and keys of `METHODS`.
        bundle: see `bundle_folder`.
        model: base model.
        checkpoint: weights of the base model; None for the embedded ones.
        image_size: side of the model's input, pixels; None is the model's own.
        epochs: epochs of each training; None is the recipe's number.
        minutes: time of each training instead, its validations included; at least one epoch.
        seeds: number of trainings of each method, with the seeds 0, 1, ...
        kinds: kinds of prompts; each model is evaluated by those that it takes.
        masks: name -> folder of masks that another tool or reader made.
        few_shot: numbers of training patients. Each method is then trained with each of them, by
            few_shot.yaml, in place of once with all.
        folds: number of folds of a cross-validation; each method is trained on each, and the tables
            are of the held-out cases of all together. 0 is the datalist's own split.
        settings: further settings; each recipe gets those that it has. `by`, the columns of the
            datalist that the scores are grouped by, groups the comparison too.
    """

    datalist: Path
    output: Path
    methods: Sequence[str]
    bundle: str = "volume"
    model: str = "nano"
    checkpoint: Path | None = None
    image_size: int | None = None
    epochs: int | None = None
    minutes: float | None = None
    seeds: int = 1
    kinds: Sequence[str] = KINDS
    masks: Mapping[str, Path] = field(default_factory=dict)
    few_shot: Sequence[int] = ()
    folds: int = 0
    settings: Mapping[str, Typed] = field(default_factory=dict)


def compare(plan: Plan) -> tuple[str, dict[str, str]]:
    """Train and evaluate what is missing, and write the comparison of all.

    A run that fails does not end the others.

    Returns:
        the table as text; and name of a run that failed -> why.

    Raises:
        DataError: the output folder holds something else, or nothing at all could be evaluated.
        ValueError: groups by a column that no case has.
        SystemExit: a training was stopped by a signal; the same call continues it.
    """
    _refuse_others(plan)
    columns = _columns(plan)
    plan.output.mkdir(parents=True, exist_ok=True)
    lock = hold_folder(plan.output, "compares")
    try:
        write_json(plan.output / SETTINGS, _said(plan))
        return _compare(plan, columns)
    finally:
        lock.release()


def _compare(plan: Plan, columns: Mapping[str, Mapping[str, str]]) -> tuple[str, dict[str, str]]:
    failed: dict[str, str] = {}
    methods: list[Method] = []
    datalists = _datalists(plan)
    for seeds in _trainings(plan, datalists):
        done = [
            [one.place for one in folds]
            for folds in seeds
            if all(
                [
                    tried("compare", one.place.name, failed, partial(_made, plan, one))
                    for one in folds
                ]
            )
        ]
        if done:
            first = seeds[0][0]
            family = None if first.patients is None else first.method
            methods.append(read_method(first.name, done, family, first.patients or 0))
    for name, folder in plan.masks.items():
        places = [_place(plan, name, fold) for fold in range(len(datalists))]
        jobs = [
            partial(_score, plan, folder, datalist, place)
            for datalist, place in zip(datalists, places, strict=True)
        ]
        if all([tried("compare", name, failed, job) for job in jobs]):
            methods.append(read_method(name, [places]))
    if not methods:
        why = "; ".join(f"{name}: {line}" for name, line in failed.items())
        raise DataError(f"{plan.output}: nothing could be evaluated. {why}")
    return write_comparison(plan.output, methods, failed, columns), failed


def _columns(plan: Plan) -> dict[str, dict[str, str]]:
    """The columns that the comparison is grouped by: name -> case -> value."""
    by = plan.settings[BY].value if BY in plan.settings else None
    if not by:
        return {}
    data = read_datalist(plan.datalist)
    return columns_of(data.cases if plan.folds else data.test, by)


@dataclass(frozen=True)
class _Training:
    """A method with a seed, and where it is: its folder, its datalist, its number of patients."""

    name: str
    method: str
    seed: int
    place: Path
    datalist: Path
    patients: int | None = None


def _trainings(plan: Plan, datalists: Sequence[Path]) -> list[list[list[_Training]]]:
    """All that is trained: rows of the table, of each its seeds, of each its folds."""
    lists = _few_shot_lists(plan)
    sizes: list[int | None] = [*sorted({*plan.few_shot})] or [None]

    def folds(method: str, patients: int | None, seed: int) -> list[_Training]:
        name = method if patients is None else f"{method}-{patients}"
        own = [lists.get((patients, seed), datalist) for datalist in datalists]
        folder = f"{name}-seed{seed}" if seed else name
        places = [_place(plan, folder, fold) for fold in range(len(own))]
        return [
            _Training(name, method, seed, place, datalist, patients)
            for place, datalist in zip(places, own, strict=True)
        ]

    rows = []
    for method in plan.methods:
        alone = method == ZERO_SHOT
        seeds = range(1 if alone else plan.seeds)
        rows += [
            [folds(method, patients, seed) for seed in seeds]
            for patients in ([None] if alone else sizes)
        ]
    return rows


def _place(plan: Plan, name: str, fold: int) -> Path:
    return plan.output / (f"{name}-fold{fold}" if plan.folds else name)


def _datalists(plan: Plan) -> list[Path]:
    """The datalists whose test cases are scored: that of the plan, or those of its folds."""
    if not plan.folds:
        return [plan.datalist]
    paths = [plan.output / "folds" / f"{fold}.json" for fold in range(plan.folds)]
    if not all(path.is_file() for path in paths):
        datalist = read_datalist(plan.datalist)
        lists = fold_cases(datalist, plan.folds, present=labels_of_patients(datalist))
        paths[0].parent.mkdir(exist_ok=True)
        write_splits(dict(zip(paths, lists, strict=True)))
    return paths


def _few_shot_lists(plan: Plan) -> dict[tuple[int | None, int], Path]:
    """(Number of patients, seed) -> its datalist, drawn once."""
    if not plan.few_shot:
        return {}
    datalist = read_datalist(plan.datalist)
    found: dict[tuple[int | None, int], Path] = {}
    present = None
    for seed in range(plan.seeds):
        for patients in plan.few_shot:
            path = plan.output / "few_shot" / f"{patients}-seed{seed}.json"
            found[patients, seed] = path
            if not path.is_file():
                if present is None:
                    present = labels_of_patients(replace(datalist, validation=(), test=()))
                path.parent.mkdir(exist_ok=True)
                write_datalist(few_shots(datalist, patients, seed, present), path)
    return found


def _made(plan: Plan, training: _Training) -> None:
    """Train and evaluate one method, as far as it is not done."""
    method, place = training.method, training.place
    if method == ZERO_SHOT:
        kinds = [kind for kind in plan.kinds if kind != "none"]
        if kinds and is_evaluated(place, kinds):
            return
        own = {"datalist": training.datalist, "run_dir": place, **_base(plan)}
        own |= _shared_slices(plan)
        configs = ["evaluate.yaml", "zero_shot.yaml"]
    else:
        _train(plan, training)
        prompted = read_record(place).prompted
        kinds = [k for k in plan.kinds if prompted is None or prompted is (k != "none")]
        if kinds and is_evaluated(place, kinds):
            return
        judged = plan.datalist if training.patients else training.datalist
        own = {"run_dir": place, "datalist": judged, "seed": 0}
        own |= {} if plan.checkpoint is None else {"checkpoint": plan.checkpoint}
        configs = ["evaluate.yaml"]
    if not kinds:
        raise ValueError(f"prompts are {listed(plan.kinds)}; {method} takes none of them.")
    settings = for_evaluation(plan.bundle, plan.settings, slices=method == ZERO_SHOT)
    run_bundle(plan.bundle, configs, {**own, "prompts": kinds, **settings})


def _train(plan: Plan, training: _Training) -> None:
    run = training.place
    state = read_state(run)
    epochs = plan.epochs if plan.minutes is None else _epochs_in(plan.minutes, state)
    if state.get("state") == "finished" and (plan.minutes is None or epochs is None):
        return
    own = {"datalist": training.datalist, "output_dir": run, "seed": training.seed, **_base(plan)}
    own |= _shared_slices(plan)
    few = [] if training.patients is None else ["few_shot.yaml"]
    configs = training_configs(plan.bundle, training.method, few)
    own |= {} if epochs is None else {"epochs": epochs}
    own |= {"resume": True} if (run / RECORD).is_file() else {}
    run_bundle(plan.bundle, configs, {**own, **for_training(plan.bundle, plan.settings)})
    if plan.minutes is not None:
        _train(plan, training)  # the first epoch is measured, the others follow


def _epochs_in(minutes: float, state: Mapping[str, Any]) -> int | None:
    """Epochs that a training within some minutes has; None where it is finished.

    It starts with one epoch, and goes on with as many as the time of that one allows.
    """
    epoch, epochs, seconds = (state.get(key) or 0 for key in ("epoch", "epochs", "seconds"))
    if state.get("state") != "finished":
        return max(1, epochs)
    if epoch > 1 or seconds <= 0:
        return None
    wanted = int(60 * minutes / seconds)
    return wanted if wanted > epoch else None


def _shared_slices(plan: Plan) -> dict[str, Path]:
    """The place of the slices, where several datalists of the same cases share them."""
    several = plan.few_shot or plan.folds
    return {"slices_dir": plan.datalist.with_suffix(".slices")} if several else {}


def _score(plan: Plan, masks: Path, datalist: Path, place: Path) -> None:
    """Score masks as the methods are, unless these very masks were."""
    known = read_results(place).summary if is_evaluated(place, []) else {}
    if known.get("masks") != masks_hash(masks):
        evaluate_masks(masks, datalist, place, **for_masks(plan.bundle, plan.settings))


def _base(plan: Plan) -> dict[str, Any]:
    found = {
        "model": plan.model,
        "checkpoint": plan.checkpoint,
        "image_size": plan.image_size,
    }
    return {key: value for key, value in found.items() if value is not None}


def _said(plan: Plan) -> dict[str, Any]:
    """What all rows of a comparison have in common."""
    return {
        FORMAT: COMPARISON_FORMAT,
        "datalist": file_hash(plan.datalist),
        "bundle": plan.bundle,
        "model": plan.model,
        "checkpoint": None if plan.checkpoint is None else str(plan.checkpoint.absolute()),
        "image_size": plan.image_size,
        "epochs": plan.epochs,
        "minutes": plan.minutes,
        "folds": plan.folds,
        "settings": {k: str(value) for k, value in sorted(plan.settings.items()) if k != BY},
    }


def _refuse_others(plan: Plan) -> None:
    if not plan.datalist.is_file():
        raise DataError(f"{plan.datalist}: no such datalist; `medsam-tune split` writes one.")
    refuse_other_tasks(
        plan.output,
        _said(plan),
        COMPARISON_FORMAT,
        "comparison",
        "methods, seeds, numbers of patients, prompts, masks and groups (by)",
    )
