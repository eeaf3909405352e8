"""Settings: what a user types for a recipe, how it reaches the recipe, and which values it takes.

A recipe is a program to MONAI: `$`, `@`, `%` and `#` in a text mean something. So a path, a name or
another value is written as a Python literal where it has one of them; see `word`.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

# What `python -m monai.bundle run` takes for itself; everything else overrides the config.
RUN_ARGUMENTS = {
    "run_id",
    "init_id",
    "final_id",
    "meta_file",
    "config_file",
    "logging_file",
    "tracking",
    "args_file",
}
# Words of YAML in the spelling of fire. A bare None would mean to MONAI that nothing was given.
_WORDS = {"true": "True", "false": "False", "null": "$None", "None": "$None"}
_KEY = re.compile(r"\+?[A-Za-z_]\w*((::|#)\w+)*", re.ASCII)
_HASH = "\ue000"  # private to this module: stands for # while fire reads a text
_LANGUAGE = re.compile(r"[$@%#]")


def word(value: Any) -> str:
    """Write a value for the command line of `python -m monai.bundle`, as data and nothing else.

    Text that fire would read as a number or a list is quoted. Text with a sign of MONAI's language
    becomes `$` and a Python literal, in which each sign is escaped: its value is the text.

    Args:
        value: text, path, number, bool, None, or lists, tuples and dicts of them.
    """
    if isinstance(value, Path):
        value = str(value)
    if value is None:
        return _WORDS["null"]
    if _LANGUAGE.search(str(value)):
        return "$" + _LANGUAGE.sub(lambda sign: f"\\x{ord(sign[0]):02x}", repr(value))
    return quoted(value) if isinstance(value, str) else str(value)


def quoted(text: str) -> str:
    """Write a text for fire, which reads `#` as a comment; MONAI's language is not looked at."""
    plain = text[:1] != "-" and "#" not in text and _read(text) == text
    return text if plain else repr(text)


def _read(text: str) -> Any:
    """The value of a word in fire's notation, in which `#` does not begin a comment.

    Raises:
        ValueError: brackets too deep for Python's parser.
    """
    from fire.parser import DefaultParseValue

    try:
        return _replaced(DefaultParseValue(text.replace("#", _HASH)), _HASH, "#")
    except (RecursionError, MemoryError) as error:
        raise ValueError(f"{text[:40]!r}...: is nested too deep to be a setting.") from error


def _replaced(value: Any, old: str, new: str) -> Any:
    """A value with a replacement in all its texts."""
    if isinstance(value, str):
        return value.replace(old, new)
    if isinstance(value, dict):
        return {_replaced(k, old, new): _replaced(v, old, new) for k, v in value.items()}
    if isinstance(value, (list, tuple, set)):
        return type(value)(_replaced(part, old, new) for part in value)
    return value


@dataclass(frozen=True)
class Typed:
    """A value as a user types it: fire's notation, and YAML's true, false and null.

    Only a text that begins with `$`, `@` or `%` is MONAI's language; any other is data.

    Attributes:
        text: text that was typed, e.g. "1e-4", "true" or "[0,1,0]".
    """

    text: str

    def __str__(self) -> str:
        """The text for the command line of `python -m monai.bundle`."""
        if self.text in _WORDS:
            return _WORDS[self.text]
        value = _read(self.text)
        if any(text[:1] in tuple("$@%") for text in _texts(value)):
            return self.text
        if isinstance(value, str) or _LANGUAGE.search(str(value)):
            return word(value)
        return self.text

    @property
    def value(self) -> Any:
        """The value that a recipe gets."""
        return None if _WORDS.get(self.text) == "$None" else _read(_WORDS.get(self.text, self.text))


