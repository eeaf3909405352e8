"""The command that writes the report of an evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medsam_tune.cli.options import Overwrite


def report(
    run: Annotated[
        Path, typer.Option(help="Folder of a run, or of an evaluation, that was evaluated.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(help="The page, .html. Default: report.html in the folder of the evaluation."),
    ] = None,
    viewer: Annotated[
        bool,
        typer.Option(
            "--viewer",
            help="With the worst scans in 3-D, annotation and prediction over them. The page grows "
            "by their voxels and 2 MB; it still needs no network.",
        ),
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Write the report of an evaluation: one page, to read, print and send, without a network.

    `evaluate` writes it too; the same as Markdown lies beside it.
    """
    from medsam_tune.evaluation.report import write_report
    from medsam_tune.files import refuse_other_ending, refuse_taken

    if output is not None:
        refuse_other_ending(output, ".html")
        for path in (output, output.with_suffix(".md")):
            refuse_taken(path, overwrite, [])
    typer.echo(f"report: {write_report(run, output, viewer)}")
