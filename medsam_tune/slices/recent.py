"""Slices that were read last, kept in memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

from numpy.typing import NDArray


class Recent:
    """Arrays by key, up to so many bytes; those not asked for the longest go first.

    A copy in another process starts empty.

    Args:
        limit: bytes of all arrays together.
    """

    __slots__ = ("_arrays", "_bytes", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._bytes = 0
        self._arrays: OrderedDict[Hashable, NDArray[Any]] = OrderedDict()

    def __call__(self, key: Hashable, read: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        """The array of a key, from memory or by `read`; it is not to be written to."""
        found = self._arrays.get(key)
        if found is not None:
            self._arrays.move_to_end(key)
            return found
        found = read()
        if found.nbytes <= self.limit:
            self._arrays[key] = found
            self._bytes += found.nbytes
        while self._bytes > self.limit:
            self._bytes -= self._arrays.popitem(last=False)[1].nbytes
        return found

    def __reduce__(self) -> tuple[type[Recent], tuple[int]]:
        return Recent, (self.limit,)
