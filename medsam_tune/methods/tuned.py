"""Tuned files: only the tuned tensors, and a header to put them back on their base."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from medsam_tune.errors import DataError
from medsam_tune.files import written_whole
from medsam_tune.methods import apply_method
from medsam_tune.methods.header import MAX_HEADER, TunedHeader, header_text, parse_header
from medsam_tune.ranks import like
from medsam_tune.sam.build import ARCHITECTURES, RANDOM, build_sam
from medsam_tune.sam.model import BaseModel, PromptableSam

_KEY = "medsam_tune"
HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
"""Types of two bytes that a tuned file can be kept in."""

_OTHER = "The run is of another version of medsam_tune, or its file was changed; train it again."
_DTYPES = ("F16", "BF16", "F32", "F64")  # in safetensors' words


def tuned_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Name -> tensor that the method tunes, detached."""
    return {k: p.detach() for k, p in model.named_parameters() if p.requires_grad}


def load_tuned_tensors(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy tuned tensors into a model with the same method; all names and shapes must match.

    Raises:
        DataError: names or shapes differ, or a value is not finite; names `source`.
    """
    own = tuned_tensors(model)
    _refuse_other_tensors({key: tuple(value.shape) for key, value in tensors.items()}, own, source)
    refuse_not_finite(tensors, source)
    with torch.no_grad():
        for key, value in tensors.items():
            own[key].copy_(like(value, own[key]))


def save_tuned(
    model: PromptableSam,
    path: str | Path,
    labels: Mapping[int, str] | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write the tuned tensors to a safetensors file, whole or not at all.

    Args:
        model: model from `apply_method`.
        path: file to write.
        labels: label id -> name, kept in the header.
        dtype: `torch.float16` or `torch.bfloat16`, half the bytes; a model loaded from the file
            computes in float32 all the same. None keeps the model's.

    Returns:
        path of the file.

    Raises:
        ValueError: no method was applied, or another dtype.
        DataError: a weight is not finite, or too large for the dtype.
        TypeError: an option of the method that JSON cannot hold.
    """
    path = Path(path)
    if dtype not in (None, torch.float32, *HALVES.values()):
        raise ValueError(f"dtype is {dtype}; expected {' or '.join(map(str, HALVES.values()))}.")
    header = header_text(model, labels or {})
    tensors = {k: v.to("cpu", dtype).contiguous() for k, v in tuned_tensors(model).items()}
    refuse_not_finite(tensors, str(path))
    parse_header(header, str(path))  # what is written can be read
    write_safetensors(tensors, path, {_KEY: header})
    return path


def read_header(path: str | Path) -> TunedHeader:
    """The header of a tuned file.

    Raises:
        FileNotFoundError: the file does not exist.
        DataError: the file is damaged, or is no tuned file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such tuned file; `medsam-tune train` writes one.")
    metadata = _opened(path, lambda file: file.metadata()) or {}
    if _KEY not in metadata:
        raise DataError(f"{path}: a safetensors file, but not written by save_tuned.")
    return parse_header(metadata[_KEY], str(path))


def tuned_names(path: str | Path) -> list[str]:
    """Names of the tensors in a tuned file; no weights are read.

    Raises:
        DataError: the file is damaged.
    """
    names: list[str] = _opened(Path(path), lambda file: list(file.keys()))
    return names


def tuned_size(path: str | Path) -> tuple[int, int]:
    """Number of tuned parameters in a tuned file, and the file's bytes; no weights are read.

    Raises:
        DataError: the file is damaged.
    """

    def count(file: Any) -> int:
        return sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())

    path = Path(path)
    parameters: int = _opened(path, count)
    return parameters, path.stat().st_size


def _opened(path: Path, read: Callable[[Any], Any]) -> Any:
    """What `read` gives for an open safetensors file; a damaged one is refused."""
    damaged = f"{path}: {path.stat().st_size} bytes, truncated or no safetensors file"
    try:
        with path.open("rb") as start:
            length = int.from_bytes(start.read(8), "little")
        if length > MAX_HEADER:
            raise DataError(
                f"{damaged}: its header has {length} bytes; expected at most {MAX_HEADER}. "
                "Get it again."
            )
        with safe_open(path, framework="pt") as file:
            return read(file)
    except (SafetensorError, OSError) as error:
        raise DataError(f"{damaged} ({error}). Get it again.") from error


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
        DataError: a base that the file was not tuned on, a damaged file, or one whose tensors are
            not those of its method.
        FileNotFoundError: the file does not exist.
    """
    path = Path(path)
    header = read_header(path)
    if base is None:
        if header.base.name not in ARCHITECTURES:
            raise DataError(
                f"{path}: was tuned on {header.base.name!r}; known: {', '.join(ARCHITECTURES)}. "
                "Give its base."
            )
        base = build_sam(
            header.base.name,
            checkpoint,
            header.base.image_size,
            header.base.in_channels,
            header.base.normalisation,
        )
    refuse_other_base(header.base, base.base, path)
    _refuse_other_method(header, base, path)
    with warnings.catch_warnings():  # the tensors of a tuned file are trained
        warnings.filterwarnings("ignore", message=".* has random weights and ")
        if apply is None:
            model = apply_method(base, header.tuning.method, **header.tuning.options)
        else:
            model = apply(header.tuning.method, header.tuning.options)
    tensors = _opened(path, lambda file: {key: file.get_tensor(key) for key in file.keys()})
    load_tuned_tensors(model, tensors, str(path))
    return model.eval()


def tuned_structure(
    base: Mapping[str, Any], method: str, options: Mapping[str, Any]
) -> PromptableSam:
    """A tuned model whose weights are still to be loaded: `network_def` of an exported bundle.

    Args:
        base: description of the base, from `BaseModel.as_dict`.
        method: key of `METHODS`.
        options: options of the method.

    Returns:
        the model in evaluation mode, with random weights.
    """
    described = BaseModel(**base)
    with warnings.catch_warnings():  # random weights leave masks empty
        warnings.filterwarnings("ignore", message=".* has random weights and ")
        model = apply_method(
            build_sam(
                described.name,
                RANDOM,
                described.image_size,
                described.in_channels,
                described.normalisation,
            ),
            method,
            **options,
        )
    model.base, model.random_weights = described, False
    return model.eval()


def write_safetensors(
    tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None
) -> None:
    """Write a safetensors file whole or not at all, readable by others."""
    with written_whole(path) as beside:
        save_file(dict(tensors), beside, metadata=metadata)
        beside.chmod(0o644)  # safetensors' 0600 would lock colleagues out


def refuse_other_base(wanted: BaseModel, found: BaseModel, path: str | Path) -> None:
    """Refuse, by a DataError that names the file, a base that it was not tuned on."""
    for field, value in wanted.as_dict().items():
        other = found.as_dict()[field]
        if value == other:
            continue
        if field == "sha256":
            value, other = str(value)[:12], str(other)[:12]
        raise DataError(
            f"{path}: was tuned on {wanted.name} with {field} {value}, the base given is "
            f"{found.name} with {field} {other}. Give the base (checkpoint) it was tuned from."
        )


def _refuse_other_method(header: TunedHeader, base: PromptableSam, path: Path) -> None:
    """Refuse options and tensors that do not belong together, before any memory is taken.

    The method is applied to a copy of the base without values, so that the tensors of the file
    bound those of the model.
    """

    def described(file: Any) -> dict[str, tuple[str, tuple[int, ...]]]:
        parts = {key: file.get_slice(key) for key in file.keys()}
        return {key: (part.get_dtype(), tuple(part.get_shape())) for key, part in parts.items()}

    found = _opened(path, described)
    if odd := [key for key, (dtype, _) in found.items() if dtype not in _DTYPES]:
        raise DataError(
            f"{path}: {odd[0]} is {found[odd[0]][0]}; expected one of {', '.join(_DTYPES)}."
        )
    shapes = {key: shape for key, (_, shape) in found.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they come again when the method is applied
        try:
            model = with_shapes_only(base, header.tuning.method, header.tuning.options)
        except Exception as error:  # peft raises whatever its options lead to
            raise DataError(
                f"{path}: its options of {header.tuning.method!r} cannot be applied ({error})."
            ) from error
    _refuse_other_tensors(shapes, tuned_tensors(model), str(path))


def with_shapes_only(base: PromptableSam, method: str, options: Mapping[str, Any]) -> PromptableSam:
    """A copy of a base that has shapes and no values, with a method applied."""
    empty: dict[int, Any] = {id(b): torch.empty_like(b, device="meta") for b in base.buffers()}
    for value in base.parameters():
        shape = torch.empty_like(value, device="meta")
        empty[id(value)] = nn.Parameter(shape, requires_grad=False)
    with torch.device("meta"):
        return apply_method(copy.deepcopy(base, empty), method, **options)


def _refuse_other_tensors(
    found: Mapping[str, tuple[int, ...]], own: Mapping[str, Tensor], source: str
) -> None:
    """Refuse tensors, name -> shape, that are not those of a method."""
    if own.keys() != found.keys():
        odd = sorted(own.keys() ^ found.keys())
        raise DataError(
            f"{source}: {len(odd)} tensors do not match the method, e.g. {odd[0]}. {_OTHER}"
        )
    for key, shape in found.items():
        if shape != tuple(own[key].shape):
            raise DataError(
                f"{source}: {key} has shape {shape}, the model needs {tuple(own[key].shape)}. "
                f"{_OTHER}"
            )


def refuse_not_finite(tensors: Mapping[str, Tensor], source: str) -> None:
    """Refuse NaN and Inf by a DataError that names `source` and the first such tensor."""
    bad = [k for k, v in tensors.items() if not torch.isfinite(v).all()]
    if bad:
        raise DataError(f"{source}: {len(bad)} tensors hold NaN or Inf, the first is {bad[0]}.")
