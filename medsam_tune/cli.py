"""`medsam-tune`: thin over the bundles. What runs is printed first, ready to be typed again."""

from __future__ import annotations

import os
import runpy
import shlex
import sys
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
import typer
import yaml
from fire.parser import DefaultParseValue

import medsam_tune
from medsam_tune import downloads
from medsam_tune.cases.audit import check_place
from medsam_tune.cases.datalist import MODALITIES, write_datalist
from medsam_tune.cases.folders import find_cases
from medsam_tune.cases.splits import few_shots, fold_cases, labels_of_patients, split_cases
from medsam_tune.demo import IMAGE_SIZE, LEARNING_RATES, SETTINGS, run_demo
from medsam_tune.errors import DataError
from medsam_tune.formats.mending import Mending
from medsam_tune.methods import METHODS, apply_method
from medsam_tune.methods.export import export_onnx, export_sam, is_stock
from medsam_tune.methods.peft_folder import save_peft
from medsam_tune.methods.tuned import load_tuned, read_header
from medsam_tune.runs import read_record
from medsam_tune.sam.build import ARCHITECTURES, architecture, build_sam

app = typer.Typer(
    help=medsam_tune.__doc__,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_FORMATS = ("sam", "onnx", "peft")
_Datalist = Annotated[Path, typer.Option(help="Datalist JSON, from `medsam-tune split`.")]
_Set = Annotated[
    list[str] | None, typer.Option("--set", help="Any setting of the bundle, as key=value.")
]
_Overlay = Annotated[
    list[str] | None,
    typer.Option(help="Further config, of the bundle or a file of yours; later ones win."),
]
_Checkpoint = Annotated[
    Path | None,
    typer.Option(help="Weights of the base, or 'random'; every model but nano needs them."),
]
_ImageSize = Annotated[int | None, typer.Option(help="Side of the model's input, pixels.")]


@app.command()
def split(
    folder: Annotated[
        Path,
        typer.Argument(
            help="MSD folder, images/ and labels/ in one, or DICOM studies with SEG or RTSTRUCT."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Where the datalist goes.")] = Path("datalist.json"),
    fractions: Annotated[
        tuple[float, float, float], typer.Option(help="Training, validation, test.")
    ] = (0.7, 0.15, 0.15),
    seed: Annotated[int, typer.Option(help="Of the shuffling.")] = 0,
    modality: Annotated[
        str | None,
        typer.Option(help=f"{', '.join(MODALITIES)}, if the folder does not say, or has several."),
    ] = None,
    folds: Annotated[
        int | None, typer.Option(help="Cross-validation: that many datalists instead of fractions.")
    ] = None,
    shots: Annotated[
        int | None, typer.Option(help="Few-shot: keep so many of the training patients.")
    ] = None,
    stratify: Annotated[
        bool, typer.Option(help="Share out rare labels; reads every label map.")
    ] = True,
) -> None:
    """Split cases by patient into training, validation and held-out test cases."""
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
    place: Annotated[Path, typer.Argument(help="Datalist, folder of scans or DICOM, or one file.")],
    output: Annotated[
        Path | None, typer.Option(help="The findings as JSON, e.g. check.json.")
    ] = None,
    jobs: Annotated[int, typer.Option(help="Scans read at once.")] = 2,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="As for train, e.g. mending::resample_uneven=true."),
    ] = None,
) -> None:
    """Read every scan: what it is, what is refused, which are the same.

    Exit code 0: all sound; 3: some refused; 4: a patient or a scan is in two subsets; 1: the
    datalist or folder itself is refused.
    """
    report = check_place(place, jobs, mending=_mending(set_))
    typer.echo("\n".join(report.lines()))
    if output is not None:
        report.write(output)
    raise typer.Exit(report.outcome)


