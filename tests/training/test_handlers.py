"""Handlers: what they check, log and keep."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine, Events

from medsam_tune.methods import METHODS, apply_method
from medsam_tune.methods.tuned import read_header, tuned_tensors
from medsam_tune.runs import RunRecord
from medsam_tune.sam.model import PromptableSam
from medsam_tune.training.handlers import (
    CheckFirstStep,
    EpochSeed,
    KeepBest,
    KeepLast,
    StopAtBadLoss,
    TunedState,
)
from medsam_tune.training.samples import SeededSampler
from tests.conftest import image_and_boxes

Build = Callable[..., PromptableSam]


def first_step(
    sam: PromptableSam, sabotage: Callable[[PromptableSam], None] | None = None, skip: str = "-"
) -> Engine:
    """Two steps, the first at a rate of zero as under warm-up, with the handler attached."""
    trained = [p for k, p in sam.named_parameters() if p.requires_grad and skip not in k]
    optimizer = torch.optim.AdamW(trained, lr=0.0)
    image, boxes = image_and_boxes()

    def step(engine: Engine, _: object) -> None:
        optimizer.zero_grad()
        sam(image, boxes).square().mean().backward()
        optimizer.step()
        if sabotage is not None and engine.state.iteration == 2:
            sabotage(sam)

    engine = Engine(step)
    engine.add_event_handler(
        Events.ITERATION_COMPLETED, lambda _: optimizer.param_groups[0].update(lr=1e-3)
    )
    CheckFirstStep(sam, optimizer).attach(engine)
    engine.run([0, 1])
    return engine


@pytest.mark.parametrize("method", METHODS)
def test_first_step_of_every_method_passes(tiny_sam: Build, method: str) -> None:
    assert first_step(apply_method(tiny_sam(), method).train()).state.iteration == 2


def test_first_step_that_is_not_the_methods_is_refused(tiny_sam: Build) -> None:
    with pytest.raises(
        ValueError, match=r"step 2 did not train .*cut off .*: .*blocks\.0.*lora_A.*\(2\)"
    ):
        first_step(apply_method(tiny_sam(), "lora"), skip="blocks.0.attn.q_proj")

    def nudge(sam: PromptableSam) -> None:
        with torch.no_grad():
            sam.image_encoder.neck[0].weight += 1e-3

    with pytest.raises(
        ValueError, match=r"frozen, but changed: image_encoder\.neck\.0\.weight \(1\)"
    ):
        first_step(apply_method(tiny_sam(), "lora"), nudge)

    kept = {}

    def undo(sam: PromptableSam) -> None:
        with torch.no_grad():
            sam.learned.tokens.copy_(kept["tokens"])  # type: ignore[union-attr]

    sam = apply_method(tiny_sam(), "prompt")
    kept["tokens"] = sam.learned.tokens.detach().clone()  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"did not change: learned\.tokens \(1\)"):
        first_step(sam, undo)


def test_bad_loss_stops_and_names_the_cases() -> None:
    engine = Engine(lambda *_: {"loss": torch.tensor(float("nan"))})
    StopAtBadLoss().attach(engine)
    with pytest.raises(FloatingPointError, match=r"loss is nan at step 1 \(cases a, b\)"):
        engine.run([{"case": ["b", "a", "b"]}])


class _Keys(torch.utils.data.Dataset[tuple[int, int]]):
    """Gives back the key that the sampler drew."""

    def __getitem__(self, key: tuple[int, int]) -> tuple[int, int]:
        return key


def test_epoch_seed_fixes_order_and_random_numbers() -> None:
    def drawn() -> list[tuple[int, float]]:
        sampler = SeededSampler(5, seed=1)
        found: list[tuple[int, float]] = []

        def step(engine: Engine, item: tuple[int, int]) -> None:
            found.append((item[0], float(torch.rand(()))))

        engine = Engine(step)
        EpochSeed(sampler, seed=1).attach(engine)
        loader = torch.utils.data.DataLoader(_Keys(), sampler=sampler, batch_size=None)
        engine.run(loader, max_epochs=2)
        return found

    first, second = drawn(), drawn()
    assert first == second
    assert first[:5] != first[5:]


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
    assert keep.state_dict() == {"best": 0.6}
    assert read_header(path).labels == {1: "liver"}
    other = KeepBest(sam, path, {})
    other.load_state_dict(keep.state_dict())
    validator.state.metrics = {"mean_dice": 0.55}
    path.unlink()
    other(validator)
    assert not path.exists()


def test_checkpoint_holds_what_is_tuned_and_survives_a_failed_write(
    tiny_sam: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sam = apply_method(tiny_sam(), "adapter")
    record = RunRecord("d.json", "d.slices", None, {}, {}, 0.05, 0)
    keep = KeepLast(record, {"tuned": TunedState(sam)}, tmp_path)
    trainer = Engine(lambda *_: None)
    keep.attach(trainer)
    trainer.run([0], max_epochs=1)
    saved = torch.load(tmp_path / "last.pt", weights_only=True)
    assert saved["tuned"].keys() == tuned_tensors(sam).keys()
    assert saved["trainer"]["epoch_length"] == 1
    before = (tmp_path / "last.pt").read_bytes()

    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ignite.handlers.checkpoint.torch.save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        trainer.run([0], max_epochs=2)
    assert (tmp_path / "last.pt").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"last.pt", "run.json"}


def test_tuned_state_refuses_another_method(tiny_sam: Build) -> None:
    state = TunedState(apply_method(tiny_sam(), "adapter")).state_dict()
    with pytest.raises(ValueError, match=r"checkpoint: \d+ tensors do not match the method"):
        TunedState(apply_method(tiny_sam(), "lora")).load_state_dict(state)
