"""State dicts out of checkpoint files, whoever wrote them and whatever is around them."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors.torch import load_file
from torch import Tensor

from medsam_tune.errors import DataError, listed

_LOG = logging.getLogger(__name__)

PARTS = ("image_encoder", "prompt_encoder", "mask_decoder")
"""First words of the names in a state dict of SAM."""

MAX_WRAPPERS = 3
"""Number of dictionaries around a state dict that are looked into."""

MAX_HEADER = 100_000_000
"""Bytes of the longest header that safetensors reads; more is no safetensors file."""

# Words that torch.compile, DataParallel and DistributedDataParallel put into names, anywhere.
_WRAPPING_WORDS = ("module", "_orig_mod")
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64)


def read_state(path: Path) -> dict[str, Tensor]:
    """The state dict of a SAM in a checkpoint, with the names of stock SAM.

    The content tells safetensors from PyTorch's format, not the file's name. The one dictionary
    with names of SAM is found inside of others ({"model": ..., "optimizer": ...}), and what stands
    before those names ("module.", "model.sam.") is removed. A log line says so.

    Raises:
        DataError: an unreadable file, one that holds more than tensors, no state dict, or several
            that may be meant.
    """
    content = _read(path)
    dicts = list(_state_dicts(content, (), set()))
    if len(dicts) > 1:
        places = listed(repr(".".join(where) or "the file itself") for where, _ in dicts)
        raise DataError(
            f"{path}: holds {len(dicts)} state dicts of a SAM, in {places}. Save the one that is "
            "meant in a file of its own."
        )
    where, found = dicts[0] if dicts else ((), content)
    if not isinstance(found, Mapping) or not found:
        raise DataError(f"{path}: no state dict (name -> tensor) in it.")
    tensors = {str(key): value for key, value in found.items() if isinstance(value, Tensor)}
    if len(tensors) < len(found):
        odd = [str(key) for key, value in found.items() if not isinstance(value, Tensor)]
        raise DataError(
            f"{path}: no state dict (name -> tensor) in it: no tensors are {listed(odd, 3)}. Save "
            "the state dict of the model alone."
        )
    _refuse_odd_tensors(tensors, path)
    state, removed = _renamed(tensors, path)
    if where or removed:
        said = [f"found in {'.'.join(where)!r}"] if where else []
        said += [f"without {listed(map(repr, removed))} in its names"] if removed else []
        _LOG.info("%s: the state dict is %s", path, ", ".join(said))
    return state


def _read(path: Path) -> object:
    size = path.stat().st_size
    damaged = f"{path}: {size} bytes, truncated or damaged"
    way_out = "Download it again and compare its sha256."
    try:
        with path.open("rb") as file:
            start = file.read(9)
        if start[8:] == b"{" and int.from_bytes(start[:8], "little") <= MAX_HEADER:
            return load_file(path)
        if start.startswith(b"PK"):
            with zipfile.ZipFile(path) as archive:  # PyTorch does not compress
                if sum(entry.file_size for entry in archive.infolist()) > size:
                    raise DataError(f"{path}: is compressed, and no checkpoint of PyTorch.")
        elif not start.startswith(b"\x80"):
            raise DataError(f"{damaged} (neither PyTorch's format nor safetensors). {way_out}")
        with path.open("rb") as file:  # torch judges a path by its name
            return torch.load(file, map_location="cpu", weights_only=True)
    except DataError:
        raise
    except UnpicklingError as error:
        raise DataError(
            f"{path}: holds more than tensors ({str(error).splitlines()[0]}); such a file can run "
            "code and is not loaded. Save a plain state dict, or safetensors."
        ) from error
    except Exception as error:  # damaged bytes lead the readers to any error
        said = str(error).splitlines()[0:1] or [type(error).__name__]
        raise DataError(f"{damaged} ({said[0]}). {way_out}") from error


def _state_dicts(
    content: object, where: tuple[str, ...], seen: set[int]
) -> Iterator[tuple[tuple[str, ...], Mapping[object, object]]]:
    """Each dictionary with tensors of a SAM, and the keys that lead to it."""
    if not isinstance(content, Mapping) or id(content) in seen:
        return
    seen.add(id(content))
    if any(isinstance(value, Tensor) and _start(str(key)) >= 0 for key, value in content.items()):
        yield where, content
    elif len(where) < MAX_WRAPPERS:
        for key, value in content.items():
            yield from _state_dicts(value, (*where, str(key)), seen)


def _start(name: str) -> int:
    """Index of the first word of a name that is a part of SAM, or -1."""
    return next((i for i, word in enumerate(name.split(".")) if word in PARTS), -1)


def _refuse_odd_tensors(state: Mapping[str, Tensor], path: Path) -> None:
    """Refuse tensors that are not plain, or that stand for more values than the file has."""
    for key, value in state.items():
        plain = value.layout is torch.strided and value.device.type == "cpu"
        if not plain or value.dtype not in _DTYPES:
            raise DataError(
                f"{path}: {key} is a {value.layout} tensor of {value.dtype} on {value.device}; "
                "expected plain floating-point numbers. Save it as float32."
            )
        count = value.numel() * value.element_size()
        if count > value.untyped_storage().nbytes():
            raise DataError(
                f"{path}: {key} stands for {count} bytes, the file has "
                f"{value.untyped_storage().nbytes()} of it. Save contiguous tensors."
            )


def _renamed(state: Mapping[str, Tensor], path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The state dict with SAM's own names, and what was removed from them."""
    removed: dict[str, None] = {}
    names = {}
    for key in state:
        words = key.split(".")
        kept = [word for word in words if word not in _WRAPPING_WORDS]
        removed |= {f"{word}.": None for word in words if word not in kept}
        names[key] = ".".join(kept)
    before = {
        "".join(f"{word}." for word in name.split(".")[: _start(name)])
        for name in names.values()
        if _start(name) >= 0
    }
    if len(before) > 1:
        raise DataError(
            f"{path}: its names begin in {len(before)} ways, {listed(map(repr, sorted(before)))}; "
            "which SAM is meant cannot be told. Save the state dict of one."
        )
    prefix = before.pop() if before else ""
    if prefix:
        removed[prefix] = None
    renamed = {name.removeprefix(prefix): state[key] for key, name in names.items()}
    if len(renamed) < len(state):
        raise DataError(
            f"{path}: without {listed(map(repr, removed))}, several tensors have one name. Save "
            "the state dict of the model alone."
        )
    return renamed, list(removed)
