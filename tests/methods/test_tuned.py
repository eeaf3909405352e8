"""A tuned file records how it was made, goes back on its base, and is refused by any other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file

from medsam_tune.errors import DataError
from medsam_tune.methods import apply_method
from medsam_tune.methods.export import export_sam
from medsam_tune.methods.tuned import (
    HALVES,
    TunedHeader,
    load_tuned,
    load_tuned_tensors,
    read_header,
    save_tuned,
    tuned_tensors,
)
from medsam_tune.sam.build import build_sam
from medsam_tune.sam.model import PromptableSam, Tuning
from medsam_tune.version import __version__
from tests.conftest import image_and_boxes
from tests.methods.test_methods import call, train

Build = Callable[..., PromptableSam]


def test_header_is_exactly_what_was_tuned(tiny_sam: Build, tmp_path: Path) -> None:
    options = {"bottleneck": 4, "placement": "mlp", "num_classes": 2, "class_tokens": 3}
    base = tiny_sam(in_channels=4, image_size=128, normalisation="medsam")
    sam = apply_method(base, "adapter", **options)
    path = save_tuned(sam, tmp_path / "tuned.safetensors", {1: "liver", 7: "spleen"})
    labels = {1: "liver", 7: "spleen"}
    expected = TunedHeader(sam.base, Tuning("adapter", options), labels, __version__)
    assert read_header(path) == expected
    assert read_header(save_tuned(sam, path)).labels == {}


def test_base_is_built_from_the_header(tiny_sam: Build, tmp_path: Path) -> None:
    sam = tiny_sam(in_channels=4, image_size=128, normalisation="medsam")
    path = save_tuned(apply_method(sam, "prompt", tokens=3), tmp_path / "tuned.safetensors")
    assert sam.base.sha256  # an empty one would fit any base
    loaded = load_tuned(path, checkpoint="random")
    assert loaded.base == sam.base
    assert loaded.tuning == sam.tuning
    assert torch.equal(loaded.learned.tokens, sam.learned.tokens)


def test_base_is_built_from_its_checkpoint(tiny_sam: Build, tmp_path: Path) -> None:
    plain = tiny_sam()
    with torch.no_grad():
        plain.mask_decoder.iou_token.weight += 1
    checkpoint = export_sam(plain, tmp_path / "plain.safetensors")
    sam = apply_method(build_sam("tiny", checkpoint), "prompt")
    path = save_tuned(sam, tmp_path / "tuned.safetensors")
    image, boxes = image_and_boxes()
    with torch.no_grad():
        found = load_tuned(path, checkpoint=checkpoint)(image, boxes)
        assert torch.equal(found, sam(image, boxes))
    with pytest.raises(ValueError, match=r"tuned\.safetensors: was tuned on tiny with sha256"):
        load_tuned(path, checkpoint="random")


def test_loaded_model_is_in_evaluation_mode(tiny_sam: Build, tmp_path: Path) -> None:
    sam = apply_method(tiny_sam(), "lora", rank=2, lora_dropout=0.5)
    train(sam, steps=2)
    path = save_tuned(sam, tmp_path / "tuned.safetensors")
    loaded = load_tuned(path, tiny_sam().train())
    assert not any(module.training for module in loaded.modules())
    image, boxes = image_and_boxes()
    with torch.no_grad():  # with dropout, two calls would differ
        assert torch.equal(loaded(image, boxes), loaded(image, boxes))


def test_options_that_json_has_no_word_for(tiny_sam: Build, tmp_path: Path) -> None:
    path = tmp_path / "tuned.safetensors"
    names = {f"image_encoder.blocks.{i}.mlp.lin{j}" for i in range(3) for j in (1, 2)}
    save_tuned(apply_method(tiny_sam(), "lora", target_modules=names), path)
    assert read_header(path).tuning.options == {"target_modules": sorted(names)}
    config = peft.LoHaConfig(r=2)
    save_tuned(apply_method(tiny_sam(), "lora", config=config), path)
    assert read_header(path).tuning.options["config"]["r"] == 2
    assert read_header(path).tuning.options["config"]["peft_type"] == "LOHA"
    sam = apply_method(tiny_sam(), "decoder")
    sam.tuning = Tuning("decoder", {"on": torch.zeros(1)})
    before = path.read_bytes()
    with pytest.raises(TypeError, match="an option is a Tensor, which a tuned file cannot hold"):
        save_tuned(sam, path)
    assert path.read_bytes() == before


def test_tensors_fit_or_nothing_is_copied(tiny_sam: Build) -> None:
    sam = apply_method(tiny_sam(), "adapter", bottleneck=4)
    before = {key: value.clone() for key, value in tuned_tensors(sam).items()}
    right = {key: value + 1 for key, value in before.items()}
    first = "image_encoder.blocks.0.adapter.down.bias"
    fewer = {key: value for key, value in right.items() if key != first}
    with pytest.raises(
        ValueError, match=rf"x\.st: 1 tensors do not match the method, e\.g\. {first}"
    ):
        load_tuned_tensors(sam, fewer, "x.st")
    with pytest.raises(ValueError, match=r"x\.st: 1 tensors do not match the method, e\.g\. more"):
        load_tuned_tensors(sam, {**right, "more": torch.zeros(1)}, "x.st")
    wider = {**right, first: torch.zeros(5)}
    with pytest.raises(
        ValueError, match=rf"x\.st: {first} has shape \(5,\), the model needs \(4,\)"
    ):
        load_tuned_tensors(sam, wider, "x.st")
    broken = {**right, first: torch.full((4,), float("inf"))}
    with pytest.raises(
        ValueError, match=rf"x\.st: 1 tensors hold NaN or Inf, the first is {first}"
    ):
        load_tuned_tensors(sam, broken, "x.st")
    assert all(torch.equal(value, before[key]) for key, value in tuned_tensors(sam).items())
    load_tuned_tensors(sam, right, "x.st")
    assert all(torch.equal(value, right[key]) for key, value in tuned_tensors(sam).items())


def test_hashes_are_shortened_in_the_refusal(tiny_sam: Build, tmp_path: Path) -> None:
    path = save_tuned(apply_method(tiny_sam(), "prompt"), tmp_path / "tuned.safetensors")
    other = tiny_sam()
    other.base = type(other.base)(**{**other.base.as_dict(), "sha256": "0" * 64})  # type: ignore[arg-type]
    said = r"with sha256 [0-9a-f]{12}, the base given is tiny with sha256 0{12}\. Give the base"
    with pytest.raises(ValueError, match=said):
        load_tuned(path, other)


def test_a_folder_is_no_tuned_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such tuned file; `medsam-tune train` writes"):
        read_header(tmp_path)


@pytest.mark.parametrize("dtype", HALVES.values(), ids=HALVES)
def test_a_file_of_two_bytes_a_weight_gives_nearly_the_same_masks(
    tiny_sam: Build, tmp_path: Path, dtype: torch.dtype
) -> None:
    sam = apply_method(tiny_sam(), "lora", rank=4)
    train(sam, steps=3)
    whole = save_tuned(sam, tmp_path / "whole.safetensors", {1: "liver"})
    half = save_tuned(sam, tmp_path / "half.safetensors", {1: "liver"}, dtype=dtype)
    assert {value.dtype for value in load_file(half).values()} == {dtype}
    values = sum(value.numel() for value in load_file(whole).values())
    assert whole.stat().st_size - half.stat().st_size == pytest.approx(2 * values, abs=2000)
    again = load_tuned(half, tiny_sam())
    assert {value.dtype for value in again.state_dict().values()} == {torch.float32}
    with torch.no_grad():
        found, expected = call(again)[0], call(sam.eval())[0]
    assert float((found - expected).abs().max() / expected.abs().max()) < 0.02
    assert not torch.equal(found, expected)


def test_a_weight_beyond_the_type_and_another_type_are_refused(
    tiny_sam: Build, tmp_path: Path
) -> None:
    sam = apply_method(tiny_sam(), "prompt")
    with torch.no_grad():
        sam.learned.tokens[0] = 1e6  # type: ignore[union-attr]
    with pytest.raises(DataError, match=r"hold NaN or Inf, the first is learned\.tokens"):
        save_tuned(sam, tmp_path / "t.safetensors", dtype=torch.float16)
    with pytest.raises(ValueError, match=r"dtype is torch\.int8; expected torch\.float16 or"):
        save_tuned(sam, tmp_path / "t.safetensors", dtype=torch.int8)
    assert list(tmp_path.iterdir()) == []