@app.command()
def prepare(
    datalist: Annotated[Path, typer.Argument(help="Datalist JSON, from `medsam-tune split`.")],
    slices_dir: Annotated[
        Path | None, typer.Option(help="Folder of the slices; by default beside the datalist.")
    ] = None,
    jobs: Annotated[int, typer.Option(help="Scans prepared at once.", min=1)] = 2,
    bundle: Annotated[str, typer.Option(help="Name of a bundle, or its folder.")] = "volume",
    set_: _Set = None,
) -> None:
    """Prepare the slices of all scans, which the first training would do: how much, then doing it.

    What is there and sound is not made again, so it may be stopped, and run by several processes.
    """
    overrides = {"datalist": datalist, "jobs": jobs} | _given(slices_dir=slices_dir)
    run_bundle(bundle, ["train.yaml", "prepare.yaml"], overrides | _settings(set_))


@app.command()
def train(
    method: Annotated[str, typer.Argument(help=f"One of {', '.join(METHODS)}.")],
    datalist: _Datalist,
    output: Annotated[Path, typer.Option(help="Folder of the run.")],
    bundle: Annotated[str, typer.Option(help="Name of a bundle, or its folder.")] = "volume",
    model: Annotated[str, typer.Option(help=f"One of {', '.join(ARCHITECTURES)}.")] = "nano",
    image_size: _ImageSize = None,
    checkpoint: _Checkpoint = None,
    no_prompt: Annotated[
        bool, typer.Option("--no-prompt", help="Segment every label without boxes.")
    ] = False,
    resume: Annotated[bool, typer.Option(help="Continue a run that was stopped.")] = False,
    overlay: _Overlay = None,
    set_: _Set = None,
) -> None:
    """Tune a model; what is kept is chosen by the Dice on validation cases."""
    if method not in METHODS:
        raise ValueError(f"method {method!r} is unknown; known: {', '.join(METHODS)}.")
    _refuse_random(model, checkpoint)
    configs = ["train.yaml"] if method == "decoder" else ["train.yaml", f"method_{method}.yaml"]
    configs += ["no_prompt.yaml"] if no_prompt else []
    configs += overlay or []
    overrides: dict[str, Any] = {"datalist": datalist, "output_dir": output, "model": model}
    overrides |= _given(image_size=image_size, checkpoint=checkpoint)
    if resume:
        overrides["resume"] = True
    run_bundle(bundle, configs, overrides | _settings(set_))


@app.command()
def evaluate(
    run: Annotated[Path | None, typer.Option(help="Folder of a training run.")] = None,
    zero_shot: Annotated[bool, typer.Option(help="The untouched base instead of a run.")] = False,
    model: Annotated[str, typer.Option(help=f"One of {', '.join(ARCHITECTURES)}.")] = "nano",
    datalist: Annotated[Path | None, typer.Option(help="With --zero-shot.")] = None,
    output: Annotated[Path | None, typer.Option(help="With --zero-shot.")] = None,
    image_size: _ImageSize = None,
    checkpoint: _Checkpoint = None,
    bundle: Annotated[str, typer.Option(help="Name of a bundle, or its folder.")] = "volume",
    overlay: _Overlay = None,
    set_: _Set = None,
) -> None:
    """Dice and IoU on the held-out test cases: evaluation/metrics.csv and summary.json."""
    if zero_shot:
        if run is not None or datalist is None or output is None:
            raise ValueError("--zero-shot needs --datalist and --output, and takes no --run.")
        _refuse_random(model, checkpoint)
        overrides = {"datalist": datalist, "run_dir": output, "model": model}
        overrides |= _given(image_size=image_size, checkpoint=checkpoint)
        configs = ["evaluate.yaml", "zero_shot.yaml", *(overlay or [])]
        run_bundle(bundle, configs, overrides | _settings(set_))
    elif run is None:
        raise ValueError("give --run, the folder of a training run, or --zero-shot.")
    else:
        overrides = {"run_dir": run} | _given(datalist=datalist, checkpoint=checkpoint)
        run_bundle(bundle, ["evaluate.yaml", *(overlay or [])], overrides | _settings(set_))


