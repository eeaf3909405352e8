"""Tests of the inputs and events that were once wrong, by their number."""

from __future__ import annotations

ROWS: dict[int, tuple[str, tuple[str, ...]]] = {}
