"""The header of a tuned file: what `save_tuned` writes, and the check of what a stranger wrote."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from peft import PeftConfig

from medsam_tune.errors import DataError
from medsam_tune.files import FORMAT, parse_json, refuse_other_format
from medsam_tune.methods import METHODS
from medsam_tune.methods.lora import adapted_layers
from medsam_tune.methods.options import MAX_COUNT, fields_of
from medsam_tune.sam.build import MAX_CHANNELS, MAX_IMAGE_SIZE, PATCH
from medsam_tune.sam.model import NORMALISATIONS, BaseModel, PromptableSam, Tuning
from medsam_tune.version import __version__

TUNED_FORMAT = 1
"""Format of tuned files."""

MAX_HEADER = 4 * 2**20
"""Bytes of the largest header; a thousand tensors and a thousand labels take a tenth of it."""

MAX_LABEL = 2**31 - 1
"""Largest label id: the largest number that a mask file holds."""

MAX_TEXT = 256
"""Characters of the longest name of a label."""

_WORD = re.compile(r"[A-Za-z0-9_.+-]{1,64}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LABEL = re.compile(r"[1-9][0-9]{0,9}")
_HALVES = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class TunedHeader:
    """Header of a tuned file, beside the tensors.

    Attributes:
        base: base model, with the sha256 of its weights.
        tuning: method and options.
        labels: label id -> name of the objects that it was tuned for.
        version: version of the package that wrote it.
    """

    base: BaseModel
    tuning: Tuning
    labels: dict[int, str]
    version: str


def header_text(model: PromptableSam, labels: Mapping[int, str]) -> str:
    """The header of a tuned model as JSON.

    Raises:
        ValueError: no method was applied.
        TypeError: an option that JSON cannot hold.
    """
    if model.tuning is None:
        raise ValueError("the model has no tuning method; call apply_method before save_tuned.")
    options: dict[str, Any] = json.loads(json.dumps(model.tuning.options, default=_plain))
    for given in (options, options.get("config", {})):
        if _is_pattern(given):
            given["target_modules"] = adapted_layers(model)
    header = {
        "base": model.base.as_dict(),
        "method": model.tuning.method,
        "options": options,
        "labels": {str(k): v for k, v in labels.items()},
        "version": __version__,
        FORMAT: TUNED_FORMAT,
    }
    return json.dumps(header)


def parse_header(text: str, source: str) -> TunedHeader:
    """The header in a tuned file, checked in types and ranges.

    The options are checked when they are applied (`apply_method`).

    Args:
        text: JSON from the file.
        source: name of the file, for the message.

    Raises:
        DataError: a header of another format, or one that `save_tuned` does not write; names the
            field.
    """
    header = parse_json(text, f"{source}: its header")
    refuse_other_format(
        source, header, TUNED_FORMAT, "Tune again, or use the version that wrote it."
    )
    content = _fields(header, "the header", _HEADER, source)
    return TunedHeader(
        base=parse_base(content["base"], source),
        tuning=Tuning(content["method"], content["options"]),
        labels={int(k): v for k, v in content["labels"].items()},
        version=content["version"],
    )


def parse_base(content: dict[str, Any], source: str) -> BaseModel:
    """The description of a base in a file, checked in types and ranges.

    Args:
        content: fields, as `BaseModel.as_dict` gives them.
        source: name of the file, for the message.

    Raises:
        DataError: other fields, or a value out of range; names it.
    """
    return BaseModel(**_fields(content, "base", _BASE, source))


_WAY_OUT = "Get the file again, or tune again."
_Check = tuple[str, Callable[[Any], bool]]


def _whole(low: int, high: int, step: int = 1) -> _Check:
    expected = f"a whole number from {low} to {high}" + (f", a multiple of {step}" * (step > 1))
    return expected, lambda v: type(v) is int and low <= v <= high and v % step == 0


def _text(pattern: re.Pattern[str], expected: str) -> _Check:
    return expected, lambda v: isinstance(v, str) and pattern.fullmatch(v) is not None


def _are_labels(value: object) -> bool:
    return (
        isinstance(value, dict)
        and len(value) <= MAX_COUNT
        and all(_LABEL.fullmatch(key) and int(key) <= MAX_LABEL for key in value)
        and all(map(_is_written, value.values()))
    )


def _is_written(name: object) -> bool:
    """True for text that can be written to a file: half a character of UTF-16 cannot."""
    return isinstance(name, str) and len(name) <= MAX_TEXT and not _HALVES.search(name)


def _is_pattern(options: object) -> bool:
    """True if layers are chosen by a regular expression: one of a stranger may run for ever."""
    return isinstance(options, dict) and isinstance(options.get("target_modules"), str)


_HEADER: dict[str, _Check] = {
    "base": ("an object", lambda v: isinstance(v, dict)),
    "method": (f"one of {', '.join(METHODS)}", lambda v: isinstance(v, str) and v in METHODS),
    "options": (
        "options without patterns of layers",
        lambda v: isinstance(v, dict) and not any(map(_is_pattern, (v, v.get("config")))),
    ),
    "labels": (
        f"at most {MAX_COUNT} label ids from 1 to {MAX_LABEL} with names of at most {MAX_TEXT} "
        "characters",
        _are_labels,
    ),
    "version": _text(_WORD, "a version"),
    FORMAT: _whole(TUNED_FORMAT, TUNED_FORMAT),
}
_BASE: dict[str, _Check] = {
    "name": _text(_WORD, "the name of a model"),
    "image_size": _whole(2 * PATCH, MAX_IMAGE_SIZE, PATCH),
    "in_channels": _whole(1, MAX_CHANNELS),
    "normalisation": (
        f"one of {', '.join(NORMALISATIONS)}",
        lambda v: isinstance(v, str) and v in NORMALISATIONS,
    ),
    "sha256": _text(_SHA256, "64 digits of a sha256"),
}


def _fields(
    content: dict[str, Any], what: str, checks: Mapping[str, _Check], source: str
) -> dict[str, Any]:
    """An object with exactly the fields of a schema."""
    if content.keys() != checks.keys():
        raise DataError(
            f"{source}: {what} holds {_short(sorted(content))}; expected {', '.join(checks)}. "
            f"{_WAY_OUT}"
        )
    for key, (expected, fits) in checks.items():
        if not fits(content[key]):
            raise DataError(
                f"{source}: its {key} is {_short(content[key])}; expected {expected}. {_WAY_OUT}"
            )
    return content


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 100 else f"{shown[:100]}..."


def _plain(value: object) -> object:
    """Options of a method that JSON cannot hold, as plain values."""
    if isinstance(value, PeftConfig):
        return fields_of(value)
    if isinstance(value, set | frozenset):
        return sorted(value)
    raise TypeError(f"an option is a {type(value).__name__}, which a tuned file cannot hold.")
