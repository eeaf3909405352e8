"""What an object does, as JSON: whether something was made by other settings, or by other code."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from enum import Enum
from functools import partial
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch

_KNOWN = {"medsam_tune", "monai", "numpy", "torch", "scipy", "skimage", *sys.stdlib_module_names}
"""Packages whose functions and classes are known by their names."""


def described(value: Any, within: tuple[int, ...] = ()) -> Any:
    """An object as JSON, by all that it holds; equal objects of two processes have equal ones.

    Functions, and classes of the user's own, are known by their code, what they are bound to and
    the globals that they name; those of well-known packages by name.

    Args:
        value: any object.
        within: ids of the objects that hold it, which are not described again.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Enum | torch.dtype | torch.device | np.dtype):
        return str(value)
    if isinstance(value, torch.Tensor | np.ndarray | np.generic):
        return np.asarray(value).tolist()
    if isinstance(value, ModuleType):
        return value.__name__
    if id(value) in within:
        return "itself"
    of = partial(described, within=(*within, id(value)))
    if isinstance(value, Mapping):
        return {str(key): of(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [of(one) for one in value]
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if isinstance(value, partial):
        return [of(value.func), of(value.args), of(value.keywords)]
    if isinstance(value, MethodType):
        return [of(value.__func__), of(value.__self__)]
    if isinstance(value, FunctionType):
        return _name(value) if _is_known(value) else [value.__qualname__, *_function(value, of)]
    if isinstance(value, type):
        return _name(value) if _is_known(value) else [_name(value), *_class(value, of)]
    if not hasattr(value, "__dict__"):
        return getattr(value, "__qualname__", type(value).__qualname__)
    return {"is": of(type(value))} | {key: of(one) for key, one in sorted(vars(value).items())}


def _name(value: FunctionType | type) -> str:
    return f"{value.__module__}.{value.__qualname__}"


def _is_known(value: FunctionType | type) -> bool:
    return str(value.__module__).partition(".")[0] in _KNOWN - {"__main__"}


def _function(function: FunctionType, of: partial[Any]) -> Iterator[Any]:
    yield zlib.crc32(_code(function.__code__).encode())
    codes = [*_codes(function.__code__)]
    constants = {one for code in codes for one in code.co_consts if isinstance(one, str)}
    cells = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # it is empty
            cells[name] = cell.cell_contents
    named = {name for code in codes for name in code.co_names} & {*function.__globals__}
    used = {name: function.__globals__[name] for name in sorted(named)}
    for name, value in used.items():
        if isinstance(value, Mapping):  # MONAI's, of all that a config has made
            used[name] = {key: value[key] for key in sorted(constants & {*value})}
    yield from map(of, (function.__defaults__, function.__kwdefaults__, cells, used))


def _class(kind: type, of: partial[Any]) -> Iterator[Any]:
    yield [of(base) for base in kind.__bases__]
    for name, value in sorted(vars(kind).items()):
        does = getattr(value, "__func__", getattr(value, "fget", value))
        if isinstance(does, FunctionType | bool | int | float | str) and name not in _OF_THE_FILE:
            yield [name, of(does)]


_OF_THE_FILE = {"__module__", "__doc__", "__qualname__", "__firstlineno__"}


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for one in code.co_consts:
        if isinstance(one, CodeType):
            yield from _codes(one)


def _code(code: CodeType) -> str:
    """What a function does, wherever it stands."""
    return repr((code.co_code, [_constant(one) for one in code.co_consts], code.co_names))


def _constant(value: Any) -> str:
    if isinstance(value, CodeType):
        return _code(value)
    return repr(sorted(map(repr, value)) if isinstance(value, frozenset) else value)
