"""Options that several commands share, and the names that their help texts list."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from medsam_tune.errors import nearest

# Names for the help texts: those of the package's own tables, which stand in heavy modules.
METHODS = ("decoder", "full", "adapter", "lora", "prompt")
MODELS = ("nano", "vit_t", "vit_t_lite", "vit_b", "vit_l", "vit_h")
MODALITIES = ("CT", "MR", "XR", "US", "RGB")
FORMATS = ("sam", "onnx", "peft", "bundle", "tuned")
HALVES = ("float16", "bfloat16")
MASK_FORMATS = (
    *("nii", "nii.gz", "nrrd", "mha", "tif", "tiff", "png", "gpkg", "geojson", "coco", "seg"),
    "rtstruct",
)
KINDS = ("slices", "box3d", "interpolated:N", "middle", "middle-range", "points", "none")

Datalist = Annotated[Path, typer.Option(help="Datalist, JSON, from `medsam-tune split`.")]
Run = Annotated[Path, typer.Option(help="Folder of a training run.")]
Model = Annotated[str, typer.Option(help=f"Base model: {', '.join(MODELS)}.")]
Bundle = Annotated[
    str | None,
    typer.Option(
        help="Name of a bundle, or its folder. Default: that of the run, image for 2-D images, "
        "volume for scans."
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="A setting of the bundle, key=value. May be repeated."),
]
Overlay = Annotated[
    list[str] | None,
    typer.Option(
        help="A further config: its name in the bundle, or a file of your own. May be repeated; "
        "later ones win."
    ),
]
Checkpoint = Annotated[
    Path | None,
    typer.Option(help="Weights of the base model, or 'random'. Every model but nano needs them."),
]
CheckpointOfRun = Annotated[
    Path | None, typer.Option(help="Weights of the base model. Default: the file of the training.")
]
ImageSize = Annotated[
    int | None, typer.Option(help="Side of the model's input in pixels. Default: the model's own.")
]
Gpus = Annotated[int, typer.Option(min=1, help="GPUs of this machine to use; a process for each.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")]
Unfinished = Annotated[
    bool,
    typer.Option(
        "--unfinished", help="Take the best weights so far of a training that is not finished."
    ),
]

Series = Annotated[
    str | None,
    typer.Option(help="SeriesInstanceUID, or its end, if a DICOM folder holds several."),
]


def refuse_gpus(gpus: int, shard: bool = False) -> list[str]:
    """The config for several GPUs, or none for one; refuse more than there are.

    Args:
        gpus: number of processes.
        shard: each holds a part of the model, see `training.sharding`.

    Raises:
        ValueError: torch sees fewer; one GPU has nobody to share with.
    """
    if gpus == 1:
        if shard:
            raise ValueError("--shard needs several GPUs; say how many by --gpus.")
        return []
    import torch

    if (there := torch.cuda.device_count()) < gpus:
        raise ValueError(f"--gpus is {gpus}; torch sees {there} on this machine.")
    return ["fsdp.yaml" if shard else "multi_gpu.yaml"]


def given(**options: Any) -> dict[str, Any]:
    """The options that were given."""
    return {key: value for key, value in options.items() if value is not None}


def refuse_unknown(kind: str, name: str, known: Sequence[str]) -> None:
    """Refuse a name that is not among the known ones."""
    if name not in known:
        raise ValueError(
            f"{kind} {name!r} is unknown; known: {', '.join(known)}.{nearest(name, known)}"
        )


def refuse_random(model: str, checkpoint: Path | None) -> None:
    """Refuse a model that would start from random weights unasked."""
    refuse_unknown("model", model, MODELS)
    if model != "nano" and checkpoint is None:
        raise ValueError(
            f"{model} needs --checkpoint: its weights are not in the package. `medsam-tune "
            "download` fetches published ones. --model nano needs none."
        )
