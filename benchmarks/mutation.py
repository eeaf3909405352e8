"""Which share of small faults in the code the fast tests find: mutation testing, room by room.

    pip install cosmic-ray==8.7.0 coverage==7.17.4
    python benchmarks/mutation.py --work DIR                    # goes on where it was stopped
    python benchmarks/mutation.py --work DIR --only runs.py:60  # every mutant of a line, again

cosmic-ray makes the mutants; coverage tells which tests run a line, in subprocesses too. Each
mutant gets a copy of the tree, and a fork of this process, which has imported everything heavy.
The page goes to benchmarks/results/mutation.md, its survivors to DIR/survivors.txt as well.
Strings, messages, annotations and decorators are not mutated, nor the rooms of `LEFT_OUT`. Tests
marked slow are not run.
"""

from __future__ import annotations

import argparse
import ast
import compileall
import difflib
import hashlib
import importlib
import json
import os
import platform
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum
from functools import cache
from importlib.metadata import version
from itertools import chain, permutations
from pathlib import Path
from typing import Any

import coverage
import pytest
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.comparison_operator_replacement import _create_operator
from cosmic_ray.operators.operator import Operator
from cosmic_ray.plugins import get_operator, operator_names
from parso.python.tree import Keyword

PACKAGE = "medsam_tune"
ROOT = Path(__file__).resolve().parents[1]
LEFT_OUT = {"synthetic": "data are made up, so that no number is wrong"}
_FILES = [path.relative_to(ROOT / PACKAGE) for path in (ROOT / PACKAGE).rglob("*.py")]
ROOMS = tuple(sorted({file.parts[0] for file in _FILES} - {*LEFT_OUT}))
MEASURED = (PACKAGE, "bundles", "tests")  # if other files change, the measurement stays
COPIED = (*MEASURED, "docs", "pyproject.toml", "README.md")
PAGE = Path(__file__).parent / "results" / "mutation.md"
HEAVY = """torch torchvision monai monai.bundle monai.engines ignite.handlers peft nibabel pydicom
    segment_anything SimpleITK zarr scipy.ndimage scipy.stats matplotlib.pyplot highdicom onnx fire
    typer typer.testing torch.utils.tensorboard safetensors.torch jsonschema rasterio""".split()
OPERATORS = re.compile(
    "AddNot|NumberReplacer|ZeroIterationForLoop|Replace(AndWithOr|OrWithAnd|TrueWithFalse|"
    "FalseWithTrue|BreakWithContinue|ContinueWithBreak|UnaryOperator_Delete_(Not|USub|Invert)|"
    "ComparisonOperator_(Eq_NotEq|NotEq_Eq|Is_IsNot|IsNot_Is|Lt_LtE|Lt_GtE|LtE_Lt|LtE_Gt|Gt_GtE|"
    "Gt_LtE|GtE_Gt|GtE_Lt)|BinaryOperator_(Add_Sub|Sub_Add|Mul_Div|Div_Mul|FloorDiv_Mul|Pow_Mul|"
    "Mod_FloorDiv|BitAnd_BitOr|BitOr_BitAnd|BitXor_BitOr|LShift_RShift|RShift_LShift))"
)
MEMBERSHIP = Enum("Membership", {"In": "in", "NotIn": "not in"})  # what cosmic-ray leaves alone
ARITHMETIC = {"arith_expr", "term", "power", "expr", "and_expr", "xor_expr", "shift_expr"}
LOG = r"(logging\.\w+|([\w.]+\.)?logger\.\w+)\("
TEXT = rf"{LOG}|(warnings\.warn|print|typer\.echo)\("
NEUTRAL = {"strict", "stacklevel", "indent"}  # arguments without which a sound program is the same
LEAST = 4  # mutants of a room that has them
CONTROLS = 10  # runs without a fault
MEMORY = 12 << 30  # bytes of a process
KILLED, LATE, SURVIVED, UNTOUCHED = "killed", "timed out", "survived", "not touched"
NO_OP, NOT_RUN = "NoOp", 70
Tests = dict[str, dict[str, Any]]


