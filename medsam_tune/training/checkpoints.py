"""What a training keeps: the best weights, and a checkpoint from which it goes on bit for bit."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from medsam_tune import ranks
from medsam_tune.cases.datalist import Case
from medsam_tune.errors import DataError
from medsam_tune.files import written_whole
from medsam_tune.methods.tuned import load_tuned_tensors, save_tuned, tuned_tensors
from medsam_tune.runs import RunFolder, read_state
from medsam_tune.sam.model import PromptableSam
from medsam_tune.seen import keep_split
from medsam_tune.slices.store import PreparedCase
from medsam_tune.training.memory import forget_peak, peak_memory

_DAMAGED = (OSError, RuntimeError, EOFError, UnpicklingError, KeyError, ValueError, TypeError)


class KeepBest:
    """Handler of a validator: writes the tuned file at each new best validation.

    Args:
        model: model to save.
        path: tuned file to write.
        labels: label id -> name, for its header.
        metric: key in the validator's metrics by which weights are chosen; higher is better.
    """

    def __init__(
        self,
        model: PromptableSam,
        path: str | Path,
        labels: Mapping[int, str],
        metric: str = "mean_dice",
    ) -> None:
        self.model = model
        self.path = path
        self.labels = labels
        self.metric = metric
        self.best = -math.inf
        self.since = 0
        self.last: float | None = None  # Dice, of this process

    def attach(self, engine: Engine) -> None:
        """Attach to an engine after the handler of the metric; MONAI calls it."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Save the model after a validation if it is the best."""
        value = engine.state.metrics[self.metric]
        better = value > self.best
        self.since = 0 if better else self.since + 1
        self.last = engine.state.metrics["mean_dice"]
        if better:
            self.best = value
            if ranks.is_main():
                save_tuned(self.model, self.path, self.labels)
        engine.logger.info(
            f"validation {self.metric} {value:.4f}, best {self.best:.4f}"
            + (f", kept in {self.path}" if better else "")
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the best value for the checkpoint, of which metric, and the validations since."""
        return {"best": self.best, "since": self.since, "metric": self.metric}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the best value from the checkpoint, and the validations since.

        Raises:
            ValueError: it is of another metric.
        """
        metric = state.get("metric", "mean_dice")
        if metric != self.metric:
            raise ValueError(f"its weights were chosen by {metric}, key_metric is {self.metric}")
        self.best, self.since = state["best"], int(state["since"])


class StopWithoutGain:
    """Handler of a trainer: the training is finished where validation stops to get better.

    Args:
        keep_best: handler of the validator.
        patience: validations in a row without a new best one, after which it ends; None: never.

    Raises:
        ValueError: a patience below 1.
    """

    def __init__(self, keep_best: KeepBest, patience: int | None) -> None:
        if patience is not None and (type(patience) is not int or patience < 1):
            raise ValueError(f"patience is {patience!r}; expected null, or a whole number from 1.")
        self.keep_best = keep_best
        self.patience = patience

    def attach(self, engine: Engine) -> None:
        """Attach to an engine after validation; MONAI calls it."""
        if self.patience is not None:
            engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Make this epoch the last one if no validation was better for too long."""
        since = self.keep_best.since
        if self.patience is not None and since >= self.patience and not engine.should_terminate:
            engine.logger.info(
                f"{since} validations without a better one than {self.keep_best.best:.4f}: finished"
            )
            engine.state.max_epochs = engine.state.epoch


class TunedState:
    """Tuned tensors as an object that checkpoints can save and load."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def state_dict(self) -> dict[str, Tensor | None]:
        """Return name -> tuned tensor, see `ranks.kept`; all ranks have to ask."""
        return {key: ranks.kept(value) for key, value in tuned_tensors(self.model).items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load tuned tensors; refuse other names and shapes."""
        load_tuned_tensors(self.model, state, "checkpoint")


class ScheduleState:
    """Steps of a schedule of learning rates; rates and length are those of the settings.

    So a run that is resumed with another rate, or for more epochs, follows the new schedule. It
    belongs after the optimizer, whose checkpoint has the old rates. A schedule that is no function
    of the step (no `LambdaLR`) is kept whole.
    """

    def __init__(self, scheduler: LRScheduler) -> None:
        self.scheduler = scheduler

    def state_dict(self) -> dict[str, Any]:
        """Return the number of steps."""
        if isinstance(self.scheduler, LambdaLR):
            return {"steps": self.scheduler.last_epoch}
        return self.scheduler.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Set the schedule to a number of steps, and the optimizer to the rates of that step."""
        scheduler = self.scheduler
        if not isinstance(scheduler, LambdaLR):
            scheduler.load_state_dict(dict(state))
            return
        scheduler.last_epoch = state["steps"]
        scheduler._step_count = state["steps"] + 1
        groups = zip(
            scheduler.optimizer.param_groups,
            scheduler.base_lrs,
            scheduler.lr_lambdas,
            strict=True,
        )
        for group, rate, factor in groups:
            group["initial_lr"] = rate
            group["lr"] = rate * factor(state["steps"])
        scheduler._last_lr = [group["lr"] for group in scheduler.optimizer.param_groups]


class Randomness:
    """The states of all generators of random numbers, as a checkpoint can hold them."""

    def state_dict(self) -> dict[str, Any]:
        """Return the states of torch, CUDA, numpy and Python."""
        _, keys, place, has_gauss, gauss = np.random.get_state(legacy=True)
        version, internal, following = random.getstate()
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return {
            "torch": torch.get_rng_state(),
            "cuda": cuda,
            "numpy": [torch.from_numpy(np.asarray(keys, np.int64)), place, has_gauss, gauss],
            "python": [version, list(internal), following],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Set all generators; those of GPUs only if there are as many as before."""
        torch.set_rng_state(state["torch"])
        if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["cuda"])
        keys, place, has_gauss, gauss = state["numpy"]
        np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), place, has_gauss, gauss))
        version, internal, following = state["python"]
        random.setstate((version, tuple(internal), following))


class KeepLast:
    """Handler of a trainer: the run's split and state, and a checkpoint to resume from.

    The checkpoint is written after the first step, after each epoch with its validation, every few
    minutes, and at a signal; whole or not at all. A run that is resumed from it ends as one that
    never stopped, bit for bit on a CPU, also if it stopped within an epoch or in a validation.

    Args:
        folder: folder of the run, opened before the trainer runs.
        to_save: name -> object with `state_dict`; the trainer, its scaler and the random states are
            added. A `KeepBest` of them says the Dice of the validations for the run's state.
        split: name of the subset -> its cases and their entries in the store, which the run keeps;
            None if there are none.
        minutes: time between two checkpoints within an epoch.
    """

    def __init__(
        self,
        folder: RunFolder,
        to_save: Mapping[str, Any],
        split: Mapping[str, tuple[Sequence[Case], Sequence[PreparedCase]]] | None = None,
        minutes: float = 10,
    ) -> None:
        self.folder = folder
        self.to_save = dict(to_save)
        self.split = split
        self.minutes = minutes
        self.random = Randomness()
        self._saved_at = 0.0
        self._saved_step = 0
        self._started_at = 0.0
        self._spent = 0.0  # seconds, before this process
        self._validations: list[dict[str, float]] = []
        self._peak = 0  # bytes, before this process
        self._resumed: dict[str, Any] | None = None  # until the first step after it

    def attach(self, engine: Engine) -> None:
        """Attach to an engine, after validation and `StopAtSignal`; MONAI calls it."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_STARTED, lambda _: self._restore_randomness())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._after_step)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._after_epoch)
        engine.add_event_handler(Events.TERMINATE, self._stopped)
        engine.add_event_handler(Events.COMPLETED, self._finished)

    def _start(self, engine: Engine) -> None:
        self._saved_at = self._started_at = time.monotonic()
        forget_peak()
        if self.split is not None and ranks.is_main():
            keep_split(
                self.folder,
                **{
                    name: list(zip(cases, prepared, strict=True))
                    for name, (cases, prepared) in self.split.items()
                },
            )
        if self.folder.last.exists():
            self._resume(engine)

    def _resume(self, engine: Engine) -> None:
        path = self.folder.last
        epochs = engine.state.max_epochs
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            for name, part in self._parts(engine).items():
                if name != "scaler" or name in state:  # a run may go on with other precision
                    part.load_state_dict(state[name])
            within, pending = state["random"][ranks.rank()], bool(state["pending"])
        except torch.OutOfMemoryError:
            raise
        except _DAMAGED as error:
            raise DataError(
                f"{path}: is damaged or of another training ({path.stat().st_size} bytes; "
                f"{str(error).splitlines()[0] if str(error) else type(error).__name__}). Start "
                f"again in a new folder; the best weights so far are in {self.folder.path}."
            ) from error
        done = engine.state.epoch
        engine.state.max_epochs = epochs
        # A process that was killed right before it said that it is finished does so now.
        ended = done == epochs and not pending and self.folder.state == "finished"
        if epochs is not None and (done > epochs or ended):
            raise DataError(
                f"{self.folder.path}: is at {done} epochs already, {epochs} are wanted. Train "
                f"further with more: --set epochs={2 * done}."
            )
        before = read_state(self.folder.path)
        self._spent = float(before.get("seconds", 0.0))
        self._validations = [one for one in before.get("validations", ()) if one["epoch"] <= done]
        self._peak = before.get("peak_bytes") or 0
        self._set_state("started", done, epochs)
        engine.logger.info(f"resumed from {path}, step {engine.state.iteration}")
        self.random.load_state_dict(within)
        if engine.state.iteration % _length(engine):
            self._resumed = within  # for after the start of the epoch, which sets a seed
        elif pending:  # the epoch's last step was saved, its validation was not
            engine.fire_event(Events.EPOCH_COMPLETED)

    def _restore_randomness(self) -> None:
        if self._resumed is not None:
            self.random.load_state_dict(self._resumed)
            self._resumed = None

    def _parts(self, engine: Engine) -> dict[str, Any]:
        scaler = getattr(engine, "scaler", None)
        return {**self.to_save, "trainer": engine} | ({} if scaler is None else {"scaler": scaler})

    def _save(self, engine: Engine, *, pending: bool) -> None:
        state: dict[str, Any] = {
            name: part.state_dict() for name, part in self._parts(engine).items()
        }
        state |= {"random": ranks.gathered(self.random.state_dict()), "pending": pending}
        if ranks.is_main():
            # A stream of Python's: a full disk is an OSError then.
            with written_whole(self.folder.last) as file, file.open("wb") as stream:
                torch.save(state, stream)
        self._saved_at, self._saved_step = time.monotonic(), engine.state.iteration

    def _after_step(self, engine: Engine) -> None:
        due = time.monotonic() - self._saved_at > 60 * self.minutes
        if engine.state.iteration == 1 or ranks.largest(due):  # all ranks save, or none
            self._save(engine, pending=engine.state.iteration % _length(engine) == 0)

    def _after_epoch(self, engine: Engine) -> None:
        # Not by the signal itself, which may come to one of several ranks first.
        if not engine.should_terminate:  # otherwise its validation was cut short, and is made again
            self._save(engine, pending=False)
            self._note_validation(engine.state.epoch)
            self._set_state("started", engine.state.epoch, engine.state.max_epochs)

    def _note_validation(self, epoch: int) -> None:
        best = next((one for one in self.to_save.values() if isinstance(one, KeepBest)), None)
        if best is not None and best.last is not None:
            seconds = round(self._seconds, 1)
            self._validations.append({"epoch": epoch, "dice": best.last, "seconds": seconds})
            best.last = None

    def _stopped(self, engine: Engine) -> None:
        epoch, epochs = engine.state.iteration // _length(engine), engine.state.max_epochs or 0
        if self._saved_step != engine.state.iteration or engine.state.iteration % _length(engine):
            self._save(engine, pending=engine.state.iteration % _length(engine) == 0)
        self._set_state("stopped", epoch, epochs)
        engine.logger.info(
            f"stopped at step {engine.state.iteration}, {epoch} of {epochs} epochs done; "
            f"{self.folder.last} continues it: run the same command with --resume"
        )

    def _finished(self, engine: Engine) -> None:
        self._set_state("finished", engine.state.epoch, engine.state.max_epochs)

    def _set_state(self, state: str, epoch: int, epochs: int | None) -> None:
        peak = max(self._peak, peak_memory() or 0) or None
        more = {"validations": self._validations, "peak_bytes": peak}
        self.folder.set_state(state, epoch, epochs or 0, self._seconds, **more)

    @property
    def _seconds(self) -> float:
        return self._spent + time.monotonic() - self._started_at


def _length(engine: Engine) -> int:
    """Number of steps in an epoch."""
    return engine.state.epoch_length or 1
