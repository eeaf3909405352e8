"""Checkpoints: what is kept, and that a training goes on from them bit for bit."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from torch.optim.lr_scheduler import LambdaLR

from medsam_tune import ranks
from medsam_tune.errors import DataError
from medsam_tune.methods import apply_method
from medsam_tune.methods.tuned import read_header, tuned_tensors
from medsam_tune.runs import RunFolder, RunRecord, write_state
from medsam_tune.sam.model import PromptableSam
from medsam_tune.training.checkpoints import (
    KeepBest,
    KeepLast,
    Randomness,
    ScheduleState,
    StopWithoutGain,
    TunedState,
)
from medsam_tune.training.handlers import EpochSeed
from medsam_tune.training.samples import SeededSampler
from medsam_tune.training.signals import StopAtSignal

Build = Callable[..., PromptableSam]


def test_best_is_kept_and_worse_is_not(tiny_sam: Build, tmp_path: Path) -> None:
    sam = apply_method(tiny_sam(), "prompt")
    path = tmp_path / "tuned.safetensors"
    keep = KeepBest(sam, path, {1: "liver"})
    validator = Engine(lambda *_: None)
    for value, written in ((0.5, True), (0.4, False), (0.6, True)):
        path.unlink(missing_ok=True)
        validator.state.metrics = {"mean_dice": value}
        keep(validator)
        assert path.exists() is written
    assert keep.state_dict() == {"best": 0.6, "since": 0, "metric": "mean_dice"}
    assert read_header(path).labels == {1: "liver"}
    other = KeepBest(sam, path, {})
    other.load_state_dict(keep.state_dict())
    validator.state.metrics = {"mean_dice": 0.55}
    path.unlink()
    other(validator)
    assert not path.exists()


def test_best_may_be_that_of_iou(tiny_sam: Build, tmp_path: Path) -> None:
    """The means of several cases need not agree; the run's record of validations stays Dice."""
    sam = apply_method(tiny_sam(), "prompt")
    keep = KeepBest(sam, tmp_path / "tuned.safetensors", {}, "mean_iou")
    validator = Engine(lambda *_: None)
    for dice, iou in ((0.60, 0.44), (0.59, 0.46)):
        validator.state.metrics = {"mean_dice": dice, "mean_iou": iou}
        keep(validator)
        assert (keep.since, keep.best, keep.last) == (0, iou, dice)
    with pytest.raises(ValueError, match="chosen by mean_iou, key_metric is mean_dice"):
        KeepBest(sam, keep.path, {}).load_state_dict(keep.state_dict())


@pytest.mark.parametrize(("patience", "epochs"), [(2, 4), (3, 6), (None, 6)])
def test_training_ends_where_validation_stops_to_get_better(
    tiny_sam: Build, tmp_path: Path, patience: int | None, epochs: int
) -> None:
    keep = KeepBest(apply_method(tiny_sam(), "prompt"), tmp_path / "tuned.safetensors", {})
    validator, trainer = Engine(lambda *_: None), Engine(lambda *_: None)
    values = iter((0.5, 0.6, 0.6, 0.4, 0.7, 0.5))

    @trainer.on(Events.EPOCH_COMPLETED)
    def validate() -> None:
        validator.state.metrics = {"mean_dice": next(values)}
        keep(validator)

    finished = []
    trainer.add_event_handler(Events.COMPLETED, lambda: finished.append(True))
    StopWithoutGain(keep, patience).attach(trainer)
    trainer.run([0], max_epochs=6)
    assert trainer.state.epoch == epochs
    assert finished == [True]
    other = KeepBest(keep.model, keep.path, {})
    other.load_state_dict(keep.state_dict())
    assert other.since == keep.since == {4: 2, 6: 1}[epochs]


@pytest.mark.parametrize("patience", [0, -1, 1.5, True])
def test_odd_patience_is_refused(tiny_sam: Build, tmp_path: Path, patience: Any) -> None:
    keep = KeepBest(apply_method(tiny_sam(), "prompt"), tmp_path / "t", {})
    with pytest.raises(ValueError, match=r"patience is .*; expected null, or a whole number"):
        StopWithoutGain(keep, patience)


def test_tuned_state_refuses_another_method(tiny_sam: Build) -> None:
    state = TunedState(apply_method(tiny_sam(), "adapter")).state_dict()
    with pytest.raises(ValueError, match=r"checkpoint: \d+ tensors do not match the method"):
        TunedState(apply_method(tiny_sam(), "lora")).load_state_dict(state)


def opened(path: Path, resume: bool = False) -> RunFolder:
    folder = RunFolder(path, RunRecord(None, None, None, {}, {}, 0.05, 0), resume)
    folder.open()
    return folder


