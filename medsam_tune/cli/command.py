"""The command `medsam-tune`: its commands in order, and one line for what goes wrong.

Exit codes: 0 done; 1 an error that the user can correct; 2 a mistyped command or option; 3 some
scans are refused (`check`, `predict`), or some methods or domains failed (`compare`, `domains`); 4
leaks (`check`); 5 the disk; 6 memory; 70 a fault of the package; 130 and 143 stopped by Ctrl-C and
SIGTERM. `failures` tells them apart.
"""

from __future__ import annotations

import os
import shutil
import sys
import traceback
from typing import Annotated

import typer

import medsam_tune
from medsam_tune.cli.compare import compare
from medsam_tune.cli.data import check, prepare, split
from medsam_tune.cli.domains import domains
from medsam_tune.cli.models import demo, download, info
from medsam_tune.cli.predict import predict
from medsam_tune.cli.prompts import prompts
from medsam_tune.cli.report import report
from medsam_tune.cli.tuning import evaluate, export, train
from medsam_tune.console import calm, close_bars, debugging
from medsam_tune.failures import PIPE, explain, is_closed_pipe
from medsam_tune.version import __version__

app = typer.Typer(
    help=medsam_tune.__doc__,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    # Tables of a narrow terminal would cut the names of the options.
    rich_markup_mode="rich" if shutil.get_terminal_size().columns >= 60 else None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    *(split, check, prepare, train, evaluate, compare, domains, report, prompts, predict),
    *(export, download, info, demo),
):
    app.command()(command)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"medsam-tune {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run a command; what goes wrong is one line, with the exit code of its kind."""
    typed = sys.argv
    with calm():
        try:
            app(prog_name="medsam-tune")
        except (Exception, SystemExit) as error:
            if is_closed_pipe(error):
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the flush at exit would fail again
                sys.exit(PIPE)
            if isinstance(error, SystemExit):
                raise
            close_bars()
            sys.argv = typed  # a bundle has its own
            line, code = explain(error)
            if debugging() or not line:
                traceback.print_exception(error)
            else:
                typer.echo(f"medsam-tune: {line}", err=True)
            sys.exit(code)
