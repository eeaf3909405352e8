"""Plugin of pytest: counts hypothesis' examples by test file, those of inner functions too.

python -m pytest -p tests.faults.examples  # EXAMPLES names the JSON file to write
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from hypothesis.internal.conjecture.engine import ConjectureRunner

COUNTS: dict[str, list[int]] = {}
"""Test file -> examples that passed, and kinds of failure found."""
_run = ConjectureRunner.run


def _counted(runner: ConjectureRunner) -> Any:
    try:
        return _run(runner)
    finally:
        file = os.environ["PYTEST_CURRENT_TEST"].split("::")[0]
        failing = len(runner.interesting_test_cases)
        counts = COUNTS.setdefault(file, [0, 0])
        counts[0] += max(runner.valid_test_cases - failing, 0)
        counts[1] += failing


def pytest_configure() -> None:
    ConjectureRunner.run = _counted  # type: ignore[method-assign]


def pytest_unconfigure() -> None:
    ConjectureRunner.run = _run  # type: ignore[method-assign]
    Path(os.environ["EXAMPLES"]).write_text(json.dumps(COUNTS))
