"""Faults of the machine and of the input, tried by the number: what was survived, what was not.

    python benchmarks/faults.py [--only kills] [--jobs 2] [--folder DIR]

Each trial is a command of `medsam-tune` on small phantoms, see `tests/faults`: something goes
wrong, the command is given again, and its result is compared, bit by bit, with that of a run that
nothing disturbed. The sections go to benchmarks/results/faults.md as they are done.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from queue import Queue

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from training_step import machine  # noqa: E402

from medsam_tune.files import written_whole  # noqa: E402
from tests.faults import rows, trials  # noqa: E402
from tests.faults.mishaps import may_mount  # noqa: E402
from tests.faults.runs import METHODS, Yard  # noqa: E402
from tests.server import Server  # noqa: E402

OUTPUT = ROOT / "benchmarks" / "results" / "faults.md"
KILLS = 40  # at each place
Trial = tuple[str, str, Callable[[Yard], str]]  # kind, what is tried, what was wrong


class Crew:
    """Workers that try things at the same time, each with a server of its own, in one folder."""

    def __init__(self, folder: Path, jobs: int) -> None:
        self.yards = [Yard(folder, Server(folder)) for _ in range(jobs)]
        self._free: Queue[Yard] = Queue()
        self._ready = False

    def tried(self, every: Iterable[Trial]) -> list[tuple[str, str, str]]:
        """Kind, what was tried and what was wrong, of all trials; prints each as it ends."""
        if not self._ready:
            self.yards[0].prepare()
            for method in METHODS:
                self.yards[0].whole(method)
            for yard in self.yards:
                self._free.put(yard)
            self._ready = True
        with ThreadPoolExecutor(len(self.yards)) as pool:
            return list(pool.map(self._try, every))

    def _try(self, trial: Trial) -> tuple[str, str, str]:
        kind, what, run = trial
        yard, start = self._free.get(), time.monotonic()
        try:
            wrong = run(yard)
        except Exception as error:  # counted as a failure of the trial
            wrong = f"{type(error).__name__}: {error}"
        self._free.put(yard)
        seconds = time.monotonic() - start
        print(f"{kind}, {what}: {wrong or 'right'} ({seconds:.0f} s)", file=sys.stderr, flush=True)
        return kind, what, wrong


def table(done: list[tuple[str, str, str]], head: str = "right") -> list[str]:
    """Rows of a table: tried and right by kind; then what was wrong."""
    kinds = dict.fromkeys(kind for kind, _, _ in done)
    lines = [f"| | tried | {head} |", "|---|---|---|"]
    for kind in [*kinds, "in all"]:
        mine = [wrong for each, _, wrong in done if kind in (each, "in all")]
        lines.append(f"| {kind} | {len(mine)} | {mine.count('')} |")
    wrong = [f"- {kind}, {what}: {wrong}" for kind, what, wrong in done if wrong]
    return [*lines, *(["", "Not right:", "", *wrong] if wrong else [])]


def kills(crew: Crew) -> list[str]:
    every = [
        (place, f"kill {number}", partial(trials.killed, place=place, number=number))
        for number in range(KILLS)
        for place in trials.PLACES
    ]
    end = "after the last checkpoint, before the run says that it is finished"
    every.append((end, "kill", trials.killed_at_the_end))
    return [
        f"SIGKILL at {len(every)} moments drawn from seeds: in time, or at the n-th file that is "
        "opened, made, renamed or removed, and up to 4 ms later. Then the same command again, with "
        "`--resume` where a run was begun, unless it had said that it is finished. Survived: it "
        "ends, nothing is left over, and all slices, or the tuned file and the tensors of last.pt, "
        "equal those of an undisturbed run.",
        "",
        *table(crew.tried(every), "survived"),
    ]


def resumes(crew: Crew) -> list[str]:
    done = crew.tried(
        (
            method,
            f"{'epoch boundary' if boundary else 'within an epoch'}, {workers} workers",
            partial(trials.resumed, method=method, boundary=boundary, workers=workers),
        )
        for method in METHODS
        for boundary in (True, False)
        for workers in (0, 2)
    )
    lines = [
        "Each method x {between two epochs, within one} x {0, 2 workers}, on a CPU; the "
        "undisturbed run has no workers.",
        "",
        *table(done, "ended bit-equal"),
    ]
    return lines


def signals(crew: Crew) -> list[str]:
    every = [
        (name, where, partial(trials.signalled, number=int(number), where=where))
        for name, number in (("SIGTERM", signal.SIGTERM), ("SIGINT", signal.SIGINT))
        for where in ("the start", "a step", "saving", "the validation")
    ]
    return [
        "Right: exit code 143 or 130, state `stopped`, the `--resume` line printed (before the "
        "first step there is nothing to keep: it ends at once), and the resumed run ends "
        "bit-equal.",
        "",
        *table(crew.tried(every)),
    ]


def mishaps(crew: Crew) -> list[str]:
    every: list[Trial] = []
    for command in ("prepare", "train"):
        for share in (0.02, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8) if may_mount() else ():
            run = partial(trials.full_disk, command=command, share=share)
            every.append((f"disk full, {command}", f"{share:.0%} of what it needs", run))
    for command in ("prepare", "train"):
        for mebibytes in (1, 8, 24, 64):
            run = partial(trials.little_memory, command=command, more=mebibytes << 20)
            every.append((f"out of memory, {command}", f"{mebibytes} MiB to spare", run))
    for delay in (0.0, 0.1, 0.5, 1.0):
        run = partial(trials.dead_worker, delay=delay)
        every.append(("a worker of the loader killed", f"after {delay} s", run))
    for epochs in (0, 1, 2):
        run = partial(trials.not_a_number, epochs=epochs)
        every.append(("NaN loss", f"after {epochs} epochs", run))
    for apart in (0.0, 1.0, 3.0):
        run = partial(trials.two_trainings, apart=apart)
        every.append(("two trainings, one run folder", f"{apart} s apart", run))
    for training in (False, True):
        what = "prepare and train" if training else "two of prepare"
        run = partial(trials.two_in_a_store, training=training)
        every.append(("two processes, one slice store", what, run))
    return [
        "Right: one line and the exit code of its kind (5 disk; 6 memory; 1 NaN, a folder in use, "
        "or slices that by the estimate cannot fit), nothing left over, what was there kept; "
        "and the same command, given again, ends bit-equal. The small disk is a tmpfs that the "
        "process alone sees; little "
        "memory is RLIMIT_AS.",
        "",
        *table(crew.tried(every)),
    ]


def fuzzing(_: Crew) -> list[str]:
    """Run the tests over arbitrary inputs, and count hypothesis' examples."""
    files = sorted(
        str(path.relative_to(ROOT))
        for path in (ROOT / "tests").rglob("test_*.py")
        if "from hypothesis import" in path.read_text()
    )
    words = ["-m", "pytest", "-q", "-p", "tests.faults.examples", "-p", "no:cacheprovider"]
    with tempfile.TemporaryDirectory() as scratch:
        result = Path(scratch) / "counts.json"
        done = subprocess.run(
            [sys.executable, *words, *files],
            **{"cwd": ROOT, "env": os.environ | {"EXAMPLES": str(result)}},
            **{"capture_output": True, "text": True, "check": False},
        )
        counts: dict[str, list[int]] = json.loads(result.read_text())
    failed = re.findall(r"^FAILED (\S+)", done.stdout, re.MULTILINE)
    lines = ["| tests over arbitrary inputs | examples | neither right nor refused |"]
    lines.append("|---|---|---|")
    lines += [f"| {name} | {a + b} | {b} |" for name, (a, b) in counts.items()]
    every = [sum(column) for column in zip(*counts.values(), strict=True)] or [0, 0]
    lines.append(f"| in all | {sum(every)} | {every[1]} |")
    return [*lines, *(["", f"Failed tests: {', '.join(failed)}"] if failed else [])]


