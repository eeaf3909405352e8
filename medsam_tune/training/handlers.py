"""Handlers of a trainer and its validator: checks, progress, and what is kept of a run."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from ignite.handlers import DiskSaver, ProgressBar
from ignite.metrics import RunningAverage
from monai.handlers import CheckpointLoader
from torch import Tensor, nn

from medsam_tune.methods.tuned import load_tuned_tensors, save_tuned, tuned_tensors
from medsam_tune.runs import RunRecord, write_record
from medsam_tune.sam.model import PromptableSam
from medsam_tune.training.samples import SeededSampler


class EpochSeed:
    """Handler of a trainer: everything random in an epoch depends on (seed, epoch) alone.

    So two runs with one seed are equal, and a resumed run continues as if it had not stopped.

    Args:
        sampler: of the training loader.
        seed: of the run.
    """

    def __init__(self, sampler: SeededSampler, seed: int) -> None:
        self.sampler = sampler
        self.seed = seed

    def attach(self, engine: Engine) -> None:
        """Called by MONAI for each handler."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Before the first batch of an epoch is drawn."""
        self.sampler.set_epoch(engine.state.epoch)
        torch.manual_seed(self.seed * 100_003 + engine.state.epoch)


class Progress:
    """A progress bar with the running loss on a terminal, and one log line per epoch anywhere."""

    def attach(self, engine: Engine) -> None:
        """Called by MONAI for each handler."""
        RunningAverage(output_transform=lambda output: output["loss"]).attach(engine, "loss")
        ProgressBar(persist=False, disable=None).attach(engine, ["loss"])
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._log)

    @staticmethod
    def _log(engine: Engine) -> None:
        state = engine.state
        engine.logger.info(
            f"epoch {state.epoch} of {state.max_epochs}: loss {state.metrics['loss']:.4f}"
        )


