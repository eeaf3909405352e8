"""TinyViT holds MobileSAM's and LiteMedSAM's weights, and computes what they mean."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from medsam_tune.methods import METHODS, apply_method
from medsam_tune.sam.build import build_sam
from medsam_tune.sam.model import PromptableSam
from medsam_tune.sam.tiny import TinyAttention, TinyBlock, TinyViT, fuse_tiny, split_tiny
from tests.conftest import image_and_boxes
from tests.methods.test_methods import train

# From the two projects' own code, built without weights: the image encoder's tensors.
COUNTS = {"vit_t": 302, "vit_t_lite": 298}  # MobileSAM has four more of an unused classifier
PARAMETERS = {"vit_t": 5_743_892, "vit_t_lite": 5_726_740}  # without that classifier
SHAPES = {
    "layers.0.blocks.1.conv2.c.weight": (256, 1, 3, 3),
    "layers.0.downsample.conv2.bn.running_var": (128,),
    "layers.1.blocks.0.attn.attention_biases": (4, 49),
    "layers.1.blocks.1.attn.qkv.weight": (384, 128),
    "layers.1.blocks.1.attn.qkv.bias": (384,),
    "layers.2.blocks.5.attn.attention_biases": (5, 196),
    "layers.2.blocks.5.attn.norm.weight": (160,),
    "layers.2.blocks.5.local_conv.bn.num_batches_tracked": (),
    "layers.2.downsample.conv2.c.weight": (320, 1, 3, 3),
    "layers.3.blocks.0.attn.attention_biases": (10, 49),
    "layers.3.blocks.1.attn.proj.weight": (320, 320),
    "layers.3.blocks.1.mlp.fc1.weight": (1280, 320),
    "neck.0.weight": (256, 320, 1, 1),
    "neck.3.bias": (256,),
}
FIRST = {"vit_t": (32, 3, 3, 3), "vit_t_lite": (32, 3, 1, 1)}
# Eight values, evenly spread, of the embedding that the two projects' own code makes of `drawn`
# weights and image: name -> (side of the image, values).
EMBEDDINGS = {
    "vit_t": (
        96,
        [1.146861, 0.206876, -0.158902, -0.264547, 1.177727, 0.057924, 0.33601, -2.702633],
    ),
    "vit_t_lite": (
        32,
        [1.709474, 0.442368, 0.571047, -0.619285, 1.45841, -0.65856, -0.574193, -2.575007],
    ),
}
both = pytest.mark.parametrize("name", COUNTS)


def tiny(name: str, image_size: int) -> PromptableSam:
    """Random weights with biases and statistics that matter."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sam = build_sam(name, image_size=image_size)
    sam.random_weights = False
    generator = torch.Generator().manual_seed(0)
    for key, value in sam.image_encoder.state_dict().items():
        if "attention_biases" in key or "running_mean" in key:
            value.normal_(std=0.5, generator=generator)
        elif "running_var" in key or key.endswith("bn.weight"):
            value.uniform_(0.5, 1.5, generator=generator)
    return sam