class _DeleteStatement(Operator):
    """Puts `pass` in the place of a bare call or a `raise`, but of no line of a log."""

    def mutation_positions(self, node):
        if node.type == "simple_stmt":
            first = node.children[0]
            code = first.get_code(include_prefix=False)
            call = first.type == "atom_expr" and first.children[-1].get_code().startswith("(")
            if (call and not re.match(LOG, code)) or re.match(r"raise\b", code):
                yield first.start_pos, first.end_pos

    def mutate(self, node, index):
        first = node.children[0]
        prefix = first.get_first_leaf().prefix
        node.children[0] = Keyword("pass", first.start_pos, prefix=prefix)
        return node

    @classmethod
    def examples(cls):
        return ()


@dataclass(frozen=True)
class Mutant:
    """One fault: the file in the package, its digest, the line, and cosmic-ray's name for it."""

    file: str
    digest: str
    line: int
    operator: str
    occurrence: int

    @property
    def id(self) -> str:
        """The same for the same fault in the same file."""
        return f"{self.file} {self.digest} {self.line} {self.operator} {self.occurrence}"

    @property
    def room(self) -> str:
        """First part of the path."""
        return self.file.split("/")[0]


@cache
def source_of(file: str) -> str:
    return (ROOT / PACKAGE / file).read_text(encoding="utf-8")


def digest_of(*contents: bytes) -> str:
    return hashlib.sha256(b"\0".join(contents)).hexdigest()[:12]


@cache
def operators() -> dict[str, Operator]:
    names = [name for name in operator_names() if OPERATORS.fullmatch(name.removeprefix("core/"))]
    membership = [_create_operator(*pair) for pair in permutations(MEMBERSHIP)]
    made = [*map(get_operator, names), *membership, _DeleteStatement]
    return {each.__name__.strip("_"): each() for each in made}


def counts(node: Any, operator: str) -> bool:
    """Whether a mutant of this node says something about the tests."""
    if operator == "AddNot":  # other operators make the same of these
        condition = node.children[2 if node.type == "test" else 1]
        if condition.type in ("comparison", "not_test"):
            return False
    if operator.startswith("ReplaceBinary"):  # `*` of a call, or `/` and `+` of paths and texts
        beside = (node.get_previous_sibling(), node.get_next_sibling())
        if node.parent.type not in ARITHMETIC or any("string" in each.type for each in beside):
            return False
    while (parent := node.parent) is not None:
        code = parent.get_code(include_prefix=False)
        if (
            parent.type in ("decorator", "fstring", "raise_stmt", "tfpdef")
            or (parent.type == "annassign" and node is parent.children[1])
            or (parent.type == "funcdef" and node is parent.annotation)
            or (parent.type == "argument" and code.split("=")[0] in NEUTRAL)
            or (parent.type == "atom_expr" and re.match(TEXT, code))
            or (parent.type == "expr_stmt" and code.startswith("__"))
            or (parent.type == "if_stmt" and re.match(r"if (TYPE_CHECKING|__name__)\b", code))
        ):
            return False
        node = parent
    return True


def mutants_of(file: str) -> Iterator[Mutant]:
    nodes, digest = list(ast_nodes(get_ast(source_of(file)))), digest_of(source_of(file).encode())
    for name, operator in operators().items():
        places = ((n, start) for n in nodes for start, _ in operator.mutation_positions(n))
        for occurrence, (node, (line, _)) in enumerate(places):
            if counts(node, name):
                yield Mutant(file, digest, line, name, occurrence)


@cache
def mutated(mutant: Mutant) -> str | None:
    """The file with the fault in it, or None if it is no Python or means the same."""
    source = source_of(mutant.file)
    if mutant.operator == NO_OP:
        return source
    text = mutate_code(source, operators()[mutant.operator], mutant.occurrence)
    with suppress(SyntaxError):
        if text is not None and ast.dump(ast.parse(text)) != ast.dump(ast.parse(source)):
            return text
    return None


