"""The worst cases in 3-D, inside a report: their volumes, and NiiVue, which shows them.

References:
    NiiVue, https://github.com/niivue/niivue; its licence lies in `niivue/LICENSES.txt`.
"""

from __future__ import annotations

import base64
from typing import Any

from medsam_tune.errors import DataError
from medsam_tune.evaluation.results import INDEX, Results
from medsam_tune.evaluation.volumes import PARTS
from medsam_tune.files import read_json

SCRIPTS = ("niivue/niivue.umd.js.gz", "viewer.js")
"""Files of the scripts of a page with volumes."""

LICENCES = "niivue/LICENSES.txt"
"""File of the licences of NiiVue and what it holds; a page that carries it shows them."""


def viewer_of(results: Results) -> dict[str, Any]:
    """What a page with volumes holds.

    Returns:
        `cases`: `case`, `labels` with their values and colours, `said` on how it was made smaller,
        and each of `volumes.PARTS` as a base64 NIfTI file.

    Raises:
        DataError: the evaluation is of 2-D images, or has no volumes, or not all of them.
    """
    again = "Evaluate again, with `pictures` above 0."
    if results.summary.get("flat", False):
        raise DataError(
            f"{results.folder}: its cases are images of one slice; expected scans for --viewer, "
            "which shows them in 3-D. Leave it out: the report has their pictures."
        )
    index = results.folder / "overlays" / INDEX
    pictures = read_json(index)["pictures"] if index.is_file() else []
    cases = []
    for one in pictures:
        if not one.get("volume"):
            continue
        held: dict[str, Any] = {"case": one["case"], "labels": one["volume"]["labels"]}
        for name in PARTS:
            path = index.parent / one["case"] / f"{name}.nii.gz"
            if not path.is_file():
                raise DataError(f"{path}: no such file; the evaluation is not whole. {again}")
            held[name] = base64.b64encode(path.read_bytes()).decode()
        held["said"] = _thinning(one["volume"]["thinned"])
        cases.append(held)
    if not cases:
        raise DataError(
            f"{index.parent}: holds no volume of a case; expected those of the worst ones for "
            f"--viewer. {again}"
        )
    return {"cases": cases}


def _thinning(steps: list[int]) -> str:
    """How a volume was made smaller, in words."""
    if max(steps) == 1:
        return ""
    z, y, x = steps
    return f"One voxel of {x} x {y} x {z} (columns, rows, slices) is shown, to keep the page small."