def phi(_: Crew) -> list[str]:
    from tests import phi as planted

    with tempfile.TemporaryDirectory() as scratch:
        lines = [
            "| names planted in | files written | with a name from a header |",
            "|---|---|---|",
        ]
        wrong: list[str] = []
        for kind in planted.KINDS:
            swept = planted.try_all(kind, Path(scratch) / kind)
            lines.append(f"| {kind} | {swept.files} | {len(swept.hits)} |")
            wrong += swept.hits
    return [
        "Names, a number and a birth date stand in the tags and headers of scans and labels; then "
        "split, check, prepare, train, evaluate, predict and export run. All that they wrote and "
        "printed is unpacked and searched.",
        "",
        *lines,
        *["", *(f"- {hit}" for hit in wrong)],
    ]


def silent(_: Crew) -> list[str]:
    untested = ", ".join(map(str, sorted(rows.UNTESTED))) or "none"
    lines = [
        "Silent wrong results known: 0. Each row was one, or a traceback; these are its tests. "
        f"Rows without a test of their own: {untested}.",
        "",
        "| row | input or event | tests |",
        "|---|---|---|",
    ]
    for row, (what, names) in rows.ROWS.items():
        named = [f"`{name}`" for name in names if "::" in name]
        inputs = len(names) - len(named)
        table_rows = (
            [f"{inputs} of `tests/test_bad_inputs.py`, `row{row:02d}-...`"] if inputs else []
        )
        lines.append(f"| {row} | {what} | {', '.join([*named, *table_rows])} |")
    return lines


SECTIONS: dict[str, tuple[str, Callable[[Crew], list[str]]]] = {
    "kills": ("Kills", kills),
    "resumes": ("Resumes", resumes),
    "signals": ("Signals", signals),
    "mishaps": ("Disk, memory, workers, NaN, two processes", mishaps),
    "fuzzing": ("Arbitrary inputs", fuzzing),
    "phi": ("Names of patients", phi),
    "silent": ("Silent wrong results", silent),
}


def main() -> None:
    """Try the sections, and put each into the page when it is done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=SECTIONS, action="append", help="make this one again")
    parser.add_argument("--jobs", type=int, default=2, help="trials at the same time")
    parser.add_argument("--folder", type=Path, help="keep phantoms and failed runs here")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="faults") as scratch:
        folder = given.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        crew = Crew(folder.absolute(), given.jobs)
        for name in given.only or SECTIONS:
            start = time.monotonic()
            title, make = SECTIONS[name]
            lines = make(crew)
            took = f"{(time.monotonic() - start) / 60:.0f} minutes"
            write(title, [*lines, "", f"`--only {name}`, {took}, {machine('cpu')}."])
        for yard in crew.yards:
            yard.server.close()


def write(title: str, lines: list[str]) -> None:
    """Put one section into the page, in its place."""
    text = OUTPUT.read_text(encoding="utf-8") if OUTPUT.is_file() else ""
    parts = dict(re.findall(r"^## (.+?)\n\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    parts[title] = "\n".join(lines)
    head = "# Faults\n\n`python benchmarks/faults.py`: what goes wrong, and what is left of it.\n"
    order = [title for title, _ in SECTIONS.values() if title in parts]
    sections = [f"## {title}\n\n{parts[title].strip()}\n" for title in order]
    with written_whole(OUTPUT) as beside:
        beside.write_text("\n".join([head, *sections]), encoding="utf-8")


if __name__ == "__main__":
    main()
