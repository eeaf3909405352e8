"""Our attention gives stock SAM's numbers and gradients."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from segment_anything.modeling import ImageEncoderViT
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from medsam_tune.methods import apply_method
from medsam_tune.sam import encoder as module
from medsam_tune.sam.build import build_sam
from medsam_tune.sam.encoder import ImageEncoder, fuse_qkv, split_qkv


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
    stock, ours = make(), ImageEncoder(**make.keywords)
    for name, parameter in stock.named_parameters():
        if "pos" in name:
            nn.init.normal_(parameter, std=0.3)

    state = {f"image_encoder.{k}": v for k, v in stock.state_dict().items()}
    ours.load_state_dict({k.removeprefix("image_encoder."): v for k, v in split_qkv(state).items()})
    return stock, ours


def relative_difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().norm() / b.detach().norm())


variants = pytest.mark.parametrize("variant", ["_attend_biased", "_attend_folded"])


def assert_equal_to_stock(stock: nn.Module, ours: nn.Module, size: int, images: int) -> None:
    """Forward to 1e-5 and all gradients to 1e-4."""
    image = torch.rand(images, 3, size, size)
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
        if not key.endswith("k_proj.bias"):  # it has none but rounding: softmax ignores it
            assert relative_difference(found_gradient, gradient) < 1e-4, key


@variants
@pytest.mark.parametrize("size", [96, 128])  # grid 6 pads its windows of 4, grid 8 does not
def test_forward_and_gradients_equal_stock(
    monkeypatch: pytest.MonkeyPatch, variant: str, size: int
) -> None:
    monkeypatch.setattr(module, "_attend", getattr(module, variant))
    assert_equal_to_stock(*stock_and_ours(width=48, depth=3, heads=4, size=size), size, images=2)


@pytest.mark.slow
@variants
@pytest.mark.parametrize(
    ("width", "depth", "heads"), [(768, 12, 12), (1024, 4, 16), (1280, 4, 16)], ids=["b", "l", "h"]
)
def test_vit_sizes_equal_stock(
    monkeypatch: pytest.MonkeyPatch, variant: str, width: int, depth: int, heads: int
) -> None:
    monkeypatch.setattr(module, "_attend", getattr(module, variant))
    assert_equal_to_stock(*stock_and_ours(width, depth, heads, size=256), 256, images=1)


def test_split_and_fuse_are_inverse() -> None:
    stock, _ = stock_and_ours(width=24, depth=2, heads=2, size=96)
    state = {f"image_encoder.{k}": v for k, v in stock.state_dict().items()}
    there_and_back = fuse_qkv(split_qkv(state))
    assert there_and_back.keys() == state.keys()
    assert all(torch.equal(there_and_back[k], state[k]) for k in state)
    assert split_qkv(split_qkv(state)).keys() == split_qkv(state).keys()


def test_the_variant_is_chosen_by_whether_gradients_flow(monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    for name in ("_attend_biased", "_attend_folded"):
        variant = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *a, name=name, variant=variant: used.append(name) or variant(*a)
        )
    attention = module.Attention(24, 2, 4)
    attention(torch.rand(1, 4, 4, 24))
    with torch.no_grad():
        attention(torch.rand(1, 4, 4, 24))
    attention.requires_grad_(False)(torch.rand(1, 4, 4, 24))
    assert used == ["_attend_folded", "_attend_biased", "_attend_biased"]


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    _, encoder = stock_and_ours(width=24, depth=3, heads=2, size=96)
    image = torch.rand(1, 3, 96, 96)
    gradients = []
    for checkpointing in (False, True):
        encoder.gradient_checkpointing = checkpointing
        encoder.zero_grad()
        encoder(image).square().sum().backward()
        gradients.append({k: p.grad.clone() for k, p in encoder.named_parameters()})
    assert all(torch.allclose(gradients[0][k], gradients[1][k], rtol=1e-5) for k in gradients[0])


@pytest.mark.parametrize("train", [False, True])
def test_the_encoder_compiles_without_a_graph_break(train: bool) -> None:
    _, encoder = stock_and_ours(width=24, depth=3, heads=2, size=96)
    image = torch.rand(1, 3, 96, 96)
    compiled = torch.compile(encoder, fullgraph=True, backend="aot_eager")
    with torch.set_grad_enabled(train):
        assert relative_difference(compiled(image), encoder(image)) < 1e-5
    if train:
        compiled(image).square().sum().backward()
        found = {k: p.grad.clone() for k, p in encoder.named_parameters()}
        encoder.zero_grad()
        encoder(image).square().sum().backward()
        for key, parameter in encoder.named_parameters():
            assert torch.allclose(found[key], parameter.grad, rtol=1e-3, atol=1e-3), key


def test_bfloat16_stays_close() -> None:
    _, encoder = stock_and_ours(width=48, depth=3, heads=4, size=96)
    image = torch.rand(1, 3, 96, 96)
    with torch.no_grad():
        exact = encoder(image)
        with torch.autocast("cpu", torch.bfloat16):
            assert relative_difference(encoder(image).float(), exact) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("method", "options", "graphs"),
    [
        ("full", {}, 2),  # of blocks with windows, and without
        ("lora", {}, 3),  # and of the first block, whose input has no gradient
        ("lora", {"use_dora": True}, 3),
        ("adapter", {}, 3),
    ],
    ids=["full", "lora", "dora", "adapter"],
)
def test_blocks_of_each_method_compile_without_a_graph_break(
    method: str, options: dict[str, object], graphs: int, checkpointing: bool
) -> None:
    """As `compile: true` of the recipe compiles them; blocks share their code, recomputed too."""
    torch.manual_seed(0)
    base = build_sam("nano", image_size=64, gradient_checkpointing=checkpointing)
    sam = apply_method(base, method, **options).train()
    for key, parameter in sam.named_parameters():
        if "lora_B" in key or "adapter" in key:  # zero at the start
            torch.nn.init.normal_(parameter, std=0.05)
    image = torch.rand(1, 3, 64, 64)

    def results() -> list[Tensor]:
        sam.zero_grad()
        found = sam.encode(image)
        found.square().sum().backward()
        gradients = [p.grad for p in sam.image_encoder.parameters() if p.grad is not None]
        return [found.detach(), *(each.clone() for each in gradients)]

    expected = results()
    torch._dynamo.reset()
    counted = CompileCounter()
    sam.image_encoder.compile(fullgraph=True, backend=counted)  # a break is an error
    found = results()
    assert len(found) == len(expected) > 12
    for one, other in zip(found, expected, strict=True):
        assert relative_difference(one, other) < 1e-4
    assert counted.frame_count == graphs
