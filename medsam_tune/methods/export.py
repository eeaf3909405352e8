"""Tuned models for use without this package: plain SAM checkpoints and ONNX."""

from __future__ import annotations

import copy
import importlib.util
import json
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn

from medsam_tune.files import folder_written_whole, written_whole
from medsam_tune.methods.tuned import refuse_not_finite, write_safetensors
from medsam_tune.prompts import Prompts
from medsam_tune.sam.build import architecture
from medsam_tune.sam.encoder import fuse_qkv
from medsam_tune.sam.model import PromptableSam
from medsam_tune.sam.tiny import TinyViT, fuse_tiny

# Oldest ONNX operator set with LayerNormalization, so that older runtimes take the files too.
OPSET = 17


def export_sam(model: PromptableSam, path: str | Path, half: bool = False) -> Path:
    """Write a tuned model as a plain SAM checkpoint in the stock layout.

    Args:
        model: model tuned by "decoder", "full" or "lora"; LoRA is merged in a copy.
        path: checkpoint to write, .pth (for `sam_model_registry`) or .safetensors.
        half: store float16, half the size; the loaded model still computes in float32.

    Returns:
        path of the checkpoint; `build_sam(name, checkpoint=path)` loads it, and if
        `is_stock(model)`, `segment_anything` does too.

    Raises:
        ValueError: a method that adds layers which a plain SAM does not have, another suffix, or
            a weight that is not finite.
    """
    path = Path(path)
    if path.suffix not in (".pth", ".safetensors"):
        raise ValueError(f"{path}: expected a name that ends in .pth or .safetensors.")
    method = None if model.tuning is None else model.tuning.method
    if method in ("adapter", "prompt") or model.classes:
        what = "learned tokens of labels are" if model.classes else f"{method!r} adds"
        raise ValueError(
            f"{what} parts that a plain SAM does not have, so it cannot be exported as one; "
            "decoder, full and lora that were trained with --class-agnostic can. Use --format "
            "onnx, or the tuned file with load_tuned."
        )
    state = _merged(model).state_dict()
    fuse = fuse_tiny if isinstance(model.image_encoder, TinyViT) else fuse_qkv
    dtype = torch.float16 if half else torch.float32
    tensors = {k: v.to("cpu", dtype).contiguous() for k, v in fuse(state).items()}
    refuse_not_finite(tensors, str(path))
    if path.suffix == ".safetensors":
        write_safetensors(tensors, path, metadata=None)
    else:
        with written_whole(path) as beside:
            torch.save(tensors, beside)
    return path


def is_stock(model: PromptableSam) -> bool:
    """True if segment_anything (or MobileSAM, for "vit_t") has a model of this name and size."""
    base = model.base
    named = base.name in ("vit_t", "vit_b", "vit_l", "vit_h")
    return named and base.in_channels == 3 and base.image_size == architecture(base.name).image_size


def export_onnx(
    model: PromptableSam, folder: str | Path, labels: Mapping[int, str] | None = None
) -> Path:
    """Write a model as `encoder.onnx`, `decoder.onnx` and `model.json`; any method.

    The encoder maps `image` (B, C, S, S) float32 in [0, 1], model frame, to `embedding`;
    normalisation is inside. The decoder maps `embedding`, `points` (B, P, N, 2) float32 XY, model
    frame, and `point_labels` (B, P, N) int64 (-1 padding, 0 outside, 1 inside, 2 and 3 the corners
    of a box) to `logits` (B, P, 4G, 4G) and `quality` (B, P). If the model knows K classes, it also
    takes `classes` (B, P) int64 (0 to K - 1, -1 for none), points may all be padding, and there is
    `presence` (B, P), a logit. B, P and N are free.

    Args:
        model: model, tuned or not; it is not changed.
        folder: folder to write, whole or not at all.
        labels: label id -> name, for `model.json`.

    Returns:
        the folder.

    Raises:
        ValueError: the package onnx is missing, or a weight is not finite.
        FileExistsError: the folder exists already.
    """
    if importlib.util.find_spec("onnx") is None:
        raise ValueError("export to ONNX needs the package onnx: pip install medsam_tune[onnx].")
    plain = _merged(model).cpu().eval().requires_grad_(False)
    refuse_not_finite(plain.state_dict(), str(folder))
    size, channels = plain.image_size, plain.base.in_channels
    image = torch.rand(1, channels, size, size)
    description = {
        **plain.base.as_dict(),
        "method": None if plain.tuning is None else plain.tuning.method,
        "classes": plain.classes,
        "labels": {str(k): v for k, v in (labels or {}).items()},
    }
    with torch.no_grad(), folder_written_whole(folder) as beside:
        prompts = plain.prompt_encoder
        embedding = torch.rand(1, prompts.embed_dim, *prompts.image_embedding_size)
        _onnx(_Encoder(plain), {"image": image}, {"embedding": "B"}, beside / "encoder.onnx")
        inputs = {
            "embedding": embedding,
            "points": torch.rand(1, 2, 3, 2) * size,
            "point_labels": torch.tensor([[[2, 3, 1], [1, 0, -1]]]),
        }
        outputs = {"logits": "BP", "quality": "BP"}
        if plain.classes:
            inputs["classes"] = torch.tensor([[0, -1]])
            outputs["presence"] = "BP"
        _onnx(_Decoder(plain), inputs, outputs, beside / "decoder.onnx")
        (beside / "model.json").write_text(json.dumps(description, indent=2) + "\n")
    return Path(folder)


class _Encoder(nn.Module):
    def __init__(self, model: PromptableSam) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        return self.model.encode(image)


class _Decoder(nn.Module):
    def __init__(self, model: PromptableSam) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, embedding: Tensor, points: Tensor, kinds: Tensor, classes: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        asked = Prompts(points=points, point_labels=kinds, classes=classes)
        found = self.model.decode(embedding, asked)
        return tuple(output for output in found if output is not None)


_AXES = {
    "image": "B",
    "embedding": "B",
    "points": "BPN",
    "point_labels": "BPN",
    "classes": "BP",
}


def _onnx(
    module: nn.Module, inputs: dict[str, Tensor], outputs: dict[str, str], path: Path
) -> None:
    """Trace and write; PyTorch's newer exporter takes minutes for these graphs, not seconds."""
    free = {**{name: _AXES[name] for name in inputs}, **outputs}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # checks of sizes become constants of the graph
        torch.onnx.export(
            module,
            tuple(inputs.values()),
            str(path),
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes={name: dict(enumerate(axes)) for name, axes in free.items()},
            opset_version=OPSET,
            dynamo=False,
        )


def _merged(model: PromptableSam) -> PromptableSam:
    """A copy with peft's layers merged into the layers that they adapt."""
    merged = copy.deepcopy(model)
    for name, module in list(merged.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            merged.set_submodule(name, module.get_base_layer())
        elif isinstance(module, ModulesToSaveWrapper):
            merged.set_submodule(name, module.modules_to_save[module.active_adapters[0]])
    return merged
