"""The run folder: what a run records about itself, and the overrides it was started with."""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from pydoc import locate
from typing import Any

from monai.bundle import ConfigParser
from monai.utils import ensure_tuple

from medsam_tune.errors import DataError
from medsam_tune.files import written_whole
from medsam_tune.sam.build import RANDOM
from medsam_tune.version import __version__

_RECORD = "run.json"
# What `python -m monai.bundle run` takes for itself; everything else overrides the config.
_RUN_ARGUMENTS = {
    "run_id",
    "init_id",
    "final_id",
    "meta_file",
    "config_file",
    "logging_file",
    "tracking",
    "args_file",
}


@dataclass(frozen=True)
class RunRecord:
    """What evaluation and prediction need to know about a training run.

    Attributes:
        datalist: path of the datalist it was trained on.
        slices_dir: folder of the slice store.
        checkpoint: of the base, "random", or None for the embedded model.
        rules: description of how scans become slices, see `slices.rules`.
        mending: description of what is mended in a scan, see `formats.mending`.
        jitter: of the boxes in validation, a share of the box side.
        seed: of everything random.
        version: of the package.
    """

    datalist: str
    slices_dir: str
    checkpoint: str | None
    rules: dict[str, Any]
    mending: dict[str, Any]
    jitter: float
    seed: int
    version: str = __version__


def refuse_other_run(output_dir: str | Path, resume: bool = False) -> None:
    """Refuse to write over a run, or to resume one that is not there.

    Raises:
        DataError: the folder holds a run and `resume` is not set, or the reverse.
    """
    there = any((Path(output_dir) / name).is_file() for name in (_RECORD, "last.pt"))
    if there and not resume:
        raise DataError(
            f"{output_dir}: holds a run already; choose another output folder, delete it, or "
            "continue it with --resume."
        )
    if resume and not there:
        raise DataError(f"{output_dir}: no run to resume in it; leave --resume out.")


def write_record(output_dir: str | Path, record: RunRecord) -> None:
    """Write a run's record into its folder, whole or not at all; its paths become absolute."""
    places = {
        name: os.path.abspath(path)
        for name in ("datalist", "slices_dir", "checkpoint")
        if (path := getattr(record, name)) not in (None, RANDOM)
    }
    record = replace(record, **places)
    with written_whole(Path(output_dir) / _RECORD) as file:
        file.write_text(json.dumps(asdict(record), indent=2) + "\n")


def read_record(run: str | Path) -> RunRecord:
    """The record of a run folder.

    Raises:
        DataError: the folder holds no run.
    """
    path = Path(run) / _RECORD
    if not path.is_file():
        raise DataError(
            f"{run}: no training run in it (no {_RECORD}); `medsam-tune train` makes one."
        )
    try:
        return RunRecord(**json.loads(path.read_text()))
    except (json.JSONDecodeError, TypeError) as error:
        raise DataError(f"{path}: is damaged or of another version ({error}).") from error


def refuse_unknown_overrides(argv: Sequence[str] | None = None) -> None:
    """Refuse `--key value` on the command line where no config has `key`; MONAI adds it silently.

    `--key::name value` is refused as well where the component `key` takes no argument `name`.

    Args:
        argv: arguments of `python -m monai.bundle`; those of this process if None. Anything that
            is no `run` with a `--config_file` passes.

    Raises:
        ValueError: naming the key and the nearest known ones.
    """
    given = _options(sys.argv[1:] if argv is None else argv)
    if "config_file" not in given:
        return
    config: dict[str, Any] = {"_meta_": {}}
    for file in ensure_tuple(_literal(given["config_file"])):
        for key, value in ConfigParser.load_config_file(file).items():
            name, *inner = key.lstrip("+").split("::")
            if not inner:
                config[name] = value
            config.setdefault(name, None)
    known = set(config)
    for key in given.keys() - _RUN_ARGUMENTS:
        name, *inner = key.lstrip("+").replace("#", "::").split("::")
        if name not in known:
            near = ", ".join(nearest(key, known)) or ", ".join(sorted(known - {"_meta_"}))
            raise ValueError(f"--{key} is no setting of this config; did you mean: {near}?")
        arguments = _arguments(config[name]) if len(inner) == 1 else set()
        if arguments and inner[0] not in arguments:
            near = ", ".join(nearest(inner[0], arguments) or sorted(arguments))
            raise ValueError(f"--{key} is no setting of {name}; did you mean: {near}?")


def _arguments(component: Any) -> set[str]:
    """Names that a config's `_target_` takes; empty where it takes any, or this is none."""
    target = component.get("_target_") if isinstance(component, dict) else None
    found = locate(target) if isinstance(target, str) else None
    if not callable(found):
        return set()
    parameters = inspect.signature(found).parameters
    if any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
        return set()
    return {*parameters, "_target_", "_mode_", "_disabled_", "_requires_", "_desc_"}


def nearest(word: str, known: set[str]) -> list[str]:
    """The known words that a mistyped one may have meant, best first."""
    return get_close_matches(word, sorted(known), n=3)


def _options(argv: Sequence[str]) -> dict[str, str]:
    """`--key value` and `--key=value` pairs."""
    found: dict[str, str] = {}
    for index, word in enumerate(argv):
        if not word.startswith("--"):
            continue
        key, equals, value = word[2:].partition("=")
        following = argv[index + 1] if index + 1 < len(argv) else ""
        found[key] = value if equals else following
    return found


def _literal(value: str) -> Any:
    """A file name, or the list of them that fire reads from `['a.yaml','b.yaml']`."""
    text = value.strip()
    if not text.startswith(("[", "(")):
        return text
    return [part.strip().strip("'\"") for part in text[1:-1].split(",")]
