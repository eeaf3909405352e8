"""Tuned files: only what was tuned, and everything needed to put it back on its base."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from medsam_tune.files import written_whole
from medsam_tune.methods import apply_method
from medsam_tune.sam.build import build_sam
from medsam_tune.sam.model import BaseModel, PromptableSam, Tuning
from medsam_tune.version import __version__

_KEY = "medsam_tune"


@dataclass(frozen=True)
class TunedHeader:
    """What stands in a tuned file beside the tensors.

    Attributes:
        base: the model it was tuned from, with the sha256 of its weights.
        tuning: method and options.
        labels: label id -> name of what it was tuned for.
        version: of the package that wrote it.
    """

    base: BaseModel
    tuning: Tuning
    labels: dict[int, str]
    version: str


def tuned_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The tensors that a method tunes, by name, detached."""
    return {k: p.detach() for k, p in model.named_parameters() if p.requires_grad}


def load_tuned_tensors(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy tuned tensors into a model with the same method; exact names and shapes or nothing.

    Raises:
        ValueError: names or shapes differ, or a value is not finite; names `source`.
    """
    own = tuned_tensors(model)
    if own.keys() != tensors.keys():
        odd = sorted(own.keys() ^ tensors.keys())
        raise ValueError(f"{source}: {len(odd)} tensors do not match the method, e.g. {odd[0]}.")
    for key, value in tensors.items():
        if value.shape != own[key].shape:
            raise ValueError(
                f"{source}: {key} has shape {tuple(value.shape)}, the model needs "
                f"{tuple(own[key].shape)}."
            )
    refuse_not_finite(tensors, source)
    with torch.no_grad():
        for key, value in tensors.items():
            own[key].copy_(value)


def save_tuned(
    model: PromptableSam, path: str | Path, labels: Mapping[int, str] | None = None
) -> Path:
    """Write what was tuned to a safetensors file, whole or not at all.

    Args:
        model: a model from `apply_method`.
        path: of the file; written beside and renamed.
        labels: label id -> name, kept in the header.

    Returns:
        the path.

    Raises:
        ValueError: no method was applied, or a weight is not finite.
    """
    path = Path(path)
    if model.tuning is None:
        raise ValueError("the model has no tuning method; call apply_method before save_tuned.")
    tensors = {k: v.cpu().contiguous() for k, v in tuned_tensors(model).items()}
    refuse_not_finite(tensors, str(path))
    header = {
        "base": model.base.as_dict(),
        "method": model.tuning.method,
        "options": model.tuning.options,
        "labels": {str(k): v for k, v in (labels or {}).items()},
        "version": __version__,
    }
    write_safetensors(tensors, path, {_KEY: json.dumps(header, default=_plain)})
    return path


def _plain(value: object) -> object:
    """What JSON has no word for among the options of a method."""
    if isinstance(value, PeftConfig):
        return value.to_dict()
    if isinstance(value, set | frozenset):
        return sorted(value)
    raise TypeError(f"an option is a {type(value).__name__}, which a tuned file cannot hold.")


def read_header(path: str | Path) -> TunedHeader:
    """The header of a tuned file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or is no tuned file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such tuned file; `medsam-tune train` writes one.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: truncated or no safetensors file ({error}).") from error
    if _KEY not in metadata:
        raise ValueError(f"{path}: a safetensors file, but not written by save_tuned.")
    header = json.loads(metadata[_KEY])
    return TunedHeader(
        base=BaseModel(**header["base"]),
        tuning=Tuning(header["method"], header["options"]),
        labels={int(k): v for k, v in header["labels"].items()},
        version=header["version"],
    )


def load_tuned(
    path: str | Path,
    base: PromptableSam | None = None,
    checkpoint: str | Path | None = None,
    apply: Callable[[str, Mapping[str, Any]], PromptableSam] | None = None,
) -> PromptableSam:
    """A tuned model from its file.

    Args:
        path: a file from `save_tuned`.
        base: the base to tune, changed in place; built by name from the header if None.
        checkpoint: the base's checkpoint when it is built here.
        apply: makes the tuned model from method and options; `apply_method` on the base if None.

    Returns:
        the tuned model in evaluation mode.

    Raises:
        ValueError: another base than the one it was tuned from, or a damaged file.
        FileNotFoundError: there is no such file.
    """
    header = read_header(path)
    if base is None:
        base = build_sam(
            header.base.name,
            checkpoint,
            header.base.image_size,
            header.base.in_channels,
            header.base.normalisation,
        )
    _refuse_other_base(header.base, base.base, path)
    with warnings.catch_warnings():  # what stands in a tuned file is trained
        warnings.filterwarnings("ignore", message=".* has random weights and ")
        if apply is None:
            model = apply_method(base, header.tuning.method, **header.tuning.options)
        else:
            model = apply(header.tuning.method, header.tuning.options)
    with safe_open(path, framework="pt") as file:
        load_tuned_tensors(model, {k: file.get_tensor(k) for k in file.keys()}, str(path))
    return model.eval()


def write_safetensors(
    tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None
) -> None:
    """Write a safetensors file whole or not at all, readable by others."""
    with written_whole(path) as beside:
        save_file(dict(tensors), beside, metadata=metadata)
        beside.chmod(0o644)  # safetensors' 0600 would keep the colleagues out


def _refuse_other_base(wanted: BaseModel, found: BaseModel, path: str | Path) -> None:
    for field, value in wanted.as_dict().items():
        other = found.as_dict()[field]
        if value == other:
            continue
        if field == "sha256":
            value, other = str(value)[:12], str(other)[:12]
        raise ValueError(
            f"{path}: was tuned on {wanted.name} with {field} {value}, the base given is "
            f"{found.name} with {field} {other}. Give the base (checkpoint) it was tuned from."
        )


def refuse_not_finite(tensors: Mapping[str, Tensor], source: str) -> None:
    """ValueError naming `source` and the first tensor with NaN or Inf, if there is one."""
    bad = [k for k, v in tensors.items() if not torch.isfinite(v).all()]
    if bad:
        raise ValueError(f"{source}: {len(bad)} tensors hold NaN or Inf, the first is {bad[0]}.")
