"""Tuning methods: one file each, found by name in `METHODS`."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from torch import nn

from medsam_tune.lazy import import_when_named
from medsam_tune.methods.adapter import adapter
from medsam_tune.methods.decoder import decoder
from medsam_tune.methods.full import full
from medsam_tune.methods.lora import lora
from medsam_tune.methods.options import COUNT, FLAG, refuse_odd_options
from medsam_tune.methods.prompt import learned_tokens, prompt
from medsam_tune.sam.model import PromptableSam, Tuning

import_when_named(__name__)

METHODS: dict[str, Callable[..., None]] = {
    "decoder": decoder,
    "full": full,
    "adapter": adapter,
    "lora": lora,
    "prompt": prompt,
}
# Methods that leave the decoder as it is, unless told to train it too.
_KEEPS_DECODER = ("adapter", "lora", "prompt")

_PARTS: dict[str, Callable[[PromptableSam], nn.Module]] = {
    "prompt_encoder": lambda sam: sam.prompt_encoder,
    "quality_head": lambda sam: sam.mask_decoder.iou_prediction_head,
}


def apply_method(
    sam: PromptableSam,
    method: str,
    *,
    num_classes: int | None = None,
    class_tokens: int = 10,
    prompt_encoder: bool = False,
    quality_head: bool | None = None,
    **options: Any,
) -> PromptableSam:
    """Make a base model trainable by one method.

    Args:
        sam: base from `build_sam`; it is changed in place.
        method: key of `METHODS`.
        num_classes: K, to segment K classes without a prompt: each class has learned tokens and a
            score of its presence in the image. None for a model with prompts.
        class_tokens: number of learned tokens of each class.
        prompt_encoder: train the prompt encoder as well.
        quality_head: train the head of the masks' quality, or keep it as it is; None trains it
            with the mask decoder.
        options: options of the method, see its function, e.g. `rank=8` for "lora".

    Returns:
        the same model, with `requires_grad` True on exactly the tuned parameters (and the class
        tokens). At step 0 its masks equal those of the base for the same tokens.

    Warns:
        UserWarning: "adapter", "lora" or "prompt" on random weights without training the decoder.

    Raises:
        ValueError: an unknown method or option, an option of another type or out of range, or a
            model that has a method already.
    """
    if method not in METHODS:
        raise ValueError(f"method {method!r} is unknown; known: {', '.join(METHODS)}.")
    if sam.tuning is not None:
        raise ValueError(
            f"the model is tuned by {sam.tuning.method!r} already; build a fresh base first."
        )
    refuse_odd_options(method, METHODS[method], options)
    given = {"prompt_encoder": prompt_encoder or None, "quality_head": quality_head}
    parts = {name: trains for name, trains in given.items() if trains is not None}
    for name, trains in parts.items():
        if not FLAG.fits(trains):
            raise ValueError(f"{name} is {trains!r}; expected {FLAG.expected}.")
    if num_classes is not None:
        for name, value in (("num_classes", num_classes), ("class_tokens", class_tokens)):
            if not COUNT.fits(value):
                raise ValueError(f"{name} is {value!r}; expected {COUNT.expected}.")
        if "tokens" in options:
            raise ValueError("with num_classes the tokens are the classes'; set class_tokens.")
    if sam.random_weights and method in _KEEPS_DECODER and not options.get("mask_decoder"):
        warnings.warn(
            f"{sam.base.name} has random weights and {method!r} leaves its mask decoder as it is: "
            "masks will stay empty. Give a checkpoint, or train the decoder beside it "
            "(mask_decoder=True; --set network_def::mask_decoder=true).",
            stacklevel=2,
        )
    sam.requires_grad_(False)
    METHODS[method](sam, **options)
    for name, trains in parts.items():
        _PARTS[name](sam).requires_grad_(trains)
    options = {**options, **parts}
    if num_classes is not None:
        sam.learned = learned_tokens(sam, class_tokens, num_classes)
        options = {**options, "num_classes": num_classes, "class_tokens": class_tokens}
    sam.tuning = Tuning(method, dict(options))
    return sam
