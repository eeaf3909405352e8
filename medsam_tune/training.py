"""What training needs beyond MONAI: the batch, the loss, and what is kept of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from ignite.engine import Engine, Events
from ignite.handlers import DiskSaver, ProgressBar
from ignite.metrics import RunningAverage
from monai.handlers import CheckpointLoader
from monai.losses import DiceCELoss
from torch import Tensor, nn

from medsam_tune.data.samples import SeededSampler
from medsam_tune.methods.tuned import load_tuned_tensors, save_tuned, tuned_tensors
from medsam_tune.runs import RunRecord, write_record
from medsam_tune.sam.model import PromptableSam


def prepare_batch(
    batch: Mapping[str, Any], device: torch.device, non_blocking: bool = False, **_: Any
) -> tuple[Tensor, Tensor, tuple[Tensor], dict[str, Any]]:
    """A batch of `SliceDataset` -> what MONAI's `SupervisedTrainer` hands to network and loss.

    Args:
        batch: `image` (B, C, S, S) float in [0, 1], `masks` (B, P, S, S) bool, `boxes` (B, P, 4).
        device: of the network.
        non_blocking: copy from pinned memory without waiting.

    Returns:
        image, target (B, P, S/4, S/4) float in [0, 1] (the share of each logit's 4 x 4 pixels
        that is inside), (boxes,), {}.
    """
    image, masks, boxes = (
        batch[key].to(device, non_blocking=non_blocking) for key in ("image", "masks", "boxes")
    )
    return image, F.avg_pool2d(masks.float(), 4), (boxes,), {}


class MaskLoss(nn.Module):
    """Dice and binary cross-entropy of each mask on its own, averaged; SAM's usual loss.

    Targets may be soft: at a quarter of the input's resolution a pixel is inside by a share, and
    the logits learn where between pixels a border runs.

    References:
        Ma et al., "Segment anything in medical images", Nature Communications 2024.
    """

    def __init__(self) -> None:
        super().__init__()
        self.loss = DiceCELoss(sigmoid=True)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """(B, P, h, w) float logits and targets in [0, 1] -> scalar."""
        flat = (-1, 1, *logits.shape[-2:])
        return self.loss(logits.float().reshape(flat), target.reshape(flat))  # type: ignore[no-any-return]


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
                "before it are kept. Lower the learning rate (--lr)."
            )


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
        record: written when training starts, so that a run that never did leaves none.
        to_save: name -> object with `state_dict`; the trainer itself is added as `trainer`.
        folder: where `run.json` and `last.pt` go.
        resume: load the checkpoint that lies there before the first epoch.
    """

    def __init__(
        self,
        record: RunRecord,
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

        engine.add_event_handler(Events.STARTED, lambda _: write_record(self.folder, self.record))
        engine.add_event_handler(Events.EPOCH_COMPLETED, save)
