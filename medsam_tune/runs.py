"""The run folder: whose it is, how far its training is, what it was trained on, and its files.

    run.json            the record, written once, when the training starts
    state.json          started, stopped or finished, the epoch, the time that it took, the Dice of
                        its validations, and the most memory that it held
    split.json          the patients and scans that were trained and validated on
    last.pt             what a training needs to go on
    tuned.safetensors   the weights of the best epoch so far
    .lock               held by the process that trains

A killed process leaves its state as it was; the kernel frees its lock.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from filelock import BaseFileLock

from medsam_tune.errors import DataError, listed
from medsam_tune.files import (
    FORMAT,
    LOCK,
    flat,
    hold_folder,
    is_leftover,
    read_json,
    refuse_other_format,
    remove_leftovers,
    write_json,
)
from medsam_tune.formats.mending import Mending
from medsam_tune.ranks import count, is_main, wait
from medsam_tune.sam.build import RANDOM
from medsam_tune.slices.entries import MARKER
from medsam_tune.version import __version__

RECORD, STATE, SPLIT = "run.json", "state.json", "split.json"
LAST, TUNED = "last.pt", "tuned.safetensors"
RUN_FORMAT = 1
"""Format of a run folder: its record, state, split and checkpoint."""
_OURS = {RECORD, STATE, SPLIT, LAST, TUNED, LOCK, "logs", "weights.safetensors"}
_PLACES = ("datalist", "slices_dir", "checkpoint")
_SHOWN = 8  # differences in a message


@dataclass(frozen=True)
class RunRecord:
    """Record of a training run, for its continuation, evaluation and prediction.

    Attributes:
        datalist: path of the datalist of the training; None if it needs none.
        slices_dir: folder of the slice store.
        checkpoint: weights of the base: a path, "random", or None for the embedded ones.
        rules: description of the rules from scans to slices, see `slices.rules`.
        mending: description of the choice of faults to mend, see `formats.mending`.
        jitter: standard deviation of each box side's shift, a share of the side.
        seed: seed of everything random.
        labels: label id -> name.
        base: description of the base model with the hash of its weights.
        mixture: weights of the kinds of prompts that it was trained with, see `training.mixture`;
            empty where there were none.
        coding: how masks say their labels, see `cases.classes.Coding`; empty where values are ids.
        recipe: what the configs and the command line said, see `bundle.recipe`.
        bundle: the bundle of its recipe, see `bundle.bundle_name`; empty if nothing says.
        version: version of the package.
        processes: number of them, each with its own batch in every step, see `ranks`.
        places: the paths above, relative to the run folder, for folders that moved together.
    """

    datalist: str | None
    slices_dir: str | None
    checkpoint: str | None
    rules: dict[str, Any]
    mending: dict[str, Any]
    jitter: float
    seed: int
    labels: dict[str, str] = field(default_factory=dict)
    base: dict[str, Any] = field(default_factory=dict)
    mixture: dict[str, Any] = field(default_factory=dict)
    coding: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    bundle: str = ""
    version: str = __version__
    processes: int = field(default_factory=count)
    places: dict[str, str] = field(default_factory=dict)

    @property
    def prompted(self) -> bool | None:
        """Whether the model needs prompts (True), takes none (False), or either (None)."""
        kinds = {kind for kind, weight in self.mixture.items() if weight}
        if kinds == {"none"}:
            return False
        return None if "none" in kinds else True

    def differences(self, other: RunRecord) -> list[str]:
        """What a training that continues this one would do otherwise: name, then, now."""
        before, now = (
            flat(
                {
                    "rules": record.rules,
                    "mending": record.mending,
                    "jitter": record.jitter,
                    "seed": record.seed,
                    "labels": {str(key): name for key, name in record.labels.items()},
                    "base": record.base,
                    "coding": record.coding,
                    "version": record.version,
                    **(record.recipe if self.recipe and other.recipe else {}),
                }
            )
            for record in (self, other)
        )
        return [
            f"{key} was {_shown(before, key)}, now {_shown(now, key)}"
            for key in sorted({*before, *now})
            if before.get(key, _ABSENT) != now.get(key, _ABSENT)
        ]


_ABSENT = object()


def _shown(values: Mapping[str, Any], key: str) -> str:
    return repr(values[key]) if key in values else "not there"


class RunFolder:
    """The folder of a training, for the process that trains.

    Args:
        path: folder; made by `open` if absent.
        record: record of the training that is about to start.
        resume: continue the training in the folder.
    """

    def __init__(self, path: str | Path, record: RunRecord, resume: bool = False) -> None:
        self.path = Path(path)
        self.record = record
        self.resume = resume
        self._lock: BaseFileLock | None = None

    @property
    def last(self) -> Path:
        """The checkpoint to resume from."""
        return self.path / LAST

    @property
    def state(self) -> str:
        """What `set_state` wrote last; empty if nothing was written."""
        return str(read_state(self.path).get("state", ""))

    def refuse(self) -> None:
        """Refuse a folder that `open` would refuse; nothing is written, and nothing is held.

        Raises:
            DataError: see `open`.
        """
        if not is_main():
            return
        self._refuse_others()
        if (self.path / LOCK).exists():
            hold_folder(self.path, "trains").release()
        self._refuse_or_compare()

    def open(self) -> None:
        """Take the folder for this process, and write the record of a new training.

        A training that was stopped before its first checkpoint starts again. Of several ranks,
        the first takes the folder, and the others wait.

        Raises:
            DataError: another process trains into the folder; it holds a run that is not to be
                resumed, or other files; no run is there to resume, or this one differs from it.
                Nothing is written then.
        """
        if is_main():
            self._open()
        wait()

    def _open(self) -> None:
        self._refuse_others()
        self.path.mkdir(parents=True, exist_ok=True)
        lock = hold_folder(self.path, "trains")
        try:
            self._refuse_or_compare()
        except BaseException:
            lock.release()
            raise
        self._lock = lock  # until the process ends
        remove_leftovers(self.path, _OURS)
        if not self.last.exists():
            for name in (SPLIT, TUNED):  # of a training that never had a checkpoint
                (self.path / name).unlink(missing_ok=True)
            write_record(self.path, self.record)
            write_state(self.path, "started")

    def _refuse_others(self) -> None:
        if self.path.is_dir():
            others = [one.name for one in self.path.iterdir() if one.name not in _OURS]
            others = [name for name in others if not is_leftover(name, _OURS)]
            if others and not (self.path / RECORD).is_file():
                raise DataError(
                    f"{self.path}: holds other files ({listed(sorted(others), 3)}); expected a new "
                    "or an empty folder, or a training run to resume."
                )
        elif os.path.lexists(self.path):
            raise DataError(f"{self.path}: is a file; expected a folder for the run.")

    def _refuse_or_compare(self) -> None:
        if not self.resume:
            if self.last.exists() or (self.path / TUNED).exists():
                raise DataError(
                    f"{self.path}: holds a run already; choose another output folder, delete it, "
                    "or continue it with --resume."
                )
            return
        if not (self.path / RECORD).is_file():
            raise DataError(f"{self.path}: no run to resume in it; leave --resume out.")
        before = read_record(self.path)
        if (was := before.processes) != (now := self.record.processes):
            raise DataError(
                f"{self.path}: was trained by {was} process{'es' * (was > 1)}, one for each GPU, "
                f"and this is {now}: its batches, and the steps of an epoch, would be others. Go "
                f"on with --gpus {was} (torchrun: --nproc-per-node and --nnodes as before), or "
                "train anew in another output folder."
            )
        differences = before.differences(self.record)
        if differences:
            raise DataError(
                f"{self.path}: is another training, it cannot be resumed by this one: "
                f"{listed(differences, _SHOWN, '; ')}. Give the same settings again, or choose "
                "another output folder; epochs, lr, workers and device may change."
            )

    def close(self) -> None:
        """Leave the folder to others; the end of the process does so too."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def set_state(
        self, state: str, epoch: int, epochs: int, seconds: float = 0.0, **more: Any
    ) -> None:
        """Write how far the training is.

        Args:
            state: this and all others: see `write_state`.
            epoch: epochs that are complete.
            epochs: epochs that are wanted.
            seconds: time that they took.
            more: the other arguments of `write_state`.
        """
        if is_main():
            write_state(self.path, state, epoch, epochs, seconds, **more)


