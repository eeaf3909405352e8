"""The line after a command: what to do next, as a command with real arguments.

It goes to standard error, so that a script reads results alone from standard output.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from medsam_tune.cases.audit import Report
    from medsam_tune.sam.model import BaseModel

SHIPPED = "volume"
"""The bundle that commands take by themselves."""

IMAGES = "image"
"""The bundle of 2-D images."""

STOPPED = (130, 143)
"""Exit codes of a command that Ctrl-C or SIGTERM stopped."""


def medsam_tune(*words: object, bundle: str = SHIPPED) -> str:
    """A command line for a shell.

    Args:
        words: command, arguments and options; a path that looks like an option gets "./".
        bundle: name or folder of the bundle; named where it is not the default.
    """
    plain = [f"./{w}" if isinstance(w, Path) and str(w).startswith("-") else str(w) for w in words]
    named = [] if bundle == SHIPPED else ["--bundle", bundle]
    return shlex.join(["medsam-tune", *plain, *named])


@contextmanager
def told_to_continue(*more: str) -> Iterator[None]:
    """Say how to go on with a command that a signal stops within: the same again.

    Args:
        more: options that it then needs besides.
    """
    words = sys.argv[1:]  # a bundle that runs within has its own
    try:
        yield
    except SystemExit as error:
        if error.code in STOPPED:
            again = [*words, *(word for word in more if word not in words)]
            _say(f"medsam-tune {shlex.join(again)}", "continue")
        raise


def after_split(datalists: Sequence[Path], modality: str) -> None:
    """Check, then train, on the first datalist."""
    first = datalists[0]
    _say(f"{medsam_tune('check', first)} && {_train_on(first, modality)}")


def after_check(place: Path, report: Report) -> None:
    """Train on a sound datalist, split a sound folder, or mend what was refused."""
    from medsam_tune.cases.audit import LEAKING
    from medsam_tune.cases.folders import has_pairs
    from medsam_tune.failures import REFUSED

    again = medsam_tune("check", place)
    if report.outcome == LEAKING:
        _say(f"put all scans of a patient into one subset (split does), then {again}")
    elif report.outcome == REFUSED:
        _say(f"mend the refused scans as they say, or take them out, then {again}")
    elif has_pairs(place) or (place.is_dir() and any(one.labels for one in report.findings)):
        _say(medsam_tune("split", place, "--out", _free(Path("datalist.json"))))
    elif place.suffix == ".json":
        _say(_train_on(place, report.modality))


def after_prepare(
    datalist: Path,
    slices_dir: Path | None,
    settings: Sequence[str] | None,
    bundle: str,
    embedded_by: Sequence[object] = (),
    method: str = "lora",
    overlays: Sequence[str] = (),
) -> None:
    """Train on the prepared slices, by the same settings; or on embeddings by a model."""
    chosen = [] if slices_dir is None else [f"slices_dir={slices_dir}"]
    chosen += ["cache=true"] if embedded_by else []
    sets = [word for name in overlays for word in ("--overlay", name)]
    sets += [word for pair in [*chosen, *(settings or ())] for word in ("--set", pair)]
    _say(_train(*embedded_by, "--datalist", datalist, *sets, bundle=bundle, method=method))


def after_download(path: Path, options: str, bundle: str) -> None:
    """Train on the published checkpoint."""
    words = (*shlex.split(options), "--checkpoint", path, "--datalist", Path("datalist.json"))
    _say(_train(*words, bundle=bundle))


def after_train(run: Path, bundle: str) -> None:
    """Evaluate the run."""
    _say(medsam_tune("evaluate", "--run", run, bundle=bundle))


def after_evaluate(run: Path, bundle: str, unfinished: bool = False) -> None:
    """Predict a held-out scan by the run."""
    _results(run / "evaluation")
    scan, series = _held_out(run)
    chosen = ("--series", series) if series else ()
    if _prompted(run):
        boxes = _free(Path("boxes.json"))
        _say(medsam_tune("prompts", scan, *chosen, "--run", run, "--output", boxes))
    else:
        mask = ("--output", _mask_of(scan, bundle), *["--unfinished"] * unfinished)
        _say(medsam_tune("predict", scan, *chosen, "--run", run, *mask, bundle=bundle))


def after_zero_shot(
    output: Path, datalist: Path, model: str, checkpoint: Path | None, bundle: str
) -> None:
    """Tune the model that was evaluated."""
    _results(output / "evaluation")
    weights = () if checkpoint is None else ("--checkpoint", checkpoint)
    _say(_train("--model", model, *weights, "--datalist", datalist, bundle=bundle))


def after_masks(results: Path) -> None:
    """Read the report."""
    _results(results)
    _say(f"open {results / 'report.html'} in a browser")


def after_domains(output: Path) -> None:
    """Predict a mixed datalist by the domains' models."""
    typer.echo(f"results: {output / 'domains.md'}, with .json beside it", err=True)
    _say(
        "give each scan of a datalist its domain, then "
        + medsam_tune(
            "predict", "mixed.json", "--domains", output, "--output", _free(Path("masks"))
        )
    )


