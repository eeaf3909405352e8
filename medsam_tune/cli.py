"""`medsam-tune`: thin over the bundles. It prints the bundle command that it runs.

Commands import what they need inside: `--help` answers at once.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

import medsam_tune
from medsam_tune.bundle import (
    bundle_folder,
    component_from,
    read_settings,
    run_bundle,
    training_configs,
)
from medsam_tune.errors import DataError

# Names for the help texts: those of the package's own tables, which stand in heavy modules.
METHODS = ("decoder", "full", "adapter", "lora", "prompt")
MODELS = ("nano", "vit_t", "vit_t_lite", "vit_b", "vit_l", "vit_h")
MODALITIES = ("CT", "MR", "XR", "US")
FORMATS = ("sam", "onnx", "peft")

app = typer.Typer(
    help=medsam_tune.__doc__,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_Datalist = Annotated[Path, typer.Option(help="Datalist, JSON, from `medsam-tune split`.")]
_Run = Annotated[Path, typer.Option(help="Folder of a training run.")]
_Model = Annotated[str, typer.Option(help=f"Base model: {', '.join(MODELS)}.")]
_Bundle = Annotated[str, typer.Option(help="Name of a bundle, or its folder.")]
_Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="A setting of the bundle, key=value. May be repeated."),
]
_Overlay = Annotated[
    list[str] | None,
    typer.Option(
        help="A further config: its name in the bundle, or a file of your own. May be repeated; "
        "later ones win."
    ),
]
_Checkpoint = Annotated[
    Path | None,
    typer.Option(help="Weights of the base model, or 'random'. Every model but nano needs them."),
]
_CheckpointOfRun = Annotated[
    Path | None, typer.Option(help="Weights of the base model. Default: the file of the training.")
]
_ImageSize = Annotated[
    int | None, typer.Option(help="Side of the model's input in pixels. Default: the model's own.")
]


@app.command()
def split(
    folder: Annotated[
        Path,
        typer.Argument(
            help="A task of the Medical Segmentation Decathlon, a folder with images/ and "
            "labels/, or DICOM studies with SEG or RTSTRUCT."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The datalist to write.")] = Path("datalist.json"),
    fractions: Annotated[
        tuple[float, float, float], typer.Option(help="Shares of training, validation and test.")
    ] = (0.7, 0.15, 0.15),
    seed: Annotated[int, typer.Option(help="Seed of the random split.")] = 0,
    modality: Annotated[
        str | None,
        typer.Option(
            help=f"One of {', '.join(MODALITIES)}. Needed if the folder does not say, or has "
            "several."
        ),
    ] = None,
    folds: Annotated[
        int | None, typer.Option(help="Cross-validation: write this many datalists; no fractions.")
    ] = None,
    shots: Annotated[
        int | None, typer.Option(help="Few-shot training: keep this many training patients.")
    ] = None,
    stratify: Annotated[
        bool, typer.Option(help="Spread rare labels evenly. Reads every label map.")
    ] = True,
) -> None:
    """Split cases by patient into training, validation and held-out test cases."""
    from medsam_tune.cases.datalist import write_datalist
    from medsam_tune.cases.folders import find_cases
    from medsam_tune.cases.splits import few_shots, fold_cases, labels_of_patients, split_cases

    names = [out] if folds is None else [out.with_stem(f"{out.stem}_{i}") for i in range(folds)]
    for name in names:
        if name.exists():
            raise DataError(f"{name}: is there already; delete it or choose another --out.")
    found = find_cases(folder, modality=modality)
    present = labels_of_patients(found) if stratify else None
    if folds is None:
        lists = [split_cases(found, fractions, seed, present)]
    else:
        lists = fold_cases(found, folds, seed, present)
    if shots is not None:
        lists = [few_shots(datalist, shots, seed) for datalist in lists]
    for name, datalist in zip(names, lists, strict=True):
        write_datalist(datalist, name)
        typer.echo(
            f"{name}: {len(datalist.training)} training, {len(datalist.validation)} validation and "
            f"{len(datalist.test)} test cases; labels: "
            + ", ".join(f"{k} {v}" for k, v in datalist.labels.items())
        )


@app.command()
def check(
    place: Annotated[Path, typer.Argument(help="A datalist, a folder, or one scan.")],
    output: Annotated[
        Path | None, typer.Option(help="Write the findings to this file, JSON.")
    ] = None,
    jobs: Annotated[int, typer.Option(help="Scans read at the same time.")] = 2,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="As for train, e.g. mending::resample_uneven=true. May be repeated."
        ),
    ] = None,
) -> None:
    """Read every scan. Report what each one is, which are refused, and which are the same.

    Exit codes: 0, all scans are sound; 3, some are refused; 4, a patient or a scan is in two
    subsets; 1, the datalist or the folder itself is refused.
    """
    from medsam_tune.cases.audit import check_place
    from medsam_tune.formats.mending import Mending

    mending = component_from("mending", Mending, read_settings(set_))
    report = check_place(place, jobs, mending=mending)
    typer.echo("\n".join(report.lines()))
    if output is not None:
        report.write(output)
    raise typer.Exit(report.outcome)


@app.command()
def prepare(
    datalist: Annotated[Path, typer.Argument(help="Datalist, JSON, from `medsam-tune split`.")],
    slices_dir: Annotated[
        Path | None, typer.Option(help="Folder of the slices. Default: beside the datalist.")
    ] = None,
    jobs: Annotated[int, typer.Option(help="Scans prepared at the same time.", min=1)] = 2,
    bundle: _Bundle = "volume",
    set_: _Set = None,
) -> None:
    """Estimate disk space, then prepare the slices of all scans for training.

    Sound slices are kept, so it may be stopped and started again, and run by several processes.
    Without it, the first training prepares them.
    """
    overrides = {"datalist": datalist, "jobs": jobs} | _given(slices_dir=slices_dir)
    run_bundle(bundle, ["train.yaml", "prepare.yaml"], overrides | read_settings(set_))


@app.command()
def train(
    method: Annotated[str, typer.Argument(help=f"What to train: {', '.join(METHODS)}.")],
    datalist: _Datalist,
    output: Annotated[Path, typer.Option(help="Folder of the run. New, unless --resume is given.")],
    bundle: _Bundle = "volume",
    model: _Model = "nano",
    image_size: _ImageSize = None,
    checkpoint: _Checkpoint = None,
    no_prompt: Annotated[
        bool, typer.Option("--no-prompt", help="Segment every label without boxes.")
    ] = False,
    resume: Annotated[
        bool, typer.Option(help="Continue the run in --output from its last epoch.")
    ] = False,
    overlay: _Overlay = None,
    set_: _Set = None,
) -> None:
    """Tune a model. The epoch with the best Dice on the validation cases is kept."""
    _refuse_unknown("method", method, METHODS)
    _refuse_random(model, checkpoint)
    configs = [*training_configs(method, no_prompt=no_prompt), *(overlay or [])]
    overrides: dict[str, Any] = {"datalist": datalist, "output_dir": output, "model": model}
    overrides |= _given(image_size=image_size, checkpoint=checkpoint)
    if resume:
        overrides["resume"] = True
    run_bundle(bundle, configs, overrides | read_settings(set_))


@app.command()
def evaluate(
    run: Annotated[Path | None, typer.Option(help="Folder of a training run.")] = None,
    zero_shot: Annotated[
        bool, typer.Option(help="Evaluate the base model, untuned, instead of a run.")
    ] = False,
    model: _Model = "nano",
    datalist: Annotated[
        Path | None, typer.Option(help="Datalist, JSON. Default: that of --run.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder for the results, with --zero-shot.")
    ] = None,
    image_size: _ImageSize = None,
    checkpoint: _Checkpoint = None,
    bundle: _Bundle = "volume",
    overlay: _Overlay = None,
    set_: _Set = None,
) -> None:
    """Measure Dice and IoU on the held-out test cases.

    Writes evaluation/metrics.csv and evaluation/summary.json into --run or --output.
    """
    if zero_shot:
        if run is not None or datalist is None or output is None:
            raise ValueError("--zero-shot needs --datalist and --output, and takes no --run.")
        _refuse_random(model, checkpoint)
        overrides = {"datalist": datalist, "run_dir": output, "model": model}
        overrides |= _given(image_size=image_size, checkpoint=checkpoint)
        configs = ["evaluate.yaml", "zero_shot.yaml", *(overlay or [])]
        run_bundle(bundle, configs, overrides | read_settings(set_))
    elif run is None:
        raise ValueError("give --run, the folder of a training run, or --zero-shot.")
    else:
        overrides = {"run_dir": run} | _given(datalist=datalist, checkpoint=checkpoint)
        run_bundle(bundle, ["evaluate.yaml", *(overlay or [])], overrides | read_settings(set_))


@app.command()
def predict(
    scan: Annotated[
        Path, typer.Argument(help="A NIfTI, NRRD or MetaImage file, or a DICOM folder.")
    ],
    run: _Run,
    output: Annotated[Path, typer.Option(help="Mask to write, .nii.gz, in the scan's own grid.")],
    prompts: Annotated[
        Path | None, typer.Option(help="Prompt file, JSON. Not for runs with --no-prompt.")
    ] = None,
    series: Annotated[
        str | None,
        typer.Option(help="SeriesInstanceUID, or its end, if a DICOM folder holds several."),
    ] = None,
    checkpoint: _CheckpointOfRun = None,
    bundle: _Bundle = "volume",
    set_: _Set = None,
) -> None:
    """Segment a scan by its boxes, or every label without boxes."""
    overrides = {"run_dir": run, "scan": scan, "output": output}
    overrides |= _given(prompts=prompts, series=series, checkpoint=checkpoint)
    run_bundle(bundle, ["inference.yaml"], overrides | read_settings(set_))


@app.command()
def export(
    run: _Run,
    output: Annotated[
        Path,
        typer.Option(help="For sam a file, .pth or .safetensors; for onnx and peft a new folder."),
    ],
    format_: Annotated[str, typer.Option("--format", help=f"One of {', '.join(FORMATS)}.")] = "sam",
    checkpoint: _CheckpointOfRun = None,
) -> None:
    """Write a run as a plain SAM checkpoint, as ONNX, or as an adapter folder of peft."""
    from medsam_tune.methods.export import export_onnx, export_sam, is_stock
    from medsam_tune.methods.peft_folder import save_peft
    from medsam_tune.methods.tuned import load_tuned, read_header
    from medsam_tune.runs import read_record

    _refuse_unknown("format", format_, FORMATS)
    tuned = run / "tuned.safetensors"
    model = load_tuned(tuned, checkpoint=checkpoint or read_record(run).checkpoint)
    if format_ == "onnx":
        export_onnx(model, output, read_header(tuned).labels)
        typer.echo(f"{output}: encoder.onnx, decoder.onnx and model.json of a {model.base.name}")
    elif format_ == "peft":
        save_peft(model, output)
        typer.echo(f"{output}: adapter_config.json and adapter_model.safetensors")
    else:
        export_sam(model, output)
        base = model.base
        typer.echo(f"{output}: a plain {base.name}")
        if base.normalisation == "medsam":
            typer.echo(
                "it takes images in [0, 1], as MedSAM's own code does; SamPredictor does not"
            )
        if not is_stock(model):
            typer.echo(
                f"segment_anything has no {base.name} of {base.image_size} pixels and "
                f"{base.in_channels} channels; medsam_tune.build_sam opens it."
            )


@app.command()
def download(
    name: Annotated[str, typer.Argument(help="One of vit_t, vit_b, vit_l, vit_h, medsam.")],
    output: Annotated[Path, typer.Option(help="Folder for the file.")] = Path("checkpoints"),
    bundle: _Bundle = "volume",
) -> None:
    """Download a published checkpoint and check its hash. No other command uses the network."""
    from medsam_tune import downloads

    entry = downloads.choose(name, bundle_folder(bundle))
    path, kept = downloads.download(entry, output)
    typer.echo(f"{path}: {'was there' if kept else 'fetched'}, its {entry.hash_type} as published.")
    recipe = "lora" if bundle == "volume" else f"lora --bundle {shlex.quote(bundle)}"
    typer.echo(
        f"medsam-tune train {recipe} {entry.options} --checkpoint {shlex.quote(str(path))} "
        "--datalist datalist.json --output runs/lora"
    )


@app.command()
def info(
    model: Annotated[str | None, typer.Option(help="This model only.")] = None,
    method: Annotated[
        str | None, typer.Option(help="This method only. With --model, list its tensors too.")
    ] = None,
) -> None:
    """List how many parameters each method trains, and their share of the model."""
    from medsam_tune.methods.parameters import trained_parameters

    if model is not None:
        _refuse_unknown("model", model, MODELS)
    if method is not None:
        _refuse_unknown("method", method, METHODS)
    typer.echo(f"{'model':<10} {'method':<8} {'trained':>12} {'of':>12} {'share':>8}")
    for name in [model] if model else MODELS:
        for each in [method] if method else METHODS:
            sizes, total = trained_parameters(name, each)
            trained = sum(sizes.values())
            typer.echo(f"{name:<10} {each:<8} {trained:>12,} {total:>12,} {trained / total:>8.2%}")
            if model and method:
                for key, size in sizes.items():
                    typer.echo(f"  {key} {size:,}")


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for everything it writes.")] = Path("demo"),
    method: Annotated[str, typer.Option(help=f"What to train: {', '.join(METHODS)}.")] = "lora",
) -> None:
    """Tune on synthetic CT scans. Compare Dice before and after on held-out ones, with pictures."""
    from medsam_tune.demo import run_demo

    text = run_demo(output, method)
    typer.echo(f"\n{text}")


def _given(**options: Any) -> dict[str, Any]:
    return {key: value for key, value in options.items() if value is not None}


def _refuse_unknown(kind: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        raise ValueError(f"{kind} {name!r} is unknown; known: {', '.join(known)}.")


def _refuse_random(model: str, checkpoint: Path | None) -> None:
    _refuse_unknown("model", model, MODELS)
    if model != "nano" and checkpoint is None:
        raise ValueError(
            f"{model} needs --checkpoint: its weights are not in the package. `medsam-tune "
            "download` fetches published ones. --model nano needs none."
        )


_USER_ERRORS = (ValueError, FileNotFoundError, FileExistsError, FloatingPointError)


def _user_error(error: BaseException) -> BaseException:
    """The error in a chain of causes that a user can correct: MONAI wraps those of a config."""
    while error.__cause__ is not None and not isinstance(error, _USER_ERRORS):
        error = error.__cause__
    return error


def main() -> None:
    """Run a command; an error that a user can correct is one line and exit code 1."""
    try:
        app()
    except (*_USER_ERRORS, RuntimeError) as error:
        cause = _user_error(error)
        if os.environ.get("MEDSAM_TUNE_TRACEBACK") or not isinstance(cause, _USER_ERRORS):
            raise
        typer.echo(f"medsam-tune: {cause}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
