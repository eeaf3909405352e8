"""Tuned files: only the tuned tensors, and a header to put them back on their base."""

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


def tuned_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Name -> tensor that the method tunes, detached."""
    return {k: p.detach() for k, p in model.named_parameters() if p.requires_grad}


def load_tuned_tensors(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy tuned tensors into a model with the same method; all names and shapes must match.

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
    """Write the tuned tensors to a safetensors file, whole or not at all.

    Args:
        model: model from `apply_method`.
        path: file to write.
        labels: label id -> name, kept in the header.

    Returns:
        path of the file.

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
    """Options of a method that JSON cannot hold, as plain values."""
    if isinstance(value, PeftConfig):
        return value.to_dict()
    if isinstance(value, set | frozenset):
        return sorted(value)
    raise TypeError(f"an option is a {type(value).__name__}, which a tuned file cannot hold.")


def read_header(path: str | Path) -> TunedHeader:
    """The header of a tuned file.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is damaged, or is no tuned file.
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
        path: file from `save_tuned`.
        base: base to tune, changed in place; built from the header if None.
        checkpoint: checkpoint of the base if it is built here.
        apply: function from method and options to a model; `apply_method` on the base if None.

    Returns:
        the tuned model in evaluation mode.

    Raises:
        ValueError: a base that the file was not tuned on, or a damaged file.
        FileNotFoundError: the file does not exist.
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
    with warnings.catch_warnings():  # the tensors of a tuned file are trained
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
        beside.chmod(0o644)  # safetensors' 0600 would lock colleagues out


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
    """Refuse NaN and Inf by a ValueError that names `source` and the first such tensor."""
    bad = [k for k, v in tensors.items() if not torch.isfinite(v).all()]
    if bad:
        raise ValueError(f"{source}: {len(bad)} tensors hold NaN or Inf, the first is {bad[0]}.")
