"""All four masks and qualities equal the stock decoder's; absent tokens are not seen."""

from __future__ import annotations

from collections.abc import Callable

import torch
from segment_anything.modeling import MaskDecoder, TwoWayTransformer
from torch import Tensor

from medsam_tune.prompts import Prompts
from medsam_tune.sam.decoder import predict_masks, replace_decoder_attention
from medsam_tune.sam.model import PromptableSam
from tests.conftest import image_and_boxes

Build = Callable[..., PromptableSam]


def stock_and_ours() -> tuple[MaskDecoder, MaskDecoder]:
    """The same random weights in a stock decoder and in one with our attention, two heads each."""
    made = []
    for _ in range(2):
        torch.manual_seed(0)
        transformer = TwoWayTransformer(depth=2, embedding_dim=16, mlp_dim=32, num_heads=2)
        made.append(MaskDecoder(transformer_dim=16, transformer=transformer).eval())
    replace_decoder_attention(made[1])
    return made[0], made[1]


def drawn() -> tuple[Tensor, Tensor, Tensor]:
    """Image (1, D, h, w), positions (1, D, h, w) and three tokens (1, 3, D)."""
    torch.manual_seed(1)
    return torch.randn(1, 16, 6, 6), torch.randn(1, 16, 6, 6), torch.randn(1, 3, 16)


@torch.no_grad()
def test_masks_and_qualities_equal_stock() -> None:
    stock, ours = stock_and_ours()
    image, positions, tokens = drawn()
    dense = torch.zeros_like(image)
    for multiple, which in ((False, slice(0, 1)), (True, slice(1, 4))):
        masks, quality = stock(image, positions, tokens, dense, multiple)
        found, score, _ = predict_masks(ours, image, positions, tokens, which=which)
        assert torch.allclose(found, masks, rtol=1e-4, atol=1e-6)
        assert torch.allclose(score, quality, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_absent_tokens_are_not_seen() -> None:
    _, ours = stock_and_ours()
    image, positions, tokens = drawn()
    absent = torch.tensor([[False, True, False]])
    found = predict_masks(ours, image, positions, tokens, absent, slice(0, 4))
    expected = predict_masks(ours, image, positions, tokens[:, [0, 2]], None, slice(0, 4))
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_decode_gives_the_first_mask_and_decode_masks_the_other_three(tiny_sam: Build) -> None:
    sam = tiny_sam()
    image, boxes = image_and_boxes()
    embedding, prompts = sam.encode(image), Prompts(boxes)
    every, quality, _ = sam.decode_masks(embedding, prompts, which=slice(0, 4))
    one, score, _ = sam.decode(embedding, prompts)
    three, scores, _ = sam.decode_masks(embedding, prompts)
    assert every.shape == (2, 3, 4, 24, 24)
    assert torch.allclose(one, every[:, :, 0], atol=1e-6)
    assert torch.allclose(three, every[:, :, 1:], atol=1e-6)
    assert torch.allclose(score, quality[..., 0], atol=1e-6)
    assert torch.allclose(scores, quality[..., 1:], atol=1e-6)