def test_checkpoint_holds_what_is_tuned_and_survives_a_failed_write(
    tiny_sam: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sam = apply_method(tiny_sam(), "adapter")
    keep = KeepLast(opened(tmp_path), {"tuned": TunedState(sam)})
    trainer = Engine(lambda *_: None)
    keep.attach(trainer)
    trainer.run([0], max_epochs=1)
    saved = torch.load(tmp_path / "last.pt", weights_only=True)
    assert saved["tuned"].keys() == tuned_tensors(sam).keys()
    assert saved["trainer"]["epoch_length"] == 1
    before = (tmp_path / "last.pt").read_bytes()

    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("medsam_tune.training.checkpoints.torch.save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        trainer.run([0], max_epochs=2)
    assert (tmp_path / "last.pt").read_bytes() == before
    assert {each.name for each in tmp_path.iterdir()} == {
        "last.pt",
        "run.json",
        "state.json",
        ".lock",
    }


ENDED = {"state": "finished", "epoch": 3, "epochs": 3}


class Walk:
    """A small training: a weight moves by the data and by every source of random numbers.

    Args:
        path: folder of the run.
        resume: continue the run in it.
        epochs: epochs of four steps, each followed by a validation of two cases.
        rate: learning rate.
        kill: place where the process gets a signal, ("step" or "validation", its number).
        number: the signal.
    """

    def __init__(
        self,
        path: Path,
        resume: bool = False,
        epochs: int = 3,
        rate: float = 0.5,
        kill: tuple[str, int] = ("", 0),
        number: int = signal.SIGTERM,
    ) -> None:
        self.path, self.kill, self.number = path, kill, number
        self.weight = torch.nn.Parameter(torch.zeros(3))
        self.optimizer = torch.optim.Adam([self.weight], lr=rate)
        self.schedule = LambdaLR(self.optimizer, lambda step: 1 - step / (4 * epochs))
        self.sampler = SeededSampler(8)
        data = torch.utils.data.DataLoader(_Seeds(), sampler=self.sampler, batch_size=2)
        self.rates: list[float] = []
        self.validated: list[int] = []
        self.stop = StopAtSignal()
        self.best = KeepBest(None, path, {})  # type: ignore[arg-type]
        self.trainer, self.validator = Engine(self._step), Engine(self._validate)
        EpochSeed(self.sampler, seed=0).attach(self.trainer)
        self.trainer.add_event_handler(
            Events.EPOCH_COMPLETED, lambda _: self.validator.run([0, 1], max_epochs=1)
        )
        self.stop.attach(self.trainer)
        self.stop.attach(self.validator)
        saved = {
            "weight": self,
            "optimizer": self.optimizer,
            "schedule": ScheduleState(self.schedule),
            "best": self.best,
        }
        KeepLast(opened(path, resume), saved).attach(self.trainer)
        self.run = lambda: self.trainer.run(data, max_epochs=epochs)

    def _step(self, engine: Engine, batch: torch.Tensor) -> None:
        noise = torch.rand(1).item() + random.random() + np.random.rand()
        self.optimizer.zero_grad()
        ((self.weight - noise) * batch.float().mean() / 2**31).sin().sum().backward()
        self.rates.append(self.optimizer.param_groups[0]["lr"])
        self.optimizer.step()
        self.schedule.step()
        if self.kill == ("step", engine.state.iteration):
            os.kill(os.getpid(), self.number)

    def _validate(self, engine: Engine, case: int) -> None:
        epoch = self.trainer.state.epoch
        assert self.sampler.epoch == epoch  # by which curves of validations are drawn
        self.validated += [epoch] * (case == 1)
        self.best.last = epoch / 10 if case == 1 else None
        if self.kill == ("validation", epoch) and case == 0:
            os.kill(os.getpid(), self.number)

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"weight": self.weight.detach().clone()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            self.weight.copy_(state["weight"])

    def state(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.path / "state.json").read_text())
        assert content.pop("seconds", 0) >= 0
        assert content.pop("peak_bytes", 1) > 0
        seconds = [one.pop("seconds") for one in content["validations"]]
        assert seconds == sorted(seconds)
        return content


class _Seeds(torch.utils.data.Dataset[int]):
    def __getitem__(self, key: Any) -> int:
        return int(key[1])


def seed_all() -> None:
    random.seed(0)
    np.random.seed(0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    "kill", [("step", 2), ("step", 4), ("step", 6), ("validation", 1), ("validation", 3)]
)
def test_a_run_that_a_signal_stopped_ends_as_one_that_went_on(
    tmp_path: Path, kill: tuple[str, int], number: int
) -> None:
    seed_all()
    whole = Walk(tmp_path / "whole")
    whole.run()
    whole.stop.leave()
    known = [{"epoch": epoch, "dice": epoch / 10} for epoch in (1, 2, 3)]
    assert whole.state() == {**ENDED, "validations": known}
    seed_all()
    first = Walk(tmp_path / "run", kill=kill, number=number)
    before = signal.getsignal(number)
    first.run()
    assert first.state()["state"] == "stopped"
    with pytest.raises(SystemExit) as left:
        first.stop.leave()
    assert signal.getsignal(number) == before
    assert left.value.code == 128 + number
    release(first)
    second = Walk(tmp_path / "run", resume=True)
    second.run()
    assert torch.equal(second.weight, whole.weight)
    assert first.rates + second.rates == whole.rates  # no step is made twice
    assert first.validated + second.validated == whole.validated == [1, 2, 3]
    assert second.state() == whole.state()


def release(walk: Walk) -> None:
    """Free the lock of a run, as the end of its process does."""
    for handler, *_ in walk.trainer._event_handlers[Events.STARTED]:
        folder = getattr(getattr(handler, "__self__", None), "folder", None)
        if isinstance(folder, RunFolder) and folder._lock is not None:
            folder._lock.release()


def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    """There is one from the first step on."""
    seed_all()
    whole = Walk(tmp_path / "whole")
    whole.run()
    for kill, done in ((("step", 1), 0), (("step", 3), 1), (("step", 7), 4)):
        path = tmp_path / f"{kill[1]}"

        def die(*_: object) -> None:
            raise RuntimeError("killed")

        seed_all()
        first = Walk(path, kill=kill)
        signal.signal(signal.SIGTERM, die)
        first.stop._listen = lambda: None  # type: ignore[method-assign]
        with pytest.raises(RuntimeError, match="killed"):
            first.run()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        release(first)
        second = Walk(path, resume=True)
        if done == 0:
            seed_all()  # nothing was kept: the run starts again
        second.run()
        assert torch.equal(second.weight, whole.weight)
        assert len(second.rates) == 12 - done


def test_each_rank_goes_on_with_its_own_random_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first rank writes the checkpoint, with the states of all."""
    other = Randomness().state_dict()
    monkeypatch.setattr(ranks, "gathered", lambda own: [own, other])
    first = Walk(tmp_path, kill=("step", 2))
    first.run()
    release(first)
    taken: list[torch.Tensor] = []

    def take(_: Randomness, state: dict[str, Any]) -> None:
        taken.append(state["torch"])
        monkeypatch.setattr(ranks, "rank", lambda: 0)  # whose part of the data there is here

    second = Walk(tmp_path, resume=True)
    monkeypatch.setattr(Randomness, "load_state_dict", take)
    monkeypatch.setattr(ranks, "rank", lambda: 1)
    second.run()
    assert torch.equal(taken[0], other["torch"])


def test_all_ranks_save_when_one_wants_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors and states of all are gathered then."""
    asked: list[bool] = []
    walk = Walk(tmp_path, epochs=1)
    saved: list[int] = []
    save = torch.save

    def note(state: dict[str, Any], stream: Any) -> None:
        saved.append(state["trainer"]["iteration"])
        save(state, stream)

    monkeypatch.setattr(torch, "save", note)
    monkeypatch.setattr(ranks, "largest", lambda due: asked.append(due) or len(asked) == 2)
    walk.run()
    assert asked == [False, False, False]
    assert saved == [1, 3, 4]


def test_a_finished_run_is_not_resumed_without_more_epochs(tmp_path: Path) -> None:
    seed_all()
    first = Walk(tmp_path)
    first.run()
    assert first.rates[-1] == pytest.approx(0.5 / 12)
    release(first)
    with pytest.raises(DataError, match=r"is at 3 epochs already, 3 are wanted. .* epochs=6"):
        Walk(tmp_path, resume=True).run()
    assert first.state()["state"] == "finished"


def test_a_run_that_was_killed_right_before_its_end_is_finished_by_resume(tmp_path: Path) -> None:
    """After its last checkpoint, before its state said so."""
    seed_all()
    first = Walk(tmp_path)
    first.run()
    release(first)
    first.stop.restore()
    write_state(tmp_path, "started", 2, 3)
    second = Walk(tmp_path, resume=True)
    second.run()
    assert second.rates == second.validated == []
    assert second.state() == {**ENDED, "validations": []}
    assert torch.equal(second.weight, first.weight)


def test_a_resumed_schedule_is_that_of_the_settings(tmp_path: Path) -> None:
    seed_all()
    first = Walk(tmp_path, epochs=2)
    first.run()
    release(first)
    second = Walk(tmp_path, resume=True, epochs=4, rate=0.1)
    second.run()
    assert second.rates == pytest.approx([0.1 * (1 - step / 16) for step in range(8, 16)])
    assert second.optimizer.param_groups[0]["initial_lr"] == 0.1


@pytest.mark.parametrize("damage", [b"", b"PK\3\4 cut", None])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, damage: bytes | None) -> None:
    first = Walk(tmp_path, kill=("step", 2))
    first.run()
    release(first)
    path = tmp_path / "last.pt"
    path.write_bytes(path.read_bytes()[:-300] if damage is None else damage)
    second = Walk(tmp_path, resume=True)
    with pytest.raises(DataError, match=r"last.pt: is damaged or of another training \(\d+ bytes"):
        second.run()
    release(second)
    torch.save({"weight": {"weight": torch.zeros(3)}}, path)
    with pytest.raises(DataError, match=r"last.pt: is damaged .*'optimizer'"):
        Walk(tmp_path, resume=True).run()
