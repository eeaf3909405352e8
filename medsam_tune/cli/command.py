"""The command `medsam-tune`: its commands in order, and one line for an error of the user."""

from __future__ import annotations

import os
import sys

import typer

import medsam_tune
from medsam_tune.cli.data import check, prepare, split
from medsam_tune.cli.models import demo, download, info
from medsam_tune.cli.tuning import evaluate, export, predict, train

app = typer.Typer(
    help=medsam_tune.__doc__,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (split, check, prepare, train, evaluate, predict, export, download, info, demo):
    app.command()(command)

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
