"""Building by name, and checkpoints: the right ones load strictly, the others get one line."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from importlib.metadata import requires
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from safetensors.torch import save_file
from segment_anything import sam_model_registry
from segment_anything.modeling.image_encoder import get_rel_pos

from medsam_tune.sam.build import ARCHITECTURES, build_sam, fingerprint, read_checkpoint
from medsam_tune.sam.encoder import fuse_qkv
from medsam_tune.sam.model import BaseModel, PromptableSam
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


def test_row_57_wrong_model_is_named(stock_file: Path) -> None:
    with pytest.raises(ValueError, match=r"tiny\.pth: checkpoint is tiny, asked for vit_b"):
        build_sam("vit_b", checkpoint=stock_file)


def test_rows_55_56_unusable_files_are_named(stock_file: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.pth: no such checkpoint"):
        build_sam("tiny", checkpoint=tmp_path / "gone.pth")
    cut = tmp_path / "cut.pth"
    cut.write_bytes(stock_file.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"cut\.pth: 1000 bytes, truncated or damaged"):
        build_sam("tiny", checkpoint=cut)
    for suffix in ("pth", "safetensors"):
        empty = tmp_path / f"empty.{suffix}"
        empty.touch()
        with pytest.raises(ValueError, match=rf"empty\.{suffix}: 0 bytes, truncated or damaged"):
            build_sam("tiny", checkpoint=empty)
    save_file(torch.load(stock_file, weights_only=True), tmp_path / "cut.safetensors")
    half = (tmp_path / "cut.safetensors").read_bytes()[:5000]
    (tmp_path / "cut.safetensors").write_bytes(half)
    with pytest.raises(ValueError, match=r"cut\.safetensors: 5000 bytes, truncated or damaged"):
        build_sam("tiny", checkpoint=tmp_path / "cut.safetensors")
    other = tmp_path / "list.pth"
    torch.save([1, 2], other)
    with pytest.raises(ValueError, match=r"list\.pth: no state dict"):
        build_sam("tiny", checkpoint=other)


class _Code:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("a checkpoint ran code",)


def test_row_53_code_in_a_checkpoint_is_not_run(
    tmp_path: Path, tiny_sam: Build, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "code.pth"
    torch.save({"image_encoder": _Code()}, path, pickle_module=pickle)
    with pytest.raises(ValueError, match=r"code\.pth: holds more than tensors"):
        build_sam("tiny", checkpoint=path)
    assert "ran code" not in capsys.readouterr().out


def test_row_54_torch_is_new_enough_to_load_safely() -> None:
    (torch_needed,) = [r for r in requires("medsam_tune") or [] if re.match(r"torch\W", r)]
    assert Requirement(torch_needed).specifier.contains("2.10")
    assert not Requirement(torch_needed).specifier.contains("2.9.1")


def test_row_59_missing_and_not_finite_tensors_are_named(stock_file: Path, tmp_path: Path) -> None:
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


def test_other_image_size_interpolates_positions(tiny_sam: Build, stock_file: Path) -> None:
    native, same, larger = (
        build_sam("tiny", checkpoint=stock_file, image_size=size) for size in (None, 96, 128)
    )
    assert fingerprint(native) == fingerprint(same)
    reference = torch.nn.functional.interpolate(
        native.image_encoder.pos_embed.permute(0, 3, 1, 2), size=(8, 8), mode="bicubic"
    ).permute(0, 2, 3, 1)
    assert torch.allclose(larger.image_encoder.pos_embed, reference)
    global_block, windowed = larger.image_encoder.blocks[1], larger.image_encoder.blocks[0]
    assert global_block.attn.rel_pos_h.shape[0] == 2 * 8 - 1
    assert windowed.attn.rel_pos_h.shape[0] == 2 * 4 - 1
    old, new = native.image_encoder.blocks[1].attn, global_block.attn
    for name in ("rel_pos_h", "rel_pos_w"):  # stock SAM's own rule for other sizes
        reference = get_rel_pos(8, 8, getattr(old, name))  # (query, key, head width)
        found = torch.stack([getattr(new, name)[q - torch.arange(8) + 7] for q in range(8)])
        assert torch.allclose(found, reference, atol=1e-6)
    image, boxes = image_and_boxes(size=128)
    assert larger(image, boxes).shape == (2, 3, 32, 32)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("size", [64, 128])
def test_a_base_is_known_by_its_weights_as_they_were_read(
    stock_file: Path, size: int, channels: int
) -> None:
    """Processors differ in the last bit of what is interpolated or averaged."""
    native = build_sam("tiny", stock_file)
    fitted = build_sam("tiny", stock_file, size, channels)
    assert fingerprint(fitted) != fingerprint(native)
    assert fitted.base.sha256 == native.base.sha256 == fingerprint(native)


@pytest.mark.parametrize("channels", range(1, 9))
def test_other_channels_keep_the_scale(tiny_sam: Build, channels: int) -> None:
    rgb = tiny_sam(normalisation="medsam")
    grey = torch.rand(1, 1, 96, 96).expand(-1, 8, -1, -1)
    other = tiny_sam(normalisation="medsam", in_channels=channels)
    with torch.no_grad():
        expected, found = rgb.encode(grey[:, :3]), other.encode(grey[:, :channels])
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-4
    if channels > 3:  # a near-infrared band starts as the mean of the others
        old, new = rgb.image_encoder.patch_embed.proj, other.image_encoder.patch_embed.proj
        assert torch.allclose(new.weight[:, :3] * channels / 3, old.weight, atol=1e-6)
        assert torch.allclose(new.weight[:, 3], new.weight[:, :3].mean(1), atol=1e-6)
    assert other.base.in_channels == channels


def test_refuses_unknown_settings() -> None:
    with pytest.raises(ValueError, match="model 'vit_x' is unknown; known: nano, vit_t"):
        build_sam("vit_x")
    with pytest.raises(ValueError, match="image_size 100 is no multiple of 16"):
        build_sam("nano", image_size=100)
    with pytest.raises(ValueError, match="image_size 16 is no multiple of 16 of at least 32"):
        build_sam("nano", image_size=16)
    with pytest.raises(ValueError, match="in_channels is 0; expected at least 1"):
        build_sam("nano", in_channels=0)


def test_a_built_model_is_what_was_asked_for(tiny_sam: Build) -> None:
    sam = tiny_sam(image_size=128, in_channels=4, normalisation="medsam")
    assert not any(module.training for module in sam.modules())
    assert sam.image_encoder.gradient_checkpointing is False
    assert sam.tuning is None
    as_made = fingerprint(build_sam("tiny", "random"))
    assert sam.base == BaseModel("tiny", 128, 4, "medsam", as_made)
    assert build_sam(
        "tiny", "random", gradient_checkpointing=True
    ).image_encoder.gradient_checkpointing
    usual = build_sam(ARCHITECTURES["tiny"], "random").base
    assert (usual.image_size, usual.in_channels, usual.normalisation) == (96, 3, "sam")


def test_random_weights_are_said(tiny_sam: Build, stock_file: Path) -> None:
    assert build_sam("tiny", "random").random_weights
    assert not build_sam("tiny", stock_file).random_weights
    with torch.device("meta"):
        meta = build_sam("vit_b")
    assert not meta.random_weights
    assert meta.base.sha256 == ""


def test_random_weights_start_as_usual_for_vit() -> None:
    sam = build_sam("nano", "random")
    layer = sam.image_encoder.blocks[0].mlp.lin1
    assert float(layer.weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    assert not layer.bias.any()
    assert float(sam.image_encoder.pos_embed.detach().std()) == pytest.approx(0.02, rel=0.05)
    frequencies = sam.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix.std(0)
    few = frequencies.numel() // 4
    assert float(frequencies[:few].mean()) < 1 < 2 < float(frequencies[-few:].mean())


@pytest.mark.parametrize(
    ("name", "size", "grid"),
    [("nano", 256, 32), ("vit_t", 1024, 64), ("vit_t_lite", 256, 64), ("vit_b", 1024, 64)],
)
def test_native_sizes(name: str, size: int, grid: int) -> None:
    with torch.device("meta"):
        sam = build_sam(name)
    assert (sam.image_size, sam.base.image_size) == (size, size)
    assert sam.prompt_encoder.image_embedding_size == (grid, grid)
    assert sam.prompt_encoder.input_image_size == (size, size)


def test_heads_are_stocks() -> None:
    for name in ("vit_b", "vit_l", "vit_h"):
        with torch.device("meta"):
            ours, stock = build_sam(name), sam_model_registry[name]()
        for a, b in zip(ours.image_encoder.blocks, stock.image_encoder.blocks, strict=True):
            assert (a.attn.heads, a.window_size) == (b.attn.num_heads, b.window_size)
        layer, theirs = (sam.mask_decoder.transformer.layers[0] for sam in (ours, stock))
        assert layer.self_attn.heads == theirs.self_attn.num_heads


def test_smaller_image_size_smooths_positions(tiny_sam: Build, stock_file: Path) -> None:
    native, smaller = (build_sam("tiny", stock_file, size) for size in (None, 64))
    reference = torch.nn.functional.interpolate(
        native.image_encoder.pos_embed.permute(0, 3, 1, 2),
        size=(4, 4),
        mode="bicubic",
        antialias=True,
    ).permute(0, 2, 3, 1)
    assert torch.allclose(smaller.image_encoder.pos_embed, reference)
    encoder = smaller.prompt_encoder
    assert encoder.input_image_size == (64, 64)
    assert encoder.image_embedding_size == (4, 4)
    assert encoder.mask_input_size == (16, 16)


def test_fingerprint_is_of_names_shapes_and_values() -> None:
    weight = torch.arange(6.0)

    def of(name: str, value: torch.Tensor) -> str:
        module = torch.nn.Module()
        module.register_buffer(name, value)
        return fingerprint(module)

    assert of("a", weight) == of("a", weight.double())
    others = [of("a", weight), of("b", weight), of("a", weight.view(2, 3)), of("a", weight + 1)]
    assert len(set(others)) == 4
    assert all(re.fullmatch("[0-9a-f]{64}", found) for found in others)


def test_tensors_of_another_shape_and_foreign_models_are_named(
    stock_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "other.pth"
    state = torch.load(stock_file, weights_only=True)
    state["mask_decoder.iou_token.weight"] = torch.zeros(1, 8)
    torch.save(state, path)
    said = (
        r"other\.pth: mask_decoder\.iou_token\.weight has shape \(1, 8\), tiny needs \(1, 16\) \(1 "
    )
    with pytest.raises(ValueError, match=said):
        build_sam("tiny", path)
    state["more"] = torch.zeros(1)
    torch.save(state, path)
    with pytest.raises(
        ValueError, match=r"0 tensors are missing \[\] and 1 are unknown \['more'\]"
    ):
        build_sam("tiny", path)
    torch.save({"conv.weight": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match=r"checkpoint is no SAM known here, asked for tiny\. Name"):
        read_checkpoint(path, ARCHITECTURES["tiny"])