def described(mutant: Mutant) -> str:
    """Where it is, and the changed lines before and after, short."""
    after = (mutated(mutant) or "").splitlines()
    lines = list(difflib.unified_diff(source_of(mutant.file).splitlines(), after, n=0))[3:]
    texts = [" ".join(x[1:].strip() for x in lines if x[0] == sign) for sign in "-+"]
    old, new = (text if len(text) <= 100 else f"{text[:96]} ..." for text in texts)
    return f"{mutant.file}:{mutant.line} {mutant.operator} `-{old}` / `+{new}`"


def sample(pool: list[Mutant], count: int, seed: int) -> list[Mutant]:
    """So many mutants, each room in proportion to what it has."""
    drawn = []
    for room, size in sorted(Counter(mutant.room for mutant in pool).items()):
        rng = random.Random(f"{seed} {room}")
        shuffled = rng.sample([mutant for mutant in pool if mutant.room == room], size)
        valid = (mutant for mutant in shuffled if mutated(mutant) is not None)
        wanted = range(max(round(count * size / len(pool)), LEAST))
        drawn += [mutant for _, mutant in zip(wanted, valid, strict=False)]
    return random.Random(seed).sample(drawn, len(drawn))


class _Recorder:
    """Pytest plugin of the measuring run: one coverage context a test, and one a shared fixture."""

    def __init__(self):
        self.context, self.since = "", time.perf_counter()
        self.seconds, self.spawning = defaultdict(float), set()
        self.made, self.uses, self.passed = {}, {}, set()
        sys.addaudithook(self.watch)

    def watch(self, event, values):
        if event == "subprocess.Popen" and "python" in str(values[:2]):
            self.spawning.add(self.context)

    def switch(self, context):
        """From here on, lines and time belong to `context`, those of subprocesses too."""
        now = time.perf_counter()
        self.seconds[self.context] += now - self.since
        self.context, self.since = context, now
        os.environ["MUTATION_CONTEXT"] = context
        coverage.Coverage.current().switch_context(context)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef):
        if fixturedef.scope == "function":
            return (yield)
        outer = self.context
        self.made[fixturedef] = f"{fixturedef.argname} {os.getpid()} {len(self.seconds)}"
        self.switch(self.made[fixturedef])
        try:
            return (yield)
        finally:
            self.switch(outer)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        self.switch(item.nodeid)
        result = yield
        self.switch("")
        used = [each for pair in item._fixtureinfo.name2fixturedefs.values() for each in pair]
        self.uses[item.nodeid] = [self.made[each] for each in used if each in self.made]
        return result

    def pytest_runtest_logreport(self, report):
        if report.when == "call" and report.passed:
            self.passed.add(report.nodeid)
        if report.failed:
            self.passed.discard(report.nodeid)

    def pytest_sessionfinish(self):
        cov, records = coverage.Coverage.current(), {}
        cov.stop()
        cov.save()
        for test in self.passed & self.uses.keys():
            contexts = [test, *self.uses[test]]
            records[test] = {
                "contexts": contexts,
                "seconds": sum(self.seconds[each] for each in contexts),
                "shared": sum(self.seconds[each] for each in contexts[1:]),
                "spawns": not self.spawning.isdisjoint(contexts),
            }
        path = Path(os.environ["MUTATION_RECORDS"]) / f"{os.getpid()}.json"
        path.write_text(json.dumps(records))


def pytest_configure(config: pytest.Config) -> None:
    """Pytest was started with `-p mutation`."""
    config.pluginmanager.register(_Recorder())


