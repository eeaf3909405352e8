"""The command that writes a prompt file for a scan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medsam_tune.cli.next_steps import after_prompts
from medsam_tune.cli.options import Overwrite, Series
from medsam_tune.errors import DataError, about, listed
from medsam_tune.files import refuse_other_ending, refuse_taken

if TYPE_CHECKING:
    from medsam_tune.formats.mending import Mending
    from medsam_tune.slices.frames import ScanGrid
    from medsam_tune.slices.rules import ScanRules


def prompts(
    scan: Annotated[
        Path, typer.Argument(help="A NIfTI, NRRD or MetaImage file, or a DICOM folder.")
    ],
    output: Annotated[Path, typer.Option(help="Prompt file to write, JSON.")],
    run: Annotated[
        Path | None, typer.Option(help="Folder of a training run: takes its labels and rules.")
    ] = None,
    datalist: Annotated[
        Path | None, typer.Option(help="Datalist: takes its labels. Not with --run.")
    ] = None,
    from_labels: Annotated[
        Path | None,
        typer.Option(
            help="Label map, DICOM SEG, RTSTRUCT or folder of organs: takes the prompts from it."
        ),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            "--as",
            help="With --from-labels: box3d (the default), slices, interpolated:N, middle, "
            "middle-range, points or scribbles.",
        ),
    ] = None,
    series: Series = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a prompt file for `predict`: boxes to fill in, or prompts from a label map."""
    if kind is not None and from_labels is None:
        raise ValueError("--as needs --from-labels.")
    if run is not None and datalist is not None:
        raise ValueError("give --run or --datalist, not both.")
    refuse_other_ending(output, ".json")
    of_run = run.glob("*.json") if run is not None else ()
    refuse_taken(output, overwrite, inputs=(scan, from_labels, datalist, *of_run))
    if not scan.exists():
        raise DataError(f"{scan}: no such scan. Correct the path.")
    if from_labels is not None and not from_labels.exists():
        raise DataError(f"{from_labels}: no such label. Correct the path.")
    from medsam_tune.inference.prompt_files import write_prompts
    from medsam_tune.inference.prompt_files.label_maps import check_kind

    check_kind(kind := kind or "box3d")
    labels, rules, mending, coding = _choices(run, datalist)
    grid, objects, labels = (
        _to_fill(scan, series, labels, rules)
        if from_labels is None
        else _of_labels(scan, series, from_labels, labels, rules, mending, kind, coding)
    )
    write_prompts(output, grid, labels, objects)
    ids = dict.fromkeys(each["label"] for each in objects)
    found = listed(f"{key} {labels.get(key, '')}".strip() for key in ids)
    typer.echo(f"{output}: {'boxes to fill in' if from_labels is None else kind}, {found}")
    after_prompts(scan, series, run, output, from_labels is not None)


def _choices(
    run: Path | None, datalist: Path | None
) -> tuple[Mapping[int, str], ScanRules | None, Mending | None, Mapping[str, Any]]:
    """Labels, rules, mending and coding of a run; labels and coding of a datalist; or none."""
    if datalist is not None:
        from medsam_tune.cases.datalist import read_datalist

        data = read_datalist(datalist)
        return data.labels, None, None, data.coding.describe()
    if run is None:
        return {}, None, None, {}
    from medsam_tune.formats.mending import Mending
    from medsam_tune.methods.tuned import read_header
    from medsam_tune.runs import read_record
    from medsam_tune.slices.rules import rules_from

    record = read_record(run)
    labels = read_header(run / "tuned.safetensors").labels
    return labels, rules_from(record.rules), Mending(**record.mending), record.coding


def _grid(shape: Sequence[int], affine: Any, rules: ScanRules | None) -> ScanGrid:
    """The grid of a scan; with rules, of the plane that they choose for its slices."""
    from medsam_tune.slices.frames import ScanGrid

    i, j, k = (int(n) for n in shape[:3])
    return ScanGrid(affine, (i, j, k)) if rules is None else rules.grid((i, j, k), affine)


def _to_fill(
    scan: Path, series: str | None, labels: Mapping[int, str], rules: ScanRules | None
) -> tuple[ScanGrid, list[dict[str, Any]], Mapping[int, str]]:
    from medsam_tune.cases.checks import check_modality
    from medsam_tune.formats.open import read_grid
    from medsam_tune.inference.prompt_files import objects_to_fill

    with about(f"case {scan.name}"):
        found = read_grid(scan, series)
        check_modality(found.modality, "" if rules is None else rules.expected.modality, scan)
    return _grid(found.shape, found.affine, rules), objects_to_fill(labels), labels


def _of_labels(
    scan: Path,
    series: str | None,
    label_path: Path,
    labels: Mapping[int, str],
    rules: ScanRules | None,
    mending: Mending | None,
    kind: str,
    coding: Mapping[str, Any],
) -> tuple[ScanGrid, list[dict[str, Any]], Mapping[int, str]]:
    from dataclasses import replace

    from medsam_tune.cases.datalist import Case
    from medsam_tune.cases.labels.open import open_label
    from medsam_tune.cases.labels.segments import says_nothing
    from medsam_tune.cases.load import load_case
    from medsam_tune.inference.prompt_files import objects_of
    from medsam_tune.inference.prompt_files.label_maps import (
        coding_without_gaps,
        prompts_of_labels,
    )
    from medsam_tune.slices.cut import cut_label

    named = labels
    if not labels:
        opened = open_label(label_path)
        labels = opened.names()
        named = {key: "" if says_nothing(name, key) else name for key, name in labels.items()}
    expected = None if rules is None else rules.expected
    said = coding_without_gaps(coding, labels, label_path)
    case = Case(scan, label_path, "", series, coding=said)
    image, label = load_case(case, labels, mending, expected)
    grid = _grid(image.shape[1:], image.meta["original_affine"], rules)
    grid = replace(grid, size=(0, 0, 0))  # the file's own slices, which a person sees
    assert label is not None
    pieces = None if rules is None else rules.components
    prompts = prompts_of_labels(cut_label(label, grid)[0], labels, kind, components=pieces)
    objects = objects_of(prompts, grid, named)
    if not objects:
        known = listed(labels.values())
        raise DataError(f"{label_path}: no label has a voxel; expected one of: {known}.")
    return grid, objects, named
