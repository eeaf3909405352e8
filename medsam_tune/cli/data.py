"""Commands on data: split, check, prepare."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from medsam_tune.bundle import method_of, run_bundle, training_configs
from medsam_tune.cli.bundles import bundle_of_data
from medsam_tune.cli.next_steps import after_check, after_prepare, after_split
from medsam_tune.cli.options import (
    METHODS,
    MODALITIES,
    Bundle,
    Checkpoint,
    ImageSize,
    Model,
    Overlay,
    Overwrite,
    Set,
    given,
    refuse_random,
    refuse_unknown,
)
from medsam_tune.errors import DataError
from medsam_tune.files import refuse_other_ending, refuse_taken
from medsam_tune.settings import component_from, read_settings


def split(
    folder: Annotated[
        Path,
        typer.Argument(
            help="A task of the Medical Segmentation Decathlon, a folder with images/ and "
            "labels/ (or masks/), a CSV of image and label, COCO's JSON, or DICOM studies with SEG "
            "or RTSTRUCT."
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
    shots_seed: Annotated[
        int | None,
        typer.Option(
            help="Other patients for --shots, by another number; --seed changes all subsets."
        ),
    ] = None,
    stratify: Annotated[
        bool, typer.Option(help="Spread rare labels evenly. Reads every label map.")
    ] = True,
    patient_regex: Annotated[
        str | None,
        typer.Option(
            help="The patient in a case's name: the first group of this regular expression, or "
            "its whole match, e.g. 'pat\\d+'. Default: what DICOM or dataset.json says, else a "
            "guess from the names, which is printed."
        ),
    ] = None,
    patients: Annotated[
        Path | None, typer.Option(help="CSV of two columns, case and patient.")
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            help="Names of the labels, e.g. 1=liver,2=spleen. Values of one name are one label: "
            "2=kidney,3=kidney. Reads every label map."
        ),
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option(
            help="Class map of masks in colours, JSON: id, name and color of each class. Default: "
            "classes.json in the folder."
        ),
    ] = None,
    blocks: Annotated[
        str | None,
        typer.Option(
            help="GeoTIFF: side of spatial blocks, such as 120m or 512px, that stay in one subset. "
            "A large scene is cut into blocks; chips are grouped by the block that they lie in."
        ),
    ] = None,
    anonymous: Annotated[
        bool,
        typer.Option(
            "--anonymous",
            help="Number cases and patients in a random order. Results, pictures and slices then "
            "carry numbers only. The datalist still names the files, and OUT.key.csv the "
            "patients: keep both.",
        ),
    ] = False,
) -> None:
    """Split cases by patient into training, validation and held-out test cases."""
    from medsam_tune.cases.blocks import in_blocks, side_from
    from medsam_tune.cases.description import labels_typed
    from medsam_tune.cases.folders import find_cases
    from medsam_tune.cases.patients import (
        numbered,
        patients_by_regex,
        patients_by_table,
        patients_line,
    )
    from medsam_tune.cases.splits import (
        few_shots,
        fold_cases,
        labels_of_patients,
        split_cases,
        split_lines,
        write_splits,
    )
    from medsam_tune.formats.dicom.patients import secret_beside

    ways = {"--patient-regex": patient_regex, "--patients": patients, "--blocks": blocks}
    both = [name for name, value in ways.items() if value is not None]
    if len(both) > 1:
        raise ValueError(f"{' and '.join(both)} are both given; expected one of them.")
    if shots is None and shots_seed is not None:
        raise ValueError("--shots-seed chooses the patients of --shots, which is not given.")
    side = None if blocks is None else side_from(blocks)
    if out.suffix != ".json":
        raise ValueError(f"--out is {out}; expected a name that ends in .json.")
    names = [out] if folds is None else [out.with_stem(f"{out.stem}_{i}") for i in range(folds)]
    key = out.with_suffix(".key.csv") if anonymous else None
    for name in names if key is None else [*names, key]:
        if os.path.lexists(name):
            raise DataError(f"{name}: is there already; delete it or choose another --out.")
    typed = None if labels is None else labels_typed(labels)
    secret = partial(secret_beside, out)
    found = find_cases(folder, modality=modality, labels=typed, secret=secret, classes=classes)
    if side is not None:
        found = in_blocks(found, side)
        whose = patients_line(found, f"--blocks {blocks}")
    elif patient_regex is not None:
        found = patients_by_regex(found, patient_regex)
        whose = patients_line(found, f"--patient-regex {patient_regex!r}")
    elif patients is not None:
        found = patients_by_table(found, patients)
        whose = patients_line(found, str(patients))
    else:
        whose = patients_line(found)
    present = labels_of_patients(found) if stratify else None
    if folds is None:
        lists = [split_cases(found, fractions, seed, present)]
    else:
        lists = fold_cases(found, folds, seed, present)
    if shots is not None:
        lists = [few_shots(datalist, shots, shots_seed or 0, present) for datalist in lists]
    if key is None:
        write_splits(dict(zip(names, lists, strict=True)))
    else:
        put, table = numbered(found, seed)
        write_splits(dict(zip(names, map(put, lists), strict=True)), {key: table})
    typer.echo(whose)
    for name, datalist in zip(names, lists, strict=True):
        typer.echo("\n".join(split_lines(name, datalist)))
    if key is not None:
        typer.echo(f"{key}: which number is which scan and patient; keep it to yourself")
    if lists[0].training and lists[0].validation:
        after_split(names, lists[0].modality)


def check(
    place: Annotated[Path, typer.Argument(help="A datalist, a folder, or one scan.")],
    output: Annotated[
        Path | None, typer.Option(help="Write the findings to this file, JSON.")
    ] = None,
    overwrite: Overwrite = False,
    jobs: Annotated[int, typer.Option(help="Scans read at the same time.", min=1)] = 2,
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

    if output is not None:
        refuse_other_ending(output, ".json")
        refuse_taken(output, overwrite, [place, place / "dataset.json", place / "labels.json"])
    settings = read_settings(set_)
    any_unit = settings.pop("intensity", None) is not None
    mending = component_from("mending", Mending, settings)
    report = check_place(place, jobs, mending=mending, any_unit=any_unit)
    typer.echo("\n".join(report.lines()))
    if output is not None:
        report.write(output)
    after_check(place, report)
    raise typer.Exit(report.outcome)


def prepare(
    datalist: Annotated[Path, typer.Argument(help="Datalist, JSON, from `medsam-tune split`.")],
    slices_dir: Annotated[
        Path | None, typer.Option(help="Folder of the slices. Default: beside the datalist.")
    ] = None,
    jobs: Annotated[int, typer.Option(help="Scans prepared at the same time.", min=1)] = 2,
    embeddings: Annotated[
        bool,
        typer.Option(
            "--embeddings",
            help="Encode the training slices too, for `train METHOD --set cache=true` with the "
            "same settings.",
        ),
    ] = False,
    method: Annotated[
        str | None,
        typer.Option(
            help="For --embeddings: the method that is trained on them. Those of decoder serve "
            "prompt too; lora and adapter need --set network_def::last_blocks=2, or another "
            "number. Default: that of the overlays, or decoder."
        ),
    ] = None,
    model: Model = "nano",
    image_size: ImageSize = None,
    checkpoint: Checkpoint = None,
    bundle: Bundle = None,
    overlay: Overlay = None,
    set_: Set = None,
) -> None:
    """Estimate disk space, then prepare the slices of all scans for training.

    Sound slices are kept, so it may be stopped and started again, and run by several processes.
    Without it, the first training prepares them. A training finds them that has the same overlays
    and settings.
    """
    bundle = bundle_of_data(bundle, datalist)
    overrides: dict[str, Any] = {"datalist": datalist, "jobs": jobs} | given(slices_dir=slices_dir)
    words: list[object] = []
    base: dict[str, Any] = {}
    overlays = overlay or []
    of_overlays = method_of(bundle, overlays)
    if embeddings:
        refuse_unknown("method", method or "decoder", METHODS)
        refuse_random(model, checkpoint)
        base = given(model=model, image_size=image_size, checkpoint=checkpoint)
        overrides |= base
        words = [w for k, v in base.items() for w in (f"--{k.replace('_', '-')}", v)]
    elif (model, image_size, checkpoint, method) != ("nano", None, None, None):
        raise ValueError(
            "--model, --image-size, --checkpoint and --method are for --embeddings; slices are the "
            "same for all. Add --embeddings, or leave them out."
        )
    method = method or of_overlays
    configs = [*training_configs(bundle, method or "decoder", overlays, **base), "prepare.yaml"]
    configs += ["prepare_embeddings.yaml"] * embeddings
    run_bundle(bundle, configs, overrides | read_settings(set_, [*overrides, "method"]))
    trained = method or ("decoder" if embeddings else "lora")
    after_prepare(datalist, slices_dir, set_, bundle, words, trained, overlays)