class StopAtBadLoss:
    """Handler of a trainer: a loss that is NaN or infinite stops the run with an error."""

    def attach(self, engine: Engine) -> None:
        """Called by MONAI for each handler."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """After each step.

        Raises:
            FloatingPointError: naming the step and the cases in the batch.
        """
        state: Any = engine.state
        loss = float(state.output["loss"].detach())
        if not math.isfinite(loss):
            cases = ", ".join(sorted(set(state.batch["case"])))
            raise FloatingPointError(
                f"loss is {loss} at step {state.iteration} (cases {cases}); the checkpoints "
                "before it are kept. Lower the learning rate (--set lr=...)."
            )


class CheckFirstStep:
    """Handler of a trainer: the first step changes what the method tunes and nothing else.

    A layer that is trained in name only (not in the optimizer, cut off from the loss) or a frozen
    one that moves would show up in the Dice long after; here it stops the run.

    Args:
        network: what is trained.
        optimizer: of the trainer.
    """

    # Where one mask is asked for by boxes: the other masks, their quality, other kinds of prompts.
    RESTING = re.compile(
        r"mask_decoder\.(iou_prediction_head|output_hypernetworks_mlps\.[123])|prompt_encoder"
    )

    def __init__(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.network = network
        self.optimizer = optimizer
        self.rates: dict[int, float] = {}
        self.before: dict[str, Tensor] | None = None

    def attach(self, engine: Engine) -> None:
        """Called by MONAI for each handler."""
        engine.add_event_handler(Events.STARTED, lambda _: self._look())
        engine.add_event_handler(Events.ITERATION_STARTED, self._note_rates)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def _look(self) -> None:
        self.before = {key: _trace(value) for key, value in self._tensors()}

    def _tensors(self) -> list[tuple[str, Tensor]]:
        return [*self.network.named_parameters(), *self.network.named_buffers()]

    def _note_rates(self, engine: Engine) -> None:
        """Before the scheduler sets those of the next step."""
        if self.before is not None:
            groups = self.optimizer.param_groups
            self.rates = {id(p): group["lr"] for group in groups for p in group["params"]}

    def __call__(self, engine: Engine) -> None:
        """After the first step whose learning rate is not zero.

        Raises:
            ValueError: naming the tensors.
        """
        if self.before is None or not any(self.rates.values()):
            return
        before, self.before = self.before, None
        cut, still, moved = [], [], []
        for key, tensor in self._tensors():
            changed = not torch.equal(_trace(tensor), before[key])
            if not tensor.requires_grad:
                moved += [key] * changed
            elif tensor.grad is None or id(tensor) not in self.rates:
                cut += [key] * (self.RESTING.match(key) is None)
            elif not changed and _should_move(tensor.detach(), tensor.grad, self.rates[id(tensor)]):
                still.append(key)
        problems = [
            f"{what}: {', '.join(keys[:3])}{' and more' if len(keys) > 3 else ''} ({len(keys)})"
            for what, keys in (
                ("cut off from the loss or the optimizer", cut),
                ("did not change", still),
                ("frozen, but changed", moved),
            )
            if keys
        ]
        if problems:
            raise ValueError(
                f"step {engine.state.iteration} did not train what the method tunes, exactly; "
                f"{'; '.join(problems)}. Check network_def and optimizer in the configs."
            )


def _trace(tensor: Tensor) -> Tensor:
    """A copy of what trains; of what is frozen two sums that tell whether it changed."""
    value = tensor.detach()
    if tensor.requires_grad:
        return value.clone()
    return torch.stack([value.double().sum(), value.double().square().sum()])


def _should_move(value: Tensor, gradient: Tensor, rate: float) -> bool:
    """Whether a step of Adam at this rate is more than float32 rounds away."""
    return float(gradient.abs().max()) > 1e-7 and rate > 1e-6 * float(value.abs().max())


class KeepBest:
    """Handler of a validator: writes the tuned file whenever the validation Dice is the best yet.

    Args:
        model: what is trained.
        path: of the tuned file.
        labels: label id -> name, for its header.
        metric: key in the validator's metrics, higher is better.
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

    def attach(self, engine: Engine) -> None:
        """Called by MONAI for each handler; after the one that makes the metric."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """After each validation."""
        value = engine.state.metrics[self.metric]
        better = value > self.best
        if better:
            self.best = value
            save_tuned(self.model, self.path, self.labels)
        engine.logger.info(
            f"validation {self.metric} {value:.4f}, best {self.best:.4f}"
            + (f", kept in {self.path}" if better else "")
        )

    def state_dict(self) -> dict[str, float]:
        """For the checkpoint."""
        return {"best": self.best}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """From the checkpoint."""
        self.best = state["best"]


class TunedState:
    """What a method tunes, as an object that checkpoints know how to save and load."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def state_dict(self) -> dict[str, Tensor]:
        """Name -> tensor of what is trained."""
        return tuned_tensors(self.model)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """The reverse; refuses other names and shapes."""
        load_tuned_tensors(self.model, state, "checkpoint")


class KeepLast:
    """Handler of a trainer: the run's record, and after each epoch a checkpoint to resume from.

    ignite's `DiskSaver` writes beside and renames. It is called directly: MONAI's
    `CheckpointSaver` writes in place, and ignite's `Checkpoint` removes a file of the same name
    before it writes the new one.

    Args:
        record: written when training starts, so that a run that never did leaves none; None if
            nothing is to be evaluated by it.
        to_save: name -> object with `state_dict`; the trainer itself is added as `trainer`.
        folder: where `run.json` and `last.pt` go.
        resume: load the checkpoint that lies there before the first epoch.
    """

    def __init__(
        self,
        record: RunRecord | None,
        to_save: Mapping[str, Any],
        folder: str | Path,
        resume: bool = False,
    ) -> None:
        self.record = record
        self.to_save = dict(to_save)
        self.folder = Path(folder)
        self.resume = resume

    def attach(self, engine: Engine) -> None:
        """Called by MONAI for each handler; after validation, whose best value is saved too."""
        everything = {**self.to_save, "trainer": engine}
        if self.resume:
            CheckpointLoader(str(self.folder / "last.pt"), everything).attach(engine)
        saver = DiskSaver(str(self.folder), atomic=True, create_dir=True, require_empty=False)

        def save() -> None:
            saver({name: part.state_dict() for name, part in everything.items()}, "last.pt")

        if self.record is not None:
            record = self.record
            engine.add_event_handler(Events.STARTED, lambda _: write_record(self.folder, record))
        engine.add_event_handler(Events.EPOCH_COMPLETED, save)
