"""What a terminal shows: progress with the time left, and nothing that is not for its user."""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import ExitStack, contextmanager
from time import monotonic
from typing import Any, TextIO, TypeVar

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from medsam_tune import ranks

T = TypeVar("T")

EVERY = 30.0
"""Seconds between two lines of progress where there is no terminal."""

TENTH = 10.0
"""Fewest seconds between two lines if another tenth of the work is done."""

LOG = logging.getLogger("medsam_tune")

_OPEN: list[Progress] = []


class Progress:
    """Progress of a job on standard error: a bar on a terminal, lines of the log elsewhere.

    Args:
        what: name of the job, such as "prepare".
        total: number of units to do.
        unit: name of one unit, such as "case".
        show: False shows nothing.
        done: units that were done before.
    """

    def __init__(
        self, what: str, total: int, unit: str = "case", show: bool = True, done: int = 0
    ) -> None:
        self.what = what
        self.total = total
        self.unit = unit
        self.done = self._before = done
        self._show = show = show and ranks.is_main()
        self._start = self._said = monotonic()
        self._tenth = 0
        self._stack = ExitStack()
        self._bar: Any = None
        if show and sys.stderr.isatty():
            self._bar = self._stack.enter_context(
                tqdm(
                    desc=what,
                    total=total,
                    initial=done,
                    unit=unit,
                    leave=False,
                    dynamic_ncols=True,
                )
            )
            self._stack.enter_context(logging_redirect_tqdm())  # log lines go above the bar
        _OPEN.append(self)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self, count: int = 1, **values: float) -> None:
        """Count units as done.

        Args:
            count: number of units.
            values: what to show beside it, such as `loss`.
        """
        self.done += count
        if self._bar is not None:
            if values:
                self._bar.set_postfix({k: f"{v:.4f}" for k, v in values.items()}, refresh=False)
            self._bar.update(count)
        elif self._show and self._due():
            said = [f"{self.done} of {self.total} {self.unit}s"]
            said += [f"{name} {value:.4f}" for name, value in values.items()]
            each = (monotonic() - self._start) / (self.done - self._before)
            rest = (self.total - self.done) * each
            LOG.info(f"{self.what}: {', '.join(said)}, {duration(rest)} left")

    def close(self) -> None:
        """Remove the bar."""
        if self in _OPEN:
            _OPEN.remove(self)
        self._stack.close()

    def _due(self) -> bool:
        """Whether it is time for a line; none comes at the end, whose result says enough."""
        if self.done >= self.total:
            return False
        waited, tenth = monotonic() - self._said, 10 * self.done // self.total
        if waited < EVERY and (tenth == self._tenth or waited < TENTH):
            return False
        self._said, self._tenth = monotonic(), tenth
        return True


def tracked(
    items: Iterable[T],
    what: str,
    total: int | None = None,
    unit: str = "case",
    show: bool = True,
    size: Callable[[T], int] = lambda _: 1,
) -> Iterator[T]:
    """Yield items, and show the progress.

    Args:
        items: things to do, or results as they come.
        what: name of the job.
        total: number of units in all; the length of `items` if None.
        unit: name of one unit.
        show: False shows nothing.
        size: function from an item to its number of units; one if left out.
    """
    if total is None:
        total = len(items) if isinstance(items, Sized) else 0
    with Progress(what, total, unit, show) as progress:
        for item in items:
            yield item
            progress.update(size(item))


