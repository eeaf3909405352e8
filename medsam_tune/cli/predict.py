"""The command that segments scans."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from medsam_tune.bundle import run_bundle
from medsam_tune.cli.bundles import bundle_of_run
from medsam_tune.cli.domains import domain_runs, one_by_one
from medsam_tune.cli.drawn import write_drawn
from medsam_tune.cli.next_steps import after_predict, after_refusals
from medsam_tune.cli.options import (
    KINDS,
    MASK_FORMATS,
    Bundle,
    CheckpointOfRun,
    Gpus,
    Overwrite,
    Series,
    Set,
    Unfinished,
    given,
    refuse_gpus,
)
from medsam_tune.failures import REFUSED
from medsam_tune.settings import read_settings


def predict(
    scans: Annotated[
        Path,
        typer.Argument(
            help="A NIfTI, NRRD or MetaImage file, a DICOM folder, or a 2-D image; a folder of "
            "such scans; DICOM studies; or a datalist."
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            help="Mask to write, in the scan's own grid: .nii.gz, .nii, .nrrd, .mha; or .dcm, of a "
            "DICOM series; or of a 2-D image .png, .tif, .gpkg, .geojson or .json (COCO). Or a "
            "folder, where masks are named after the scans."
        ),
    ],
    run: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folder of a training run. Repeated: the mean of the runs' logits, as of the "
            "folds of a cross-validation."
        ),
    ] = None,
    domains: Annotated[
        Path | None,
        typer.Option(
            help="Instead of --run, a folder of `medsam-tune domains`: each scan of a datalist is "
            "segmented by the model of its column `domain`, or all by that of --domain."
        ),
    ] = None,
    domain: Annotated[
        str | None, typer.Option(help="The domain of all scans, with --domains.")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="Prompt file, markups of 3D Slicer (.mrk.json), a label map, or of 2-D images "
            "COCO's JSON; of many scans a folder with a file for each, named after it. None: every "
            "label is found where the model says that it is."
        ),
    ] = None,
    prompts_as: Annotated[
        str | None,
        typer.Option(
            help=f"What a label map stands for: {', '.join(KINDS[:-1])}, or scribbles. "
            "Default: slices."
        ),
    ] = None,
    box: Annotated[
        list[str] | None,
        typer.Option(
            help="Of a 2-D image or a radiograph, a box around an object: x0,y0,x1,y1 in pixels, "
            "and its label. May be repeated."
        ),
    ] = None,
    point: Annotated[
        list[str] | None,
        typer.Option(
            help="Of a 2-D image or a radiograph, a point: x,y,1 inside or x,y,0 outside of the "
            "object, and its label. May be repeated."
        ),
    ] = None,
    format_: Annotated[
        str | None,
        typer.Option(
            "--format",
            help=f"One of {', '.join(MASK_FORMATS)}. Default: as --output ends; seg for .dcm.",
        ),
    ] = None,
    codes: Annotated[
        Path | None,
        typer.Option(
            help="For .dcm: table of what the labels are, CSV with the columns label, name, "
            "category, type, laterality, colour, region. Default: by the labels' names."
        ),
    ] = None,
    separate: Annotated[
        bool,
        typer.Option(
            help="Write a mask for each label, which may overlap; in a .dcm they are segments of "
            "one file."
        ),
    ] = False,
    probabilities: Annotated[
        bool, typer.Option(help="Write the probability of each label as well, float32.")
    ] = False,
    instances: Annotated[
        bool,
        typer.Option(
            "--instances",
            help="Of 2-D images, write the numbers of objects instead of labels: those of the "
            "prompts, or else the pieces of each label. A .json (COCO) holds objects anyway.",
        ),
    ] = False,
    everything: Annotated[
        bool,
        typer.Option(
            "--everything",
            help="Of a 2-D image, find every object by a grid of points, with a run of "
            "--class-agnostic; writes their numbers.",
        ),
    ] = False,
    subset: Annotated[
        str | None,
        typer.Option(help="Subset of a datalist: training, validation or test. Default: all."),
    ] = None,
    series: Series = None,
    ending: Annotated[
        str | None,
        typer.Option(help="Ending of the masks in a folder. Default: .nii.gz, or by --format."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on: leave out scans whose masks are there.")
    ] = False,
    checkpoint: CheckpointOfRun = None,
    overwrite: Overwrite = False,
    unfinished: Unfinished = False,
    bundle: Bundle = None,
    gpus: Gpus = 1,
    set_: Set = None,
) -> None:
    """Segment a scan, or many, by prompts of any kind, or every label without prompts.

    Beside each mask, a file .prediction.json says how it was made. Of many scans, one that cannot
    be done is said, and the others go on. Exit codes: 0, all are done; 3, some are refused; 1, none
    is done, or the call itself is refused.
    """
    if (run is None) is (domains is None) or (domain is not None and domains is None):
        raise ValueError("give --run, or --domains with a datalist or with --domain.")
    runs = {None: run} if run else domain_runs(cast(Path, domains), domain, scans)
    if box or point:
        if prompts is not None:
            raise ValueError("give --prompts, or --box and --point, not both.")
        options: dict[str, Any] = {"series": series, "unfinished": unfinished}
        options["overwrite"] = overwrite
        first = next(iter(runs.values()))[0]
        prompts = write_drawn(scans, first, output, box or [], point or [], **options)
    overrides: dict[str, Any] = {"scans": scans, "output": output}
    overrides |= given(prompts=prompts, series=series, subset=subset, ending=ending)
    overrides |= given(checkpoint=checkpoint, prompts_as=prompts_as)
    overrides |= given(format=format_, codes=codes)
    switches = {"separate": separate, "probabilities": probabilities, "resume": resume}
    switches |= {"instances": instances, "overwrite": overwrite, "unfinished": unfinished}
    overrides |= {name: True for name, on in switches.items() if on}
    configs = ["inference.yaml", *["everything.yaml"] * everything, *refuse_gpus(gpus)]
    jobs = {}
    for name, folders in runs.items():
        places = [str(folder) for folder in folders]
        own = {"run_dir": places[0] if len(places) == 1 else places, **given(domain=name)}
        own |= overrides
        of_run = bundle_of_run(bundle, folders[0])
        settings = own | read_settings(set_, own)
        jobs[name] = partial(run_bundle, of_run, configs, settings, gpus)
    try:
        if len(jobs) == 1:
            next(iter(jobs.values()))()
        else:
            one_by_one(jobs)
    except SystemExit as error:
        if error.code == REFUSED:
            after_refusals()
        raise
    after_predict(scans, output, instances or everything)
