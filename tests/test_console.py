"""Progress with the time left, and what of libraries' words a user sees."""

from __future__ import annotations

import io
import logging
import sys
import warnings
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from ignite.engine import Engine, Events

from medsam_tune import console
from medsam_tune.console import EngineProgress, calm, close_bars, duration, tracked

Said = Callable[[], list[str]]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that a test sets."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(console, "monotonic", lambda: clock.now)
    return clock


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Said:
    """Function that gives the lines of the log so far."""
    caplog.set_level(logging.INFO, "medsam_tune")
    return lambda: [
        one.getMessage() for one in caplog.records if one.name.startswith("medsam_tune")
    ]


class Terminal(io.StringIO):
    """A terminal in the place of standard error."""

    def isatty(self) -> bool:
        return True


def walk(clock: SimpleNamespace, count: int, seconds: float) -> None:
    for _ in tracked(range(count), "prepare"):
        clock.now += seconds


def test_lines_come_every_half_minute(clock: SimpleNamespace, said: Said) -> None:
    walk(clock, 100, 1.0)  # a tenth each 10 s
    assert said()[:2] == [
        "prepare: 10 of 100 cases, 1 min 30 s left",
        "prepare: 20 of 100 cases, 1 min 20 s left",
    ]
    assert len(said()) == 9  # none at the end


def test_lines_of_a_long_job(clock: SimpleNamespace, said: Said) -> None:
    walk(clock, 10_000, 1.0)
    assert 330 <= len(said()) <= 345
    assert said()[0] == "prepare: 30 of 10000 cases, 2 h 46 min left"


def test_a_short_job_says_nothing(clock: SimpleNamespace, said: Said) -> None:
    walk(clock, 50, 0.1)
    assert not said()
    for _ in tracked(range(3), "check", show=False):
        clock.now += 100
    assert not said()


def test_sizes_of_items_count(clock: SimpleNamespace, said: Said) -> None:
    for _ in tracked([[1, 2], [3, 4], [5]], "segment", 5, "slice", size=len):
        clock.now += 40
    assert said() == [
        "segment: 2 of 5 slices, 1 min 0 s left",
        "segment: 4 of 5 slices, 20 s left",
    ]


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    items = tracked(range(4), "prepare", unit="case")
    assert [next(items), next(items)] == [0, 1]
    assert "prepare:" in terminal.getvalue()
    assert "0/4" in terminal.getvalue()
    assert console._OPEN
    close_bars()
    assert not console._OPEN
    assert terminal.getvalue().endswith("\r")  # the bar is gone


def test_epochs_of_an_engine(clock: SimpleNamespace, said: Said) -> None:
    def step(engine: Engine, value: float) -> float:
        clock.now += 40
        return value

    engine = Engine(step)
    engine.add_event_handler(
        Events.ITERATION_COMPLETED, lambda e: e.state.metrics.update(loss=e.state.output)
    )
    EngineProgress("epoch {epoch} of {epochs}", "step", ["loss", "other"]).attach(engine)
    engine.run([0.5, 0.25], max_epochs=2)
    assert said() == [f"epoch {n} of 2: 1 of 2 steps, loss 0.5000, 40 s left" for n in (1, 2)]
    assert not console._OPEN


def test_a_share_is_said_to_be_one(
    clock: SimpleNamespace, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(*_: object) -> None:
        clock.now += 40

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    engine = Engine(step)
    EngineProgress("predict", "scan", shared=True).attach(engine)
    engine.run([0, 0])
    assert said() == ["predict, process 1 of 2: 1 of 2 scans, 40 s left"]


def test_a_resumed_epoch_counts_on(clock: SimpleNamespace, said: Said) -> None:
    def step(*_: object) -> None:
        clock.now += 40

    engine = Engine(step)
    EngineProgress("epoch {epoch}", "step").attach(engine)
    engine.load_state_dict({"epoch_length": 4, "max_epochs": 1, "iteration": 2})
    engine.run([0, 0, 0, 0], max_epochs=1)
    assert said() == ["epoch 1: 3 of 4 steps, 40 s left"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0 s"), (59.4, "59 s"), (60, "1 min 0 s"), (3599, "59 min 59 s"), (7300, "2 h 1 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


ADVISORY = "parsing config_file a.yaml: ... (see https://.../GHSA-873f-pvrv-4x83)."


def test_calm_shows_one_line_for_each_thing(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MEDSAM_TUNE_DEBUG", raising=False)
    engine = logging.getLogger("ignite.engine.engine.SupervisedTrainer")
    before = logging.getLogger().handlers[:], engine.filters[:], warnings.showwarning
    with calm():
        engine.setLevel(logging.INFO)
        logging.getLogger("monai.bundle.scripts").warning("--- input summary of run ---")
        logging.getLogger("monai.bundle.workflows").warning("Not all config files are in configs.")
        logging.getLogger("pyogrio._io").warning("Created 15 records")
        engine.info("Engine run resuming from iteration 0, epoch 0 until 2 epochs")
        engine.info("Epoch[1] Complete. Time taken: 00:00:10.401")
        engine.info("validation mean_dice 0.8")
        warnings.simplefilter("always")  # pyproject.toml ignores the advisory in tests
        warnings.warn(ADVISORY, stacklevel=1)
        warnings.warn(ADVISORY + " ", stacklevel=1)
        warnings.warn("case a:\n odd", stacklevel=1)
        console.LOG.info("epoch 1")
    engine.setLevel(logging.NOTSET)
    lines = [line[9:] for line in capfd.readouterr().err.splitlines()]
    assert lines == [
        "validation mean_dice 0.8",
        "configs are programs: run only bundles and overlays that you trust (SECURITY.md)",
        "warning: case a: odd",
        "epoch 1",
    ]
    assert (logging.getLogger().handlers, engine.filters, warnings.showwarning) == before


def test_debugging_hides_nothing(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDSAM_TUNE_DEBUG", "1")
    with calm():
        logging.getLogger("ignite.engine.engine.SupervisedTrainer").warning("Engine run finished.")
    assert "Engine run finished." in capfd.readouterr().err
