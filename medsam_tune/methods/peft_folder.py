"""LoRA models as peft's own adapter folders, for peft's own tools."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from peft import get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from medsam_tune.errors import DataError, warn
from medsam_tune.files import folder_written_whole, parse_json, read_json
from medsam_tune.methods import apply_method
from medsam_tune.methods.header import parse_base
from medsam_tune.methods.options import fields_of, peft_config
from medsam_tune.methods.tuned import (
    refuse_not_finite,
    refuse_other_base,
    tuned_tensors,
    with_shapes_only,
)
from medsam_tune.sam.model import PromptableSam

# Prefix of `peft.PeftModel` in the names of its files.
_PREFIX = "base_model.model."
# Key of the base's description in the metadata of the tensors, which peft does not read.
_BASE = "medsam_tune.base"


def save_peft(model: PromptableSam, folder: str | Path) -> Path:
    """Write the tuned part of a LoRA model as `adapter_config.json`, `adapter_model.safetensors`.

    The metadata of the tensors describe the base.

    Args:
        model: model tuned by "lora" alone.
        folder: folder to write, whole or not at all.

    Returns:
        the folder; `load_peft` and `peft.PeftModel.from_pretrained(base, folder)` read it.

    Raises:
        ValueError: another method, or a decoder or tokens trained as well.
        DataError: a weight is not finite.
        FileExistsError: the folder exists already.
    """
    config = getattr(model, "peft_config", {}).get("default")
    state = {} if config is None else _state(model)
    if config is None or len(state) != len(tuned_tensors(model)):
        method = None if model.tuning is None else model.tuning.method
        raise ValueError(
            f"a peft folder holds peft's layers only; this model is tuned by {method!r}"
            + (" with more trained beside them." if state else ".")
            + " Use the tuned file."
        )
    refuse_not_finite(state, str(folder))
    with folder_written_whole(folder) as beside:
        tensors = {_PREFIX + key: value.cpu().contiguous() for key, value in state.items()}
        metadata = {"format": "pt", _BASE: json.dumps(model.base.as_dict())}
        save_file(tensors, beside / SAFETENSORS_WEIGHTS_NAME, metadata=metadata)
        (beside / SAFETENSORS_WEIGHTS_NAME).chmod(0o644)
        targets = sorted(config.target_modules)  # JSON has no sets
        settings = {**config.to_dict(), "inference_mode": True, "target_modules": targets}
        (beside / CONFIG_NAME).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    return Path(folder)


def load_peft(folder: str | Path, base: PromptableSam) -> PromptableSam:
    """A LoRA model from any peft adapter folder.

    Args:
        folder: folder with `adapter_config.json` and `adapter_model.safetensors`.
        base: base that it was tuned on, changed in place.

    Returns:
        the tuned model in evaluation mode.

    Warns:
        UserWarning: the folder does not say its base, as one that `save_peft` did not write.

    Raises:
        FileNotFoundError: one of the two files is missing.
        DataError: the folder is damaged, was tuned on another base, or its config has fields that
            do not work on SAM.
    """
    folder = Path(folder)
    for name in (CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder}: no {name}; expected a folder that peft saved.")
    file = folder / SAFETENSORS_WEIGHTS_NAME
    try:
        with safe_open(file, framework="pt") as opened:
            said = (opened.metadata() or {}).get(_BASE)
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}
    except SafetensorError as error:
        raise DataError(
            f"{file}: {file.stat().st_size} bytes, truncated or no safetensors file ({error})."
        ) from error
    if said is None:
        warn(
            f"{file}: does not say the base that it was tuned on; its masks are wrong unless that "
            f"is {base.base.name} with the weights, image size and normalisation given."
        )
    else:
        wanted = parse_base(parse_json(said, f"{file}: the base in its metadata"), str(file))
        refuse_other_base(wanted, base.base, file)
    refuse_not_finite(tensors, str(file))
    found = {key.removeprefix(_PREFIX): value for key, value in tensors.items()}
    content = read_json(folder / CONFIG_NAME)
    if isinstance(content.get("target_modules"), str):  # a pattern, which may run for ever
        content["target_modules"] = _layers_of(found, base)
    try:
        options: dict[str, Any] = {"config": fields_of(peft_config(content))}
        own = _state(with_shapes_only(base, "lora", options))
    except Exception as error:  # peft raises whatever its options lead to
        raise DataError(f"{folder / CONFIG_NAME}: cannot be applied ({error}).") from error
    odd = sorted(own.keys() ^ found.keys())
    odd += [key for key in own if key in found and own[key].shape != found[key].shape]
    if odd:
        raise DataError(
            f"{file}: {len(odd)} tensors do not fit {base.base.name}, e.g. {odd[0]}. Give the base "
            "it was tuned on."
        )
    model = apply_method(base, "lora", **options)
    set_peft_model_state_dict(model, found, adapter_name="default")
    return model.eval()


def _state(model: PromptableSam) -> dict[str, Tensor]:
    """Tensors that peft saves, without embeddings, which only language models have."""
    return get_peft_model_state_dict(  # type: ignore[no-any-return]
        model, adapter_name="default", save_embedding_layers=False
    )


def _layers_of(names: Iterable[str], base: PromptableSam) -> list[str]:
    """Layers of a base that a folder has tensors for."""
    layers = {name for name, _ in base.named_modules() if name}
    found = (next((start for start in _starts(name) if start in layers), None) for name in names)
    return sorted({layer for layer in found if layer})


def _starts(name: str) -> list[str]:
    """The first words of a name, most words first: "a.b.c" -> "a.b", "a"."""
    words = name.split(".")
    return [".".join(words[:count]) for count in range(len(words) - 1, 0, -1)]
