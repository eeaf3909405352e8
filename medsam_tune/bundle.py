"""Bundles: where they are, the command that runs one, and what a run checks before it starts."""

from __future__ import annotations

import inspect
import logging
import os
import runpy
import shlex
import sys
from ast import literal_eval
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from difflib import get_close_matches
from pathlib import Path
from pydoc import locate
from typing import Any

from medsam_tune.errors import DataError, listed, warn
from medsam_tune.failures import report_in_one_line
from medsam_tune.files import flat
from medsam_tune.ranks import count, is_main, join, launch
from medsam_tune.settings import RUN_ARGUMENTS, Typed, quoted, word

# What MONAI itself reads in a component, beside the arguments of its `_target_`.
_COMPONENT_KEYS = {"_target_", "_mode_", "_disabled_", "_requires_", "_desc_"}
# Settings that name a file or a folder: a name there is never a program.
_PATHS = [
    *("bundle_root", "datalist", "output_dir", "slices_dir", "run_dir", "checkpoint"),
    *("scans", "series", "prompts", "output", "codes", "other", "other_checkpoint"),
]
# What may differ when a run is resumed. The data and the base are compared by their content.
_FREE = {
    *("bundle_root", "datalist", "dataset_dir", "slices_dir", "output_dir", "checkpoint"),
    *("resume", "epochs", "lr", "token_lr", "num_workers", "device", "val_interval"),
    *("slice_batch", "embedding_budget", "checkpoint_minutes", "mlflow", "compile"),
    *("gradient_checkpointing", "jobs", "imports", "initialize", "run", "_meta_"),
}


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


def bundle_name(folder: str) -> str:
    """What `bundle_folder` finds a folder by: "image" of a shipped `sam_image`; else its path."""
    path = Path(folder).resolve()
    name = path.name.removeprefix("sam_")
    try:
        return name if bundle_folder(name).resolve() == path else str(path)
    except DataError:
        return str(path)


def training_configs(
    bundle: str,
    method: str,
    overlays: Sequence[str] = (),
    *,
    no_prompt: bool = False,
    class_agnostic: bool = False,
    **options: Any,
) -> list[str]:
    """Name the configs of a training run, later ones laid over earlier ones.

    Overlays fit a run to its data. What the command asks for counts: its flags are laid over them,
    with a warning where both set something, and an overlay of another method is refused.

    Args:
        bundle: see `bundle_folder`.
        method: a key of `METHODS`.
        overlays: names of files in its configs/, or paths.
        no_prompt: train for use without prompts alone.
        class_agnostic: train SAM's own prompting, which knows no labels.
        options: settings that the command gives.

    Raises:
        ValueError: both flags at once; an overlay that sets the method or an option otherwise.
        DataError: an overlay that is not there.
    """
    if no_prompt and class_agnostic:
        raise ValueError(
            "--no-prompt and --class-agnostic exclude each other: a model that does not know "
            "labels needs prompts. Give one of them."
        )
    flags = ["no_prompt"] * no_prompt + ["class_agnostic"] * class_agnostic
    folder = bundle_folder(bundle) / "configs"
    for path in (_config(folder, name) for name in overlays):
        content = _content(path)
        for key, asked in {"method": method, **options}.items():
            if str(other := content.get(key, asked)) != str(asked):
                say = str(other) if key == "method" else f"{_option(key)} {other}"
                raise ValueError(
                    f"{path.name} is of the {key} {other}, and the command says {asked}; say "
                    f"`{say}`, or give what else it sets by --set."
                )
        for flag in flags:
            asked = _content(folder / f"{flag}.yaml")
            if lost := [key for key in asked if content.get(key, asked[key]) != asked[key]]:
                warn(f"{path.name}: its {listed(lost)} is left out, as {_option(flag)} sets it.")
    own = [] if method == "decoder" else [f"method_{method}.yaml"]
    return ["train.yaml", *own, *overlays, *(f"{flag}.yaml" for flag in flags)]


def config_content(bundle: str, name: str) -> dict[str, Any]:
    """What a config says, by its name in the bundle's configs/ or its path."""
    return _content(_config(bundle_folder(bundle) / "configs", name))


