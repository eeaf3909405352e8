"""Every method has a learning rate on every base model, and a warm-up that fits its length."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from medsam_tune.methods import METHODS
from medsam_tune.sam.build import ARCHITECTURES
from medsam_tune.training.rates import RATES, TOKENS, learning_rate, token_rate, warmup

SEARCH = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "rates.md"


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_rate_on_every_model(method: str) -> None:
    for model in ARCHITECTURES:
        kind = "vit_t" if model.startswith("vit_t") else "nano" if model == "nano" else "sam"
        assert learning_rate(method, model) == RATES[method][kind] > 0
    assert learning_rate(method, "tiny") == RATES[method]["sam"]


def test_rates_of_nano_are_the_best_of_the_search() -> None:
    rows = re.findall(r"\| `(\w+)` \| ([\d.]+)( \(default\))? \| ([\d.]+) \|", SEARCH.read_text())
    assert {row[0] for row in rows} == RATES.keys()
    for method in {row[0] for row in rows}:
        _, rate, default, _ = max((row for row in rows if row[0] == method), key=lambda row: row[3])
        assert default
        assert float(rate) == RATES[method]["nano"]


def test_tokens_have_a_rate_of_their_own_beside_any_method() -> None:
    assert token_rate("decoder", "nano", 1e-3) == TOKENS["nano"]
    assert (
        token_rate("full", "vit_t", 1e-3) == token_rate("full", "vit_t_lite", 1) == TOKENS["vit_t"]
    )
    assert token_rate("lora", "vit_b", 1e-3) == TOKENS["sam"]
    assert token_rate("prompt", "nano", 1e-3) == 1e-3


def test_an_unknown_method_is_named() -> None:
    with pytest.raises(ValueError, match="no learning rate for method 'loar'; known: decoder, ful"):
        learning_rate("loar", "nano")


@pytest.mark.parametrize(
    ("steps", "given", "expected"), [(150, None, 15), (5, None, 0), (5000, None, 100), (150, 7, 7)]
)
def test_warm_up_fits_the_length(steps: int, given: int | None, expected: int) -> None:
    assert warmup(steps, given) == expected
