"""What went wrong in one line, the exit code of its kind, and quiet pipes."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError

from medsam_tune import failures
from medsam_tune.cli import command
from medsam_tune.cli.options import refuse_unknown
from medsam_tune.errors import DataError, nearest
from medsam_tune.failures import DISK, FAULT, MEMORY, USER, explain, is_closed_pipe
from medsam_tune.ranks import first_to_say

COMMAND = "from medsam_tune.cli import main; main()"
ERRORS = Path(__file__).parents[1] / "docs" / "errors.md"


def wrapped(error: BaseException) -> BaseException:
    """As MONAI raises what a component of a config raises."""
    outer = RuntimeError("Failed to instantiate {'_target_': ...}")
    outer.__cause__ = error
    return outer


@pytest.fixture(autouse=True)
def _command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    words = ["medsam-tune", "train", "lora", "--output", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", words)


WORKER = "DataLoader worker (pid 1423) is killed by signal: Killed. "
KINDS = [
    (DataError("case a: no such file"), USER, r"^case a: no such file$"),
    (FileNotFoundError(2, "No such file or directory", "x.nii"), USER, r"^x\.nii: no such file"),
    (IsADirectoryError(21, "Is a directory", "scans"), USER, r"^scans: is a directory\.$"),
    (NotADirectoryError(20, "Not a directory", "a/b"), USER, r"^a/b: not a directory\.$"),
    (PermissionError(13, "Permission denied", "/x/y"), DISK, r"^/x/y: permission denied\. Choose"),
    (OSError(errno.EROFS, "Read-only", "/x/y"), DISK, r"^/x/y: the disk is read-only\."),
    (OSError(errno.ENOSPC, "No space", "/tmp/a.pt"), DISK, r"^/tmp/a\.pt: the disk is full, .* GB"),
    (OSError(errno.EDQUOT, "Quota", "/tmp/a"), DISK, r"^/tmp/a: the quota is used up, .* GB"),
    (OSError(errno.EFBIG, "Too large", "/tmp/a"), DISK, r"^/tmp/a: a file is larger than .* GB"),
    (SafetensorError("I/O error: No space left (os error 28)"), DISK, r": the disk is full, .* GB"),
    (OSError(errno.ENOMEM, "Cannot allocate memory", "/x"), MEMORY, r"^out of memory \("),
    (ImportError("a.so: failed to map segment from shared object"), MEMORY, r"^out of memory \("),
    (RuntimeError("can't start new thread"), MEMORY, r"^out of memory \(.* GB free\)"),
    (MemoryError(), MEMORY, r"^out of memory \(.* GB free\)\. Lower: --set batch_size=4"),
    (torch.OutOfMemoryError("CUDA out of memory. Tried"), MEMORY, r"^out of memory of the GPU\. L"),
    (
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        MEMORY,
        r"^out of memory \(.* GB free\)",
    ),
    (RuntimeError(WORKER), MEMORY, r"^a worker .* killed, .* --set num_workers=0"),
    (
        AssertionError("Torch not compiled with CUDA enabled"),
        USER,
        r"^device: there is no such GPU",
    ),
]


@pytest.mark.parametrize(("error", "code", "line"), KINDS, ids=lambda each: type(each).__name__)
def test_each_kind_is_a_line_and_a_code(error: BaseException, code: int, line: str) -> None:
    for each in (error, wrapped(error), wrapped(wrapped(error))):
        said, exits = explain(each)
        assert exits == code
        assert re.search(line, said), said
        assert "\n" not in said


def test_a_full_disk_that_torch_stumbles_over() -> None:
    """It closes its file when the write fails, which fails with an error of its own."""
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        finally:
            raise RuntimeError("unexpected pos 1822976 vs 1822864")
    except RuntimeError as error:
        said, code = explain(wrapped(error))
    assert code == DISK
    assert "the disk is full" in said


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyError("lost"), FAULT, "Traceback"),
        (MemoryError(), MEMORY, "Lower: --set batch_size=4"),
    ],
    ids=["fault", "memory"],
)
def test_the_command_ends_with_the_code(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    said: str,
) -> None:
    def broken(**_: object) -> None:
        sys.argv = ["monai.bundle", "run"]
        raise error

    monkeypatch.setattr(command, "app", broken)
    with pytest.raises(SystemExit) as left:
        command.main()
    assert left.value.code == code
    assert said in capsys.readouterr().err


def test_memory_of_a_real_allocation() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**55, dtype=torch.uint8)
    assert explain(error.value)[1] == MEMORY


def test_a_fault_of_the_package_has_no_line() -> None:
    assert explain(RuntimeError("size mismatch")) == ("", FAULT)
    assert explain(KeyError("x")) == ("", FAULT)


def test_a_full_disk_without_a_name_is_that_of_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def usage(path: Path) -> SimpleNamespace:
        return SimpleNamespace(free=7e6 if path == tmp_path else 9e9)

    monkeypatch.setattr(failures.shutil, "disk_usage", usage)
    said, code = explain(OSError(errno.ENOSPC, "No space left on device"))
    assert code == DISK
    assert said.startswith(f"{tmp_path}: the disk is full, 0.007 GB are free there.")


@pytest.mark.parametrize(
    ("command", "lower"),
    [("predict", "slice_batch=1"), ("prepare", "--jobs 1"), ("train", "batch_size=4")],
)
def test_what_to_lower_depends_on_the_command(
    monkeypatch: pytest.MonkeyPatch, command: str, lower: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["medsam-tune", command, "x"])
    assert lower in explain(MemoryError())[0]


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    everything = {**os.environ, **environment}
    call = [sys.executable, "-c", COMMAND, *words]
    return subprocess.run(call, capture_output=True, text=True, env=everything, check=False)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--version",), 0, r"^medsam-tune \d+\.\d+\.\d+"),
        (("-h",), 0, "prompts"),
        (("predict", "-h"), 0, "--prompts"),
        (("trian", "lora"), 2, "No such command 'trian'. Did you mean 'train'"),
        (("train", "lora", "--datalst", "x"), 2, "--datalist"),
        (("train", "lora"), 2, r"Missing option '--datalist'"),
        (("info", "--model", "vit-b"), 1, r"^medsam-tune: model .* Did you mean 'vit_b'\?$"),
    ],
    ids=lambda each: "-".join(each) if isinstance(each, tuple) else None,
)
def test_the_command_answers(words: tuple[str, ...], code: int, said: str) -> None:
    found = run(*words, NO_COLOR="1", COLUMNS="80")
    assert found.returncode == code, found.stderr
    assert re.search(said, found.stdout + found.stderr, re.MULTILINE), found
    assert "\x1b" not in found.stdout + found.stderr
    assert "Traceback" not in found.stderr


def test_names_of_options_are_whole_on_a_narrow_terminal() -> None:
    assert "--gradient" not in (said := run("train", "-h", COLUMNS="40").stdout)
    for option in ("--datalist", "--checkpoint", "--image-size"):
        assert option in said


def test_a_reader_that_has_read_enough_is_no_error() -> None:
    script = f"{sys.executable} -c '{COMMAND}' --version | true; echo ${{PIPESTATUS[0]}}"
    found = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert found.stdout.strip() in ("0", "141")  # 0 where `true` was slower
    assert not found.stderr


def test_a_closed_pipe_is_told_from_an_error() -> None:
    end = SystemExit(1)
    end.__context__ = BrokenPipeError(errno.EPIPE, "Broken pipe")
    assert is_closed_pipe(end)
    assert is_closed_pipe(wrapped(BrokenPipeError(errno.EPIPE, "Broken pipe")))
    assert not is_closed_pipe(SystemExit(1))
    assert not is_closed_pipe(OSError(errno.ENOSPC, "No space"))


def test_the_nearest_name_is_asked_for() -> None:
    assert nearest("loar", ["decoder", "lora"]) == " Did you mean 'lora'?"
    assert nearest("ONX", ["sam", "onnx"]) == " Did you mean 'onnx'?"
    assert nearest("xyz", ["sam", "onnx"]) == ""
    with pytest.raises(ValueError, match=r"format 'onx' is unknown; .* Did you mean 'onnx'\?"):
        refuse_unknown("format", "onx", ["sam", "onnx"])


def test_the_page_of_errors_lists_the_codes() -> None:
    table = re.search(r"\| exit code \|.*?\n\n", ERRORS.read_text(encoding="utf-8"), re.DOTALL)
    assert table is not None
    rows = re.findall(r"^\| ([\d, ]+) \|", table[0], re.MULTILINE)
    listed = {int(code) for row in rows for code in row.split(",")}
    own = {v for k, v in vars(failures).items() if k.isupper() and isinstance(v, int)}
    assert listed == own | {3, 4, 143}


@pytest.mark.parametrize(
    ("error", "said", "code"),
    [
        ("KeyboardInterrupt()", "", -signal.SIGINT),
        ("DataError('case a: is bad.')", "medsam-tune: case a: is bad.\n", USER),
        ("MemoryError()", "medsam-tune: out of memory", MEMORY),
        ("PermissionError(13, 'no', 'a')", "medsam-tune: a: permission denied.", DISK),
        ("KeyError('x')", "Traceback", FAULT),
    ],
)
def test_the_last_line_of_a_process_and_its_code(error: str, said: str, code: int) -> None:
    program = (
        "from medsam_tune.errors import DataError\n"
        "from medsam_tune.failures import report_in_one_line\n"
        f"report_in_one_line()\nraise {error}"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == code
    assert done.stderr.startswith(said)
    assert bool(done.stderr) == bool(said)


def test_an_interrupt_stays_one_where_tracebacks_are_shown() -> None:
    program = (
        "from medsam_tune.failures import report_in_one_line as r\nr()\nraise KeyboardInterrupt"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"MEDSAM_TUNE_DEBUG": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGINT
    assert done.stderr.startswith("Traceback")


def test_what_all_processes_find_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert first_to_say("a.nii: is bad.")
    assert first_to_say("a.nii: is bad.")  # a process alone may say a line again
    monkeypatch.setenv("MEDSAM_TUNE_SAID", str(tmp_path))
    assert first_to_say("a.nii: is bad.")
    assert not first_to_say("a.nii: is bad.")
    assert first_to_say("b.nii: is bad.")
