"""Options of a tuning method: names, types and ranges, whoever gives them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from inspect import Parameter, signature
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from peft import PeftConfig, PeftType, get_peft_config

MAX_COUNT = 65_536
"""Largest rank, bottleneck, or number of tokens, classes or blocks."""

MAX_NAMES = 10_000
"""Largest number of layers that an option lists."""

_NAME = re.compile(r"[A-Za-z0-9_]{1,64}(\.[A-Za-z0-9_]{1,64}){0,15}")


@dataclass(frozen=True)
class _Kind:
    """What an option may be: in words, and as a test."""

    expected: str
    fits: Callable[[Any], bool]


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_COUNT


def _is_number(value: object) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and abs(value) <= MAX_COUNT and math.isfinite(value)  # type: ignore[arg-type]


def _are(fits: Callable[[Any], bool], values: object) -> bool:
    several = isinstance(values, list | tuple | set | frozenset)
    return several and len(values) <= MAX_NAMES and all(map(fits, values))  # type: ignore[arg-type,call-overload]


def _is_name(value: object) -> bool:
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def _is_table(fits: Callable[[Any], bool], value: object) -> bool:
    return (
        isinstance(value, dict) and _are(_is_name, list(value)) and all(map(fits, value.values()))
    )


def _one_of(*values: bool | str) -> _Kind:
    return _Kind(
        f"one of {', '.join(map(repr, values))}",
        lambda value: any(value == each and type(value) is type(each) for each in values),
    )


COUNT = _Kind(f"a whole number from 1 to {MAX_COUNT}", _is_count)
NUMBER = _Kind(f"a finite number of at most {MAX_COUNT}", _is_number)
SHARE = _Kind("a number from 0 to below 1", lambda value: _is_number(value) and 0 <= value < 1)
FLAG = _Kind("true or false", lambda value: isinstance(value, bool))
TEXT = _Kind("text", lambda value: isinstance(value, str))
NOTHING = _Kind("null", lambda value: value is None)
# peft takes text for a regular expression; one of a stranger may run for ever.
NAMES = _Kind(
    f"a list of at most {MAX_NAMES} names of layers, no pattern",
    lambda value: value is None or _are(_is_name, value),
)
INDICES = _Kind(
    "whole numbers from 0",
    lambda value: value is None or _are(lambda i: i == 0 or _is_count(i), _listed(value)),
)
RANKS = _Kind("names of layers with whole numbers", lambda value: _is_table(_is_count, value))
NUMBERS = _Kind("names of layers with numbers", lambda value: _is_table(_is_number, value))
_KINDS = {int: COUNT, float: NUMBER, bool: FLAG, str: TEXT, NoneType: NOTHING}

_LAYERS = {
    "target_modules": NAMES,
    "exclude_modules": NAMES,
    "modules_to_save": NAMES,
}
_RANKED = {
    **_LAYERS,
    "layers_to_transform": INDICES,
    "r": COUNT,
    "rank_pattern": RANKS,
    "alpha_pattern": NUMBERS,
}
_LYCORIS = {
    **_RANKED,
    "alpha": NUMBER,
    "rank_dropout": SHARE,
    "module_dropout": SHARE,
    "use_effective_conv2d": FLAG,
}
PEFT_FIELDS: dict[str, dict[str, _Kind]] = {
    "LORA": {
        **_RANKED,
        "lora_alpha": NUMBER,
        "lora_dropout": SHARE,
        "fan_in_fan_out": FLAG,
        "bias": _one_of("none", "all", "lora_only"),
        "use_rslora": FLAG,
        "use_dora": FLAG,
        "lora_bias": FLAG,
        "init_lora_weights": _one_of(True, False, "gaussian", "orthogonal", "pissa", "olora"),
    },
    "LOHA": {**_LYCORIS, "init_weights": FLAG},
    "LOKR": {
        **_LYCORIS,
        "decompose_both": FLAG,
        "decompose_factor": _Kind("-1 or a whole number", lambda v: v == -1 or _is_count(v)),
        "rank_dropout_scale": FLAG,
        "init_weights": _one_of(True, False, "lycoris"),
    },
    "IA3": {
        **_LAYERS,
        "feedforward_modules": NAMES,
        "fan_in_fan_out": FLAG,
        "init_ia3_weights": FLAG,
    },
    "HRA": {
        **_LAYERS,
        "layers_to_transform": INDICES,
        "r": COUNT,
        "apply_GS": FLAG,
        "init_weights": FLAG,
        "bias": _one_of("none", "all", "hra_only"),
    },
}
"""peft's methods and their fields that work on SAM and can be kept in a tuned file."""

