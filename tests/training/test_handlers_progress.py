"""The trainer's progress: the loss, and the time left for all epochs."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Engine

from medsam_tune.training.handlers import Progress


def test_progress_says_the_loss_and_the_time_left(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("medsam_tune.training.handlers.monotonic", lambda: now[0])

    def step(_: Engine, value: float) -> dict[str, torch.Tensor]:
        now[0] += 20
        return {"loss": torch.tensor(value)}

    engine = Engine(step)
    Progress().attach(engine)
    engine.load_state_dict({"epoch_length": 2, "max_epochs": 4, "iteration": 2})  # one was done
    caplog.set_level("INFO", "medsam_tune")
    engine.run([0.5, 0.5], max_epochs=4)
    ours = [one.getMessage() for one in caplog.records if one.name.startswith("medsam_tune")]
    assert [text for text in ours if "steps" not in text] == [
        "epoch 2 of 4: loss 0.5000, 1 min 20 s left in all",
        "epoch 3 of 4: loss 0.5000, 40 s left in all",
        "epoch 4 of 4: loss 0.5000",
    ]
