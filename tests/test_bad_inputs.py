"""Every faulty or odd input of the table is refused well, or handled."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from medsam_tune.errors import DataError
from tests.bad_inputs import INPUTS, BadInput, run

PAGE = Path(__file__).parents[1] / "bundles" / "sam_volume" / "docs" / "bad_inputs.md"


@pytest.mark.parametrize("bad", INPUTS, ids=lambda bad: bad.id)
def test_bad_input(bad: BadInput, tmp_path: Path) -> None:
    if bad.todo:
        pytest.skip(f"not built yet: {bad.todo}")
    found = run(bad.ours, bad.make(tmp_path))
    if bad.refused:
        assert isinstance(found.error, DataError if bad.row != 50 else ValueError), found
        message = str(found.error)
        assert re.search(bad.refused, message), message
        assert "Doe" not in message
        assert "MRN123" not in message
        return
    if found.error is not None:
        raise found.error
    assert bad.check is not None
    bad.check(found.result)
    if bad.warns:
        assert any(re.search(bad.warns, text) for text in found.warnings), found.warnings
    else:
        assert not found.warnings


def test_all_rows_are_there() -> None:
    assert {bad.row for bad in INPUTS} >= set(range(1, 51))
    assert len({bad.id for bad in INPUTS}) == len(INPUTS)


def test_the_page_has_these_rows() -> None:
    """`python benchmarks/bad_inputs.py` writes it."""
    rows = re.findall(r"^\| (\d+) \| (.*?) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert [(int(row), what) for row, what in rows] == [(bad.row, bad.what) for bad in INPUTS]
