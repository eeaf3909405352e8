"""LoRA runs as peft's own folders: peft opens ours, we open peft's."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from medsam_tune.errors import DataError
from medsam_tune.methods import apply_method
from medsam_tune.methods.lora import targets
from medsam_tune.methods.peft_folder import load_peft, save_peft
from medsam_tune.methods.tuned import tuned_tensors
from medsam_tune.sam.build import build_sam
from medsam_tune.sam.model import PromptableSam
from tests.conftest import image_and_boxes
from tests.methods.test_methods import train

Build = Callable[..., PromptableSam]


@pytest.mark.parametrize(
    "options",
    [
        {"rank": 2},
        {"rank": 2, "where": "encoder", "last_blocks": 1},
        {"rank": 2, "use_dora": True, "use_rslora": True},
        {"config": peft.LoHaConfig(r=2)},
        {"config": peft.IA3Config()},
    ],
    ids=["lora", "last-block", "dora", "loha", "ia3"],
)
def test_peft_and_we_open_it(tiny_sam: Build, tmp_path: Path, options: dict[str, Any]) -> None:
    sam = apply_method(tiny_sam(), "lora", **options)
    train(sam, steps=3)
    image, boxes = image_and_boxes()
    folder = save_peft(sam, tmp_path / "out" / "adapter")
    assert sorted(p.name for p in folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    with torch.no_grad():
        expected = sam.eval()(image, boxes)
        assert float((tiny_sam()(image, boxes) - expected).abs().max()) > 1e-3
        theirs = peft.PeftModel.from_pretrained(tiny_sam(), str(folder))
        assert torch.allclose(theirs(image, boxes), expected, atol=1e-5)
        assert torch.equal(load_peft(folder, tiny_sam())(image, boxes), expected)


def test_we_open_what_peft_wrote(tiny_sam: Build, tmp_path: Path) -> None:
    base = tiny_sam()
    config = peft.LoraConfig(r=3, target_modules=targets(base, "both"), init_lora_weights=False)
    theirs = peft.get_peft_model(base, config)
    theirs.save_pretrained(str(tmp_path / "theirs"))
    image, boxes = image_and_boxes()
    with pytest.warns(UserWarning, match="does not say the base .* is tiny with"):
        ours = load_peft(tmp_path / "theirs", tiny_sam())
    with torch.no_grad():
        assert torch.allclose(ours(image, boxes), theirs(image, boxes), atol=1e-5)


def test_refusals(tiny_sam: Build, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    with pytest.raises(ValueError, match="holds peft's layers only; this model is tuned by 'promp"):
        save_peft(apply_method(tiny_sam(), "prompt"), folder)
    with pytest.raises(
        ValueError, match=r"tuned by 'lora' with more trained beside them\. Use the"
    ):
        save_peft(apply_method(tiny_sam(), "lora", mask_decoder=True), folder)
    with pytest.raises(FileNotFoundError, match=r"adapter: no adapter_config\.json; expected"):
        load_peft(folder, tiny_sam())
    assert not folder.exists()
    save_peft(apply_method(tiny_sam(), "lora", rank=2), folder)
    with pytest.raises(FileExistsError, match="adapter: is there already"):
        save_peft(apply_method(tiny_sam(), "lora", rank=2), folder)
    for base, said in ((build_sam("nano", image_size=64), "nano"), (tiny_sam(), "tiny")):
        with (
            pytest.warns(UserWarning, match="does not say the base"),
            pytest.raises(ValueError, match=rf"tensors do not fit {said}, e\.g\. image_encoder"),
        ):
            load_peft(_wider(folder), base)
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(
        ValueError, match=r"adapter_model\.safetensors: \d+ bytes, truncated or no safetens"
    ):
        load_peft(folder, tiny_sam())
    file.unlink()
    with pytest.raises(
        FileNotFoundError, match=r"adapter: no adapter_model\.safetensors; expected"
    ):
        load_peft(folder, tiny_sam())


def test_another_base_is_refused(tiny_sam: Build, tmp_path: Path) -> None:
    """Its tensors may fit; its masks would be wrong."""
    made = apply_method(tiny_sam(), "lora", rank=2)
    folder = save_peft(made, tmp_path / "adapter")
    other = tiny_sam()
    other.base = replace(other.base, sha256="0" * 64)
    for base, said in (
        (tiny_sam(normalisation="medsam"), "tiny with normalisation sam, the base given is tiny"),
        (tiny_sam(image_size=128), "tiny with image_size 96, the base given is tiny with"),
        (build_sam("nano", image_size=96), "was tuned on tiny with name tiny"),
        (
            other,
            "with sha256 .*, the base given is tiny with sha256 0",
        ),
    ):
        with pytest.raises(DataError, match=rf"adapter_model\.safetensors: .*{said}"):
            load_peft(folder, base)
        assert base.tuning is None
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    for content, said in (("[]", "holds a JSON list"), ('{"name": "tiny"}', "base holds")):
        save_file(tensors, file, metadata={"medsam_tune.base": content})
        with pytest.raises(DataError, match=rf"adapter_model\.safetensors: .*{said}"):
            load_peft(folder, tiny_sam())


def _wider(folder: Path) -> Path:
    """A copy of a peft folder in which one tensor has another shape, without metadata."""
    other = Path(shutil.copytree(folder, folder.with_name("wider"), dirs_exist_ok=True))
    file = other / "adapter_model.safetensors"
    tensors = load_file(file)
    key = next(key for key in tensors if "lora_A" in key)
    save_file({**tensors, key: torch.cat([tensors[key]] * 2)}, file)
    return other


def test_a_loaded_model_is_ready_for_use_and_for_more_training(
    tiny_sam: Build, tmp_path: Path
) -> None:
    names = {f"image_encoder.blocks.{i}.mlp.lin{j}" for i in range(3) for j in (1, 2)}
    sam = apply_method(tiny_sam(), "lora", rank=2, lora_dropout=0.5, target_modules=names)
    folder = save_peft(sam, tmp_path / "adapter")
    assert (folder / "adapter_model.safetensors").stat().st_mode & 0o044 == 0o044
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["inference_mode"] is True
    assert config["target_modules"] == sorted(names)
    loaded = load_peft(folder, tiny_sam().train())
    assert not any(module.training for module in loaded.modules())
    assert tuned_tensors(loaded).keys() == tuned_tensors(sam).keys()
    assert loaded.tuning is not None
    assert loaded.tuning.method == "lora"


STRANGERS: list[tuple[dict[str, Any] | str, str]] = [
    ({"peft_type": "XLORA"}, "peft_type is 'XLORA'; expected one of HRA, IA3, LOHA, LOKR, LORA"),
    ({"megatron_core": "antigravity", "megatron_config": {"a": 1}}, "megatron_con.* is no field"),
    ({"r": 10**9}, "r is 1000000000; expected a whole number from 1 to 65536"),
    ({"rank_pattern": {"(a+)+$": 2}}, "rank_pattern is .*; expected names of layers"),
    ({"modules_to_save": ["(a+)+$"]}, "modules_to_save is .*; expected a list"),
    ({"target_modules": ["nothing"]}, "cannot be applied"),
    ("[]", "adapter_config.json: holds a JSON list; expected an object"),
]


@pytest.mark.parametrize(("change", "said"), STRANGERS)
def test_row_103_a_config_of_a_stranger(
    tiny_sam: Build, tmp_path: Path, change: dict[str, Any] | str, said: str
) -> None:
    folder = save_peft(apply_method(tiny_sam(), "lora", rank=2), tmp_path / "adapter")
    config = folder / "adapter_config.json"
    content = {**json.loads(config.read_text()), **change} if isinstance(change, dict) else change
    config.write_text(content if isinstance(content, str) else json.dumps(content))
    base, modules = tiny_sam(), set(sys.modules)
    with pytest.raises(DataError, match=said):
        load_peft(folder, base)
    assert base.tuning is None
    assert set(sys.modules) == modules


def test_row_103_what_a_config_names_is_not_looked_up(tiny_sam: Build, tmp_path: Path) -> None:
    sam = apply_method(tiny_sam(), "lora", rank=2)
    folder = save_peft(sam, tmp_path / "adapter")
    config = folder / "adapter_config.json"
    elsewhere = {
        "auto_mapping": {"base_model_class": "X", "parent_library": "antigravity"},
        "base_model_name_or_path": "somebody/model",
        "revision": "main",
        "target_modules": "(.*.*.*a)+$",  # a pattern without end; the tensors tell the layers
    }
    config.write_text(json.dumps({**json.loads(config.read_text()), **elsewhere}))
    loaded = load_peft(folder, tiny_sam())
    assert "antigravity" not in sys.modules
    assert tuned_tensors(loaded).keys() == tuned_tensors(sam).keys()


def test_row_59_nan_is_neither_saved_nor_loaded(tiny_sam: Build, tmp_path: Path) -> None:
    sam = apply_method(tiny_sam(), "lora", rank=2)
    folder = save_peft(sam, tmp_path / "adapter")
    with torch.no_grad():
        next(iter(tuned_tensors(sam).values())).fill_(float("nan"))
    with pytest.raises(DataError, match=r"other: 1 tensors hold NaN or Inf, the first is image_en"):
        save_peft(sam, tmp_path / "other")
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    key = next(iter(tensors))
    save_file({**tensors, key: torch.full_like(tensors[key], float("inf"))}, file)
    with pytest.raises(DataError, match=r"adapter_model\.safetensors: 1 tensors hold NaN or Inf"):
        load_peft(folder, tiny_sam())