def copied(tree: Path) -> dict[str, bytes]:
    """Copy what the tests need; the files that are measured."""
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir(parents=True)
    for here in (ROOT / name for name in COPIED):
        if here.is_dir():
            shutil.copytree(here, tree / here.name, ignore=shutil.ignore_patterns("__pycache__"))
        elif here.is_file():
            shutil.copy2(here, tree)
    paths = [path for name in MEASURED for path in (tree / name).rglob("*") if path.is_file()]
    files = {path.relative_to(tree).as_posix(): path.read_bytes() for path in sorted(paths)}
    compileall.compile_dir(tree / PACKAGE, quiet=1)
    return files


def measured(work: Path, jobs: int) -> Tests:
    """Each passing test: its seconds, whether it starts a Python, the lines that it runs.

    Test files that changed since the last call are run again; if anything else did, all are.
    """
    path = work / "map.json"
    known = json.loads(path.read_text()) if path.is_file() else {"files": {}, "tests": {}}
    files = copied(work / "tree")
    names = [name for name in files if re.search(r"^tests/(.*/)?test_\w+\.py$", name)]
    rest = digest_of(*(content for name, content in files.items() if name not in names))
    digests = {name: digest_of(rest.encode(), files[name]) for name in names}
    stale = [name for name in names if known["files"].get(name) != digests[name]]
    tests = {t: x for t, x in known["tests"].items() if t.split("::")[0] in set(names) - {*stale}}
    if stale:
        print(f"Measures what the tests of {len(stale)} files run.", flush=True)
        tests |= covered(work, stale, jobs)
        if not tests:
            raise SystemExit("No test passed.")
        path.write_text(json.dumps({"files": digests, "tests": tests}))
    return tests


def covered(work: Path, files: list[str], jobs: int) -> Tests:
    """Run test files under coverage."""
    tree, records = work / "tree", work / "records"
    shutil.rmtree(records, ignore_errors=True)
    records.mkdir()
    (records / "rc").write_text(
        f"[run]\nsource = {tree / PACKAGE},{tree / 'tests'}\ndata_file = {records}/lines\n"
        "parallel = true\nconcurrency = thread,multiprocessing\ncontext = ${MUTATION_CONTEXT-}\n"
        "disable_warnings = no-data-collected,module-not-imported,module-not-measured\n"
    )
    settings = {
        "PYTHONPATH": f"{tree}{os.pathsep}{Path(__file__).resolve().parent}",
        "COVERAGE_PROCESS_START": str(records / "rc"),
        "MUTATION_CONTEXT": "",
        "MUTATION_RECORDS": str(records),
    }
    words = "-m pytest -p mutation -p no:cacheprovider -q -m".split()
    words += ["not slow and not faults", "-n", str(jobs), "--dist", "loadfile", *files]
    subprocess.run([sys.executable, *words], cwd=tree, env=os.environ | settings, check=False)
    lines = defaultdict(lambda: defaultdict(set))  # by context and file
    for path in records.glob("lines.*"):
        data = coverage.CoverageData(str(path))
        data.read()
        for file in data.measured_files():
            for line, contexts in data.contexts_by_lineno(file).items():
                for context in contexts:
                    lines[context][Path(file).relative_to(tree).as_posix()].add(line)
    tests: Tests = {}
    for path in records.glob("*.json"):
        for test, record in json.loads(path.read_text()).items():
            together = defaultdict(set)
            for context in record.pop("contexts"):
                for file, numbers in lines[context].items():
                    together[file] |= numbers
            record["lines"] = {file: sorted(numbers) for file, numbers in together.items()}
            tests[test] = record
    return tests


