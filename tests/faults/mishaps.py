"""What goes wrong in a process: each is called in it before its command starts.

A mishap may return a function, which is called when the command has ended.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tests import tracking

_CHANGES = {"open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.chmod"}


def killed_at_file(
    folder: str, count: int, target: str = "", delay: float = 0.0, number: int = signal.SIGKILL
) -> None:
    """Get a signal at the n-th time that a file or folder is opened, made, renamed or removed.

    Args:
        folder: where this is counted.
        count: the n-th time, from 1.
        target: counts only what gets this name by renaming, before it does.
        delay: seconds between that time and the signal, so that it comes within a write.
        number: the signal.
    """
    _at_file(folder, target, lambda at: _die(number, delay) if at == count else None)


def counted(folder: str, result: str) -> Callable[[], None]:
    """Count as `killed_at_file` does, and write the number to a file at the end."""
    seen = [0]
    _at_file(folder, "", lambda at: seen.__setitem__(0, at))
    return lambda: print(seen[0], file=open(result, "w"))


def _die(number: int, delay: float) -> None:
    if delay:
        threading.Timer(delay, os.kill, (os.getpid(), number)).start()
    else:
        os.kill(os.getpid(), number)


def _at_file(folder: str, target: str, act: Callable[[int], None]) -> None:
    place, process, lock, at = os.path.abspath(folder), os.getpid(), threading.Lock(), [0]

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event not in _CHANGES or os.getpid() != process:
            return
        names = [os.fsdecode(one) for one in arguments[:2] if isinstance(one, (str, bytes, Path))]
        if not any(os.path.abspath(name).startswith(place) for name in names):
            return
        if target and (event != "os.rename" or os.path.basename(names[-1]) != target):
            return
        with lock:
            at[0] += 1
            now = at[0]
        act(now)

    sys.addaudithook(hook)


def small_disk(folder: str, size: int, keep: str) -> Callable[[], None]:
    """Put a file system of a few bytes at a folder; see `may_mount`.

    Args:
        folder: the folder, made if absent.
        size: bytes of the file system.
        keep: folder that gets what is in it at the end.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    if not _mounted(folder, size):
        raise OSError(f"{folder}: no file system may be mounted here")
    return lambda: shutil.copytree(folder, keep)


def may_mount() -> bool:
    """Whether a process of this user may mount a file system of its own; another one tries it."""
    code = (
        "import sys, tempfile; from tests.faults.mishaps import _mounted\n"
        "sys.exit(not _mounted(tempfile.mkdtemp(), 1 << 20))"
    )
    root = Path(__file__).parents[2]
    return subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def _mounted(folder: str, size: int) -> bool:
    """Mount a tmpfs that this process alone sees."""
    new_mounts, new_user, private = 0x20000, 0x10000000, 0x44000
    library = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    if library.unshare(new_mounts):
        if library.unshare(new_mounts | new_user):
            return False
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{user} {user} 1"),
            ("gid_map", f"{group} {group} 1"),
        ):
            Path(f"/proc/self/{name}").write_text(text)
    library.mount(b"none", b"/", None, private, None)
    options = f"size={size}".encode()
    return library.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, options) == 0


def little_memory(more: int) -> None:
    """Allow the process a number of bytes more than it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def dead_worker(delay: float = 0.0) -> None:
    """Kill a worker of a data loader some seconds after it has started."""

    def watch() -> None:
        while True:
            for worker in multiprocessing.active_children():
                time.sleep(delay)
                os.kill(worker.pid or 0, signal.SIGKILL)
                return
            time.sleep(0.01)

    threading.Thread(target=watch, daemon=True).start()


def mlflow_is_there() -> None:
    """Have a stand-in for MLflow."""
    tracking.install()


def later(seconds: float) -> None:
    """Start that much later."""
    time.sleep(seconds)
