"""Handlers: what they check, log and keep."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from ignite.engine import Engine, Events

from medsam_tune.methods import METHODS, apply_method
from medsam_tune.sam.model import PromptableSam
from medsam_tune.training.handlers import (
    CheckFirstStep,
    EpochSeed,
    MeanLoss,
    StopAtBadLoss,
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
    classes = torch.arange(3).expand(2, -1) if sam.classes else None

    def step(engine: Engine, _: object) -> None:
        optimizer.zero_grad()
        found = sam(image, boxes, classes=classes, return_quality=True)
        sum(one.square().mean() for one in found if one is not None).backward()
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
    with torch.no_grad():
        sam = apply_method(tiny_sam(), method, num_classes=3).train()
        sam.learned.present += 0.1  # of zeros, the square has no gradient
    assert first_step(sam).state.iteration == 2


def test_a_head_that_no_mask_reaches_is_not_excused(tiny_sam: Build) -> None:
    with pytest.raises(ValueError, match=r"cut off .*output_hypernetworks_mlps\.1"):
        first_step(apply_method(tiny_sam(), "decoder", multimask=True))


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
    with torch.no_grad():
        sam.learned.gates += 0.5  # behind closed gates tokens have no gradient
    kept["tokens"] = sam.learned.tokens.detach().clone()  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"did not change: learned\.tokens \(1\)"):
        first_step(sam, undo)


def test_bad_loss_stops_and_names_the_cases() -> None:
    engine = Engine(lambda *_: {"loss": torch.tensor(float("nan"))})
    StopAtBadLoss().attach(engine)
    with pytest.raises(FloatingPointError, match=r"loss is nan at step 1 \(cases a, b\)"):
        engine.run([{"case": ["b", "a", "b"]}])


def test_the_loss_that_is_logged_is_that_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(lambda *_: {"loss": torch.tensor(0.5, requires_grad=True)})
    MeanLoss().attach(engine)
    assert float(engine.run([0]).output["loss"]) == 0.5
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("medsam_tune.training.handlers.mean", lambda own: (own + 1.5) / 2)
    assert float(engine.run([0]).output["loss"]) == 1


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


def test_each_rank_draws_random_numbers_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of dropout and mixed images; the first rank's are those of one process."""
    found = []
    for number in (None, 0, 1):
        if number is not None:
            monkeypatch.setenv("WORLD_SIZE", "2")
            monkeypatch.setenv("RANK", str(number))
        engine = Engine(lambda *_: found.append(float(torch.rand(()))))
        EpochSeed(SeededSampler(2), seed=1).attach(engine)
        engine.run([0], max_epochs=2)
    alone, first, second = found[:2], found[2:4], found[4:]
    assert alone == first
    assert not {*first} & {*second}