def after_compare(output: Path) -> None:
    """Read the page."""
    page = output / "compare.html"
    typer.echo(f"results: {page}, with .md, .csv and .json beside it", err=True)
    _say(f"open {page} in a browser")


def after_prompts(
    scan: Path, series: str | None, run: Path | None, output: Path, filled: bool
) -> None:
    """Fill in the boxes, then predict."""
    chosen = ("--series", series) if series else ()
    words = ("--run", run or Path("RUN"), "--prompts", output)
    mask = ("--output", _mask_of(scan))
    if not filled:
        _say(f"fill in the boxes of {output}, remove objects without one")
    _say(medsam_tune("predict", scan, *chosen, *words, *mask))


def after_predict(scans: Path, masks: Path, objects: bool = False) -> None:
    """Look at the mask, or at those of a folder.

    Args:
        scans: scan, or folder of scans.
        masks: mask, or folder of masks.
        objects: values are numbers of objects.
    """
    ending = masks.suffix.lower()
    if ending == ".png":
        values = "numbers of objects" if objects else "ids of the labels"
        _say(f"open {masks} beside {scans}; its values are the {values}, so it looks dark")
        return
    if ending in (".tif", ".tiff", ".gpkg", ".geojson"):
        _say(f"open {masks} over {scans}, e.g. in QGIS")
        return
    if ending == ".json":
        _say(f"look at the objects of {masks} on {scans}, e.g. by pycocotools")
        return
    if masks.suffix.lower() in (".gpkg", ".geojson", ".tif", ".tiff"):
        _say(f"open {masks} over {scans} in a GIS, e.g. QGIS")
        return
    which = "a mask of " if masks.is_dir() else ""
    over = "its scan" if masks.is_dir() else scans
    _say(f"open {which}{masks} over {over} in a viewer, e.g. 3D Slicer or ITK-SNAP")


def after_refusals() -> None:
    """Mend what was refused, then do what is missing."""
    _say("mend the refused scans as they say, or take them out, then the same with --resume")


def after_export(output: Path, format_: str, base: BaseModel) -> None:
    """Where the export is read."""
    path = repr(str(output))
    _say(
        {
            "sam": f"in Python: medsam_tune.build_sam({base.name!r}, {path}, "
            f"image_size={base.image_size}, in_channels={base.in_channels}, "
            f"normalisation={base.normalisation!r})",
            "onnx": f"run {output / 'encoder.onnx'} and {output / 'decoder.onnx'} by onnxruntime; "
            f"{output / 'model.json'} describes them",
            "bundle": f"in {output}: python -m monai.bundle run --config_file "
            "configs/inference.yaml --dataset_dir SCANS --output_dir MASKS",
            "peft": f"in Python: medsam_tune.methods.peft_folder.load_peft({path}, base)",
            "tuned": f"in Python: medsam_tune.load_tuned({path})",
        }[format_]
    )


def after_demo() -> None:
    """The same with one's own scans."""
    _say("the same with your own scans: medsam-tune check FOLDER")


def _say(text: str, what: str = "next") -> None:
    typer.echo(f"{what}: {text}", err=True)


def _results(folder: Path) -> None:
    typer.echo(
        f"results: {folder / 'metrics.csv'}, {folder / 'summary.json'}, pictures in "
        f"{folder / 'overlays'}\nreport: {folder / 'report.html'}",
        err=True,
    )


def _train_on(datalist: Path, modality: str) -> str:
    return _train("--datalist", datalist, bundle=IMAGES if modality == "RGB" else SHIPPED)


def _train(*words: object, bundle: str = SHIPPED, method: str = "lora") -> str:
    output = _free(Path("runs") / method)
    return medsam_tune("train", method, *words, "--output", output, bundle=bundle)


def _mask_of(scan: Path, bundle: str = SHIPPED) -> Path:
    """A free name for the mask of a scan; of 2-D images, and by their bundle, a PNG."""
    from medsam_tune.formats.open import is_flat

    return _free(Path("mask.png" if bundle == IMAGES or is_flat(scan) else "mask.nii.gz"))


def _free(path: Path) -> Path:
    """The path, or the next one by number that is not taken."""
    ending = "".join(path.suffixes)
    stem = path.name.removesuffix(ending)
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{stem}_{number}{ending}")
    return free


def _prompted(run: Path) -> bool:
    """Whether the model of a run takes prompts."""
    from medsam_tune.methods.tuned import read_header

    try:
        return not read_header(run / "tuned.safetensors").tuning.options.get("num_classes")
    except (ValueError, OSError):
        return True


def _held_out(run: Path) -> tuple[Path, str | None]:
    """The first test scan of a run's datalist and its series.

    A word stands for it where there is none, and where its case has a name that hides the file's.
    """
    from medsam_tune.cases.datalist import read_datalist
    from medsam_tune.runs import read_record

    try:
        datalist = read_record(run).datalist
        if datalist is not None and (cases := read_datalist(Path(datalist)).test):
            if cases[0].name is not None:
                return Path("SCAN"), None
            return cases[0].image, cases[0].series
    except (ValueError, OSError):
        pass
    return Path("SCAN"), None
