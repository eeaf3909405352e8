"""Faulty and odd inputs as a table: what each is, what a user calls, and what must come of it.

`test_bad_inputs.py` tests the table; `benchmarks/bad_inputs.py` puts it, beside what the plain
stack makes of the same inputs, into bundles/sam_volume/docs/bad_inputs.md.
"""

from __future__ import annotations

from tests.bad_inputs import (
    coco,
    data_sets,
    descriptions,
    dicom,
    dicom_files,
    dicom_places,
    geo,
    images,
    labels,
    many_scans,
    model_files,
    names,
    places,
    prompt_files,
    prompts,
    results,
    scans,
    values,
)
from tests.bad_inputs.table import BadInput, Outcome, run, shortened

__all__ = ["INPUTS", "BadInput", "Outcome", "run", "shortened"]

_MODULES = (
    *(scans, data_sets, descriptions, dicom, dicom_files, dicom_places, prompts, prompt_files),
    *(places, names, values, labels, model_files, results, many_scans, images, geo, coco),
)
INPUTS: tuple[BadInput, ...] = tuple(
    sorted((bad for module in _MODULES for bad in module.INPUTS), key=lambda bad: bad.row)
)
