"""A process that has imported everything and forks for each command, so that a trial is short.

    python -m tests.server  # a JSON line of commands in, a JSON line of outcomes out

Commands of one line run at the same time. `Server` is the side of the caller.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.network import cut

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Command:
    """A command line, and what goes wrong while it runs.

    Attributes:
        words: words after `medsam-tune`, or after `python -m MODULE`.
        module: the module; empty for `medsam-tune`.
        folder: its working directory; empty for that of the server.
        after: seconds after which it gets `number`, or the text after which it does, once it is
            printed; None for never.
        number: the signal.
        mishap: name of a function in `mishaps`, called in its process before it starts.
        options: arguments of that function.
        limit: seconds after which it is killed as one that hangs.
    """

    words: tuple[str, ...]
    module: str = ""
    folder: str = ""
    after: float | str | None = None
    number: int = signal.SIGKILL
    mishap: str = ""
    options: dict[str, Any] | None = None
    limit: float = 240


@dataclass(frozen=True)
class Outcome:
    """What a command did.

    Attributes:
        code: its exit code; that of a signal is negative.
        text: its standard output and standard error.
        seconds: wall-clock time.
        hung: True if it was killed at its limit.
    """

    code: int
    text: str
    seconds: float
    hung: bool


class Server:
    """A server process, started at the first command.

    Args:
        folder: working directory of the commands; each has a log in it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._process: subprocess.Popen[str] | None = None

    def run(self, *commands: Command) -> list[Outcome]:
        """Run commands at the same time; return when all have ended."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.server", str(self.folder)],
                **{"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True},
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([asdict(command) for command in commands]) + "\n")
        self._process.stdin.flush()
        return [Outcome(**each) for each in json.loads(self._process.stdout.readline())]

    def one(self, *words: object, **options: Any) -> Outcome:
        """Run one command; `options` are those of `Command`."""
        return self.run(Command(tuple(map(str, words)), **options))[0]

    def close(self) -> None:
        """End the process."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            self._process.wait(60)


def _import_everything() -> None:
    for name in (
        *("cases.folders", "cases.splits", "cli", "evaluation.scores", "evaluation.pictures"),
        *("inference.inferers", "inference.output", "methods.export", "training.checkpoints"),
        "transforms",
    ):
        import_module(f"medsam_tune.{name}")
    for name in ("bundle", "engines", "handlers"):
        import_module(f"monai.{name}")
    import_module("torch.utils.tensorboard")


def _child(command: Command, log: Path) -> int:
    """Be the command, in a process of its own; return its exit code."""
    from medsam_tune import cli
    from tests.faults import mishaps

    os.setpgid(0, 0)
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for ours, theirs in ((nothing, 0), (target, 1), (target, 2)):
        os.dup2(ours, theirs)
    after: Callable[[], None] | None = None
    sys.argv = [command.module or "medsam-tune", *command.words]
    if command.folder:
        os.chdir(command.folder)
    try:
        if command.mishap:
            after = getattr(mishaps, command.mishap)(**command.options or {})
        if command.module:
            runpy.run_module(command.module, run_name="__main__", alter_sys=True)
        else:
            cli.main()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(bool(error.code))
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        sys.excepthook(*sys.exc_info())  # as at the end of a process
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    if after is not None:
        after()
    return code


def _start(command: Command, log: Path) -> int:
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        code = _child(command, log)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _is_time(after: float | str | None, now: float, log: Path) -> bool:
    if isinstance(after, str):
        return log.exists() and after in log.read_text(errors="replace")
    return after is not None and now >= after


def _together(commands: list[Command], folder: Path) -> list[Outcome]:
    logs = [folder / f".log_{os.getpid()}_{number}" for number in range(len(commands))]
    for log in logs:
        log.unlink(missing_ok=True)  # of the command before
    begin = time.monotonic()
    running = {_start(*each): at for at, each in enumerate(zip(commands, logs, strict=True))}
    told: set[int] = set()
    hung: set[int] = set()
    outcomes: dict[int, Outcome] = {}
    while running:
        now = time.monotonic() - begin
        for process, at in [*running.items()]:
            command = commands[at]
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                del running[process]
                text = logs[at].read_text(errors="replace") if logs[at].exists() else ""
                code = os.waitstatus_to_exitcode(status)
                outcomes[at] = Outcome(code, text, round(now, 2), at in hung)
            elif at not in told and _is_time(command.after, now, logs[at]):
                told.add(at)
                os.kill(process, command.number)
            elif now >= command.limit:
                hung.add(at)
                os.killpg(process, signal.SIGKILL)
        time.sleep(0.002)
    return [outcomes[at] for at in range(len(commands))]


def _serve(folder: Path) -> None:
    _import_everything()
    cut()
    os.chdir(folder)
    for line in sys.stdin:
        commands = [Command(**{**each, "words": tuple(each["words"])}) for each in json.loads(line)]
        print(json.dumps([asdict(each) for each in _together(commands, folder)]), flush=True)
    os._exit(0)  # at once: to take all libraries down lasts seconds


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
