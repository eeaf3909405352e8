"""One matrix for every method: what trains, that nothing else moves, and that files come back."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from medsam_tune.methods import METHODS, apply_method
from medsam_tune.methods.tuned import load_tuned, read_header, save_tuned
from medsam_tune.sam.build import build_sam
from medsam_tune.sam.model import Masks, PromptableSam
from medsam_tune.training.losses import PromptLoss
from tests.conftest import image_and_boxes

Build = Callable[..., PromptableSam]


CLASSES = 3
Names = Callable[[PromptableSam], set[str]]


def _starting_with(*prefixes: str) -> Names:
    return lambda sam: {k for k, _ in sam.named_parameters() if k.startswith(prefixes)}


def _both(*names: Names) -> Names:
    return lambda sam: set().union(*(each(sam) for each in names))


def _adapter_names(where: str = "", blocks: tuple[int, ...] = (0, 1, 2)) -> Names:
    return lambda _: {
        f"image_encoder.blocks.{i}.{where}adapter.{part}.{kind}"
        for i in blocks
        for part in ("down", "up")
        for kind in ("weight", "bias")
    }


ENCODER_LAYERS = [f"image_encoder.blocks.{i}.attn" for i in range(3)]
DECODER_LAYERS = ["mask_decoder.transformer.final_attn_token_to_image"] + [
    f"mask_decoder.transformer.layers.{i}.{attention}"
    for i in range(2)
    for attention in ("self_attn", "cross_attn_token_to_image", "cross_attn_image_to_token")
]
LORA = ("lora_A.default.weight", "lora_B.default.weight")
DORA = (*LORA, "lora_magnitude_vector.default.weight")
LOHA = tuple(f"hada_w{i}_{half}.default" for i in (1, 2) for half in "ab")


def _peft_names(layers: list[str], parts: tuple[str, ...] = LORA) -> Names:
    return lambda _: {
        f"{layer}.{p}_proj.{part}" for layer in layers for p in "qv" for part in parts
    }


def _decoder_names(sam: PromptableSam) -> set[str]:
    """All but the heads of the three further masks, which a loss of one mask does not reach."""
    names = _starting_with("mask_decoder.")(sam)
    return {k for k in names if not re.search(r"output_hypernetworks_mlps\.[123]", k)}


DECODER: Names = _decoder_names
QV = ENCODER_LAYERS + DECODER_LAYERS


@dataclass(frozen=True)
class Row:
    """A method with options, and the exact names of what trains."""

    method: str
    options: dict[str, Any]
    names: Names


PROMPT: Names = lambda _: {"learned.tokens", "learned.gates"}  # noqa: E731
QUALITY = _starting_with("mask_decoder.iou_prediction_head.")
PROMPTS = _starting_with("prompt_encoder.")

# The rows that docs/models.md names, each with SAM's own prompts and with labels, and the options.
PLAIN = {
    "decoder": Row("decoder", {}, DECODER),
    "full": Row("full", {}, _both(_starting_with("image_encoder."), DECODER)),
    "adapter": Row("adapter", {"bottleneck": 8}, _adapter_names()),
    "lora": Row("lora", {"rank": 4}, _peft_names(QV)),
    "dora": Row("lora", {"rank": 4, "use_dora": True}, _peft_names(QV, DORA)),
    "prompt": Row("prompt", {}, PROMPT),
}
LABELS = {
    f"{name}-labels": Row(
        row.method,
        {**row.options, "num_classes": CLASSES},
        _both(row.names, PROMPT, lambda _: {"learned.present", "learned.coarse"}),
    )
    for name, row in PLAIN.items()
}
OPTIONS = {
    "full-prompt-encoder": Row(
        "full",
        {"prompt_encoder": True},
        _both(_starting_with("image_encoder.", "prompt_encoder."), DECODER),
    ),
    "full-multimask": Row(
        "full", {"multimask": True}, _starting_with("image_encoder.", "mask_decoder.")
    ),
    "adapter-decoder": Row(
        "adapter", {"bottleneck": 8, "mask_decoder": True}, _both(_adapter_names(), DECODER)
    ),
    "adapter-attention": Row(
        "adapter",
        {"bottleneck": 8, "placement": "attention", "last_blocks": 2},
        _adapter_names("attn.", (1, 2)),
    ),
    "adapter-mlp": Row(
        "adapter",
        {"bottleneck": 8, "placement": "mlp", "last_blocks": 1},
        _adapter_names("mlp.", (2,)),
    ),
    "lora-encoder": Row("lora", {"rank": 4, "where": "encoder"}, _peft_names(ENCODER_LAYERS)),
    "lora-decoder": Row("lora", {"rank": 4, "where": "decoder"}, _peft_names(DECODER_LAYERS)),
    "lora-last-block": Row(
        "lora", {"rank": 4, "last_blocks": 1}, _peft_names(ENCODER_LAYERS[2:] + DECODER_LAYERS)
    ),
    "lora-decoder-trained": Row(
        "lora", {"rank": 4, "mask_decoder": True}, _both(_peft_names(ENCODER_LAYERS), DECODER)
    ),
    "rslora-gaussian": Row(
        "lora",
        {"rank": 4, "use_rslora": True, "init_lora_weights": "gaussian"},
        _peft_names(QV),
    ),
    "loha": Row("lora", {"config": peft.LoHaConfig(r=2)}, _peft_names(QV, LOHA)),
    "ia3": Row("lora", {"config": peft.IA3Config()}, _peft_names(QV, ("ia3_l.default",))),
    "prompt-decoder": Row(
        "prompt",
        {"tokens": 5, "mask_decoder": True},
        _both(PROMPT, DECODER),
    ),
    "prompt-encoder": Row("prompt", {"prompt_encoder": True}, _both(PROMPT, PROMPTS)),
    "decoder-without-quality": Row(
        "decoder", {"quality_head": False}, lambda sam: _decoder_names(sam) - QUALITY(sam)
    ),
    "decoder-prompt-encoder": Row("decoder", {"prompt_encoder": True}, _both(DECODER, PROMPTS)),
    "full-without-quality": Row(
        "full",
        {"quality_head": False},
        lambda sam: _both(_starting_with("image_encoder."), DECODER)(sam) - QUALITY(sam),
    ),
    "lora-quality": Row("lora", {"rank": 4, "quality_head": True}, _both(_peft_names(QV), QUALITY)),
    "lora-prompt-encoder": Row(
        "lora", {"rank": 4, "prompt_encoder": True}, _both(_peft_names(QV), PROMPTS)
    ),
    "prompt-without-quality": Row(
        "prompt",
        {"mask_decoder": True, "quality_head": False},
        lambda sam: _both(PROMPT, DECODER)(sam) - QUALITY(sam),
    ),
    "adapter-both": Row(
        "adapter",
        {"bottleneck": 8, "quality_head": True, "prompt_encoder": True},
        _both(_adapter_names(), QUALITY, PROMPTS),
    ),
}
ROWS = {**PLAIN, **LABELS, **OPTIONS}
matrix = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
# What takes many steps: by default the methods themselves, whose options train in the other tests.
long_matrix = pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, id=name, marks=[] if name in PLAIN else [pytest.mark.slow])
        for name, row in ROWS.items()
    ],
)


def call(sam: PromptableSam, last_alone: bool = False) -> Masks:
    """Masks by boxes, and for the classes that the model has; the last perhaps by that alone."""
    image, boxes = image_and_boxes()
    classes = torch.arange(3).expand(2, -1) if sam.classes else None
    corners = torch.tensor([2, 3]).repeat(2, 3, 1)
    corners[:, 2] -= 10 * last_alone
    asked = {"points": boxes.view(2, 3, 2, 2), "point_labels": corners.clamp(min=-1)}
    return sam(image, **asked, classes=classes, return_quality=True)  # type: ignore[return-value]


def train(sam: PromptableSam, steps: int, lr: float = 1e-2) -> list[float]:
    """A few steps on one batch; the loss of each. A model of classes is shown one empty class."""
    _, boxes = image_and_boxes()
    masks = torch.zeros(2, 3, sam.image_size, sam.image_size, dtype=torch.bool)
    for b in range(2):
        for p in range(3 - bool(sam.classes)):
            x0, y0, x1, y1 = boxes[b, p].long().tolist()
            masks[b, p, y0:y1, x0:x1] = True
    optimizer = torch.optim.AdamW([p for p in sam.parameters() if p.requires_grad], lr=lr)
    losses = []
    for _ in range(steps):
        loss = PromptLoss()(call(sam, last_alone=bool(sam.classes)), masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@matrix
def test_exactly_what_the_method_names_trains(tiny_sam: Build, row: Row) -> None:
    sam = apply_method(tiny_sam(), row.method, **row.options)
    assert {k for k, p in sam.named_parameters() if p.requires_grad} == row.names(sam)


@matrix
def test_step_0_equals_base(tiny_sam: Build, row: Row) -> None:
    base, tuned = tiny_sam(), apply_method(tiny_sam(), row.method, **row.options)
    image, _ = image_and_boxes()
    with torch.no_grad():
        for found, expected in zip(call(tuned)[:2], call(base)[:2], strict=True):
            assert float((found - expected).abs().max()) < 1e-5
        assert torch.allclose(tuned.encode(image), base.encode(image), atol=1e-6)


@matrix
def test_trained_weights_move_and_frozen_ones_stay_bit_equal(tiny_sam: Build, row: Row) -> None:
    sam = apply_method(tiny_sam(), row.method, **row.options)
    before = {k: v.clone() for k, v in sam.state_dict().items()}
    train(sam, steps=3)
    tuned = row.names(sam)
    moved = {k for k, v in sam.state_dict().items() if not torch.equal(v, before[k])}
    assert moved <= tuned
    further = re.compile(r"mask_decoder\.output_hypernetworks_mlps\.[123]")  # of full-multimask
    still = tuned - moved
    assert {
        k for k in still if not k.startswith("prompt_encoder") and not further.match(k)
    } == set()


@long_matrix
def test_loss_falls(tiny_sam: Build, row: Row) -> None:
    torch.manual_seed(0)
    sam = apply_method(tiny_sam(), row.method, **row.options)
    # around a random frozen decoder there is little to gain, and it takes larger steps
    decoder_trains = any(k.startswith("mask_decoder.iou_token") for k in row.names(sam))
    head_trains = any(k.startswith("mask_decoder.iou") for k in row.names(sam))
    losses = train(sam, steps=25, lr=1e-2 if decoder_trains else 2e-2 if head_trains else 5e-2)
    assert losses[-1] < (0.8 if decoder_trains else 0.995) * losses[0]


@matrix
def test_file_comes_back_bit_equal(tiny_sam: Build, tmp_path: Path, row: Row) -> None:
    sam = apply_method(tiny_sam(), row.method, **row.options)
    train(sam, steps=2)
    path = save_tuned(sam, tmp_path / "tuned.safetensors", {1: "liver"})
    assert set(load_file(path)) == row.names(sam)
    assert path.stat().st_mode & 0o044 == 0o044
    header = read_header(path)
    assert header.tuning.method == row.method
    assert header.tuning.options.keys() >= row.options.keys()
    assert header.labels == {1: "liver"}
    again = load_tuned(path, tiny_sam())
    with torch.no_grad():
        for found, expected in zip(call(again), call(sam.eval()), strict=True):
            assert found is expected is None or torch.equal(found, expected)


# What each method trains, with its default options
PARAMETERS = {
    "vit_b": {
        "decoder": 3_638_916,
        "full": 93_309_828,
        "adapter": 1_189_632,
        "lora": 342_016,
        "prompt": 2_592,
    },
    "vit_l": {
        "decoder": 3_638_916,
        "full": 311_917_188,
        "adapter": 3_171_840,
        "lora": 833_536,
        "prompt": 2_592,
    },
    "vit_h": {
        "decoder": 3_638_916,
        "full": 640_664_964,
        "adapter": 5_285_888,
        "lora": 1_357_824,
        "prompt": 2_592,
    },
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts(name: str, method: str) -> None:
    with torch.device("meta"):
        sam = apply_method(build_sam(name), method)
    assert sum(p.numel() for p in sam.parameters() if p.requires_grad) == PARAMETERS[name][method]


def test_lora_scale_is_one_unless_alpha_is_given(tiny_sam: Build) -> None:
    for options, scale in (({"rank": 4}, 1.0), ({"rank": 4, "alpha": 8}, 2.0)):
        sam = apply_method(tiny_sam(), "lora", **options)
        assert sam.image_encoder.blocks[0].attn.q_proj.scaling == {"default": scale}


def test_peft_fields_reach_peft(tiny_sam: Build) -> None:
    sam = apply_method(tiny_sam(), "lora", rank=4, use_dora=True)
    assert any("lora_magnitude" in k for k, p in sam.named_parameters() if p.requires_grad)
    with pytest.raises(ValueError, match="no_such_field"):
        apply_method(tiny_sam(), "lora", no_such_field=1)


def test_refuses_unknown_method_and_options(tiny_sam: Build) -> None:
    with pytest.raises(ValueError, match="method 'loar' is unknown; known: decoder, full, adapter"):
        apply_method(tiny_sam(), "loar")
    with pytest.raises(ValueError, match="method 'adapter' has no option 'rank'; its options"):
        apply_method(tiny_sam(), "adapter", rank=4)
    with pytest.raises(ValueError, match="where is 'neck'; expected one of encoder, decoder, both"):
        apply_method(tiny_sam(), "lora", where="neck")
    with pytest.raises(ValueError, match="bottleneck is 0"):
        apply_method(tiny_sam(), "adapter", bottleneck=0)
    with pytest.raises(ValueError, match="tokens is 0"):
        apply_method(tiny_sam(), "prompt", tokens=0)
    with pytest.raises(ValueError, match="tuned by 'decoder' already"):
        apply_method(apply_method(tiny_sam(), "decoder"), "lora")


def test_random_decoder_that_stays_is_warned_of(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="nano has random weights and 'lora' leaves its mask deco"):
        model = apply_method(build_sam("nano", "random"), "lora")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        apply_method(build_sam("nano", "random"), "lora", mask_decoder=True)
        apply_method(build_sam("nano", "random"), "full")
        apply_method(build_sam("nano"), "lora")
        path = save_tuned(model, tmp_path / "tuned.safetensors")
        load_tuned(path, checkpoint="random")  # said when it was trained; not again


def test_row_58_another_base_is_refused(tiny_sam: Build, tmp_path: Path) -> None:
    path = save_tuned(apply_method(tiny_sam(), "lora"), tmp_path / "t.safetensors")
    other = tiny_sam()
    with torch.no_grad():
        other.mask_decoder.iou_token.weight += 1
    other.base = other.base.__class__(**{**other.base.as_dict(), "sha256": "0" * 64})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"t\.safetensors: was tuned on tiny with sha256"):
        load_tuned(path, other)
    with pytest.raises(ValueError, match="with image_size 96, the base given is tiny with image_s"):
        load_tuned(path, tiny_sam(image_size=128))
    with pytest.raises(ValueError, match="was tuned on tiny with name tiny, the base given is nan"):
        load_tuned(path, build_sam("nano", image_size=96))


def test_damaged_and_foreign_files_are_named(tiny_sam: Build, tmp_path: Path) -> None:
    path = save_tuned(apply_method(tiny_sam(), "prompt"), tmp_path / "t.safetensors")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(
        ValueError, match=r"cut\.safetensors: \d+ bytes, truncated or no safetensors file"
    ):
        load_tuned(cut)
    foreign = tmp_path / "foreign.safetensors"
    save_file({"x": torch.zeros(1)}, foreign)
    with pytest.raises(ValueError, match=r"foreign\.safetensors: a safetensors file, but not wri"):
        load_tuned(foreign)
    with pytest.raises(FileNotFoundError, match=r"gone\.safetensors: no such tuned file"):
        load_tuned(tmp_path / "gone.safetensors")


def test_row_59_nan_is_not_saved_and_the_old_file_stays(tiny_sam: Build, tmp_path: Path) -> None:
    sam = apply_method(tiny_sam(), "prompt")
    path = save_tuned(sam, tmp_path / "t.safetensors")
    before = path.read_bytes()
    with torch.no_grad():
        sam.learned.tokens[0] = float("nan")
    with pytest.raises(ValueError, match=r"hold NaN or Inf, the first is learned\.tokens"):
        save_tuned(sam, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["t.safetensors"]
    with pytest.raises(ValueError, match="has no tuning method"):
        save_tuned(tiny_sam(), path)


def test_lora_file_of_vit_b_is_small(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sam = apply_method(build_sam("vit_b", image_size=64), "lora", rank=4)
    assert save_tuned(sam, tmp_path / "t.safetensors").stat().st_size < 2_000_000
