"""An exported run is a plain SAM: stock modules load it strictly and give the same masks."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from segment_anything import SamPredictor
from segment_anything.modeling import (
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)

from medsam_tune.methods import apply_method
from medsam_tune.methods.export import OPSET, export_onnx, export_sam, is_stock
from medsam_tune.prompts import Prompts
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


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("decoder", {}),
        ("full", {}),
        ("lora", {"rank": 4}),
        ("lora", {"rank": 4, "use_dora": True, "mask_decoder": True}),
        ("lora", {"config": peft.LoHaConfig(r=2)}),
        ("lora", {"config": peft.IA3Config()}),
    ],
    ids=["decoder", "full", "lora", "dora", "loha", "ia3"],
)
def test_stock_predictor_gives_the_same_masks(
    tiny_sam: Build, tmp_path: Path, method: str, options: dict[str, Any], suffix: str
) -> None:
    sam = apply_method(tiny_sam(), method, **options)
    train(sam, steps=3)
    image, boxes = image_and_boxes()
    with torch.no_grad():
        tuned = sam.eval()(image, boxes)
        point = sam(image, points=boxes[:, :, None, :2], point_labels=torch.ones(2, 3, 1))
    path = export_sam(sam, tmp_path / f"plain.{suffix}")
    stock = stock_sam()
    state = load_file(path) if suffix == "safetensors" else torch.load(path, weights_only=True)
    stock.load_state_dict(state, strict=True)
    predictor = SamPredictor(stock)
    for b in range(2):
        predictor.set_torch_image(image[b : b + 1] * 255, (96, 96))
        _, _, by_box = predictor.predict_torch(None, None, boxes[b], multimask_output=False)
        assert relative_difference(by_box[:, 0], tuned[b]) < 1e-4
        _, _, by_point = predictor.predict_torch(
            boxes[b, :, None, :2], torch.ones(3, 1), multimask_output=False
        )
        assert relative_difference(by_point[:, 0], point[b]) < 1e-4
    again = build_sam("tiny", checkpoint=path)
    with torch.no_grad():
        assert relative_difference(again(image, boxes), tuned) < 1e-5
        assert torch.equal(sam(image, boxes), tuned)  # exporting merges a copy


def relative_difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize(
    ("method", "options", "what"),
    [
        ("adapter", {}, "'adapter' adds"),
        ("prompt", {}, "'prompt' adds"),
        ("full", {"num_classes": 2}, "learned tokens of labels are"),
    ],
)
def test_what_a_plain_sam_cannot_hold_is_refused(
    tiny_sam: Build, tmp_path: Path, method: str, options: dict[str, Any], what: str
) -> None:
    sam = apply_method(tiny_sam(), method, **options)
    with pytest.raises(
        ValueError, match=f"{what} .*parts that a plain SAM does not have.* --format onnx"
    ):
        export_sam(sam, tmp_path / "plain.safetensors")
    with pytest.raises(ValueError, match=r"plain\.onnx: expected a name that ends in \.pth or"):
        export_sam(sam, tmp_path / "plain.onnx")
    assert list(tmp_path.iterdir()) == []


def test_stock_is_said_of_stock_sizes_only() -> None:
    with torch.device("meta"):
        assert is_stock(build_sam("vit_b"))
        assert is_stock(build_sam("vit_t"))
        assert not is_stock(build_sam("vit_b", image_size=512))
        assert not is_stock(build_sam("vit_b", in_channels=4))
        assert not is_stock(build_sam("nano"))


def test_more_channels_come_back(tiny_sam: Build, tmp_path: Path) -> None:
    sam = apply_method(tiny_sam(in_channels=4), "full")
    train_image = torch.rand(1, 4, 96, 96)
    path = export_sam(sam, tmp_path / "nir.safetensors")
    again = build_sam("tiny", checkpoint=path, in_channels=4)
    with torch.no_grad():
        assert torch.equal(again(train_image), sam(train_image))
    with pytest.raises(ValueError, match=r"is of a model for 4 channels; in_channels is 3\. Set"):
        build_sam("tiny", checkpoint=path)


ONNX = {
    "decoder": ("decoder", {}),
    "full": ("full", {}),
    "adapter": ("adapter", {"bottleneck": 4, "placement": "mlp"}),
    "lora": ("lora", {"rank": 2}),
    "dora": ("lora", {"rank": 2, "use_dora": True}),
    "prompt": ("prompt", {"tokens": 3}),
    "labels": ("lora", {"rank": 2, "num_classes": 3}),
}


@pytest.mark.parametrize(("method", "options"), ONNX.values(), ids=ONNX)
def test_onnxruntime_gives_the_same_logits(
    tiny_sam: Build, tmp_path: Path, method: str, options: dict[str, Any]
) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    sam = apply_method(tiny_sam(normalisation="medsam"), method, **options)
    train(sam, steps=2)
    before = {k: v.clone() for k, v in sam.state_dict().items()}
    folder = export_onnx(sam, tmp_path / "out" / "onnx", {1: "liver"})
    assert all(torch.equal(v, before[k]) for k, v in sam.state_dict().items())
    description = json.loads((folder / "model.json").read_text())
    assert description == {
        **sam.base.as_dict(),
        "method": method,
        "classes": sam.classes,
        "labels": {"1": "liver"},
    }
    encoder, decoder = (
        runtime.InferenceSession(folder / f"{part}.onnx") for part in ("encoder", "decoder")
    )
    sam.eval()
    for images, prompts, points in ((2, 3, 4), (1, 1, 1), (3, 2, 2)):
        image, boxes = image_and_boxes(images=images, prompts=prompts)
        (embedding,) = encoder.run(None, {"image": image.numpy()})
        inputs = {"embedding": embedding}
        place = torch.rand(images, prompts, points, 2) * 96
        kind = torch.randint(-1, 2, (images, prompts, points))
        kind[..., 0] = 1
        if points > 2:  # some objects by a box and a point
            place[:, 0, 1:3] = boxes[:, 0].unflatten(-1, (2, 2))
            kind[:, 0, 1:3] = torch.tensor([2, 3])
        given = {"points": place, "point_labels": kind}
        if sam.classes:
            given["classes"] = (torch.arange(images * prompts) + 1).view(images, -1) % 4 - 1
        inputs |= {key: value.numpy() for key, value in given.items()}
        outputs = decoder.run(None, inputs)
        with torch.no_grad():
            expected = sam.encode(image)
            wanted = sam.decode(expected, Prompts(**given))
        assert relative_difference(torch.tensor(embedding), expected) < 1e-3
        assert len(outputs) == (3 if sam.classes else 2)
        for output, value in zip(outputs, wanted, strict=False):
            assert relative_difference(torch.tensor(output), value) < 1e-3


def test_onnx_of_tiny_vit_takes_any_batch(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that its weights are random
        sam = build_sam("vit_t", image_size=64)
    encoder = runtime.InferenceSession(export_onnx(sam, tmp_path / "onnx") / "encoder.onnx")
    for images in (1, 3):
        image = torch.rand(images, 3, 64, 64)
        (embedding,) = encoder.run(None, {"image": image.numpy()})
        with torch.no_grad():
            assert relative_difference(torch.tensor(embedding), sam.encode(image)) < 1e-3


def test_layers_that_peft_saves_whole_are_exported(tiny_sam: Build, tmp_path: Path) -> None:
    sam = apply_method(tiny_sam(), "lora", rank=2, modules_to_save=["iou_prediction_head"])
    with torch.no_grad():
        for parameter in sam.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    path = export_sam(sam, tmp_path / "plain.pth")
    image, boxes = image_and_boxes()
    with torch.no_grad():
        wanted = sam.eval()(image, boxes, return_quality=True)
        found = build_sam("tiny", checkpoint=path)(image, boxes, return_quality=True)
    for a, b in zip(found[:2], wanted[:2], strict=True):
        assert relative_difference(a, b) < 1e-5


def test_onnx_folder_is_whole_or_not_there(
    tiny_sam: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sam = apply_method(tiny_sam(), "prompt")
    (tmp_path / "there").mkdir()
    with pytest.raises(FileExistsError, match="there: is there already"):
        export_onnx(sam, tmp_path / "there")

    def fails(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(torch.onnx, "export", fails)
    with pytest.raises(OSError, match="disk full"):
        export_onnx(sam, tmp_path / "new")
    assert [p.name for p in tmp_path.iterdir()] == ["there"]
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"pip install medsam_tune\[onnx\]"):
        export_onnx(sam, tmp_path / "new")


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


def test_onnx_files_are_for_older_runtimes_and_without_dropout(
    tiny_sam: Build, tmp_path: Path
) -> None:
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    sam = apply_method(tiny_sam(), "lora", rank=2, lora_dropout=0.5).train()
    folder = export_onnx(sam, tmp_path / "onnx")
    assert sam.training  # the model stays as it is
    assert all(p.requires_grad for key, p in sam.named_parameters() if ".lora_" in key)
    assert json.loads((folder / "model.json").read_text())["labels"] == {}
    names = {
        "encoder": (["image"], ["embedding"]),
        "decoder": (["embedding", "points", "point_labels"], ["logits", "quality"]),
    }
    for part, (inputs, outputs) in names.items():
        model = onnx.load(folder / f"{part}.onnx")
        assert model.opset_import[0].version == OPSET == 17
        assert [value.name for value in model.graph.input] == inputs
        assert [value.name for value in model.graph.output] == outputs
        assert "Dropout" not in {node.op_type for node in model.graph.node}


def test_an_untuned_model_is_exported_as_it_is(tiny_sam: Build, tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="onnx is not installed")
    folder = export_onnx(tiny_sam(), tmp_path / "onnx")
    assert json.loads((folder / "model.json").read_text())["method"] is None
    state = load_file(export_sam(tiny_sam(), tmp_path / "plain.safetensors"))
    assert {value.dtype for value in state.values()} == {torch.float32}


def test_weights_that_are_not_finite_are_not_exported(tiny_sam: Build, tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="onnx is not installed")
    sam = tiny_sam()
    with torch.no_grad():
        sam.mask_decoder.iou_token.weight[0, 0] = float("nan")
    said = r"1 tensors hold NaN or Inf, the first is mask_decoder\.iou_token\.weight"
    for name in ("plain.pth", "plain.safetensors"):
        with pytest.raises(ValueError, match=rf"{name}: {said}"):
            export_sam(sam, tmp_path / name)
    with pytest.raises(ValueError, match=f"onnx: {said}"):
        export_onnx(sam, tmp_path / "onnx")
    large = tiny_sam()
    with torch.no_grad():
        large.mask_decoder.iou_token.weight[0, 0] = 1e6  # beyond float16
    with pytest.raises(ValueError, match=said):
        export_sam(large, tmp_path / "plain.safetensors", half=True)
    assert list(tmp_path.iterdir()) == []
