"""What went wrong, in one line, and the exit code of its kind."""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from medsam_tune.console import debugging
from medsam_tune.ranks import FOLLOWED, count, failed, first_to_say

DONE = 0
USER = 1
"""An error that the user can correct: a path, a setting, faulty data."""
USAGE = 2
"""A command or an option that does not exist, or one that is missing."""
REFUSED = 3
"""Some scans are refused, by `check` or `predict`, or some methods of `compare` failed; of the
others there is a result."""
# 4 is of `check`: a patient or scan is in two subsets.
DISK = 5
"""The disk is full, the quota is used up, or a place cannot be read or written to."""
MEMORY = 6
"""Memory is used up, of the machine or of the GPU, or a worker was killed."""
FAULT = 70
"""A fault of the package; with a traceback."""
INTERRUPTED = 130
"""Ctrl-C; 143 after SIGTERM."""
PIPE = 141
"""Who reads the output, e.g. `head`, has read enough; it is no error, and quiet."""

_PACKAGE = "medsam_tune/"
_USER_ERRORS = (
    ValueError,
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    FloatingPointError,
)
_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota is used up",
    errno.EFBIG: "a file is larger than the disk, or `ulimit -f`, allows",
}
_CLOSED = {
    errno.EACCES: "permission denied",
    errno.EPERM: "not permitted",
    errno.EROFS: "the disk is read-only",
}
_OUT_OF_MEMORY = re.compile(
    r"DefaultCPUAllocator|can't allocate memory|out of memory|CUBLAS_STATUS_ALLOC_FAILED"
    r"|can't start new thread|failed to map segment"
)
_OS_ERROR = re.compile(r"\(os error (\d+)\)")  # as libraries in Rust say it, safetensors
_WORKER = re.compile(r"DataLoader worker \(pid")
_NO_GPU = re.compile(
    r"not compiled with CUDA|no NVIDIA driver|No CUDA GPUs|no CUDA-capable device|invalid device "
    r"ordinal"
)
_BROKEN_OFF = re.compile(
    r"gloo/transport|Connection (reset|closed) by peer|NCCL communicator was aborted"
    r"|remote process exited"
)
_LOWER = {
    "train": "--set batch_size=4 (or 1), --set objects=1, --set slice_batch=1, a smaller "
    "--image-size, or --set gradient_checkpointing=true",
    "evaluate": "--set slice_batch=1",
    "compare": "--set batch_size=4 (or 1), --set objects=1, --set slice_batch=1, or a smaller "
    "--image-size, in another --output",
    "predict": "--set slice_batch=1",
    "prepare": "--jobs 1",
    "check": "--jobs 1",
    "export": "the model: train one with a smaller --image-size",
}


def explain(error: BaseException) -> tuple[str, int]:
    """The line for an error and its exit code; the line is empty for a fault of the package.

    The chain of causes is walked from the outside: MONAI wraps what a config's component raises.
    """
    for each in _chain(error):
        for of_kind in (_disk, _memory, _gpu, _others, _user):
            if found := of_kind(each):
                return found
    for each in _chain(error):  # torch raises an error of its own while it handles a full disk
        context = each.__context__
        if isinstance(context, OSError) and context.errno in _FULL and (found := _disk(context)):
            return found
    return "", FAULT


def unexpected(error: BaseException) -> str:
    """What happened and where, without the error's text, which may hold text of a header.

    Args:
        error: an error that a function of the package raised, or let through.
    """
    frames = [f for f in traceback.extract_tb(error.__traceback__) if _PACKAGE in f.filename]
    place = frames[-1]
    where = f"{place.filename.rpartition(_PACKAGE)[2]}, line {place.lineno}"
    return (
        f"{type(error).__name__} at {where}, where the file was not expected to be like this. "
        "Convert or export the scan again, or report this as a fault of medsam_tune."
    )


