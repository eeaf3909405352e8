"""Runs of several domains on one base: each scan is segmented by its domain's model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from medsam_tune.errors import DataError, listed
from medsam_tune.files import read_json, refuse_other_format

DOMAINS = "domains.json"
DOMAINS_FORMAT = 1
"""Format of a multi-domain folder, and of its table."""


@dataclass(frozen=True)
class TunedDomains:
    """The runs of a multi-domain folder.

    Attributes:
        folder: the folder.
        runs: name of a domain -> folder of its run.
    """

    folder: Path
    runs: Mapping[str, Path]

    def run(self, name: str) -> Path:
        """The run of a domain.

        Raises:
            DataError: an unknown domain; names the known ones.
        """
        if name not in self.runs:
            raise DataError(
                f"{self.folder}: has no domain {name!r}; it has {listed(self.runs)}. Name one of "
                "them, or tune it: add it to the recipe, and run it again."
            )
        return self.runs[name]


def read_domains(folder: Path) -> TunedDomains:
    """The runs that `multi_domain.tune_domains` left in a folder.

    Raises:
        DataError: no such folder, or one of another version.
    """
    path = folder / DOMAINS
    if not path.is_file():
        raise DataError(f"{folder}: no {DOMAINS} in it; `medsam-tune domains` writes one.")
    content = read_json(path)
    refuse_other_format(path, content, DOMAINS_FORMAT, "Run `medsam-tune domains` again.")
    names = content.get("domains")
    if not isinstance(names, dict) or any(Path(name).name != name for name in names):
        raise DataError(f"{path}: is damaged. Run `medsam-tune domains` again.")
    return TunedDomains(folder, {name: folder / name for name in names})