def merged(configs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Configs laid over each other as MONAI does it; a key that leads nowhere is left out."""
    from monai.bundle import ConfigParser
    from monai.bundle.utils import merge_kv

    parser = ConfigParser({})
    for config in configs:
        for key, value in config.items():
            try:
                merge_kv(parser, key, deepcopy(value))
            except (KeyError, IndexError, ValueError, TypeError):
                continue
    return dict(parser.get())


def method_of(bundle: str, overlays: Sequence[str]) -> str | None:
    """The method that overlays set, the last of several; None where none does.

    Args:
        bundle: see `bundle_folder`.
        overlays: see `training_configs`.

    Raises:
        DataError: an overlay that is not there.
    """
    said = [config_content(bundle, name).get("method") for name in overlays]
    return next((str(one) for one in reversed(said) if one is not None), None)


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _content(config: Path) -> dict[str, Any]:
    from monai.bundle import ConfigParser

    found: dict[str, Any] = ConfigParser.load_config_file(config)
    return found


def run_bundle(
    bundle: str, configs: Sequence[str], overrides: Mapping[str, Any], processes: int = 1
) -> None:
    """Print `python -m monai.bundle run ...` on standard error and run it in this process.

    Args:
        bundle: see `bundle_folder`.
        configs: names of files in its configs/, or paths, later ones laid over earlier ones.
        overrides: setting -> value, or `Typed`. A value is data, whatever its text.
        processes: of several, each has a GPU of this machine; `torchrun` starts them.

    Raises:
        DataError: a config that is in neither place.
        SystemExit: several processes did not come to their end; the code is that of the first
            that failed, or of the signal.
    """
    root = _shorter(bundle_folder(bundle))
    files = [str(_config(root / "configs", name)) for name in configs]
    several = f"[{','.join(map(repr, files))}]"
    options = {"config_file": quoted(files[0]) if len(files) == 1 else several}
    options["bundle_root"] = word(root)
    options |= {
        key: str(value) if isinstance(value, Typed) else word(value)
        for key, value in overrides.items()
    }
    lines = [f"--{key} {shlex.quote(text)}" for key, text in options.items()]
    launcher = "python" if processes == 1 else f"torchrun --standalone --nproc-per-node={processes}"
    run = f"$ {launcher} -m monai.bundle run"
    print(run, *lines, sep=" \\\n    ", file=sys.stderr, flush=True)
    sys.argv = ["monai.bundle", "run"]
    sys.argv += [part for key, text in options.items() for part in (f"--{key}", text)]
    if processes == 1:
        runpy.run_module("monai.bundle", run_name="__main__", alter_sys=False)
    else:
        launch(processes, ["-m", "monai.bundle", *sys.argv[1:]])


def start(argv: Sequence[str] | None = None, *, ranks: bool = False) -> None:
    """Check the command line and the configs of this process; recipes call it before all else.

    MONAI adds an unknown setting silently, and passes an unknown argument on to a traceback.

    Args:
        argv: arguments of `python -m monai.bundle`; those of this process if None. Anything but a
            `run` with a `--config_file` passes.
        ranks: this is one of several processes, which meet here.

    Raises:
        ValueError: a setting that no config has or uses, an argument that a component does not
            take, a path that would run as a program, or several processes of torchrun.
    """
    if Path(sys.argv[0]).parts[-3:] == ("monai", "bundle", "__main__.py"):
        report_in_one_line()
    if count() > 1 and not ranks:
        raise ValueError(
            f"WORLD_SIZE is {count()}; expected one process: this recipe uses one GPU. Lay "
            "multi_gpu.yaml over it, or start it without torchrun."
        )
    if not is_main():
        logging.getLogger().setLevel(logging.WARNING)  # rank 0 says it for all
    join()
    configs, overrides = _configs_and_overrides(argv)
    if not configs:
        return
    given = _options(sys.argv[1:] if argv is None else argv)
    for key in _PATHS:
        _refuse_program(key, given.get(key))
    content = merged(configs)
    _refuse_unused(configs, content)
    for key in overrides:
        _refuse_unknown(f"--{key}", key, content)
    for place, component in _components(merged([*configs, overrides])):
        known = _arguments(component)
        for name in component if known else ():
            if name not in known:
                near = _meant(name, known)
                raise ValueError(f"{place}::{name} is no setting of {place}; did you mean: {near}?")


def recipe(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """What the configs and the command line of this process say, as `a::b::0::c` -> value.

    What may change from one run to its continuation is left out: places of files, epochs, learning
    rate, workers, device.

    Args:
        argv: see `start`. Without configs on the command line the result is empty.
    """
    configs, overrides = _configs_and_overrides(argv)
    content = merged([*configs, overrides]) if configs else {}
    return flat({key: value for key, value in content.items() if key not in _FREE})


def _config(folder: Path, name: str) -> Path:
    places = [Path(name)] if os.sep in name else [folder / name, Path(name)]
    if not any(path.is_file() for path in places):
        places = [path.with_name(f"{path.name}.yaml") for path in places]
    found = [path for path in places if path.is_file()]
    if len(found) == 2 and found[0].read_bytes() != found[1].read_bytes():
        raise DataError(
            f"{name}: is here and in the bundle, and they differ; say ./{name} for yours."
        )
    if found:
        return found[0]
    known = ", ".join(sorted(path.name for path in folder.glob("*.yaml")))
    raise DataError(f"{name}: no such config here, nor in the bundle, which has {known}.")


def _shorter(path: Path) -> Path:
    """The path relative to the working directory where that is shorter."""
    relative = Path(os.path.relpath(path))
    return relative if len(str(relative)) < len(str(path)) else path


def _configs_and_overrides(
    argv: Sequence[str] | None,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The content of the config files on a command line, and the settings on it."""
    from fire.parser import DefaultParseValue
    from monai.bundle import ConfigParser

    given: dict[str, Any] = dict(_options(sys.argv[1:] if argv is None else argv))
    if "args_file" in given:
        given = {**ConfigParser.load_config_file(given["args_file"]), **given}
    if "config_file" not in given:
        return [], {}
    files = given["config_file"]
    if isinstance(files, str) and not Path(files).is_file():
        files = DefaultParseValue(files)
    if isinstance(files, str) and not Path(files).is_file():
        files = [part.strip(" '\"") for part in files.strip("[]()").split(",")]
    names = [files] if isinstance(files, str) else [str(name) for name in files]
    overrides = {
        key.replace("#", "::"): DefaultParseValue(text) if isinstance(text, str) else text
        for key, text in given.items()
        if key not in RUN_ARGUMENTS
    }
    return [ConfigParser.load_config_file(name) for name in names], overrides


def _refuse_program(key: str, text: str | None) -> None:
    """Refuse a path that is not taken as it is written: a program, a reference, a comment.

    A literal, as `settings.word` writes it, passes.
    """
    if text is None or text == "$None" or not set("$@%#") & set(text):
        return
    if text.startswith("$"):
        with suppress(SyntaxError, ValueError):
            if isinstance(literal_eval(text[1:]), str):
                return
    elif "#" not in text and text[0] not in "@%":
        return
    raise ValueError(
        f"--{key} is {text!r}, which is a program, a reference or a comment to MONAI; write the "
        f"name as {word(text)!r}, or use medsam-tune, which does."
    )


def _refuse_unused(configs: Sequence[Mapping[str, Any]], content: Mapping[str, Any]) -> None:
    """Refuse a key of an overlay that is in no config before it, and that nothing refers to."""
    known: set[str] = set()
    text = str(content)
    for number, config in enumerate(configs):
        whole = {key: value for key, value in config.items() if "::" not in key}
        before = merged([*configs[:number], whole]) if number else {}
        for key in config if number else ():
            name = key.lstrip("+").split("::")[0]
            if name not in known and f"@{name}" not in text:
                _refuse_unknown(key, key, {name: None for name in known})
            elif "::" in key:
                _refuse_unknown(key, key, before)
        known |= {key.lstrip("+").split("::")[0] for key in config}


def _refuse_unknown(shown: str, key: str, config: Mapping[str, Any]) -> None:
    """Refuse a key, `a::b::0::c`, that leads to no place in a config."""
    name, *inner = key.lstrip("+").replace("#", "::").split("::")
    if name not in config:
        near = _meant(name, config)
        raise ValueError(f"{shown} is no setting of this config; did you mean: {near}?")
    place, here = name, config[name]
    for step in inner:
        if isinstance(here, list):
            if not step.isdigit() or int(step) >= len(here):
                raise ValueError(f"{shown}: {place} has the places 0 to {len(here) - 1}.")
            here = here[int(step)]
        elif isinstance(here, dict):
            known = _arguments(here) or ({*here} if "_target_" not in here else set())
            if known and step not in known:
                near = _meant(step, known)
                raise ValueError(f"{shown} is no setting of {place}; did you mean: {near}?")
            here = here.get(step)
        else:
            raise ValueError(f"{shown} is no setting: {place} is {here!r}, which has no parts.")
        place = f"{place}::{step}"


def _components(config: Any, place: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """All components of a config, and where they are."""
    if isinstance(config, dict) and "_target_" in config:
        yield place, config
    if isinstance(config, (dict, list)):
        inner = config.items() if isinstance(config, dict) else enumerate(config)
        for key, value in inner:
            yield from _components(value, f"{place}::{key}" if place else str(key))


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


def _meant(name: str, known: Iterable[str]) -> str:
    """The known words that a mistyped one may have meant, best first; all where none is near."""
    words = sorted({*known} - _COMPONENT_KEYS - {"_meta_"})
    return listed(get_close_matches(name, words, n=3) or words, 40)


def _options(argv: Sequence[str]) -> dict[str, str]:
    """`--key value` and `--key=value` pairs."""
    found: dict[str, str] = {}
    for index, text in enumerate(argv):
        if not text.startswith("--"):
            continue
        key, equals, value = text[2:].partition("=")
        following = argv[index + 1] if index + 1 < len(argv) else ""
        found[key] = value if equals else following
    return found
