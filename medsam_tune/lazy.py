"""Imports at first use, so that `import medsam_tune` takes no time."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any


def import_when_named(package: str, homes: Mapping[str, str] | None = None) -> None:
    """Give a package a `__getattr__` that imports its modules at first use.

    A config can then write `$medsam_tune.slices.rules...` after `$import medsam_tune` alone. Type
    checkers do not see the `__getattr__`, so they still find misspelt names.

    Args:
        package: full name of the package, `__name__` in its `__init__.py`.
        homes: name of a public object -> module that holds it.
    """
    objects = homes or {}

    def import_named(name: str) -> Any:
        if name in objects:
            found = getattr(import_module(f"{package}.{objects[name]}"), name)
            setattr(sys.modules[package], name, found)  # the next use needs no import
            return found
        if name.startswith("_") or find_spec(f"{package}.{name}") is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return import_module(f"{package}.{name}")

    vars(sys.modules[package])["__getattr__"] = import_named
