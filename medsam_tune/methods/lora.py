"""Tuning of low-rank updates of the query and value projections, by peft."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from peft import PeftConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from medsam_tune.methods.blocks import encoder_blocks, train_mask_decoder
from medsam_tune.methods.options import peft_config
from medsam_tune.sam.model import PromptableSam

PLACES = ("encoder", "decoder", "both")


def lora(
    sam: PromptableSam,
    rank: int = 8,
    alpha: float | None = None,
    where: str = "both",
    last_blocks: int | None = None,
    mask_decoder: bool = False,
    config: PeftConfig | Mapping[str, Any] | None = None,
    **fields: Any,
) -> None:
    """Train LoRA, or another of peft's methods, on q and v of the attention layers.

    Args:
        sam: base, all frozen.
        rank: rank of every update; the update of a layer is `alpha / rank * B @ A`.
        alpha: factor of the update; by default `rank`, a scale of 1, as the learning rates assume.
        where: "encoder", "decoder" or "both".
        last_blocks: number of encoder blocks, from the end, that get LoRA. Fewer blocks save
            memory; a lower rank saves little. All if None.
        mask_decoder: train the whole mask decoder; LoRA then goes into the encoder only.
        config: config of another peft method, such as `peft.IA3Config` or `peft.LoHaConfig`,
            instead of rank, alpha and fields; on q and v unless it names its `target_modules`.
        fields: fields of `peft.LoraConfig`: `lora_dropout`, `use_dora`, `use_rslora`,
            `init_lora_weights` and others that `PEFT_FIELDS` lists.

    Raises:
        ValueError: an unknown `where`, too many blocks, options that exclude each other (fields and
            a config, `target_modules` and `where` or `last_blocks`, the decoder as `where` and
            trained as a whole), a field that a tuned file cannot hold, or an error of peft.

    References:
        Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022;
        Zhang and Liu, "Customized Segment Anything Model for Medical Image Segmentation" (SAMed).
    """
    if where not in PLACES:
        raise ValueError(f"where is {where!r}; expected one of {', '.join(PLACES)}.")
    if mask_decoder and where == "decoder":
        raise ValueError(
            "where is 'decoder', which mask_decoder=True trains as a whole, without LoRA; leave "
            "one of them out, or tune by the method 'decoder'."
        )
    if config is None:
        own = {"peft_type": "LORA", "r": rank, "lora_alpha": rank if alpha is None else alpha}
        if taken := sorted(own.keys() & fields.keys()):
            raise ValueError(f"lora has no option {taken[0]!r}; set rank, alpha or config.")
        config = {**own, **fields}
    elif fields or alpha is not None or rank != 8:
        raise ValueError("a config of peft has its own rank, alpha and fields; set them there.")
    config = config.to_dict() if isinstance(config, PeftConfig) else dict(config)
    if isinstance(pattern := config.get("target_modules"), str):
        config["target_modules"] = _matched(sam, pattern)
    settings: Any = peft_config(config)
    if settings.target_modules is None:
        settings.target_modules = targets(sam, "encoder" if mask_decoder else where, last_blocks)
    elif where != "both" or last_blocks is not None:
        raise ValueError(
            "target_modules name the layers that get LoRA, so where and last_blocks would be "
            "without effect; leave them out, or leave out target_modules."
        )
    if getattr(settings, "feedforward_modules", ()) is None:  # IA3's; q and v are not among them
        settings.feedforward_modules = []
    inject_adapter_in_model(settings, sam)
    if mask_decoder:
        train_mask_decoder(sam)


def targets(sam: PromptableSam, where: str, last_blocks: int | None = None) -> list[str]:
    """Names of the q and v projections of the encoder's blocks, the mask decoder, or both."""
    layers = [] if where == "decoder" else list(encoder_blocks(sam, last_blocks))
    if where == "decoder" and last_blocks is not None:
        raise ValueError("last_blocks are the encoder's; where is 'decoder'.")
    names = [f"{layer}.attn.{projection}" for layer in layers for projection in _QV]
    if where != "encoder":
        names += [
            f"mask_decoder.{name}"
            for name, _ in sam.mask_decoder.named_modules()
            if name.endswith(_QV)
        ]
    return names


def adapted_layers(sam: nn.Module) -> list[str]:
    """Names of the layers that have peft's parts beside them."""
    return [name for name, module in sam.named_modules() if isinstance(module, BaseTunerLayer)]


def _matched(sam: PromptableSam, pattern: str) -> list[str]:
    """Names that peft takes a pattern for: a regular expression of whole names, or "all-linear"."""
    if pattern == "all-linear":
        return [name for name, module in sam.named_modules() if isinstance(module, nn.Linear)]
    return [name for name, _ in sam.named_modules() if re.fullmatch(pattern, name)]


_QV = ("q_proj", "v_proj")