@dataclass
class Run:
    """Tests of one mutant, or of the code as it is, in a process of its own."""

    mutant: Mutant | None
    tests: list[str]
    covering: int  # tests there are
    limit: float  # seconds
    status: int | None = 0  # None: it took too long
    seconds: float = 0
    cpu: float = 0

    @property
    def code(self) -> int:
        """How the process ended, if it was not too late."""
        return os.waitstatus_to_exitcode(self.status or 0)

    def child(self, tree: Path, folder: Path) -> int:
        """All that the fork does."""
        os.setsid()
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        for place in (folder, scratch := scratch_of(folder)):
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True)
        log = os.open(folder / "log", os.O_CREAT | os.O_WRONLY)
        for number, file in enumerate((os.open(os.devnull, os.O_RDONLY), log, log)):
            os.dup2(file, number)
        words = "-q -p no:cacheprovider -p no:xdist --tb=short".split()
        if self.mutant is not None:  # no compiled file hides it
            tree = Path(shutil.copytree(tree, folder / "tree"))
            path = tree / PACKAGE / self.mutant.file
            for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*"):
                compiled.unlink()
            path.write_text(mutated(self.mutant) or "", encoding="utf-8")
            os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
            sys.dont_write_bytecode = True
            words.append("-x")
        os.chdir(tree)
        os.environ |= {"PYTHONPATH": str(tree), "TMPDIR": str(scratch)}
        tempfile.tempdir = None
        here = str(Path(__file__).resolve().parent)
        sys.path[:] = [str(tree), *(path for path in sys.path if path not in ("", here))]
        sys.argv = ["pytest"]
        files = list(dict.fromkeys(test.split("::")[0] for test in self.tests))
        return int(pytest.main([*words, *files], [_Chosen(self.tests, folder / "report")]))


class _Chosen:
    """Pytest plugin of a fork: these tests in this order, and a line for each outcome."""

    def __init__(self, tests, report):
        self.tests, self.report = tests, report

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items):
        found = {item.nodeid: item for item in items}
        items[:] = [found[test] for test in self.tests if test in found]

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or report.failed:
            with self.report.open("a") as file:  # at once: the process may end here
                file.write(f"{report.outcome} {report.nodeid}\n")


def scratch_of(folder: Path) -> Path:
    """For temporary files; not beside the tree, where a path to them would be another."""
    return Path(tempfile.gettempdir()) / f"mutation-{digest_of(str(folder).encode())}"


def forked(runs: list[Run], work: Path, jobs: int) -> Iterator[tuple[Run, dict[str, str]]]:
    """Do these, so many at a time; each comes back with the outcomes of its tests."""
    waiting, running = deque(runs), {}
    free = [work / f"run{number}" for number in range(jobs)]
    try:
        while waiting or running:
            while waiting and free:
                run, folder = waiting.popleft(), free.pop()
                if (pid := os.fork()) == 0:
                    try:
                        os._exit(run.child(work / "tree", folder))
                    except BaseException:
                        traceback.print_exc()
                    finally:
                        os._exit(NOT_RUN)
                running[pid] = run, folder, time.monotonic()
            time.sleep(0.02)
            for pid, (run, folder, start) in list(running.items()):
                run.seconds = time.monotonic() - start
                done, run.status, usage = os.wait4(pid, os.WNOHANG)
                if not done and run.seconds > run.limit:
                    os.killpg(pid, signal.SIGKILL)
                    (done, _, usage), run.status = os.wait4(pid, 0), None
                if done:
                    del running[pid]
                    with suppress(ProcessLookupError):  # what it left running
                        os.killpg(pid, signal.SIGKILL)
                    run.cpu = usage.ru_utime + usage.ru_stime
                    if run.code == NOT_RUN:
                        raise SystemExit(f"A run could not start: {folder / 'log'}")
                    report = folder / "report"
                    lines = report.read_text().splitlines() if report.is_file() else []
                    parts = [line.partition(" ") for line in lines]
                    yield run, {test: outcome for outcome, _, test in parts}
                    free.append(folder)
    finally:
        for pid in running:
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        for number in range(jobs):
            shutil.rmtree(scratch_of(work / f"run{number}"), ignore_errors=True)


def lines_of(statement: ast.stmt) -> range:
    """With its decorators."""
    start = min(x.lineno for x in [statement, *getattr(statement, "decorator_list", [])])
    return range(start, statement.end_lineno + 1)