@app.command()
def predict(
    scan: Annotated[Path, typer.Argument(help="NIfTI, NRRD or MetaImage file, or a DICOM folder.")],
    run: Annotated[Path, typer.Option(help="Folder of a training run.")],
    output: Annotated[Path, typer.Option(help="Mask, .nii.gz, in the scan's own grid.")],
    prompts: Annotated[
        Path | None, typer.Option(help="Prompt file, JSON; not for --no-prompt runs.")
    ] = None,
    series: Annotated[
        str | None,
        typer.Option(help="SeriesInstanceUID, or its end, where a DICOM folder holds several."),
    ] = None,
    checkpoint: _Checkpoint = None,
    bundle: Annotated[str, typer.Option(help="Name of a bundle, or its folder.")] = "volume",
    set_: _Set = None,
) -> None:
    """Segment a scan from its boxes, or all labels without."""
    overrides = {"run_dir": run, "scan": scan, "output": output}
    overrides |= _given(prompts=prompts, series=series, checkpoint=checkpoint)
    run_bundle(bundle, ["inference.yaml"], overrides | _settings(set_))


@app.command()
def export(
    run: Annotated[Path, typer.Option(help="Folder of a training run.")],
    output: Annotated[
        Path, typer.Option(help="sam: .pth or .safetensors; onnx and peft: a new folder.")
    ],
    format_: Annotated[
        str, typer.Option("--format", help=f"One of {', '.join(_FORMATS)}.")
    ] = "sam",
    checkpoint: _Checkpoint = None,
) -> None:
    """Write a run as a plain SAM checkpoint, as ONNX, or as an adapter folder of peft."""
    if format_ not in _FORMATS:
        raise ValueError(f"format {format_!r} is unknown; known: {', '.join(_FORMATS)}.")
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
    name: Annotated[str, typer.Argument(help="vit_t, vit_b, vit_l, vit_h or medsam.")],
    output: Annotated[Path, typer.Option(help="Folder for the file.")] = Path("checkpoints"),
    bundle: Annotated[str, typer.Option(help="Name of a bundle, or its folder.")] = "volume",
) -> None:
    """Fetch a published checkpoint and check its hash. Nothing is ever fetched unasked."""
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
    model: Annotated[str | None, typer.Option(help="Only this model.")] = None,
    method: Annotated[str | None, typer.Option(help="Only this method; lists its tensors.")] = None,
) -> None:
    """What each method trains: parameters, and their share of the model."""
    models = [architecture(model).name] if model else list(ARCHITECTURES)
    typer.echo(f"{'model':<10} {'method':<8} {'trained':>12} {'of':>12} {'share':>8}")
    for name in models:
        for each in [method] if method else list(METHODS):
            with torch.device("meta"):
                tuned = apply_method(build_sam(name), each)
            sizes = {k: p.numel() for k, p in tuned.named_parameters() if p.requires_grad}
            trained, total = sum(sizes.values()), sum(p.numel() for p in tuned.parameters())
            typer.echo(f"{name:<10} {each:<8} {trained:>12,} {total:>12,} {trained / total:>8.2%}")
            if model and method:
                for key, size in sizes.items():
                    typer.echo(f"  {key} {size:,}")


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder of everything it writes.")] = Path("demo"),
    method: Annotated[str, typer.Option(help=f"One of {', '.join(METHODS)}.")] = "lora",
) -> None:
    """Tune on synthetic CT phantoms: zero-shot beside tuned Dice on held-out ones, pictures."""
    run = output / "run"
    if run.exists():
        raise DataError(f"{run}: a demo ran here already; delete it or choose another --output.")
    if method not in LEARNING_RATES:
        raise ValueError(f"method {method!r} is unknown; known: {', '.join(LEARNING_RATES)}.")
    settings = [f"{k}={v}" for k, v in {**SETTINGS, "lr": LEARNING_RATES[method]}.items()]
    text = run_demo(
        output,
        train=lambda datalist, folder: train(
            method, datalist, folder, image_size=IMAGE_SIZE, set_=settings
        ),
        evaluate=lambda folder: evaluate(run=folder),
        zero_shot=lambda datalist, folder: evaluate(
            zero_shot=True, datalist=datalist, output=folder, image_size=IMAGE_SIZE
        ),
    )
    typer.echo(f"\n{text}")


def bundle_folder(name: str) -> Path:
    """The folder of a bundle: "volume" for the `sam_volume` that comes with the package, or a path.

    Raises:
        DataError: no such bundle, with those that are there.
    """
    package = Path(__file__).resolve().parent
    shipped = package / "bundles" if (package / "bundles").is_dir() else package.parent / "bundles"
    for folder in (shipped / f"sam_{name}", Path(name)):
        if (folder / "configs").is_dir():
            return folder
    known = ", ".join(sorted(p.name.removeprefix("sam_") for p in shipped.glob("sam_*")))
    raise DataError(f"bundle {name!r} is neither a folder with configs/ nor one of: {known}.")