class EngineProgress:
    """Handler of an ignite engine: progress within each epoch.

    Args:
        what: name of the job; `{epoch}` and `{epochs}` stand for numbers of the engine.
        unit: name of one iteration.
        metrics: names of the engine's metrics to show.
        shared: of several ranks, each has a share of the units; the one that is shown says so.
    """

    def __init__(
        self, what: str, unit: str = "case", metrics: Sequence[str] = (), shared: bool = False
    ) -> None:
        self.what = what
        if shared and ranks.count() > 1:
            self.what += f", process 1 of {ranks.count()}"
        self.unit = unit
        self.metrics = metrics
        self._progress: Progress | None = None

    def attach(self, engine: Any) -> None:
        """Attach to an engine after the handlers of its metrics; MONAI calls it."""
        from ignite.engine import Events

        engine.add_event_handler(Events.EPOCH_STARTED, self._open)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._step)
        engine.add_event_handler(Events.EPOCH_COMPLETED | Events.COMPLETED, self._close)

    def _open(self, engine: Any) -> None:
        state = engine.state
        what = self.what.format(epoch=state.epoch, epochs=state.max_epochs)
        # Of a resumed epoch. A validation has the epoch of its training, and begins at 0.
        done = max(0, state.iteration - (state.epoch - 1) * state.epoch_length)
        self._progress = Progress(what, state.epoch_length, self.unit, done=done)

    def _step(self, engine: Any) -> None:
        if self._progress is not None:
            found = engine.state.metrics
            shown = {k: float(found[k]) for k in self.metrics if k in found}
            self._progress.update(1, **shown)

    def _close(self, _: Any) -> None:
        if self._progress is not None:
            self._progress.close()
            self._progress = None


def close_bars() -> None:
    """Remove every bar, e.g. before the line of an error."""
    for progress in reversed(_OPEN[:]):
        progress.close()


def duration(seconds: float) -> str:
    """Seconds as a person says them, e.g. "40 s", "2 min 10 s" or "3 h 5 min"."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


_ADVISORY = re.compile("GHSA-873f-pvrv-4x83")
_TRUST = "configs are programs: run only bundles and overlays that you trust (SECURITY.md)"

# Log lines of others: logger, pattern of the message.
_LOGS = (
    # The command line above it says the same. The logger's handler writes to standard output.
    ("monai.bundle.scripts", r"--- input summary|> |---"),
    # Our own line says what is in a file of polygons.
    ("pyogrio._io", r"Created \d+ records"),
    # The file belongs to the bundle, and so does metadata.json; overlays may lie elsewhere.
    ("monai.bundle.workflows", r"Setting logging properties|Not all config files are in"),
    # Our own lines say when an epoch ends, and the last line says why a run stops.
    *(
        (
            f"ignite.engine.engine.{engine}",
            r"Engine run (resuming|starting|finished|is terminating)|Epoch\[\d+\] Complete"
            r"|Current run is terminating|Terminate signaled",
        )
        for engine in ("SupervisedTrainer", "SupervisedEvaluator", "Engine")
    ),
)


class _Hidden(logging.Filter):
    """Filter of log records whose message begins with a pattern."""

    def __init__(self, pattern: str) -> None:
        super().__init__()
        self._pattern = re.compile(pattern)

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is shown."""
        text = record.getMessage().strip()
        return bool(text) and self._pattern.match(text) is None


def debugging() -> bool:
    """Whether MEDSAM_TUNE_DEBUG asks for all warnings, log lines and tracebacks."""
    return bool(os.environ.get("MEDSAM_TUNE_DEBUG"))


@contextmanager
def calm() -> Iterator[None]:
    """Show our own log lines on standard error, each warning as one, and hide `_LOGS`.

    For a process that is ours: a command. MEDSAM_TUNE_DEBUG hides nothing.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    root = logging.getLogger()
    before = root.handlers[:], root.level, LOG.level
    root.handlers = [handler]  # a bundle's logging.conf replaces it
    LOG.setLevel(logging.INFO)
    hidden = [(logging.getLogger(name), _Hidden(pattern)) for name, pattern in _LOGS]
    try:
        if debugging():
            yield
            return
        for logger, each in hidden:
            logger.addFilter(each)
        with warnings.catch_warnings():
            warnings.showwarning = _Warned()
            yield
    finally:
        close_bars()
        for logger, each in hidden:
            logger.removeFilter(each)
        root.handlers[:], root.level, LOG.level = before[0], before[1], before[2]


class _Warned:
    """Replacement of `warnings.showwarning`: one line in the log, without the place in the code."""

    def __init__(self) -> None:
        self._told = False

    def __call__(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if _ADVISORY.search(str(message)):
            if not self._told:
                LOG.info(_TRUST)
            self._told = True
        else:
            LOG.warning(f"warning: {' '.join(str(message).split())}")
