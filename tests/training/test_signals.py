"""A signal ends a training after its step, and only a second one at once."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from ignite.engine import Engine

from medsam_tune.training import signals
from medsam_tune.training.signals import StopAtSignal


@pytest.fixture
def before() -> Iterator[list[int]]:
    """The signals that reach who listened before."""
    seen: list[int] = []
    own = {n: signal.signal(n, lambda number, _: seen.append(number)) for n in signals.SIGNALS}
    yield seen
    for number, handler in own.items():
        signal.signal(number, handler)


def test_a_signal_that_comes_twice_is_one(before: list[int]) -> None:
    stop, steps = StopAtSignal(), []

    def step(engine: Engine, _: int) -> None:
        steps.append(engine.state.iteration)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)

    engine = Engine(step)
    stop.attach(engine)
    engine.run([0, 1, 2], max_epochs=2)
    assert steps == [1]
    assert not before
    with pytest.raises(SystemExit) as error:
        stop.leave()
    assert error.value.code == 143
    signal.raise_signal(signal.SIGTERM)  # heard again by who listened before
    assert before == [signal.SIGTERM]


def test_a_second_signal_ends_at_once(before: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "_ONE", -1.0)
    stop = StopAtSignal()

    def step(engine: Engine, _: int) -> None:
        signal.raise_signal(signal.SIGINT)
        assert not before
        signal.raise_signal(signal.SIGINT)
        assert before == [signal.SIGINT]

    engine = Engine(step)
    stop.attach(engine)
    engine.run([0], max_epochs=1)
