"""Tune low-rank updates of the query and value projections, through peft."""

from __future__ import annotations

from peft import LoraConfig, inject_adapter_in_model

from medsam_tune.sam.model import PromptableSam

_QV = r"(q_proj|v_proj)"
TARGETS = {
    "encoder": rf"image_encoder\.blocks\.\d+\.attn\.{_QV}",
    "decoder": rf"mask_decoder\.transformer\..*{_QV}",
    "both": rf"(image_encoder\.blocks\.\d+\.attn|mask_decoder\.transformer\..*)\.{_QV}",
}


def lora(
    sam: PromptableSam,
    rank: int = 8,
    alpha: float | None = None,
    where: str = "both",
    mask_decoder: bool = False,
    **config: object,
) -> None:
    """Train LoRA on q and v of the attention layers.

    Args:
        sam: the base, all frozen.
        rank: of every update; the update of a layer is `alpha / rank * B @ A`.
        alpha: defaults to `rank`, a scale of 1, which is what the learning rates here assume.
        where: "encoder", "decoder" or "both".
        mask_decoder: train the mask decoder's other weights as well; with it the LoRA goes into
            the encoder only, as the decoder's q and v are trained themselves.
        config: any other field of `peft.LoraConfig`, e.g. `lora_dropout`, `use_dora`.

    Raises:
        ValueError: unknown `where`, or a rank that peft refuses.
        TypeError: a field that `peft.LoraConfig` does not have.

    References:
        Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022;
        Zhang and Liu, "Customized Segment Anything Model for Medical Image Segmentation" (SAMed).
    """
    if where not in TARGETS:
        raise ValueError(f"where is {where!r}; expected one of {', '.join(TARGETS)}.")
    target = TARGETS["encoder" if mask_decoder else where]
    scale_numerator = rank if alpha is None else alpha
    settings = LoraConfig(r=rank, lora_alpha=scale_numerator, target_modules=target, **config)  # type: ignore[arg-type]
    inject_adapter_in_model(settings, sam)
    if mask_decoder:
        sam.mask_decoder.requires_grad_(True)