class Map:
    """Which tests run which line."""

    def __init__(self, tests: Tests):
        self.tests, self.lines = tests, defaultdict(lambda: defaultdict(set))
        for test, record in tests.items():
            for file, lines in record["lines"].items():
                for line in lines:
                    self.lines[file][line].add(test)
        paths = [p for name in (PACKAGE, "tests") for p in sorted((ROOT / name).rglob("*.py"))]
        self.sources = {p.relative_to(ROOT).as_posix(): p.read_text("utf-8") for p in paths}
        self.trees = {file: ast.parse(source) for file, source in self.sources.items()}

    def touching(self, file: str, line: int, seen: set[Any]) -> set[str]:
        """The tests that run a line, or use what it defines while its module is imported."""
        if (file, line) in seen:
            return set()
        seen.add((file, line))
        statements = (node for node in ast.walk(self.trees[file]) if isinstance(node, ast.stmt))
        around = [node for node in statements if line in lines_of(node)]
        if not around:
            return set()
        inner, reached = min(around, key=lambda node: len(lines_of(node))), self.lines[file]
        functions = [node for node in around if isinstance(node, ast.FunctionDef)]
        if any(line >= node.body[0].lineno for node in functions):  # it is in a body
            if reached[line]:
                return reached[line]
            start, stop = lines_of(inner).start, lines_of(inner).stop
            stop = max(inner.body[0].lineno, start + 1) if hasattr(inner, "body") else stop
            return set().union(*(reached[each] for each in range(start, stop)))
        if isinstance(inner, ast.FunctionDef):  # its defaults
            body = range(inner.body[0].lineno, inner.end_lineno + 1)
            return set().union(*(reached[each] for each in body))
        targets = [*getattr(inner, "targets", []), getattr(inner, "target", None)]
        parts = [part for each in targets if each for part in ast.walk(each)]
        names = {part.id for part in parts if isinstance(part, ast.Name)}
        names |= {inner.name} if isinstance(inner, ast.ClassDef) else set()
        if not names and len(seen) == 1:  # a bare call: everything beside it
            near = file.removesuffix("__init__.py")
            files = [lines for other, lines in self.lines.items() if other.startswith(near)]
            return set().union(*(tests for lines in files for tests in lines.values()))
        names -= seen
        seen |= names
        word, found = re.compile(rf"\b({'|'.join(names)})\b"), set()
        for other, source in self.sources.items() if names else ():
            for number, text in enumerate(source.splitlines(), 1):
                if word.search(text):
                    found |= self.touching(other, number, seen)
        return found

    def run_of(self, mutant: Mutant, most: int, spawning: int) -> Run:
        """The fastest tests; those of the module's own test file pass for four times as fast.

        Each test function has one turn before any has a second one with other parameters. Three
        times as many tests that start a Python are taken where there are no others.
        """
        own, turns, ranked = f"/test_{Path(mutant.file).stem}.py", Counter(), []
        touching = self.touching(f"{PACKAGE}/{mutant.file}", mutant.line, set())
        sound = {t: self.tests[t] for t in touching if self.tests[t].get("sound", True)}
        for test in sorted(sound, key=lambda t: (sound[t]["seconds"] / (4 if own in t else 1), t)):
            turns[function := test.partition("[")[0]] += 1
            ranked.append((turns[function], test))
        ranked.sort(key=lambda pair: pair[0])
        within = [test for _, test in ranked if not sound[test]["spawns"]]
        starting = [test for _, test in ranked if sound[test]["spawns"]]
        spawning = spawning if within else 3 * spawning
        return self.run({*within[:most], *starting[:spawning]}, mutant, len(sound))

    def run(self, names: set[str], mutant: Mutant | None = None, covering: int = 0) -> Run:
        """Fast ones first, those that start a Python last; users of a slow fixture together."""

        def place(test: str) -> tuple[bool, str, float]:
            record = self.tests[test]
            together = test.split("::")[0] if record["shared"] > 0.2 else ""
            return record["spawns"], together, record["seconds"]

        limit = 3 * sum(self.tests[test]["seconds"] for test in names) + 20
        return Run(mutant, sorted(names, key=place), covering, limit)