def write_record(run: str | Path, record: RunRecord) -> None:
    """Write a run's record into its folder, whole or not at all; its paths become absolute."""
    run = Path(run)
    given = {
        name: os.path.abspath(path)
        for name in _PLACES
        if (path := getattr(record, name)) not in (None, RANDOM)
    }
    places = {name: os.path.relpath(path, run.absolute()) for name, path in given.items()}
    content = asdict(replace(record, **given, places=places))
    write_json(run / RECORD, {FORMAT: RUN_FORMAT, **content})


def read_record(run: str | Path) -> RunRecord:
    """Read the record of a run folder; files that moved together with the folder are found.

    Raises:
        DataError: the folder holds no run, one of another format, or a record that cannot be read.
    """
    run = Path(run)
    path = run / RECORD
    if not path.is_file():
        raise DataError(
            f"{run}: no training run in it (no {RECORD}); `medsam-tune train` makes one."
        )
    content = read_json(path)
    refuse_other_format(path, content, RUN_FORMAT, "Train again, or use the version that wrote it.")
    del content[FORMAT]
    try:
        record = RunRecord(**content)
    except TypeError as error:
        raise DataError(f"{path}: is damaged or of another version ({error}).") from error
    _check_types(record, path)
    moved: dict[str, Any] = {}
    for name, place in record.places.items():
        beside = run.absolute() / place
        if not Path(getattr(record, name)).exists() and beside.exists():
            moved[name] = os.path.normpath(beside)
    record = replace(record, **moved)
    if record.slices_dir is not None and not (Path(record.slices_dir) / MARKER).is_file():
        # Not where a stranger's record says: a store is made beside the datalist.
        beside_it = str(record.datalist).removesuffix(".json") + ".slices"
        record = replace(record, slices_dir=beside_it)
    return record


