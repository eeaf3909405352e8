"""An exported run is a plain SAM: stock modules load it strictly and give the same masks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from segment_anything.modeling import (
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)

from medsam_tune.methods import apply_method
from medsam_tune.methods.tuned import export_sam
from medsam_tune.sam.build import build_sam
from medsam_tune.sam.model import PromptableSam
from tests.conftest import TINY, image_and_boxes
from tests.methods.test_methods import train

Build = Callable[..., PromptableSam]


def stock_sam() -> Sam:
    """Stock `segment_anything` in the tiny sizes."""
    grid = TINY.image_size // 16
    return Sam(
        image_encoder=ImageEncoderViT(
            img_size=TINY.image_size,
            embed_dim=TINY.width,
            depth=TINY.depth,
            num_heads=TINY.heads,
            out_chans=TINY.decoder_width,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=TINY.window,
            global_attn_indexes=TINY.global_blocks,
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=TINY.decoder_width,
            image_embedding_size=(grid, grid),
            input_image_size=(TINY.image_size, TINY.image_size),
            mask_in_chans=16,
        ),
        mask_decoder=MaskDecoder(
            transformer_dim=TINY.decoder_width,
            transformer=TwoWayTransformer(
                depth=2, embedding_dim=TINY.decoder_width, mlp_dim=TINY.decoder_mlp, num_heads=8
            ),
        ),
    ).eval()


@pytest.mark.parametrize(
    ("method", "options"),
    [("decoder", {}), ("full", {}), ("lora", {"rank": 4}), ("lora", {"mask_decoder": True})],
)
def test_stock_gives_the_same_masks(
    tiny_sam: Build, tmp_path: Path, method: str, options: dict[str, object]
) -> None:
    sam = apply_method(tiny_sam(), method, **options)
    train(sam, steps=3)
    image, boxes = image_and_boxes()
    with torch.no_grad():
        tuned = sam.eval()(image, boxes)
    path = export_sam(sam, tmp_path / "plain.safetensors")
    stock = stock_sam()
    stock.load_state_dict(load_file(path), strict=True)
    batch = [
        {"image": image[b] * 255, "boxes": boxes[b], "original_size": (96, 96)} for b in range(2)
    ]
    found = torch.stack([out["low_res_logits"][:, 0] for out in stock(batch, False)])
    assert float((found - tuned).abs().max() / tuned.abs().max()) < 1e-4
    again = build_sam("tiny", checkpoint=path)
    with torch.no_grad():
        assert float((again(image, boxes) - tuned).abs().max() / tuned.abs().max()) < 1e-5
        assert torch.equal(sam(image, boxes), tuned)  # exporting merges a copy


@pytest.mark.parametrize("method", ["adapter", "prompt"])
def test_what_a_plain_sam_cannot_hold_is_refused(
    tiny_sam: Build, tmp_path: Path, method: str
) -> None:
    with pytest.raises(ValueError, match=f"'{method}' adds parts that a plain SAM does not have"):
        export_sam(apply_method(tiny_sam(), method), tmp_path / "plain.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_another_input_size_is_interpolated(
    tiny_sam: Build, tmp_path: Path
) -> None:
    sam = apply_method(tiny_sam(image_size=128), "decoder")
    path = export_sam(sam, tmp_path / "plain.safetensors")
    same, native = (build_sam("tiny", checkpoint=path, image_size=size) for size in (128, None))
    image, boxes = image_and_boxes(size=128)
    with torch.no_grad():
        assert torch.equal(same(image, boxes), sam(image, boxes))
    assert native.image_size == 96
    assert native.image_encoder.pos_embed.shape[1] == 6
