"""Counts of trained parameters."""

from __future__ import annotations

from medsam_tune.methods.parameters import trained_parameters


def test_lora_on_vit_b() -> None:
    sizes, total = trained_parameters("vit_b", "lora")
    assert sum(sizes.values()) == 342_016
    assert all(".lora_" in name for name in sizes)
    assert total == 93_735_472 + 342_016
