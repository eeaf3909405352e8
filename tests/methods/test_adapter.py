"""Adapters compute `x + up(gelu(down(x)))`, or read beside the MLP, and refuse other places."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from medsam_tune.methods import apply_method
from medsam_tune.methods.adapter import Adapted
from medsam_tune.sam.model import PromptableSam

Build = Callable[..., PromptableSam]


@pytest.mark.parametrize(
    ("placement", "where", "parallel"),
    [("block", "", False), ("attention", ".attn", False), ("mlp", ".mlp", True)],
)
def test_placements_follow_their_papers(
    tiny_sam: Build, placement: str, where: str, parallel: bool
) -> None:
    sam = apply_method(tiny_sam(), "adapter", bottleneck=4, placement=placement)
    part = sam.get_submodule(f"image_encoder.blocks.1{where}")
    assert isinstance(part, Adapted)
    down, up = part.adapter.down, part.adapter.up
    assert not up.weight.any()
    assert not up.bias.any()
    with torch.no_grad():
        up.weight.normal_()
        x = torch.randn(1, 6, 6, 24)
        out = part.base(x)
        read = x if parallel else out
        expected = out + F.linear(F.gelu(F.linear(read, down.weight, down.bias)), up.weight)
        assert torch.allclose(part(x), expected, atol=1e-6)


def test_refusals(tiny_sam: Build) -> None:
    said = "placement is 'neck'; expected one of block, attention, mlp"
    with pytest.raises(ValueError, match=said):
        apply_method(tiny_sam(), "adapter", placement="neck")
    with pytest.raises(ValueError, match="bottleneck is 0; expected a whole number from 1 to"):
        apply_method(tiny_sam(), "adapter", bottleneck=0)
    apply_method(tiny_sam(), "adapter", bottleneck=1)
