"""LoRA refuses options that contradict each other; a config of peft is taken as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peft
import pytest

from medsam_tune.methods import apply_method
from medsam_tune.methods.tuned import tuned_tensors
from medsam_tune.sam.model import PromptableSam

Build = Callable[..., PromptableSam]


@pytest.mark.parametrize("options", [{"rank": 4}, {"alpha": 8.0}, {"use_dora": True}])
def test_options_beside_a_config_are_refused(tiny_sam: Build, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="a config of peft has its own rank, alpha and fields"):
        apply_method(tiny_sam(), "lora", config=peft.LoHaConfig(r=2), **options)


def test_last_blocks_of_a_decoder_are_refused(tiny_sam: Build) -> None:
    with pytest.raises(ValueError, match="last_blocks are the encoder's; where is 'decoder'"):
        apply_method(tiny_sam(), "lora", where="decoder", last_blocks=1)


def test_layers_that_are_chosen_twice_are_refused(tiny_sam: Build) -> None:
    """Neither choice is overruled without a word."""
    with pytest.raises(ValueError, match="where is 'decoder', which mask_decoder=True trains as"):
        apply_method(tiny_sam(), "lora", where="decoder", mask_decoder=True)
    names = ["image_encoder.blocks.0.attn.q_proj"]
    for chosen in ({"last_blocks": 1}, {"where": "encoder"}):
        for given in ({"target_modules": names}, {"config": peft.IA3Config(target_modules=names)}):
            with pytest.raises(ValueError, match="target_modules name the layers that get LoRA"):
                apply_method(tiny_sam(), "lora", **chosen, **given)


def test_rank_is_8_with_a_scale_of_1(tiny_sam: Build) -> None:
    layer = apply_method(tiny_sam(), "lora").get_submodule("image_encoder.blocks.0.attn.v_proj")
    assert layer.r == {"default": 8}
    assert layer.scaling == {"default": 1.0}


def test_a_config_as_plain_values_is_the_same_as_one_of_peft(tiny_sam: Build) -> None:
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 6}
    sam = apply_method(tiny_sam(), "lora", config=config)
    usual = tuned_tensors(apply_method(tiny_sam(), "lora", rank=2))
    assert {key: x.shape for key, x in tuned_tensors(sam).items()} == {
        key: x.shape for key, x in usual.items()
    }
    layer = sam.get_submodule("mask_decoder.transformer.layers.0.self_attn.q_proj")
    assert layer.scaling == {"default": 3.0}


def test_target_modules_of_a_config_stay(tiny_sam: Build) -> None:
    config = peft.LoraConfig(r=2, target_modules=["image_encoder.blocks.0.mlp.lin1"])
    sam = apply_method(tiny_sam(), "lora", config=config)
    assert {name for name, p in sam.named_parameters() if p.requires_grad} == {
        f"image_encoder.blocks.0.mlp.lin1.lora_{half}.default.weight" for half in "AB"
    }
