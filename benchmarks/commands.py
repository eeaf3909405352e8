"""`medsam-tune` as users call it, for benchmarks of many steps."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time


def command(*words: object) -> float:
    """Run a `medsam-tune` command in a process of its own; the minutes that it took.

    Raises:
        CalledProcessError: it failed, and has said why.
    """
    argv = [str(word) for word in words]
    print("$ medsam-tune", shlex.join(argv), flush=True)
    start = time.monotonic()
    code = "from medsam_tune.cli import app; app()"
    subprocess.run([sys.executable, "-c", code, *argv], check=True)
    return (time.monotonic() - start) / 60
