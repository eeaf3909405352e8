"""The most memory that a training held: of its GPU, else of its process."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def forget_peak() -> None:
    """Begin to measure; what was held before does not count, where the system can forget it."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):
        _CLEAR.write_text("5")  # Linux: the peak becomes what is held now


def peak_memory() -> int | None:
    """Bytes of the peak since then: allocated on the GPU if there is one; else resident in RAM.

    The processes of data loaders are not counted. None where the system does not say it.
    """
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    with suppress(OSError, ValueError, StopIteration):
        lines = _STATUS.read_text().splitlines()
        peak = next(line for line in lines if line.startswith("VmHWM:"))
        return int(peak.split()[1]) * 1024
    return None
