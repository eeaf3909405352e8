"""Prompts of 2-D images as Python gives them: a box, points, or the name of a label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from reprlib import repr as shown
from typing import Any

import numpy as np
from torch import Tensor

from medsam_tune.errors import listed


def label_named(prompts: object, labels: Mapping[int, str]) -> int | None:
    """The id of the label whose name stands in place of prompts; None of all else."""
    if not isinstance(prompts, str):
        return None
    return next((number for number, name in labels.items() if name == prompts), None)


def label_id(label: int | str | None, labels: Mapping[int, str]) -> int:
    """The id of a label by its id or name, or of the only one.

    Raises:
        ValueError: no such label; None where there are several.
    """
    known = listed(f"{number} ({name})" for number, name in labels.items())
    if label is None and len(labels) == 1:
        return next(iter(labels))
    found = [number for number, name in labels.items() if label in (number, name)]
    if label is None or not found:
        raise ValueError(f"label is {label!r}; expected the id or the name of one of: {known}.")
    return found[0]


def content_of(
    prompts: Any, labels: Mapping[int, str], label: int | str | None = None
) -> str | Path | Mapping[str, Any] | None:
    """What `read_prompts` reads, of a box or points on a 2-D image; all else is returned as it is.

    Args:
        prompts: box (4,) x0, y0, x1, y1; boxes (N, 4); or points (N, 3) x, y, and 1 inside or 0
            outside of the object. Pixels of the image, upper bounds exclusive.
        labels: label id -> name.
        label: id or name of the label of the object; may be left out where there is one.

    Raises:
        ValueError: another shape; a label that is not there.
    """
    if prompts is None or isinstance(prompts, (str, Path, Mapping)):
        if label is not None:
            raise ValueError(f"label is {label!r}; expected it beside a box or points alone.")
        return prompts
    if not isinstance(prompts, (Sequence, np.ndarray, Tensor)):
        raise ValueError(f"prompts are {shown(prompts)}; {_EXPECTED}")
    try:
        values = np.asarray(prompts, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"prompts are {shown(prompts)}; {_EXPECTED}") from error
    if values.shape == (4,):
        values = values[None]
    if values.ndim != 2 or not len(values) or values.shape[1] not in (3, 4):
        raise ValueError(f"prompts have the shape {values.shape}; {_EXPECTED}")
    number = label_id(label, labels)
    rows = values.tolist()
    drawn = [{"points": rows}] if values.shape[1] == 3 else [{"box": row} for row in rows]
    return {"objects": [{"label": number, "slices": {"0": one}} for one in drawn]}


_EXPECTED = (
    "expected a box (4,) or boxes (N, 4) of x0, y0, x1, y1; points (N, 3) of x, y and 1 or 0; the "
    "name of a label; or a prompt file or its content."
)