def _texts(value: Any) -> list[str]:
    """All texts in a value."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for pair in value.items() for part in pair for text in _texts(part)]
    if isinstance(value, (list, tuple, set)):
        return [text for part in value for text in _texts(part)]
    return []


def read_settings(pairs: Sequence[str] | None, taken: Iterable[str] = ()) -> dict[str, Typed]:
    """Read the `key=value` words of `--set`; a bundle refuses unknown keys when it runs.

    Args:
        pairs: words as they were typed.
        taken: settings that the command line's own options give.

    Raises:
        ValueError: a word of another form, or a setting that is taken.
    """
    settings: dict[str, Typed] = {}
    for pair in pairs or []:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise ValueError(f"--set {pair!r}: expected key=value.")
        if not _KEY.fullmatch(key):
            raise ValueError(
                f"--set {pair!r}: {key!r} is no name of a setting; expected letters, digits and "
                "'_', and '::' before the name of an argument."
            )
        if key in RUN_ARGUMENTS:
            raise ValueError(f"--set {pair!r}: {key} belongs to the command, not to the recipe.")
        if key in {*taken}:
            raise ValueError(
                f"--set {pair!r}: {key} is given by the command's own option or argument; use that."
            )
        settings[key] = Typed(text)
    return settings


def component_from(name: str, kind: Callable[..., T], settings: Mapping[str, Typed]) -> T:
    """Build one component as a recipe builds it.

    Args:
        name: name of the component in the recipes, e.g. "mending".
        kind: its class.
        settings: `name::argument` -> value; arguments left out keep their defaults.

    Raises:
        ValueError: a setting that is no argument of the component.
    """
    known = sorted(inspect.signature(kind).parameters)
    chosen: dict[str, Any] = {}
    for key, typed in settings.items():
        argument = key.removeprefix(f"{name}::")
        if argument == key or argument not in known:
            raise ValueError(
                f"--set {key}={typed.text}: expected {name}::key=value, the key one of "
                f"{', '.join(known)}."
            )
        chosen[argument] = typed.value
    return kind(**chosen)


def check(**settings: Any) -> None:
    """Refuse values that no training can take; recipes call it before anything is read or written.

    Args:
        settings: name of a setting of the recipes -> value.

    Raises:
        ValueError: names the setting, its value and what is expected.
    """
    for name, value in settings.items():
        expectation, fits = _EXPECTED[name]
        if not fits(value):
            raise ValueError(f"{name} is {value!r}; expected {expectation}.")
        if name == "device":
            _check_device(value)


def _check_device(value: Any) -> None:
    import torch

    device = torch.device(value)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device is {str(device)!r}, but torch sees no GPU here; leave it out, or set it to "
            "cpu. `nvidia-smi` tells whether there is a driver."
        )


def _is_device(value: Any) -> bool:
    import torch

    try:
        torch.device(value)
    except (RuntimeError, TypeError):
        return False
    return True


def _whole(low: int) -> tuple[str, Callable[[Any], bool]]:
    return (
        f"a whole number, {low} or more",
        lambda value: type(value) is int and low <= value < 2**31,
    )


def _number(low: float, high: float = math.inf, *, open_: bool = False) -> Any:
    """Expectation of a finite number from `low` to `high`; an open interval is without its ends."""
    bounds = f"above {low:g}" if open_ else f"{low:g} or more"
    ends = "" if high == math.inf else f", {'below' if open_ else 'at most'} {high:g}"

    def fits(value: Any) -> bool:
        if type(value) not in (int, float) or not abs(value) < math.inf or abs(value) > 1e308:
            return False
        return bool(low < value < high if open_ else low <= value <= high)

    return f"a number, {bounds}{ends}", fits


_SWITCH = ("true or false", lambda value: type(value) is bool)
_EXPECTED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "image_size": (
        "null, or a whole number of pixels, 16 or more",
        lambda value: value is None or (type(value) is int and 16 <= value < 2**31),
    ),
    "in_channels": _whole(1),
    "objects": _whole(1),
    "jitter": _number(0, 1),
    "empty_slices": _number(0),
    "label_tokens": _SWITCH,
    "copies": _whole(0),
    "pictures": _whole(0),
    "flip_prob": _number(0, 1),
    "turn_prob": _number(0, 1),
    "bias_prob": _number(0, 1),
    "epochs": _whole(1),
    "batch_size": _whole(1),
    "epoch_slices": (
        "null, or a whole number, 1 or more",
        lambda value: value is None or (type(value) is int and 1 <= value < 2**31),
    ),
    "lr": _number(0, open_=True),
    "token_lr": _number(0, open_=True),
    "layer_decay": _number(0, 1),
    "weight_decay": _number(0),
    "warmup_steps": (
        "null, or a whole number, 0 or more",
        lambda value: value is None or (type(value) is int and 0 <= value < 2**31),
    ),
    "val_interval": _whole(1),
    "patience": (
        "null, or a whole number, 1 or more",
        lambda value: value is None or (type(value) is int and 1 <= value < 2**31),
    ),
    "key_metric": (
        "mean_dice or mean_iou",
        lambda value: value in ("mean_dice", "mean_iou"),
    ),
    "checkpoint_minutes": _number(0),
    "slice_batch": (
        "null, or a whole number, 1 or more",
        lambda value: value is None or (type(value) is int and 1 <= value < 2**31),
    ),
    "prompt_batch": _whole(1),
    "embedding_budget": _whole(0),
    "cache": _SWITCH,
    "views": (
        "null, or a whole number, 1 or more",
        lambda value: value is None or (type(value) is int and 1 <= value < 2**31),
    ),
    "cache_dtype": (
        "float16, bfloat16 or float32",
        lambda value: value in ("float16", "bfloat16", "float32"),
    ),
    "gradient_checkpointing": _SWITCH,
    "compile": _SWITCH,
    "resume": _SWITCH,
    "unfinished": _SWITCH,
    "overwrite": _SWITCH,
    "separate": _SWITCH,
    "probabilities": _SWITCH,
    "instances": _SWITCH,
    "drop_absent": _SWITCH,
    "largest_component": _SWITCH,
    "fill_holes": _SWITCH,
    "smooth_slices": _number(0),
    "min_volume_ml": _number(0),
    "num_workers": _whole(0),
    "jobs": _whole(1),
    "seed": _whole(0),
    "amp": _SWITCH,
    "device": ("the name of a device, such as cpu, cuda or cuda:0", _is_device),
}


def refuse_missing(setting: str, package: str) -> None:
    """Refuse a setting that needs a package which is not installed, before any work.

    Raises:
        ValueError: it is not installed.
    """
    if find_spec(package) is None:
        raise ValueError(
            f"{setting} needs the package {package}: pip install {package}, or leave it out."
        )