# Where a config comes from; peft imports, or asks the network for, what some of them name.
_ORIGIN = {
    "auto_mapping",
    "base_model_name_or_path",
    "revision",
    "task_type",
    "peft_version",
    "inference_mode",
}
_EMPTY: tuple[object, ...] = (None, False, {}, [])


def refuse_odd_options(name: str, method: Callable[..., None], options: Mapping[str, Any]) -> None:
    """Refuse options that a method does not have, or that have another type than it says.

    Args:
        name: name of the method, for the message.
        method: function whose first argument is the model; its annotations tell the types.
        options: options to give to it.

    Raises:
        ValueError: the first such option, with its value and what is expected.
    """
    parameters = list(signature(method).parameters.values())[1:]
    hints = get_type_hints(method)
    known = [p.name for p in parameters if p.kind is not Parameter.VAR_KEYWORD]
    if len(known) == len(parameters) and (unknown := sorted(set(options) - set(known))):
        raise ValueError(
            f"method {name!r} has no option {unknown[0]!r}; its options: "
            f"{', '.join(known) or 'none'}."
        )
    for key in known:
        if key in options:
            hint = hints[key]
            several = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
            kinds = [_KINDS.get(kind) for kind in several]
            if None not in kinds:
                _refuse_unfit(key, options[key], [kind for kind in kinds if kind is not None])


def peft_config(config: PeftConfig | Mapping[str, Any]) -> PeftConfig:
    """A config of peft from another, with checked fields only.

    Args:
        config: config, or its fields with `peft_type`, such as peft's JSON files hold.

    Raises:
        ValueError: a method or a field of peft that cannot be kept in a tuned file, or a value out
            of range.
    """
    given = config.to_dict() if isinstance(config, PeftConfig) else dict(config)
    kind = given.pop("peft_type", None)
    kind = str(getattr(kind, "value", kind))
    if kind not in PEFT_FIELDS:
        raise ValueError(
            f"peft_type is {kind[:64]!r}; expected one of {', '.join(sorted(PEFT_FIELDS))}."
        )
    fields = PEFT_FIELDS[kind]
    defaults = get_peft_config({"peft_type": kind}).to_dict()
    kept = {}
    for key, value in given.items():
        if key in fields:
            _refuse_unfit(key, value, [fields[key]])
            kept[key] = value
        elif key not in _ORIGIN and value not in (*_EMPTY, defaults.get(key)):
            raise ValueError(
                f"{str(key)[:64]} is no field of peft's {kind} that a tuned file can hold; "
                f"expected some of {', '.join(sorted(fields))}."
            )
    return get_peft_config({"peft_type": kind, **kept})


def fields_of(config: PeftConfig) -> dict[str, Any]:
    """The fields of a config that are not peft's defaults, and its `peft_type`, ready for JSON."""
    kind = PeftType(config.peft_type).value
    defaults = get_peft_config({"peft_type": kind}).to_dict()
    given = config.to_dict()
    kept = {key: given[key] for key in PEFT_FIELDS[kind] if given[key] != defaults[key]}
    return {"peft_type": kind, **kept}


def _refuse_unfit(name: str, value: object, kinds: Iterable[_Kind]) -> None:
    if not any(kind.fits(value) for kind in kinds):
        shown = repr(value)
        shown = shown if len(shown) <= 100 else f"{shown[:100]}..."
        raise ValueError(
            f"{name} is {shown}; expected {' or '.join(kind.expected for kind in kinds)}."
        )


def _listed(value: object) -> object:
    return [value] if isinstance(value, int) else value