def _check_types(record: RunRecord, path: Path) -> None:
    """Refuse values of another type than the record's: the file may come from anybody."""
    text = (str, type(None))
    kinds: dict[str, Any] = {name: text for name in _PLACES}
    kinds |= {"jitter": (int, float), "seed": int, "version": str, "bundle": str, "processes": int}
    for one in fields(record):
        value = getattr(record, one.name)
        fits = isinstance(value, kinds.get(one.name, dict)) and not isinstance(value, bool)
        if not fits or (isinstance(value, str) and "\0" in value):
            raise DataError(f"{path}: is damaged or of another version ({one.name} is {value!r}).")
    unknown = {*record.mending} - {one.name for one in fields(Mending)}
    if unknown:
        raise DataError(f"{path}: is damaged or of another version (mending: {listed(unknown)}).")
    places: dict[str, Any] = {**record.places}
    for name, place in places.items():
        if name not in _PLACES or getattr(record, name) is None or not isinstance(place, str):
            raise DataError(f"{path}: is damaged or of another version (places::{name} {place!r}).")


def write_state(
    run: str | Path,
    state: str,
    epoch: int = 0,
    epochs: int | None = None,
    seconds: float = 0.0,
    validations: Sequence[Mapping[str, float]] = (),
    peak_bytes: int | None = None,
) -> None:
    """Write how far a training is.

    Args:
        run: folder of the run.
        state: "started", "stopped" (it can be resumed) or "finished".
        epoch: epochs that are complete.
        epochs: epochs that are wanted.
        seconds: time that they took, with their validations.
        validations: `epoch`, `dice` and `seconds` since the start of each.
        peak_bytes: the most memory that it held, see `training.memory`; None if nobody knows.
    """
    content = {"state": state, "epoch": epoch, "epochs": epochs, "seconds": round(seconds, 1)}
    more = {"validations": [*validations], "peak_bytes": peak_bytes}
    write_json(Path(run) / STATE, {**content, **more})


def read_state(run: str | Path) -> dict[str, Any]:
    """What `write_state` wrote; nothing if it did not."""
    path = Path(run) / STATE
    return read_json(path) if path.is_file() else {}


def tuned_file(run: str | Path, unfinished: bool = False) -> Path:
    """The tuned file of a run.

    Args:
        run: folder of the run.
        unfinished: take the best weights so far of a training that is not finished.

    Raises:
        DataError: no run in the folder, no tuned file yet, or a training that is not finished.
    """
    run = Path(run)
    read_record(run)
    tuned, state = run / TUNED, read_state(run)
    if not tuned.is_file():
        raise DataError(
            f"{run}: no {TUNED} in it yet: no epoch was validated. Continue it with --resume."
        )
    if state.get("state") != "finished" and not unfinished:
        raise DataError(
            f"{run}: its training is not finished ({state.get('epoch', 0)} of "
            f"{state.get('epochs', '?')} epochs). Continue it with --resume, or use the best "
            "weights so far with --unfinished."
        )
    return tuned
