"""Values of a stranger's JSON, checked; each refusal says where the value stands."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from medsam_tune.errors import DataError, listed, nearest


def plain(value: Any) -> Any:
    """A value of Python as JSON would have it: arrays and tuples are lists, numbers are Python's.

    Raises:
        RecursionError: a value that is in itself.
    """
    if isinstance(value, (np.ndarray, np.generic, Tensor)):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def numbers(value: object, count: int, where: str) -> list[float]:
    """Finite numbers, and nothing that only can be read as one: no true, no "5"."""
    try:
        if isinstance(value, list) and len(value) == count:
            if all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in value):
                found = [float(v) for v in value]
                if all(map(math.isfinite, found)):
                    return found
    except OverflowError:
        pass
    raise DataError(f"{where} is {shown(value)}; expected {count} finite numbers.")


def switch(item: Mapping[str, Any], key: str, where: str) -> bool:
    """True or false under a key; false where it is absent."""
    value = item.get(key, False)
    if not isinstance(value, bool):
        raise DataError(f"{where}: {key} is {shown(value)}; expected true or false.")
    return value


def refuse_unknown_keys(content: Mapping[Any, Any], known: Iterable[str], where: str) -> None:
    """Refuse an object of JSON with a key that means nothing."""
    for key in content:
        if key not in known:
            raise DataError(
                f"{where}: unknown key {shown(key)}; known: {', '.join(known)}."
                f"{nearest(str(key), known)}"
            )


def shown(value: object) -> str:
    """A value for a message: short, and never an error itself."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits; a deep list
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."


def same_name(said: object, name: str) -> bool:
    """Whether a value is a name, without regard to case."""
    return isinstance(said, str) and said.strip().casefold() == name.strip().casefold()


def known_labels(labels: Mapping[int, str]) -> str:
    """Labels for a message, such as "1 (liver), 2 (spleen)"."""
    return listed(f"{k} ({v})" for k, v in labels.items())
