"""What training adds to MONAI: the batch, the loss, and what is kept of a run."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine

from medsam_tune.data.samples import SeededSampler
from medsam_tune.methods import apply_method
from medsam_tune.methods.tuned import read_header, tuned_tensors
from medsam_tune.runs import RunRecord
from medsam_tune.sam.model import PromptableSam
from medsam_tune.training import (
    EpochSeed,
    KeepBest,
    KeepLast,
    MaskLoss,
    StopAtBadLoss,
    TunedState,
    prepare_batch,
)

Build = Callable[..., PromptableSam]


def test_targets_are_shares_of_each_logits_pixels() -> None:
    masks = torch.zeros(2, 3, 8, 8, dtype=torch.bool)
    masks[0, 1, :4, :2] = True
    batch = {"image": torch.rand(2, 3, 8, 8), "masks": masks, "boxes": torch.rand(2, 3, 4)}
    image, target, args, kwargs = prepare_batch(batch, torch.device("cpu"))
    assert image is batch["image"]
    assert args[0] is batch["boxes"]
    assert kwargs == {}
    assert target.shape == (2, 3, 2, 2)
    assert target[0, 1].tolist() == [[0.5, 0.0], [0.0, 0.0]]
    assert float(target.sum()) == 0.5


def test_loss_is_per_mask_and_lower_for_better_masks() -> None:
    loss = MaskLoss()
    target = torch.zeros(2, 3, 8, 8)
    target[..., 2:6, 2:6] = 1
    right = (target * 2 - 1) * 20
    assert float(loss(right, target)) < 1e-3
    assert float(loss(-right, target)) > 10
    one_wrong = right.clone()
    one_wrong[0, 0] *= -1
    expected = (5 * float(loss(right, target)) + float(loss(-right, target))) / 6
    assert math.isclose(float(loss(one_wrong, target)), expected, rel_tol=1e-5)
    folded = loss(one_wrong.reshape(1, 6, 8, 8), target.reshape(1, 6, 8, 8))
    assert torch.allclose(folded, loss(one_wrong, target))


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
    record = RunRecord("d.json", "d.slices", None, {}, 0.05, 0)
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