def planned(mutants: list[Mutant], args: argparse.Namespace) -> list[Run]:
    """The tests of each mutant, all of which pass in a fork on the code as it is."""
    tests, path = measured(args.work, args.jobs), args.work / "map.json"
    lines = Map(tests)
    for name in HEAVY:
        with suppress(ImportError):
            importlib.import_module(name)
    while True:
        runs = [lines.run_of(mutant, args.tests, args.spawning) for mutant in mutants]
        new = {test for run in runs for test in run.tests if "sound" not in tests[test]}
        if not new:
            return runs
        print(f"Runs {len(new)} tests without a fault.", flush=True)
        parts: list[set[str]] = [set() for _ in range(args.jobs)]
        for file in {test.split("::")[0] for test in new}:
            least = min(parts, key=lambda part: sum(tests[test]["seconds"] for test in part))
            least |= {test for test in new if test.startswith(f"{file}::")}
        for run, outcomes in forked([lines.run(p) for p in parts if p], args.work, args.jobs):
            for test in run.tests:
                tests[test]["sound"] = outcomes.get(test) == "passed"
                if not tests[test]["sound"]:
                    print(f"Left out, as it fails without a fault: {test}", flush=True)
        path.write_text(json.dumps(json.loads(path.read_text()) | {"tests": tests}))


