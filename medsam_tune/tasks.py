"""Trainings and evaluations as tasks of one command: what is done, what failed, which settings.

A task runs a bundle. Of a command with many, a task that fails does not end the others.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medsam_tune.bundle import config_content
from medsam_tune.console import LOG, debugging
from medsam_tune.errors import DataError, listed
from medsam_tune.evaluation.results import read_results
from medsam_tune.failures import explain
from medsam_tune.files import LOCK, read_json, refuse_other_format
from medsam_tune.formats.mending import Mending
from medsam_tune.settings import Typed, check, component_from

SETTINGS = "settings.json"
"""File of a folder of tasks that says what they have in common."""

# Settings that a training and an evaluation have in common, by the name before the first "::".
_OF_MACHINE = {"slice_batch", "device", "amp"}
_OF_SLICES = {  # a run has them in its record
    *("slices_dir", "intensity", "rules", "mending", "jitter"),
}

OF_MASKS = ("tolerance", "empty", "by", "subset", "pictures", "rules::components", "mending::...")
"""Settings of an evaluation that masks of others are scored by, without a bundle."""


def tried(command: str, name: str, failed: dict[str, str], job: Callable[[], object]) -> bool:
    """Do a task; whether it came to its end.

    Args:
        command: the command, for the log.
        name: name of the task.
        failed: name of a task -> what it failed by; it is kept here.
        job: the task.
    """
    LOG.info(f"{command}: {name}")
    try:
        job()
    except Exception as error:
        line, _ = explain(error)
        if debugging() or not line:
            traceback.print_exception(error)
        failed[name] = line or f"{type(error).__name__}: {error}"
        LOG.error(f"{name} failed, the others go on: {failed[name]}")
        return False
    return True


def is_evaluated(place: Path, kinds: Sequence[str]) -> bool:
    """Whether a whole evaluation by these kinds of prompts is in a folder."""
    if not (place / "evaluation" / "summary.json").is_file():
        return False
    summary = read_results(place).summary
    return summary.get("stopped_by") is None and {*kinds} <= {*summary["by_prompts"]}


def for_training(bundle: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that are not of an evaluation alone; an unknown one is for the recipe."""
    known, of_evaluation = _keys(bundle, "train.yaml"), _keys(bundle, "evaluate.yaml")
    return {
        key: value
        for key, value in settings.items()
        if _first(key) in known or _first(key) not in of_evaluation
    }


def for_evaluation(bundle: str, settings: Mapping[str, Any], slices: bool) -> dict[str, Any]:
    """The settings of an evaluation: its own, and those that it has in common with a training.

    Args:
        bundle: see `bundle_folder`.
        settings: setting -> value.
        slices: take those of the slices too, as there is no run that has them in its record.
    """
    own = _keys(bundle, "evaluate.yaml") - _keys(bundle, "train.yaml")
    own |= _OF_MACHINE | (_OF_SLICES if slices else set())
    return {key: value for key, value in settings.items() if _first(key) in own}


def for_masks(bundle: str, settings: Mapping[str, Typed]) -> dict[str, Any]:
    """Arguments of `evaluate_masks` for what a model would be evaluated by.

    Args:
        bundle: see `bundle_folder`; its untuned model says which pieces of a label are objects.
        settings: setting -> value; those that are not `OF_MASKS` are left out.

    Raises:
        DataError: mending by a value of another type.
        ValueError: a number of pictures that is none, or mending of an unknown fault.
    """
    own = {key: value for key, value in settings.items() if is_of_masks(key)}
    mending = {key: own.pop(key) for key in [*own] if _first(key) == "mending"}
    found = {key: value.value for key, value in own.items()}
    rules = config_content(bundle, "zero_shot.yaml")["rules"]
    found["components"] = found.pop("rules::components", rules.get("components"))
    if "pictures" in found:
        check(pictures=found["pictures"])
    return {**found, "mending": component_from("mending", Mending, mending)}


def is_of_masks(key: str) -> bool:
    """Whether a setting is one of `OF_MASKS`."""
    return key in OF_MASKS or key.startswith("mending::")


def refuse_other_tasks(
    output: Path, said: Mapping[str, Any], version: int, what: str, free: str
) -> None:
    """Refuse a folder that holds something else than these tasks.

    Args:
        output: folder of the tasks.
        said: what all of them have in common, as `SETTINGS` keeps it.
        version: format of the folder.
        what: what the folder holds, for the message.
        free: what may change from call to call, for the message.

    Raises:
        DataError: a file, other files, or tasks of another kind.
    """
    if output.exists() and not output.is_dir():
        raise DataError(f"{output}: is a file; expected a folder for the {what}.")
    if (output / SETTINGS).is_file():
        before = read_json(output / SETTINGS)
        way_out = "Choose another --output, and start again."
        refuse_other_format(output / SETTINGS, before, version, way_out)
        changed = [
            f"{key} was {before.get(key)!r}, now {said[key]!r}"
            for key in said
            if before.get(key) != said[key]
        ]
        if changed:
            raise DataError(
                f"{output}: holds another {what}: {listed(changed, 8, '; ')}. Give the same "
                f"again, or choose another --output; {free} may change."
            )
    elif output.is_dir() and (others := {one.name for one in output.iterdir()} - {LOCK}):
        raise DataError(
            f"{output}: holds other files ({listed(sorted(others), 3)}); expected a new or an "
            f"empty folder, or a {what} to continue."
        )


def _keys(bundle: str, config: str) -> set[str]:
    return {*config_content(bundle, config)}


def _first(key: str) -> str:
    return key.split("::")[0]
