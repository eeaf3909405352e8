"""Faulty and odd inputs as a table: what each is, what a user calls, and what must come of it.

`test_bad_inputs.py` tests the table; `benchmarks/bad_inputs.py` puts it, beside what the plain
stack makes of the same inputs, into bundles/sam_volume/docs/bad_inputs.md.
"""

from __future__ import annotations

from itertools import chain

from tests.bad_inputs import data_sets, dicom, labels, prompts, scans, values
from tests.bad_inputs.table import BadInput, Outcome, run, shortened

__all__ = ["INPUTS", "BadInput", "Outcome", "run", "shortened"]

INPUTS: tuple[BadInput, ...] = tuple(
    sorted(
        chain.from_iterable(
            subject.INPUTS for subject in (scans, data_sets, dicom, prompts, values, labels)
        ),
        key=lambda bad: bad.row,
    )
)
