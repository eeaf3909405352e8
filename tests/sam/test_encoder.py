"""Our attention gives stock SAM's numbers and gradients."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from segment_anything.modeling import ImageEncoderViT
from torch import Tensor, nn

from medsam_tune.sam import encoder as module
from medsam_tune.sam.encoder import fuse_qkv, replace_attention, split_qkv


def stock_and_ours(width: int, depth: int, heads: int, size: int) -> tuple[nn.Module, nn.Module]:
    """The same random weights, with non-zero positions, in a stock encoder and in ours."""
    torch.manual_seed(0)
    make = partial(
        ImageEncoderViT,
        img_size=size,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        out_chans=16,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=4,
        global_attn_indexes=(1,),
    )
    stock, ours = make(), make()
    for name, parameter in stock.named_parameters():
        if "pos" in name:
            nn.init.normal_(parameter, std=0.3)
    replace_attention(ours)
    state = {f"image_encoder.{k}": v for k, v in stock.state_dict().items()}
    ours.load_state_dict({k.removeprefix("image_encoder."): v for k, v in split_qkv(state).items()})
    return stock, ours


def relative_difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().norm() / b.detach().norm())


@pytest.mark.parametrize("variant", ["_attend_biased", "_attend_folded"])
@pytest.mark.parametrize("size", [96, 128])  # grid 6 pads its windows of 4, grid 8 does not
def test_forward_and_gradients_equal_stock(
    monkeypatch: pytest.MonkeyPatch, variant: str, size: int
) -> None:
    monkeypatch.setattr(module, "_attend_biased", getattr(module, variant))
    stock, ours = stock_and_ours(width=48, depth=3, heads=4, size=size)
    image = torch.rand(2, 3, size, size)
    expected, found = stock(image), ours(image)
    assert relative_difference(found, expected) < 1e-5
    weight = torch.randn_like(expected)
    (expected * weight).sum().backward()
    (found * weight).sum().backward()
    gradients = {f"image_encoder.{k}": p.grad for k, p in stock.named_parameters()}
    own = dict(ours.named_parameters())
    for key, gradient in split_qkv(gradients).items():  # type: ignore[arg-type]
        found_gradient = own[key.removeprefix("image_encoder.")].grad
        assert found_gradient is not None, key
        if gradient.norm() > 1e-6:  # the key bias has none but rounding: softmax ignores it
            assert relative_difference(found_gradient, gradient) < 1e-4, key


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["_attend_biased", "_attend_folded"])
def test_vit_b_equals_stock(monkeypatch: pytest.MonkeyPatch, variant: str) -> None:
    monkeypatch.setattr(module, "_attend_biased", getattr(module, variant))
    stock, ours = stock_and_ours(width=768, depth=12, heads=12, size=256)
    image = torch.rand(1, 3, 256, 256)
    with torch.no_grad():
        assert relative_difference(ours(image), stock(image)) < 1e-5


def test_split_and_fuse_are_inverse() -> None:
    stock, _ = stock_and_ours(width=24, depth=2, heads=2, size=96)
    state = {f"image_encoder.{k}": v for k, v in stock.state_dict().items()}
    there_and_back = fuse_qkv(split_qkv(state))
    assert there_and_back.keys() == state.keys()
    assert all(torch.equal(there_and_back[k], state[k]) for k in state)
    assert split_qkv(split_qkv(state)).keys() == split_qkv(state).keys()
