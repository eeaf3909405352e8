"""Learning rates and warm-up of each method on each base model."""

from __future__ import annotations

from collections.abc import Mapping

NANO = "nano"
PROMPT = "prompt"

RATES: dict[str, dict[str, float]] = {
    "decoder": {NANO: 3e-3, "vit_t": 1e-4, "sam": 1e-4},
    "full": {NANO: 3e-3, "vit_t": 5e-5, "sam": 1e-4},
    "adapter": {NANO: 6e-3, "vit_t": 1e-3, "sam": 1e-3},
    "lora": {NANO: 1.2e-2, "vit_t": 5e-3, "sam": 5e-3},
    PROMPT: {NANO: 0.15, "vit_t": 1e-2, "sam": 1e-2},
}
"""Method -> learning rate on nano, on SAM's small encoders, and on vit_b, vit_l and vit_h.

Those of nano are the best of a search on validation cases, `benchmarks/rates.py`. The others are
published ones, untried here: decoder, mazurowski-lab/finetune-SAM; full, MedSAM, and LiteMedSAM on
vit_t; lora, SAMed, whose scale is 1 as ours; adapter, AdaptFormer; prompt, near LLaMA-Adapter's
9e-3. The length of trainings and the warm-up are not searched.
"""

TOKENS: dict[str, float] = {NANO: 5e-2, "vit_t": 1e-2, "sam": 1e-2}
"""The same of learned tokens beside another method."""


def token_rate(method: str, model: str, lr: float) -> float:
    """The learning rate of learned tokens: near that of prompt tuning, whatever is tuned beside.

    Args:
        method: key of `METHODS`.
        model: see `learning_rate`.
        lr: rate of the method. Of prompt tuning it is that of the tokens.
    """
    return lr if method == PROMPT else TOKENS[_kind(TOKENS, model)]


WARMUP_STEPS = 100
"""Most steps of warm-up."""


def learning_rate(method: str, model: str) -> float:
    """The learning rate of a method on a base model.

    Args:
        method: key of `METHODS`.
        model: key of `ARCHITECTURES`, or another name, for which SAM's rates are taken.

    Raises:
        ValueError: an unknown method.
    """
    if method not in RATES:
        raise ValueError(f"no learning rate for method {method!r}; known: {', '.join(RATES)}.")
    return RATES[method][_kind(RATES[method], model)]


def _kind(rates: Mapping[str, float], model: str) -> str:
    """The key of a base model in a table of rates."""
    return "vit_t" if model.startswith("vit_t") else model if model in rates else "sam"


def warmup(steps: int, given: int | None = None) -> int:
    """Steps of warm-up: those given, or a tenth of a training's steps, at most `WARMUP_STEPS`."""
    return min(WARMUP_STEPS, steps // 10) if given is None else given
