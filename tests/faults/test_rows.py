"""Each row of what was once wrong has its tests, under the names that are published."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.faults.rows import ROWS, UNTESTED

ROOT = Path(__file__).parents[2]


def test_no_row_is_left_out() -> None:
    assert list(ROWS) == list(range(75, 113))
    assert {row for row, (_, names) in ROWS.items() if not names} == UNTESTED


@pytest.mark.parametrize("row", ROWS)
def test_the_named_tests_exist(row: int) -> None:
    for name in ROWS[row][1]:
        if "::" in name:  # those of bad inputs are named by their table itself
            file, test = name.split("::")
            text = (ROOT / file).read_text(encoding="utf-8")
            assert re.search(rf"^def {test}\(", text, re.MULTILINE), name