def drawn(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights for the names and shapes of a published encoder, without its classifier.

    From NumPy's `RandomState`, whose numbers never change between releases.
    """
    draw = np.random.RandomState(0)
    out = {}
    for key, shape in sorted((k, v.shape) for k, v in state.items() if "head" not in k):
        value = torch.from_numpy(np.asarray(draw.uniform(-1, 1, shape))).float()
        if key.endswith("num_batches_tracked"):
            value = torch.zeros((), dtype=torch.long)
        elif "running_var" in key or (len(shape) == 1 and key.endswith("weight")):
            value = 1 + value / 2
        elif len(shape) > 1 and "attention_biases" not in key:
            value = value * (6 / shape[1:].numel()) ** 0.5
        out[key] = value
    return out


@both
def test_embedding_is_that_of_the_projects_own_code(name: str) -> None:
    size, expected = EMBEDDINGS[name]
    encoder = TinyViT(size, reduction=4 if name == "vit_t" else 1).eval()
    own = {f"image_encoder.{k}": v for k, v in encoder.state_dict().items()}
    published = split_tiny(drawn(fuse_tiny(own)))
    encoder.load_state_dict({k.removeprefix("image_encoder."): v for k, v in published.items()})
    image = torch.from_numpy(np.random.RandomState(1).uniform(-2, 2, (1, 3, size, size))).float()
    with torch.no_grad():
        embedding = encoder(image).flatten()
    # The order of float32 sums moves values of this size by 5e-6, GELU's tanh form by 4e-5.
    found = embedding[:: len(embedding) // 8].tolist()
    assert found == pytest.approx(expected, rel=0, abs=2e-5)


@both
def test_published_checkpoints_have_these_tensors(name: str) -> None:
    with torch.device("meta"):
        state = build_sam(name).state_dict()
    published = fuse_tiny({k: torch.zeros(v.shape) for k, v in state.items()})
    encoder = {
        k.removeprefix("image_encoder."): tuple(v.shape)
        for k, v in published.items()
        if k.startswith("image_encoder.")
    }
    assert len(encoder) == COUNTS[name]
    assert encoder["patch_embed.seq.0.c.weight"] == FIRST[name]
    assert {k: encoder[k] for k in SHAPES} == SHAPES
    assert ("head.weight" in encoder) is (name == "vit_t")
    with torch.device("meta"):
        parameters = build_sam(name).image_encoder.parameters()
    assert sum(p.numel() for p in parameters) == PARAMETERS[name]


@both
def test_a_published_checkpoint_loads_strictly(name: str, tmp_path: Path) -> None:
    sam = tiny(name, 64)
    published = fuse_tiny(sam.state_dict())
    torch.save(published, tmp_path / "x.pth")
    again = build_sam(name, checkpoint=tmp_path / "x.pth", image_size=64)
    image, boxes = image_and_boxes(size=64)
    with torch.no_grad():
        assert torch.equal(again(image, boxes), sam(image, boxes))
    other = "vit_t" if name == "vit_t_lite" else "vit_t_lite"
    with pytest.raises(ValueError, match=f"checkpoint is {name}, asked for {other}"):
        build_sam(other, checkpoint=tmp_path / "x.pth")
    del published["image_encoder.neck.0.weight"]
    torch.save(published, tmp_path / "lost.pth")
    with pytest.raises(ValueError, match=r"1 tensors are missing.*neck\.0\.weight"):
        build_sam(name, checkpoint=tmp_path / "lost.pth")


def test_qkv_of_a_head_stand_together_in_published_layers() -> None:
    torch.manual_seed(0)
    heads, width = 3, 12
    prefix = "image_encoder.layers.1.blocks.0.attn."
    fused = nn.Linear(width, 3 * width)
    state = {
        f"{prefix}qkv.weight": fused.weight.detach(),
        f"{prefix}qkv.bias": fused.bias.detach(),
        f"{prefix}attention_biases": torch.zeros(heads, 4),
    }
    split = split_tiny(state)
    x = torch.rand(5, width)
    per_head = fused(x).view(5, heads, 3, width // heads)
    for i, p in enumerate("qkv"):
        found = F.linear(x, split[f"{prefix}{p}_proj.weight"], split[f"{prefix}{p}_proj.bias"])
        assert torch.allclose(found.view(5, heads, -1), per_head[:, :, i], atol=1e-6)
    assert split_tiny(split).keys() == split.keys()


def test_split_and_fuse_are_inverse() -> None:
    with torch.device("meta"):
        shapes = fuse_tiny(build_sam("vit_t_lite").state_dict())
    published = {k: v for k, v in drawn(shapes).items() if k.startswith("image_encoder.")}
    again = fuse_tiny(split_tiny(published))
    assert again.keys() == published.keys()
    assert all(torch.equal(again[k], v) for k, v in published.items())


def test_attention_equals_its_formula() -> None:
    torch.manual_seed(0)
    attention = TinyAttention(width=8, heads=2, window=3)
    nn.init.normal_(attention.attention_biases)
    x = torch.rand(4, 9, 8)
    y = attention.norm(x)
    q, k, v = (
        p(y).view(4, 9, 2, 4).transpose(1, 2)
        for p in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    bias = torch.empty(2, 9, 9)
    for i in range(9):
        for j in range(9):
            rows, columns = abs(i // 3 - j // 3), abs(i % 3 - j % 3)
            bias[:, i, j] = attention.attention_biases[:, rows * 3 + columns]
    weights = (q @ k.transpose(-1, -2) / 2 + bias).softmax(-1)
    expected = attention.proj((weights @ v).transpose(1, 2).reshape(4, 9, 8))
    assert torch.allclose(attention(x), expected, atol=1e-6)


def test_windows_do_not_see_each_other_but_through_the_convolution() -> None:
    torch.manual_seed(0)
    block = TinyBlock(width=8, heads=2, window=4).eval()
    x = torch.rand(1, 6, 10, 8)  # padded to 8 x 12
    changed = x.clone()
    changed[:, 5, 9] += 1  # of the last window, rows 4 to 5, columns 8 to 9
    with torch.no_grad():
        moved = (block(changed) - block(x)).abs().amax(-1)[0] > 0
    assert moved[4:, 8:].all()
    assert not moved[:3].any()
    assert not moved[:, :7].any()


@both
@pytest.mark.parametrize("size", [64, 112])
def test_any_size(name: str, size: int) -> None:
    sam = tiny(name, size)
    image, boxes = image_and_boxes(size=size)
    with torch.no_grad():
        logits = sam(image, boxes)
    assert logits.shape[-1] == (size // 4 if name == "vit_t" else size)
    with pytest.warns(UserWarning, match=f"{name} without a checkpoint has random weights"):
        nir = build_sam(name, image_size=size, in_channels=4)
    assert nir.encode(torch.rand(1, 4, size, size)).isfinite().all()


def test_checkpointing_and_statistics() -> None:
    sam = tiny("vit_t", 64).train()
    encoder = sam.image_encoder
    assert isinstance(encoder, TinyViT)
    image, _ = image_and_boxes(size=64)
    before = {k: v.clone() for k, v in encoder.named_buffers()}
    gradients = []
    for checkpointing in (False, True):
        encoder.gradient_checkpointing = checkpointing
        encoder.zero_grad()
        encoder(image).square().mean().backward()
        gradients.append({k: p.grad.clone() for k, p in encoder.named_parameters()})
    for key, gradient in gradients[0].items():
        assert torch.allclose(gradients[1][key], gradient, rtol=1e-4, atol=1e-7), key
    assert all(torch.equal(v, before[k]) for k, v in encoder.named_buffers())


@pytest.mark.slow
def test_it_compiles_without_a_graph_break() -> None:
    encoder = tiny("vit_t", 64).train().image_encoder
    image, _ = image_and_boxes(size=64)
    with torch.no_grad():
        compiled = torch.compile(encoder, fullgraph=True, backend="aot_eager")
        assert torch.allclose(compiled(image), encoder(image), atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_tunes_it(method: str) -> None:
    sam = apply_method(tiny("vit_t", 96), method)
    before = {k: v.clone() for k, v in sam.state_dict().items()}
    train(sam, steps=2)
    trained = {k for k, p in sam.named_parameters() if p.requires_grad}
    moved = {k for k, v in sam.state_dict().items() if not torch.equal(v, before[k])}
    assert moved
    assert moved <= trained
    if method == "lora":
        blocks = {k.split(".attn")[0] for k in moved if "image_encoder" in k}
        assert len(blocks) == 10
