"""The run folder and the record of a training run in it."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from medsam_tune.errors import DataError
from medsam_tune.files import written_whole
from medsam_tune.sam.build import RANDOM
from medsam_tune.version import __version__

_RECORD = "run.json"


@dataclass(frozen=True)
class RunRecord:
    """Record of a training run, for evaluation and prediction.

    Attributes:
        datalist: path of the datalist of the training.
        slices_dir: folder of the slice store.
        checkpoint: weights of the base: a path, "random", or None for the embedded ones.
        rules: description of the rules from scans to slices, see `slices.rules`.
        mending: description of the choice of faults to mend, see `formats.mending`.
        jitter: standard deviation of each box side's shift, a share of the side.
        seed: seed of everything random.
        version: version of the package.
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
    """Refuse to write over a run, or to resume a missing run.

    Raises:
        DataError: the folder holds a run and `resume` is False, or none and `resume` is True.
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
    """Read the record of a run folder.

    Raises:
        DataError: the folder holds no run, or a record that cannot be read.
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