def report_in_one_line() -> None:
    """Have Python print one line, not a traceback, for an error that ends this process.

    The exit code is that of the error's kind. Ctrl-C needs no words, of each of several processes,
    and what `ranks.launch` started says a line that all have found once.
    """
    stream = sys.stderr  # torch.distributed keeps what is said on another until the hook returns

    def report(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        if isinstance(error, KeyboardInterrupt):
            if debugging():
                traceback.print_exception(kind, error, trace, file=stream)
            return
        line, code = explain(error)
        if debugging() or not line:
            traceback.print_exception(kind, error, trace, file=stream)
        elif first_to_say(line):
            print(f"medsam-tune: {line}", file=stream, flush=True)
        failed(code)
        raise SystemExit(code)

    sys.excepthook = report


def is_closed_pipe(error: BaseException) -> bool:
    """Whether the reader of our output is gone; the command line's parser exits in its place."""
    causes = [*_chain(error), error.__context__]
    return any(isinstance(each, BrokenPipeError) for each in causes)


def _chain(error: BaseException) -> Iterator[BaseException]:
    each: BaseException | None = error
    while each is not None:
        yield each
        each = each.__cause__


def _disk(error: BaseException) -> tuple[str, int] | None:
    if not isinstance(error, OSError) and (number := _OS_ERROR.search(str(error))):
        error = OSError(int(number[1]), str(error))
    if not isinstance(error, OSError) or error.errno not in {*_FULL, *_CLOSED}:
        return None
    place = error.filename2 or error.filename
    if error.errno in _CLOSED:
        return f"{place or 'a file'}: {_CLOSED[error.errno]}. Choose another place, or ask.", DISK
    where = Path(os.fsdecode(place)) if isinstance(place, (str, bytes, Path)) else _fullest()
    return (
        f"{where}: {_FULL[error.errno]}, {_free(where) / 1e9:.3g} GB are free there. Make room, or "
        f"choose another folder; TMPDIR chooses that of temporary files ({tempfile.gettempdir()}).",
        DISK,
    )


def _memory(error: BaseException) -> tuple[str, int] | None:
    text = str(error)
    command = next((word for word in sys.argv[1:] if word in _LOWER), "train")
    if isinstance(error, RuntimeError) and _WORKER.search(text):
        return (
            "a worker that loads data was killed, mostly for want of memory "
            f"({_free_memory()} free; shared memory: {_free(Path('/dev/shm')) / 1e9:.3g} GB). "
            "Lower: --set num_workers=0, --set batch_size=4.",
            MEMORY,
        )
    full = isinstance(error, OSError) and error.errno == errno.ENOMEM
    if (
        full
        or isinstance(error, MemoryError)
        or (isinstance(error, (RuntimeError, ImportError)) and _OUT_OF_MEMORY.search(text))
    ):
        what = "of the GPU" if re.search("CUDA|CUBLAS|HIP", text) else f"({_free_memory()} free)"
        return f"out of memory {what}. Lower: {_LOWER[command]}.", MEMORY
    return None


def _gpu(error: BaseException) -> tuple[str, int] | None:
    if isinstance(error, (RuntimeError, AssertionError)) and _NO_GPU.search(str(error)):
        return (
            "device: there is no such GPU here. Leave it out, or set it to cpu.",
            USER,
        )
    return None


def _others(error: BaseException) -> tuple[str, int] | None:
    """Torch's words between processes, in the backward pass say, which were broken off."""
    if count() > 1 and isinstance(error, RuntimeError) and _BROKEN_OFF.search(str(error)):
        return (
            "another process of this run has ended, or the network broke off, and so this one ends "
            "too; train and predict go on with --resume.",
            FOLLOWED,
        )
    return None


def _user(error: BaseException) -> tuple[str, int] | None:
    if not isinstance(error, _USER_ERRORS):
        return None
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{os.fsdecode(error.filename)}: {error.strerror[0].lower()}{error.strerror[1:]}.", 1
    return str(error) or type(error).__name__, USER


def _fullest() -> Path:
    """The folder with the least free space among those that the command line names."""
    named = (Path(word) for word in sys.argv[1:] if not word.startswith("-"))
    there = {_existing(path) for path in (*named, Path(tempfile.gettempdir()), Path.cwd())}
    return min(sorted(there), key=_free)


def _existing(path: Path) -> Path:
    places = (path.absolute(), *path.absolute().parents)
    return next(place for place in places if place.is_dir())


def _free(path: Path) -> int:
    return shutil.disk_usage(_existing(path)).free


def _free_memory() -> str:
    import psutil

    return f"{psutil.virtual_memory().available / 1e9:.1f} GB"
