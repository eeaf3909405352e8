"""What a row of the table is, and how it is tried."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NO_COUNTERPART = "no counterpart"


@dataclass(frozen=True)
class BadInput:
    """One input.

    Attributes:
        row: of the table of faults; several inputs may belong to one.
        name: for the test's id.
        what: for the page.
        make: writes it into a folder; what it returns is given to `ours` and `plain`.
        ours: what a user of this package calls.
        plain: what a user of MONAI (prompts: of segment-anything) calls, or why there is nothing.
        refused: pattern of the refusal's message; empty where the input is handled.
        handled: how, for the page.
        check: asserts that the result is right; where it fits, of `plain`'s as well.
        warns: pattern of a warning that must be given.
        todo: what is not built yet; empty otherwise.
    """

    row: int
    name: str
    what: str
    make: Callable[[Path], Any]
    ours: Callable[[Any], Any]
    plain: Callable[[Any], Any] | str
    refused: str = ""
    handled: str = ""
    check: Callable[[Any], None] | None = None
    warns: str = ""
    todo: str = ""

    @property
    def id(self) -> str:
        """E.g. "row07-4d-volume"."""
        return f"row{self.row:02d}-{self.name}"


@dataclass(frozen=True)
class Outcome:
    """What a call came to: a result or an error, and the warnings on the way."""

    result: Any
    error: Exception | None
    warnings: tuple[str, ...]


def run(call: Callable[[Any], Any], made: Any) -> Outcome:
    """Call, and catch what comes of it."""
    result, error = None, None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = call(made)
        except Exception as raised:
            error = raised
    said = [w for w in caught if not issubclass(w.category, (DeprecationWarning, FutureWarning))]
    return Outcome(result, error, tuple(str(w.message) for w in said))


def shortened(text: str, folder: Path) -> str:
    """A message in one line, its paths reduced to the files' names."""
    end = r"(?=[\s'\"(),:;]|\.\s|\.?$)"
    path = rf"{re.escape(str(folder.parent))}/(?:\S*/)?([^/\s'\"(),:;]*?){end}"
    name = re.sub(path, r"\1", " ".join(text.split()))
    return re.sub(rf"{re.escape(folder.name)}{end}", "folder", name)
