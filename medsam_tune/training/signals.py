"""Stopping at a signal: Ctrl-C, and SIGTERM as schedulers send it."""

from __future__ import annotations

import signal
import sys
import threading
import time
from multiprocessing import AuthenticationError
from types import FrameType, TracebackType
from typing import Any

from ignite.engine import Engine, Events

from medsam_tune.ranks import largest

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_ONE = 1.0  # seconds


class StopAtSignal:
    """Handler of a trainer and of its validator: a signal ends both after the current step.

    What is then saved is the trainer's matter, see `checkpoints.KeepLast`. A second signal ends the
    process at once; within `_ONE` it is the same one, as `timeout` and schedulers may send it both
    to a process and to its group. A signal to one of several ranks is one to all, so that they end
    at one step.

    Attributes:
        received: number of the signal, or None.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}
        self._since = 0.0

    def attach(self, engine: Engine) -> None:
        """Attach to an engine; MONAI calls it."""
        engine.add_event_handler(Events.STARTED, lambda _: self._listen())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._end)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._end)

    def _listen(self) -> None:
        if not self._before and threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in SIGNALS}

    def _receive(self, number: int, _: FrameType | None) -> None:
        if self.received is None:
            self.received, self._since = number, time.monotonic()
        elif time.monotonic() - self._since > _ONE:
            self.restore()
            signal.raise_signal(number)

    def _end(self, engine: Engine) -> None:
        self.received = largest(self.received or 0) or None
        if self.received is not None:
            engine.terminate(skip_completed=True)

    def restore(self) -> None:
        """Give the signals back to those who listened before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def leave(self) -> None:
        """End the process with the exit code of the signal, 130 or 143, if one was received.

        Raises:
            SystemExit: a signal was received.
        """
        self.restore()
        if self.received is not None:
            raise SystemExit(128 + self.received)


def ignore_interrupts(_: int) -> None:
    """Let a loader's worker live on at Ctrl-C, so that the trainer can end its step.

    A worker whose trainer has ended, in the middle of what they say to each other, is silent: the
    trainer has said why it ended, and that is its last line.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.excepthook = _silent_without_trainer


def _silent_without_trainer(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    """Hook of a worker's threads (`multiprocessing.resource_sharer`) for uncaught errors."""
    if not issubclass(kind, (ConnectionError, EOFError, AuthenticationError)):
        sys.__excepthook__(kind, error, traceback)
