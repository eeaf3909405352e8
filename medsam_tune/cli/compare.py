"""The command that compares methods on one split."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from medsam_tune.cli.bundles import bundle_of_data
from medsam_tune.cli.next_steps import IMAGES, after_compare, told_to_continue
from medsam_tune.cli.options import (
    KINDS,
    METHODS,
    Bundle,
    Checkpoint,
    Datalist,
    ImageSize,
    Model,
    Set,
    refuse_random,
    refuse_unknown,
)
from medsam_tune.settings import read_settings

_KNOWN = ("zero_shot", *METHODS)
_TAKEN = (
    *("datalist", "output_dir", "run_dir", "method", "model", "checkpoint", "image_size"),
    *("epochs", "seed", "resume"),
)


def compare(
    datalist: Datalist,
    output: Annotated[
        Path, typer.Option(help="Folder of the comparison. The same again continues it.")
    ],
    methods: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Of {', '.join(_KNOWN)}. With commas, or repeated. Default: all of them."
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Epochs of each training. Default: the recipe's.")
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            help="Minutes of each training, instead of --epochs: as many epochs as fit, by the "
            "time of the first."
        ),
    ] = None,
    seeds: Annotated[
        int, typer.Option(min=1, help="Trainings of each method; a case's score is their mean.")
    ] = 1,
    few_shot: Annotated[
        str | None,
        typer.Option(
            help="Numbers of training patients, such as 5,10,50: each method is trained with each "
            "of them by few_shot.yaml, in place of once with all; the page has the learning curve."
        ),
    ] = None,
    folds: Annotated[
        int | None,
        typer.Option(
            min=3,
            help="Cross-validation in so many folds, in place of the datalist's split: the tables "
            "are of the held-out cases of all folds, each judged by a model that has not seen it.",
        ),
    ] = None,
    prompts: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Kinds of prompts, as of `evaluate`: {', '.join(KINDS)}. Default: "
            "slices,box3d,none, of 2-D images slices,points,none; each model by those it takes."
        ),
    ] = None,
    masks: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=FOLDER: masks of another tool or reader, as a further method. May be "
            "repeated."
        ),
    ] = None,
    bundle: Bundle = None,
    model: Model = "nano",
    image_size: ImageSize = None,
    checkpoint: Checkpoint = None,
    set_: Set = None,
) -> None:
    """Train and evaluate several methods on one split, and compare them in one table and page.

    What is done is kept, and what was stopped is continued. A method that fails does not end the
    others; the exit code is then 3.
    """
    names = _words(methods) or [*_KNOWN]
    for name in names:
        refuse_unknown("method", name, _KNOWN)
    refuse_random(model, checkpoint)
    if minutes is not None and (epochs is not None or not minutes > 0):
        raise ValueError("--minutes takes a number above 0, and no --epochs beside it.")
    settings = read_settings(set_, _TAKEN)
    given = _masks(masks or [])
    shots = _numbers(few_shot)
    if shots and folds:
        raise ValueError("--few-shot and --folds exclude each other; give one of them.")
    from medsam_tune.comparison import KINDS as USUAL
    from medsam_tune.comparison import Plan
    from medsam_tune.comparison import compare as compare_plan
    from medsam_tune.evaluation.cases import refuse_kinds
    from medsam_tune.failures import REFUSED
    from medsam_tune.inference.simulated import KINDS as ALL
    from medsam_tune.inference.simulated import KINDS_OF_IMAGES, parse_kind

    kinds = [str(parse_kind(kind, ALL)) for kind in _words(prompts)]
    bundle = bundle_of_data(bundle, datalist)
    if kinds:
        refuse_kinds(kinds, prompted=None, flat=bundle == IMAGES)
    plan = Plan(
        datalist=datalist,
        output=output,
        methods=names,
        bundle=bundle,
        model=model,
        checkpoint=checkpoint,
        image_size=image_size,
        epochs=epochs,
        minutes=minutes,
        seeds=seeds,
        kinds=kinds or (KINDS_OF_IMAGES if bundle == IMAGES else USUAL),
        masks=given,
        few_shot=shots,
        folds=folds or 0,
        settings=settings,
    )
    with told_to_continue():
        table, failed = compare_plan(plan)
    typer.echo(table)
    after_compare(output)
    if failed:
        raise typer.Exit(REFUSED)


def _words(texts: Sequence[str] | None) -> list[str]:
    """Words that were given with commas, or repeated; each once."""
    return [*dict.fromkeys(word for text in texts or () for word in text.split(",") if word)]


def _numbers(text: str | None) -> list[int]:
    """Numbers of patients, with commas between them.

    Raises:
        ValueError: a word that is no number above 0.
    """
    words = [] if text is None else text.split(",")
    if not all(word.strip().isdecimal() and int(word) > 0 for word in words):
        raise ValueError(f"--few-shot {text}: expected numbers of patients, such as 5,10,50.")
    return sorted({int(word) for word in words})


def _masks(pairs: Sequence[str]) -> dict[str, Path]:
    """Name -> folder.

    Raises:
        ValueError: a word of another form, or a name that is taken or no name of a folder.
    """
    found: dict[str, Path] = {}
    for pair in pairs:
        name, equals, folder = pair.partition("=")
        if not equals or not folder or not name.replace("-", "_").replace("_", "a").isalnum():
            raise ValueError(
                f"--masks {pair!r}: expected NAME=FOLDER, the name of letters, digits, - and _."
            )
        method = name.partition("-")[0]
        if method in _KNOWN or name in {*found, "few_shot", "folds"}:
            raise ValueError(f"--masks {pair!r}: the name {name} is taken; choose another one.")
        found[name] = Path(folder)
    return found
