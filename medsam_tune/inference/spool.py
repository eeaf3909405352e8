"""Tensors by key: in memory up to a budget, beyond it in a temporary file."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Hashable
from threading import RLock
from typing import IO, NamedTuple

import torch
from torch import Tensor

MEMORY = 2**30
"""Bytes in memory by default; 256 embeddings of SAM's ViT-B, or 1000 slices of logits."""


class _Place(NamedTuple):
    """Where a tensor lies in the file."""

    offset: int
    shape: torch.Size
    dtype: torch.dtype


class Spool:
    """A mapping of keys to tensors, which come back on the CPU as they were.

    What does not fit into the budget lies in a file of the system's temporary folder (TMPDIR). The
    file has no name, so that nothing of it is left however the process ends. Several threads may
    use a spool.

    Args:
        memory: budget in bytes.

    Attributes:
        in_memory: bytes in memory now.
        in_file: bytes in the file now.
    """

    def __init__(self, memory: int = MEMORY) -> None:
        self.memory = memory
        self.in_memory = 0
        self.in_file = 0
        self._held: dict[Hashable, Tensor] = {}
        self._filed: dict[Hashable, _Place] = {}
        self._free: dict[int, list[int]] = defaultdict(list)  # size -> offsets in the file
        self._file: IO[bytes] | None = None
        self._end = 0
        self._lock = RLock()

    def __len__(self) -> int:
        return len(self._held) + len(self._filed)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._held or key in self._filed

    def __setitem__(self, key: Hashable, tensor: Tensor) -> None:
        """Keep a copy of a tensor of any device; it takes the place of an earlier one."""
        own = torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.detach())
        with self._lock:
            self.discard(key)
            if self.in_memory + own.nbytes <= self.memory:
                self._held[key] = own
                self.in_memory += own.nbytes
            else:
                self._filed[key] = self._write(own)
                self.in_file += own.nbytes

    def __getitem__(self, key: Hashable) -> Tensor:
        """The tensor of a key; one that is in memory is not copied."""
        with self._lock:
            if key in self._held:
                return self._held[key]
            offset, shape, dtype = self._filed[key]
            assert self._file is not None
            self._file.seek(offset)
            content = bytearray(self._file.read(shape.numel() * dtype.itemsize))
        return torch.frombuffer(content, dtype=dtype).view(shape)

    def discard(self, key: Hashable) -> None:
        """Forget a tensor, if it is there; its place is used again."""
        with self._lock:
            if key in self._held:
                self.in_memory -= self._held.pop(key).nbytes
            elif key in self._filed:
                offset, shape, dtype = self._filed.pop(key)
                size = shape.numel() * dtype.itemsize
                self._free[size].append(offset)
                self.in_file -= size

    def _write(self, tensor: Tensor) -> _Place:
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="medsam_tune")
        free = self._free[tensor.nbytes]
        offset = free.pop() if free else self._end
        self._end = max(self._end, offset + tensor.nbytes)
        self._file.seek(offset)
        self._file.write(tensor.flatten().view(torch.uint8).numpy().data)
        return _Place(offset, tensor.shape, tensor.dtype)
