"""Building by name, and checkpoints: the right ones load strictly, the others get one line."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from segment_anything import sam_model_registry

from medsam_tune.sam.build import build_sam, fingerprint
from medsam_tune.sam.encoder import fuse_qkv
from medsam_tune.sam.model import PromptableSam
from tests.conftest import image_and_boxes

Build = Callable[..., PromptableSam]


@pytest.fixture
def stock_file(tiny_sam: Build, tmp_path: Path) -> Path:
    """A checkpoint of a tiny SAM in stock layout (fused qkv)."""
    path = tmp_path / "tiny.pth"
    torch.save(fuse_qkv(tiny_sam().state_dict()), path)
    return path


def test_nano_is_always_the_same_and_small() -> None:
    first, second = build_sam("nano"), build_sam("nano")
    assert first.base == second.base
    assert first.base.sha256 == fingerprint(second)
    assert sum(p.numel() for p in first.parameters()) < 6_000_000


def test_building_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    build_sam("nano")
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize("name", ["vit_b", "vit_l", "vit_h"])
def test_state_dict_is_stocks_but_for_split_qkv(name: str) -> None:
    with torch.device("meta"):
        ours, stock = build_sam(name), sam_model_registry[name]()
    fused = fuse_qkv({k: torch.empty(v.shape) for k, v in ours.state_dict().items()})
    assert {k: tuple(v.shape) for k, v in fused.items()} == {
        k: tuple(v.shape) for k, v in stock.state_dict().items()
    }


def test_random_large_model_warns() -> None:
    with pytest.warns(UserWarning, match="vit_b without a checkpoint has random weights"):
        build_sam("vit_b", image_size=32)


@pytest.mark.parametrize("layout", ["stock", "wrapped", "parallel", "safetensors"])
def test_checkpoints_load(tiny_sam: Build, stock_file: Path, tmp_path: Path, layout: str) -> None:
    state = torch.load(stock_file, weights_only=True)
    path = tmp_path / ("x.safetensors" if layout == "safetensors" else "x.pth")
    if layout == "safetensors":
        save_file(state, path)
    elif layout == "wrapped":
        torch.save({"model": state, "epoch": 3}, path)
    elif layout == "parallel":
        torch.save({f"module.{k}": v for k, v in state.items()}, path)
    else:
        path = stock_file
    image, boxes = image_and_boxes()
    expected = tiny_sam()
    found = build_sam("tiny", checkpoint=path)
    assert torch.equal(found(image, boxes), expected(image, boxes))


def test_wrong_model_is_named(stock_file: Path) -> None:
    with pytest.raises(ValueError, match=r"tiny\.pth: checkpoint is tiny, asked for vit_b"):
        build_sam("vit_b", checkpoint=stock_file)


def test_unusable_files_are_named(stock_file: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.pth: no such checkpoint"):
        build_sam("tiny", checkpoint=tmp_path / "gone.pth")
    cut = tmp_path / "cut.pth"
    cut.write_bytes(stock_file.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"cut\.pth: 1000 bytes, truncated or damaged"):
        build_sam("tiny", checkpoint=cut)
    empty = tmp_path / "empty.safetensors"
    empty.touch()
    with pytest.raises(ValueError, match=r"empty\.safetensors: 0 bytes, truncated or damaged"):
        build_sam("tiny", checkpoint=empty)
    other = tmp_path / "list.pth"
    torch.save([1, 2], other)
    with pytest.raises(ValueError, match=r"list\.pth: no state dict"):
        build_sam("tiny", checkpoint=other)


class _Code:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("a checkpoint ran code",)


def test_code_in_a_checkpoint_is_not_run(
    tmp_path: Path, tiny_sam: Build, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "code.pth"
    torch.save({"image_encoder": _Code()}, path, pickle_module=pickle)
    with pytest.raises(ValueError, match=r"code\.pth: holds more than tensors"):
        build_sam("tiny", checkpoint=path)
    assert "ran code" not in capsys.readouterr().out


def test_missing_and_not_finite_tensors_are_named(stock_file: Path, tmp_path: Path) -> None:
    state = torch.load(stock_file, weights_only=True)
    lost = dict(state)
    del lost["mask_decoder.iou_token.weight"]
    torch.save(lost, tmp_path / "lost.pth")
    with pytest.raises(ValueError, match=r"1 tensors are missing.*iou_token"):
        build_sam("tiny", checkpoint=tmp_path / "lost.pth")
    state["mask_decoder.iou_token.weight"][0, 0] = float("nan")
    torch.save(state, tmp_path / "nan.pth")
    with pytest.raises(ValueError, match=r"hold NaN or Inf, the first is mask_decoder.iou_token"):
        build_sam("tiny", checkpoint=tmp_path / "nan.pth")


def test_other_image_size_interpolates_positions(tiny_sam: Build) -> None:
    native, same, larger = tiny_sam(), tiny_sam(image_size=96), tiny_sam(image_size=128)
    assert torch.equal(native.image_encoder.pos_embed, same.image_encoder.pos_embed)
    reference = torch.nn.functional.interpolate(
        native.image_encoder.pos_embed.permute(0, 3, 1, 2), size=(8, 8), mode="bicubic"
    ).permute(0, 2, 3, 1)
    assert torch.allclose(larger.image_encoder.pos_embed, reference)
    global_block, windowed = larger.image_encoder.blocks[1], larger.image_encoder.blocks[0]
    assert global_block.attn.rel_pos_h.shape[0] == 2 * 8 - 1
    assert windowed.attn.rel_pos_h.shape[0] == 2 * 4 - 1
    image, boxes = image_and_boxes(size=128)
    assert larger(image, boxes).shape == (2, 3, 32, 32)


def test_more_channels_keep_the_scale(tiny_sam: Build) -> None:
    rgb = tiny_sam(normalisation="medsam")
    grey = torch.rand(1, 1, 96, 96).expand(-1, 4, -1, -1)
    expected = rgb.encode(grey[:, :3]).detach()
    for channels in (1, 4):
        other = tiny_sam(normalisation="medsam", in_channels=channels)
        found = other.encode(grey[:, :channels]).detach()
        assert float((found - expected).abs().max() / expected.abs().max()) < 1e-4


def test_refuses_unknown_settings() -> None:
    with pytest.raises(ValueError, match="model 'vit_x' is unknown; known: nano, vit_b"):
        build_sam("vit_x")
    with pytest.raises(ValueError, match="image_size 100 is no multiple of 16"):
        build_sam("nano", image_size=100)
    with pytest.raises(ValueError, match="in_channels is 0"):
        build_sam("nano", in_channels=0)