def judged(mutants: list[Mutant], args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """A verdict of each mutant, by its id; those of an earlier call are taken as they are."""
    path = args.work / "verdicts.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    known = {verdict["id"]: verdict for verdict in map(json.loads, lines)}
    todo = [mutant for mutant in mutants if args.only or mutant.id not in known]
    runs = planned(todo, args) if todo else []
    untouched = [(run, {}) for run in runs if not run.tests]
    touched = forked([run for run in runs if run.tests], args.work, args.jobs)
    for number, (run, outcomes) in enumerate(chain(untouched, touched), 1):
        verdict = SURVIVED if run.tests else UNTOUCHED
        if run.status is None:
            verdict = LATE
        elif run.code not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            verdict = KILLED
        failed = [test for test, outcome in outcomes.items() if outcome == "failed"]
        known[run.mutant.id] = {
            "id": run.mutant.id,
            "verdict": verdict,
            "what": described(run.mutant),
            "by": failed[0] if failed else run.code,
            "tests": [len(run.tests), run.covering],
            "seconds": round(run.seconds, 1),
            "cpu": round(run.cpu, 1),
        }
        with path.open("a") as file:
            file.write(json.dumps(known[run.mutant.id]) + "\n")
        took = f"{number}/{len(runs)} {verdict}, {run.seconds:.0f} s"
        print(f"{took}: {known[run.mutant.id]['what']}", flush=True)
    return {mutant.id: known[mutant.id] for mutant in mutants}


def rows(mutants: list[Mutant], verdicts: dict[str, dict[str, Any]], part: str) -> Iterator[str]:
    """A table's line for each room or kind of operator, and the last one for all."""
    part_of = {"room": lambda m: m.room, "operator": lambda m: m.operator.split("_")[0]}[part]
    for name in [*sorted(set(map(part_of, mutants))), "all"]:
        these = [verdicts[m.id]["verdict"] for m in mutants if name in ("all", part_of(m))]
        found = Counter(these)
        share = (found[KILLED] + found[LATE]) / len(these)
        numbers = [len(these), *(found[each] for each in (KILLED, LATE, SURVIVED, UNTOUCHED))]
        yield f"| {name} | {' | '.join(map(str, numbers))} | {share:.0%} |"


def page(mutants: list[Mutant], args: argparse.Namespace) -> str:
    """The results, and the survivors, one a line in the work folder too."""
    verdicts = judged(mutants, args)
    real = [mutant for mutant in mutants if mutant.operator != NO_OP]
    controls = [verdicts[mutant.id]["verdict"] for mutant in mutants if mutant.operator == NO_OP]
    lines = []
    for mutant in sorted(real, key=lambda mutant: (mutant.file, mutant.line)):
        verdict = verdicts[mutant.id]
        if verdict["verdict"] in (SURVIVED, UNTOUCHED):
            ran, covering = verdict["tests"]
            lines.append(f"{verdict['what']} ({ran} of {covering} tests)\n")
    (args.work / "survivors.txt").write_text("".join(lines), encoding="utf-8")
    words = ["--count", args.count, "--seed", args.seed]
    words += ["--operators", args.operators] if args.operators else []
    words += ["--rooms", *args.rooms] if args.rooms != ROOMS else []
    left_out = ", ".join(f"`{room}` ({reason})" for room, reason in LEFT_OUT.items())
    hours = sum(verdict["cpu"] for verdict in verdicts.values()) / 3600
    versions = ", ".join(f"{name} {version(name)}" for name in ("cosmic-ray", "coverage", "pytest"))
    head = f"mutants | {KILLED} | {LATE} | {SURVIVED} | {UNTOUCHED} | {KILLED} or {LATE} |"
    head += "\n" + "| --- " * 7 + "|"
    return f"""# Mutation testing: which small faults the fast tests find

`python benchmarks/mutation.py {" ".join(map(str, words))}`

On {os.cpu_count()} cores with Python {platform.python_version()}, {versions}; {hours:.1f} hours of
processor time.

One fault at a time in a copy of the package: a comparison, a boolean, an operator or a number is
another, a loop runs over nothing, or a `raise` or a bare call is gone. Then tests that run the line
are run until one fails: the {args.tests} fastest, and {args.spawning} of those that start another
Python, or {3 * args.spawning} if there are no others. Strings, messages, annotations and decorators
are not mutated, nor is {left_out}. Of
{len(controls)} runs without a fault, {len(controls) - controls.count(SURVIVED)} failed.

| room | {head}
{chr(10).join(rows(real, verdicts, "room"))}

| operator | {head}
{chr(10).join(rows(real, verdicts, "operator"))}

## Survivors

With the change, and how many of the tests that run the line were run.

{"".join(f"- {line}" for line in lines)}"""


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rooms", nargs="+", default=ROOMS, help="folders and files")
    parser.add_argument("--operators", default="", help="only those with this in their name")
    parser.add_argument("--count", type=int, default=500, help="mutants")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of mutants")
    parser.add_argument("--tests", type=int, default=40, help="at most, in the same process")
    parser.add_argument("--spawning", type=int, default=1, help="at most, that start a Python")
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time")
    parser.add_argument("--work", type=Path, help="scratch folder; a later call goes on in it")
    parser.add_argument("--only", nargs="+", default=(), metavar="FILE[:LINE]", help="these again")
    args = parser.parse_args()
    args.work = (args.work or Path(tempfile.mkdtemp(prefix="mutation-"))).resolve()
    os.environ |= {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
    pool = []
    for each in args.only or args.rooms:
        name, _, line = each.removeprefix(f"{PACKAGE}/").partition(":")
        place = ROOT / PACKAGE / name
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            found = mutants_of(path.relative_to(ROOT / PACKAGE).as_posix())
            pool += [m for m in found if str(m.line) == (line or str(m.line))]
    pool = [mutant for mutant in pool if args.operators in mutant.operator]
    mutants = sample(pool, len(pool) if args.only else args.count, args.seed)
    if not args.only:
        mutants += [replace(mutant, operator=NO_OP) for mutant in mutants[:CONTROLS]]
    print(f"{len(mutants)} mutants of {len(pool)}, in {args.work}", flush=True)
    if args.only:
        judged(mutants, args)
    else:
        PAGE.write_text(page(mutants, args), encoding="utf-8")
        print(f"Written to {PAGE.name}.")


if __name__ == "__main__":
    main()
