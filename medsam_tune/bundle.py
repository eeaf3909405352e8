"""Bundles: where they are, the command that runs one, and the settings that are typed for it."""

from __future__ import annotations

import inspect
import os
import runpy
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from pydoc import locate
from typing import Any, TypeVar

from medsam_tune.errors import DataError

T = TypeVar("T")

# What `python -m monai.bundle run` takes for itself; everything else overrides the config.
_RUN_ARGUMENTS = {
    "run_id",
    "init_id",
    "final_id",
    "meta_file",
    "config_file",
    "logging_file",
    "tracking",
    "args_file",
}
# What MONAI itself reads in a component, beside the arguments of its `_target_`.
_COMPONENT_KEYS = {"_target_", "_mode_", "_disabled_", "_requires_", "_desc_"}
# Words of YAML in the spelling of fire. A bare None would mean to MONAI that nothing was given.
_WORDS = {"true": "True", "false": "False", "null": "$None", "None": "$None"}


def bundle_folder(name: str) -> Path:
    """Find a bundle: "volume" is the `sam_volume` that comes with the package; else a path.

    Raises:
        DataError: no such bundle; names those that the package has.
    """
    package = Path(__file__).resolve().parent
    shipped = package / "bundles" if (package / "bundles").is_dir() else package.parent / "bundles"
    for folder in (shipped / f"sam_{name}", Path(name)):
        if (folder / "configs").is_dir():
            return folder
    known = ", ".join(sorted(p.name.removeprefix("sam_") for p in shipped.glob("sam_*")))
    raise DataError(f"bundle {name!r} is neither a folder with configs/ nor one of: {known}.")


def training_configs(method: str, *, no_prompt: bool = False) -> list[str]:
    """Name the configs of a training run, later ones laid over earlier ones.

    Args:
        method: a key of `METHODS`.
        no_prompt: train to segment every label without boxes.
    """
    overlays = [] if method == "decoder" else [f"method_{method}.yaml"]
    return ["train.yaml", *overlays, *(["no_prompt.yaml"] if no_prompt else [])]


def run_bundle(bundle: str, configs: Sequence[str], overrides: Mapping[str, Any]) -> None:
    """Print `python -m monai.bundle run ...` on standard error and run it in this process.

    Args:
        bundle: see `bundle_folder`.
        configs: names of files in its configs/, or paths, later ones laid over earlier ones.
        overrides: setting -> value, or `Typed`.

    Raises:
        DataError: a config that is in neither place.
    """
    root = _shorter(bundle_folder(bundle))
    files = [str(_config(root / "configs", name)) for name in configs]
    argv = ["run", "--config_file", files[0] if len(files) == 1 else str(files).replace(", ", ",")]
    argv += ["--bundle_root", str(root)]
    for key, value in overrides.items():
        argv += [f"--{key}", _argument(value)]
    print(f"$ python -m monai.bundle {shlex.join(argv)}", file=sys.stderr, flush=True)
    sys.argv = ["monai.bundle", *argv]
    runpy.run_module("monai.bundle", run_name="__main__", alter_sys=False)


@dataclass(frozen=True)
class Typed:
    """A value as a user types it: fire's notation, and YAML's true, false and null.

    Attributes:
        text: text that was typed, e.g. "1e-4", "true" or "[0,1,0]".
    """

    text: str

    def __str__(self) -> str:
        """The text for the command line of `python -m monai.bundle`."""
        return _WORDS.get(self.text, self.text)

    @property
    def value(self) -> Any:
        """The value that a recipe gets."""
        from fire.parser import DefaultParseValue

        return None if str(self) == "$None" else DefaultParseValue(str(self))


def read_settings(pairs: Sequence[str] | None) -> dict[str, Typed]:
    """Read the `key=value` words of `--set`; a bundle refuses unknown keys when it runs.

    Raises:
        ValueError: a word of another form.
    """
    settings: dict[str, Typed] = {}
    for pair in pairs or []:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise ValueError(f"--set {pair!r}: expected key=value.")
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


def refuse_unknown_overrides(argv: Sequence[str] | None = None) -> None:
    """Refuse `--key value` on the command line where no config has `key`; MONAI adds it silently.

    `--key::name value` is refused as well where the component `key` takes no argument `name`.

    Args:
        argv: arguments of `python -m monai.bundle`; those of this process if None. Anything but a
            `run` with a `--config_file` passes.

    Raises:
        ValueError: names the key and the nearest known ones.
    """
    given = _options(sys.argv[1:] if argv is None else argv)
    if "config_file" not in given:
        return
    from monai.bundle import ConfigParser

    config: dict[str, Any] = {"_meta_": {}}
    for file in _files(given["config_file"]):
        for key, value in ConfigParser.load_config_file(file).items():
            name, *inner = key.lstrip("+").split("::")
            if not inner:
                config[name] = value
            config.setdefault(name, None)
    known = set(config)
    for key in given.keys() - _RUN_ARGUMENTS:
        name, *inner = key.lstrip("+").replace("#", "::").split("::")
        if name not in known:
            near = ", ".join(_nearest(key, known) or sorted(known - {"_meta_"}))
            raise ValueError(f"--{key} is no setting of this config; did you mean: {near}?")
        arguments = _arguments(config[name]) if len(inner) == 1 else set()
        if arguments and inner[0] not in arguments:
            near = ", ".join(_nearest(inner[0], arguments) or sorted(arguments))
            raise ValueError(f"--{key} is no setting of {name}; did you mean: {near}?")


def _config(folder: Path, name: str) -> Path:
    for path in (folder / name, Path(name)):
        if path.is_file():
            return path
    known = ", ".join(sorted(path.name for path in folder.glob("*.yaml")))
    raise DataError(f"{name}: no such config here, nor in the bundle, which has {known}.")


def _argument(value: Any) -> str:
    """Write a value as fire reads it back: text that would become a number or a list is quoted."""
    text = str(value)
    if isinstance(value, (str, Path)):
        from fire.parser import DefaultParseValue

        return text if DefaultParseValue(text) == text else repr(text)
    return text


def _shorter(path: Path) -> Path:
    """The path relative to the working directory where that is shorter."""
    relative = Path(os.path.relpath(path))
    return relative if len(str(relative)) < len(str(path)) else path


def _arguments(component: Any) -> set[str]:
    """Names that a config's `_target_` takes; empty where it takes any, or this is none."""
    target = component.get("_target_") if isinstance(component, dict) else None
    found = locate(target) if isinstance(target, str) else None
    if not callable(found):
        return set()
    parameters = inspect.signature(found).parameters
    if any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
        return set()
    return {*parameters, *_COMPONENT_KEYS}


def _nearest(word: str, known: set[str]) -> list[str]:
    """The known words that a mistyped one may have meant, best first."""
    return get_close_matches(word, sorted(known), n=3)


def _options(argv: Sequence[str]) -> dict[str, str]:
    """`--key value` and `--key=value` pairs."""
    found: dict[str, str] = {}
    for index, word in enumerate(argv):
        if not word.startswith("--"):
            continue
        key, equals, value = word[2:].partition("=")
        following = argv[index + 1] if index + 1 < len(argv) else ""
        found[key] = value if equals else following
    return found


def _files(value: str) -> list[str]:
    """The file names of `--config_file`: one, or a list as fire reads it, `['a.yaml','b.yaml']`."""
    text = value.strip()
    if not text.startswith(("[", "(")):
        return [text]
    return [part.strip().strip("'\"") for part in text[1:-1].split(",")]
