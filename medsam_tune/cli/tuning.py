"""Commands on a training run: train, evaluate, export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from medsam_tune.bundle import run_bundle, training_configs
from medsam_tune.cli.bundles import bundle_of_data, bundle_of_run
from medsam_tune.cli.next_steps import (
    after_evaluate,
    after_export,
    after_masks,
    after_train,
    after_zero_shot,
    told_to_continue,
)
from medsam_tune.cli.options import (
    FORMATS,
    HALVES,
    KINDS,
    METHODS,
    Bundle,
    Checkpoint,
    CheckpointOfRun,
    Datalist,
    Gpus,
    ImageSize,
    Model,
    Overlay,
    Overwrite,
    Run,
    Set,
    Unfinished,
    given,
    refuse_gpus,
    refuse_random,
    refuse_unknown,
)
from medsam_tune.errors import DataError
from medsam_tune.files import refuse_taken
from medsam_tune.settings import read_settings


def train(
    method: Annotated[str, typer.Argument(help=f"What to train: {', '.join(METHODS)}.")],
    datalist: Datalist,
    output: Annotated[Path, typer.Option(help="Folder of the run. New, unless --resume is given.")],
    bundle: Bundle = None,
    model: Model = "nano",
    image_size: ImageSize = None,
    checkpoint: Checkpoint = None,
    no_prompt: Annotated[
        bool, typer.Option("--no-prompt", help="Train for use without any prompt alone.")
    ] = False,
    class_agnostic: Annotated[
        bool,
        typer.Option(
            "--class-agnostic", help="Train SAM's own prompting without labels, for --format sam."
        ),
    ] = False,
    resume: Annotated[
        bool, typer.Option(help="Continue the run in --output from where it stopped.")
    ] = False,
    gpus: Gpus = 1,
    shard: Annotated[
        bool,
        typer.Option(
            "--shard",
            help="For train full of a large model, with --gpus: each GPU holds a part of the "
            "weights, gradients and optimizer states.",
        ),
    ] = False,
    overlay: Overlay = None,
    set_: Set = None,
) -> None:
    """Tune a model. The epoch with the best Dice on the validation cases is kept."""
    refuse_unknown("method", method, METHODS)
    refuse_random(model, checkpoint)
    bundle = bundle_of_data(bundle, datalist)
    base = {"model": model, **given(image_size=image_size, checkpoint=checkpoint)}
    flags = {"no_prompt": no_prompt, "class_agnostic": class_agnostic}
    configs = training_configs(bundle, method, overlay or [], **flags, **base)
    configs += refuse_gpus(gpus, shard)
    overrides: dict[str, Any] = {"datalist": datalist, "output_dir": output, **base}
    if resume:
        overrides["resume"] = True
    settings = read_settings(set_, [*overrides, "method"])
    with told_to_continue("--resume"):
        run_bundle(bundle, configs, overrides | settings, gpus)
    after_train(output, bundle)


def evaluate(
    run: Annotated[Path | None, typer.Option(help="Folder of a training run.")] = None,
    zero_shot: Annotated[
        bool, typer.Option(help="Evaluate the base model, untuned, instead of a run.")
    ] = False,
    model: Model = "nano",
    datalist: Annotated[
        Path | None, typer.Option(help="Datalist, JSON. Default: that of --run.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder for the results, with --zero-shot or --masks.")
    ] = None,
    prompts: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Kinds of prompts, taken from the labels: {', '.join(KINDS)}. With commas, or "
            "repeated; metrics.csv is of the first. Default: slices,box3d; of 2-D images "
            "slices,none.",
        ),
    ] = None,
    image_size: ImageSize = None,
    checkpoint: Checkpoint = None,
    masks: Annotated[
        Path | None,
        typer.Option(
            help="Score the masks in this folder, of another tool or reader, instead of a model."
        ),
    ] = None,
    jitter: Annotated[
        str | None,
        typer.Option(
            help="Also score by worse --prompts, for a curve in the report: deviations of a box's "
            "sides, and of a point, as shares of the box, such as 0,0.05,0.1,0.2. With --run."
        ),
    ] = None,
    confidence: Annotated[
        bool,
        typer.Option(
            "--confidence",
            help="Also learn from the validation cases which Dice the model's own estimate of a "
            "mask stands for; the report judges it, and `predict` writes it. With --run.",
        ),
    ] = False,
    unfinished: Unfinished = False,
    bundle: Bundle = None,
    gpus: Gpus = 1,
    overlay: Overlay = None,
    set_: Set = None,
) -> None:
    """Measure how good masks are on the held-out test cases, for each kind of prompts.

    Writes evaluation/report.html, metrics.csv and summary.json into --run or --output.
    """
    if masks is not None:
        if run is not None or zero_shot or prompts or datalist is None:
            raise ValueError("--masks needs --datalist; it takes no --run, --zero-shot, --prompts.")
        of_models = {
            **{"--overlay": overlay, "--jitter": jitter, "--confidence": confidence},
            **{"--unfinished": unfinished, "--image-size": image_size, "--checkpoint": checkpoint},
            **{"--model": model != "nano", "--gpus": gpus != 1},
        }
        if said := [name for name, value in of_models.items() if value]:
            raise ValueError(f"{', '.join(said)}: of models; --masks scores without any.")
        from medsam_tune.evaluation.masks import evaluate_masks
        from medsam_tune.tasks import OF_MASKS, for_masks, is_of_masks

        chosen = read_settings(set_, ["datalist", "output_dir"])
        for key in chosen:
            if not is_of_masks(key):
                raise ValueError(
                    f"--set {key}={chosen[key].text}: masks are scored without a model; expected "
                    f"one of {', '.join(OF_MASKS)}."
                )
        place = output or masks.with_name(f"{masks.name}_evaluation")
        arguments = for_masks(bundle_of_data(bundle, datalist), chosen)
        after_masks(evaluate_masks(masks, datalist, place, **arguments))
        return
    places = ("output_dir", "subset")
    further = {"--jitter": jitter is not None, "--confidence": confidence}
    for option in (name for name, asked in further.items() if asked):
        if run is None or unfinished or any(one.startswith(places) for one in set_ or ()):
            raise ValueError(
                f"{option} needs --run, finished, its test cases, and results in its folder."
            )
    kinds = [kind for text in prompts or () for kind in text.split(",")] or None
    noises: list[float] = []
    if jitter is not None:
        from medsam_tune.evaluation.jitter import parse_jitters

        noises = parse_jitters(jitter)
    if zero_shot:
        if run is not None or datalist is None or output is None:
            raise ValueError("--zero-shot needs --datalist and --output, and takes no --run.")
        refuse_random(model, checkpoint)
        if (output / "evaluation").exists():
            raise DataError(f"{output}: holds an evaluation already; choose another --output.")
        bundle = bundle_of_data(bundle, datalist)
        overrides = {"datalist": datalist, "run_dir": output, "model": model}
        overrides |= given(prompts=kinds, image_size=image_size, checkpoint=checkpoint)
        configs = ["evaluate.yaml", "zero_shot.yaml", *(overlay or []), *refuse_gpus(gpus)]
        run_bundle(bundle, configs, overrides | read_settings(set_, overrides), gpus)
        after_zero_shot(output, datalist, model, checkpoint, bundle)
    elif run is None:
        raise ValueError("give --run, the folder of a training run, or --zero-shot.")
    elif output is not None or image_size is not None or model != "nano":
        raise ValueError(
            "--output, --model and --image-size are for --zero-shot; a run has its own. Results go "
            "into the run's folder, or to --set output_dir=FOLDER."
        )
    else:
        bundle = bundle_of_run(bundle, run)
        overrides = {"run_dir": run} | given(datalist=datalist, checkpoint=checkpoint)
        overrides |= given(prompts=kinds, unfinished=unfinished or None)
        configs = ["evaluate.yaml", *(overlay or []), *refuse_gpus(gpus)]
        settings = overrides | read_settings(set_, overrides)
        run_bundle(bundle, configs, settings, gpus)
        if noises:
            _evaluate_noises(noises, run, bundle, configs, settings, gpus)
        if confidence:
            from medsam_tune.evaluation.confidence import write_confidence

            known = run / "evaluation_validation"
            run_bundle(bundle, configs, {**settings, "subset": "validation"}, gpus)
            write_confidence(run, known, run / "evaluation")
        after_evaluate(run, bundle, unfinished)


def _evaluate_noises(
    noises: Sequence[float],
    run: Path,
    bundle: str,
    configs: Sequence[str],
    settings: Mapping[str, Any],
    gpus: int,
) -> None:
    """Evaluate by boxes of each noise, and add the curve to the evaluation of the run."""
    from medsam_tune.evaluation.jitter import write_curve

    with TemporaryDirectory(prefix="medsam_tune-") as folder:
        places = {noise: Path(folder) / str(number) for number, noise in enumerate(noises)}
        for noise, place in places.items():
            run_bundle(bundle, configs, {**settings, "jitter": noise, "output_dir": place}, gpus)
        write_curve(run / "evaluation", places)


def export(
    run: Run,
    output: Annotated[
        Path,
        typer.Option(
            help="For sam a file, .pth or .safetensors; for tuned one, .safetensors; else a new "
            "folder."
        ),
    ],
    format_: Annotated[str, typer.Option("--format", help=f"One of {', '.join(FORMATS)}.")] = "sam",
    dtype: Annotated[
        str | None,
        typer.Option(help=f"Type of the weights of sam and tuned: {', '.join(HALVES)}."),
    ] = None,
    checkpoint: CheckpointOfRun = None,
    overwrite: Overwrite = False,
    unfinished: Unfinished = False,
) -> None:
    """Write a run as a plain SAM, ONNX, a peft folder, a MONAI bundle, or a small tuned file."""
    from medsam_tune.bundle_export import export_bundle
    from medsam_tune.methods.export import export_onnx, export_sam, is_stock
    from medsam_tune.methods.peft_folder import save_peft
    from medsam_tune.methods.tuned import HALVES as DTYPES
    from medsam_tune.methods.tuned import load_tuned, read_header, save_tuned
    from medsam_tune.runs import TUNED, read_record, tuned_file

    refuse_unknown("format", format_, FORMATS)
    if dtype is not None:
        refuse_unknown("dtype", dtype, HALVES)
        if format_ != "tuned" and (format_, dtype) != ("sam", "float16"):
            raise ValueError(f"--dtype {dtype} is for tuned, or float16 for sam; not {format_}.")
    record = read_record(run)
    base = checkpoint or (None if record.checkpoint is None else Path(record.checkpoint))
    if format_ in ("sam", "tuned"):
        refuse_taken(output, overwrite, [run / TUNED, base])
    tuned = tuned_file(run, unfinished)
    model = load_tuned(tuned, checkpoint=base)
    if format_ == "onnx":
        export_onnx(model, output, read_header(tuned).labels)
        typer.echo(f"{output}: encoder.onnx, decoder.onnx and model.json of a {model.base.name}")
    elif format_ == "peft":
        save_peft(model, output)
        typer.echo(f"{output}: adapter_config.json and adapter_model.safetensors")
    elif format_ == "bundle":
        export_bundle(model, record, read_header(tuned).labels, output)
        typer.echo(f"{output}: a MONAI bundle of {', '.join(read_header(tuned).labels.values())}")
    elif format_ == "tuned":
        labels = read_header(tuned).labels
        save_tuned(model, output, labels, DTYPES[dtype] if dtype else None)
        sizes = [f"{path.stat().st_size:,} bytes" for path in (output, tuned)]
        typer.echo(f"{output}: {sizes[0]}, of {sizes[1]} before; load_tuned opens it")
    else:
        export_sam(model, output, half=dtype is not None)
        kind = model.base
        typer.echo(f"{output}: a plain {kind.name}")
        if kind.normalisation == "medsam":
            typer.echo(
                "it takes images in [0, 1], as MedSAM's own code does; SamPredictor does not"
            )
        if not is_stock(model):
            typer.echo(
                f"segment_anything has no {kind.name} of {kind.image_size} pixels and "
                f"{kind.in_channels} channels; medsam_tune.build_sam opens it."
            )
    after_export(output, format_, model.base)
