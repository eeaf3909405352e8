"""Handlers of a trainer: randomness, progress and checks."""

from __future__ import annotations

import math
from time import monotonic
from typing import Any

import torch
from ignite.engine import Engine, Events
from ignite.metrics import RunningAverage
from torch import Tensor, nn

from medsam_tune.console import LOG, EngineProgress, duration
from medsam_tune.ranks import count, mean, own_part, rank
from medsam_tune.training.samples import SeededSampler


class EpochSeed:
    """Handler of a trainer: the randomness of an epoch depends on (seed, epoch) alone.

    So two runs with one seed are equal, and a resumed run equals one that never stopped. Of several
    ranks, each draws its own dropout and mixed images; all have started from equal weights by then.

    Args:
        sampler: sampler of the training loader.
        seed: seed of the run.
    """

    def __init__(self, sampler: SeededSampler, seed: int) -> None:
        self.sampler = sampler
        self.seed = seed

    def attach(self, engine: Engine) -> None:
        """Attach to an engine; MONAI calls it."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)
        # A resumed run may begin with the validation of an epoch that it did not start.
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._keep_epoch)

    def _keep_epoch(self, engine: Engine) -> None:
        self.sampler.epoch = engine.state.epoch

    def __call__(self, engine: Engine) -> None:
        """Set the seed before the first batch; pass over what a resumed epoch has done."""
        state: Any = engine.state
        batches = state.iteration - (state.epoch - 1) * (state.epoch_length or 0)
        batch_size = getattr(state.dataloader, "batch_size", None) or 1
        self.sampler.set_epoch(state.epoch, batches * batch_size)
        # Of the seed, the CPU's generator takes the lower 32 bits.
        torch.manual_seed(self.seed * 100_003 + state.epoch + rank() * 1_000_003)


class Progress:
    """Progress within each epoch with the running loss, and one line at its end.

    That line has the time left for all epochs, with their validations.
    """

    def __init__(self) -> None:
        self._start: float | None = None
        self._first = 0

    def attach(self, engine: Engine) -> None:
        """Attach to an engine; MONAI calls it."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._begin)
        RunningAverage(output_transform=lambda output: output["loss"]).attach(engine, "loss")
        EngineProgress("epoch {epoch} of {epochs}", "step", ["loss"]).attach(engine)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._log)

    def _begin(self, engine: Engine) -> None:
        """Note the time before the first epoch of this process."""
        if self._start is None:
            self._start, self._first = monotonic(), engine.state.epoch

    def _log(self, engine: Engine) -> None:
        state: Any = engine.state
        said = f"epoch {state.epoch} of {state.max_epochs}"
        # A run that stopped in a validation starts with it, without a step.
        if "loss" in state.metrics:
            said += f": loss {state.metrics['loss']:.4f}"
        left = state.max_epochs - state.epoch
        if self._start is not None and left:
            spent = (monotonic() - self._start) / (state.epoch - self._first + 1)
            said += f", {duration(left * spent)} left in all"
        LOG.info(said)


class StopAtBadLoss:
    """Handler of a trainer: a loss that is NaN or infinite stops the run with an error."""

    def attach(self, engine: Engine) -> None:
        """Attach to an engine; MONAI calls it."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Check the loss after each step.

        Raises:
            FloatingPointError: the loss is not finite; names the step and the cases in the batch.
        """
        state: Any = engine.state
        loss = float(state.output["loss"].detach())
        if not math.isfinite(loss):
            cases = ", ".join(sorted(set(state.batch["case"])))
            raise FloatingPointError(
                f"loss is {loss} at step {state.iteration} (cases {cases}); the checkpoints "
                "before it are kept. Lower the learning rate (--set lr=...)."
            )


class MeanLoss:
    """Handler of a trainer: of several processes, the loss of a step is the mean of their losses.

    Handlers after it log that of the whole batch, as one process would have it.
    """

    def attach(self, engine: Engine) -> None:
        """Attach to an engine, before what logs the loss; MONAI calls it."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Replace the loss of this process's share of the batch."""
        if count() == 1:
            return
        output: Any = engine.state.output
        output["loss"] = torch.tensor(mean(float(output["loss"].detach())))


class CheckFirstStep:
    """Handler of a trainer: the first step changes exactly the tuned parameters.

    It stops the run if a tuned layer does not train (not in the optimizer, cut off from the loss)
    or a frozen layer changes. Without it only a low Dice at the end would show the fault.

    Args:
        network: model to train.
        optimizer: optimizer of the trainer.
    """

    # The prompt encoder, where a method trains it: the first batch may lack a kind of prompt.
    RESTING = "prompt_encoder"

    def __init__(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.network = network
        self.optimizer = optimizer
        self.rates: dict[int, float] = {}
        self.before: dict[str, Tensor] | None = None

    def attach(self, engine: Engine) -> None:
        """Attach to an engine; MONAI calls it."""
        engine.add_event_handler(Events.STARTED, lambda _: self._look())
        engine.add_event_handler(Events.ITERATION_STARTED, self._note_rates)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def _look(self) -> None:
        self.before = {key: _trace(value) for key, value in self._tensors()}

    def _tensors(self) -> list[tuple[str, Tensor]]:
        return [*self.network.named_parameters(), *self.network.named_buffers()]

    def _note_rates(self, engine: Engine) -> None:
        """Note the learning rates before the scheduler sets those of the next step."""
        if self.before is not None:
            groups = self.optimizer.param_groups
            self.rates = {id(p): group["lr"] for group in groups for p in group["params"]}

    def __call__(self, engine: Engine) -> None:
        """Compare weights after the first step with a learning rate above zero.

        Raises:
            ValueError: wrong tensors changed; names them.
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
                cut += [key] * (not key.startswith(self.RESTING))
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
                f"step {engine.state.iteration} did not train exactly the tuned parameters: "
                f"{'; '.join(problems)}. Check network_def and optimizer in the configs."
            )


def _trace(tensor: Tensor) -> Tensor:
    """A copy of a trained tensor; of a frozen tensor two sums, which show a change.

    Of a sharded tensor, this is of the rank's own part.
    """
    value = own_part(tensor.detach())
    if tensor.requires_grad:
        return value.clone()
    return torch.stack([value.double().sum(), value.double().square().sum()])


def _should_move(value: Tensor, gradient: Tensor, rate: float) -> bool:
    """True if a step of Adam at this rate is larger than float32's rounding."""
    value, gradient = own_part(value), own_part(gradient)
    if not value.numel():
        return False
    return float(gradient.abs().max()) > 1e-7 and rate > 1e-6 * float(value.abs().max())
