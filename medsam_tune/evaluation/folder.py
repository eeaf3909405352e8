"""The folder of an evaluation, which is replaced as a whole."""

from __future__ import annotations

import shutil
from pathlib import Path

from medsam_tune.errors import DataError, listed
from medsam_tune.evaluation.results import CONFIDENCE, INDEX, JITTER
from medsam_tune.evaluation.volumes import PARTS
from medsam_tune.inference.simulated import parse_kind
from medsam_tune.ranks import is_main, wait

_OURS = {"metrics.csv", "summary.json", "overlays", "report.html", "report.md"}
_OURS |= {CONFIDENCE, JITTER}


class ResultFolder:
    """A folder that holds one evaluation; the results of another take its place at the end.

    Until then they are in `scratch`. So an evaluation that fails leaves the one before it, and the
    files of two are never mixed.

    Args:
        path: folder, made if absent.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.scratch = self.path.with_name(f".{self.path.name}.new")

    def refuse_others(self) -> None:
        """Refuse a folder that no evaluation made.

        Raises:
            DataError: the folder holds something that no evaluation writes, or is a file.
        """
        for folder in (self.path, self.scratch):
            if folder.exists() and not folder.is_dir():
                raise DataError(f"{folder}: is a file; expected a folder for the results.")
            there = {one.name for one in folder.glob("*")}
            kinds = {name for name in there if _is_kind(name) and (folder / name).is_dir()}
            others = there - _OURS - kinds
            others |= {
                f"{kind}/{one.name}"
                for kind in kinds
                for one in (folder / kind).glob("*")
                if one.name != "metrics.csv"
            }
            pictures = folder / "overlays"
            others |= {
                one.name
                for one in pictures.glob("*")
                if one.suffix != ".png" and one.name != INDEX and not one.is_dir()
            }
            volumes = {f"{name}.nii.gz" for name in PARTS}
            others |= {one.name for one in pictures.glob("*/*") if one.name not in volumes}
            if others:
                raise DataError(
                    f"{folder}: holds other files ({listed(sorted(others), 3)}), and would be "
                    "replaced; choose another folder for the results."
                )

    def open(self) -> None:
        """Make the scratch folder, without what a killed evaluation left in it.

        Of several ranks, the first does so, and the others wait.

        Raises:
            DataError: see `refuse_others`.
        """
        if is_main():
            self.refuse_others()
            shutil.rmtree(self.scratch, ignore_errors=True)
            self.scratch.mkdir(parents=True)
        wait()

    def finish(self) -> None:
        """Put the results in their place."""
        if self.path.exists():
            shutil.rmtree(self.path)
        self.scratch.rename(self.path)


def _is_kind(name: str) -> bool:
    """Whether a name is that of the folder of a kind of prompts, see `Kind.file_name`."""
    try:
        return parse_kind(name.replace("interpolated-", "interpolated:")).file_name == name
    except ValueError:
        return False