def run_bundle(bundle: str, configs: list[str], overrides: dict[str, Any]) -> None:
    """Print and run `python -m monai.bundle run` with config files of a bundle, in this process.

    Args:
        bundle: see `bundle_folder`.
        configs: names of files in its configs/, or paths, later ones laid over earlier ones.
        overrides: top-level settings.

    Raises:
        DataError: a config that is in neither place.
    """
    root = _shorter(bundle_folder(bundle))
    files = [str(_config(root / "configs", name)) for name in configs]
    argv = ["run", "--config_file", files[0] if len(files) == 1 else str(files).replace(", ", ",")]
    argv += ["--bundle_root", str(root)]
    for key, value in overrides.items():
        argv += [f"--{key}", _argument(value)]
    typer.echo(f"$ python -m monai.bundle {shlex.join(argv)}", err=True)
    sys.argv = ["monai.bundle", *argv]
    runpy.run_module("monai.bundle", run_name="__main__", alter_sys=False)


def _config(folder: Path, name: str) -> Path:
    for path in (folder / name, Path(name)):
        if path.is_file():
            return path
    known = ", ".join(sorted(path.name for path in folder.glob("*.yaml")))
    raise DataError(f"{name}: no such config here, nor in the bundle, which has {known}.")


def _argument(value: Any) -> str:
    """A value as fire reads it back: text that would become a number or a list is quoted."""
    text = str(value)
    if isinstance(value, (str, Path)) and DefaultParseValue(text) != text:
        return repr(text)
    return text


def _shorter(path: Path) -> Path:
    """A path relative to the working directory where that is shorter."""
    relative = Path(os.path.relpath(path))
    return relative if len(str(relative)) < len(str(path)) else path


def _given(**options: Any) -> dict[str, Any]:
    return {key: value for key, value in options.items() if value is not None}


def _settings(pairs: list[str] | None) -> dict[str, Any]:
    """`key=value` words; the bundle itself refuses keys that it does not have."""
    settings: dict[str, Any] = {}
    for pair in pairs or []:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ValueError(f"--set {pair!r}: expected key=value.")
        settings[key] = _Verbatim(value)
    return settings


def _mending(pairs: list[str] | None) -> Mending:
    """`mending::key=value` words as the recipes understand them."""
    known = {field.name for field in fields(Mending)}
    chosen: dict[str, Any] = {}
    for pair in pairs or []:
        key, equals, value = pair.partition("=")
        name = key.removeprefix("mending::")
        if not equals or name == key or name not in known:
            raise ValueError(
                f"--set {pair!r}: expected mending::key=value, the key one of "
                f"{', '.join(sorted(known))}."
            )
        chosen[name] = yaml.safe_load(value)
    return Mending(**chosen)


class _Verbatim:
    """A value that was typed for fire; YAML's words for true, false and null are understood too."""

    _WORDS: ClassVar = {"true": "True", "false": "False", "null": "$None", "None": "$None"}

    def __init__(self, text: str) -> None:
        self.text = self._WORDS.get(text, text)

    def __str__(self) -> str:
        return self.text


def _refuse_random(model: str, checkpoint: Path | None) -> None:
    if architecture(model).name != "nano" and checkpoint is None:
        raise ValueError(
            f"{model} needs --checkpoint: its weights are not embedded (`medsam-tune download "
            f"{model}` fetches published ones). Without a file there is the small embedded model, "
            "--model nano."
        )


_USER_ERRORS = (DataError, ValueError, FileNotFoundError, FileExistsError, FloatingPointError)


def _user_error(error: BaseException) -> BaseException:
    """What a user can mend in a chain of causes: MONAI wraps what comes from a config's objects."""
    while error.__cause__ is not None and not isinstance(error, _USER_ERRORS):
        error = error.__cause__
    return error


def main() -> None:
    """Entry point: an error that a user can mend is one line and exit code 1."""
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
