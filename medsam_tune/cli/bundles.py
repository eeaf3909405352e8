"""The bundle of a command that names none: that of its run, or of its data."""

from __future__ import annotations

from pathlib import Path

from medsam_tune.cli.next_steps import IMAGES, SHIPPED
from medsam_tune.errors import DataError


def bundle_of_run(given: str | None, run: Path) -> str:
    """The bundle that was named, or that a run follows.

    Args:
        given: name or folder; None if none was named.
        run: folder of the run.

    Raises:
        ValueError: the run follows another bundle, whose rules would be applied in part.
    """
    from medsam_tune.bundle import bundle_folder, bundle_name
    from medsam_tune.runs import read_record

    try:
        own = read_record(run).bundle
    except DataError:  # the recipe says why
        own = ""
    if given is None:
        return own or SHIPPED
    if own and bundle_name(str(bundle_folder(given))) != own:
        raise ValueError(
            f"--bundle is {given}, and {run} was trained by the bundle {own}; leave --bundle out."
        )
    return given


def bundle_of_data(given: str | None, datalist: Path) -> str:
    """The bundle that was named, or that is for the data: of 2-D images, or of scans.

    Args:
        given: name or folder; None if none was named.
        datalist: datalist; one that cannot be read is for the recipe to refuse.
    """
    if given is not None:
        return given
    from medsam_tune.cases.datalist import read_datalist
    from medsam_tune.formats.open import is_flat

    try:
        cases = read_datalist(datalist, with_leaks=True, with_missing=True).cases
    except DataError:
        return SHIPPED
    return IMAGES if cases and all(is_flat(case.image) for case in cases) else SHIPPED
