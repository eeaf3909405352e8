"""Trees of DICOM studies: which SEG or RTSTRUCT belongs to which series of images.

Folders may have any layout and may be named after patients. Pairs are therefore found by the UIDs
that the label objects refer to, and the names of cases do not identify the patient.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medsam_tune.errors import DataError, listed
from medsam_tune.formats.dicom.references import References, references
from medsam_tune.formats.dicom.series import Series, find_objects

LABEL_KINDS = ("SEG", "RTSTRUCT")


@dataclass(frozen=True)
class Labelled:
    """A series and the one label object that was drawn on it.

    Attributes:
        series: series of images.
        label: SEG or RTSTRUCT file.
        folder: smallest folder that holds all files of the series.
        alone: True if no other series lies in that folder.
    """

    series: Series
    label: Path
    folder: Path
    alone: bool

    @property
    def name(self) -> str:
        """Name for the case: 8 hexadecimal digits of the patient, 8 of the series."""
        return f"{self.patient[:8]}-{hashlib.sha256(self.series.uid.encode()).hexdigest()[:8]}"

    @property
    def patient(self) -> str:
        """Hash of PatientID; of the study, where there is none."""
        return self.series.patient or self.series.study or "unknown"


@dataclass(frozen=True)
class Tree:
    """What a folder of DICOM holds.

    Attributes:
        labelled: series with a label.
        others: series without one, or with several.
        problems: label that cannot be paired -> the reason.
    """

    labelled: tuple[Labelled, ...]
    others: tuple[Series, ...]
    problems: Mapping[Path, str]


def read_tree(folder: Path) -> Tree:
    """Pair all SEG and RTSTRUCT objects below a folder with their series.

    Args:
        folder: studies in any layout.

    Raises:
        DataError: a file cannot be read, or nothing below it is an image.
    """
    series, labels = find_objects(folder, LABEL_KINDS)
    by_series: dict[str, list[Path]] = defaultdict(list)
    problems: dict[Path, str] = {}
    for path in labels:
        said = references(path)
        meant = _meant(said, series)
        if len(meant) == 1:
            by_series[meant[0].uid].append(path)
            continue
        found = f"{len(meant)} series" if meant else f"no series of images in {folder}"
        named = ", ".join(said.series) or "none"
        problems[path] = (
            f"{path}: belongs to {found}; it names the series {named}; expected one. Put the "
            "series there, or take the label out."
        )
    for uid, paths in by_series.items():
        if len(paths) > 1:
            problems[paths[0]] = (
                f"{', '.join(map(str, paths))}: {len(paths)} labels of one series, {uid}; "
                "expected one. Take the others out of the folder."
            )
    below = _series_below(series)
    labelled = tuple(
        Labelled(one, by_series[one.uid][0], _folder_of(one), len(below[_folder_of(one)]) == 1)
        for one in series
        if len(by_series.get(one.uid, ())) == 1
    )
    paired = {one.series.uid for one in labelled}
    others = tuple(one for one in series if one.uid not in paired)
    return Tree(labelled, others, problems)


def choose_labelled(
    tree: Tree, folder: Path, modality: str | None
) -> tuple[tuple[Labelled, ...], str]:
    """The labelled series of one modality, and which it is.

    Args:
        tree: result of `read_tree`.
        folder: folder of the tree, for messages.
        modality: "CT" or "MR"; None for the only one there is.

    Raises:
        DataError: a label cannot be paired; no label; several modalities, or another.
    """
    if tree.problems:
        raise DataError("\n".join(tree.problems.values()))
    if not tree.labelled:
        raise DataError(
            f"{folder}: {len(tree.others)} series of images and no SEG or RTSTRUCT for them; "
            f"expected labels. There are: {listed(map(str, tree.others), 5, '; ')}."
        )
    there = Counter(one.series.modality or "?" for one in tree.labelled)
    if modality is None:
        if len(there) > 1 or not set(there) <= {"CT", "MR"}:
            counts = ", ".join(f"{count} of {kind}" for kind, count in sorted(there.items()))
            raise DataError(
                f"{folder}: labelled series: {counts}; expected CT or MR, one of them. Choose: "
                "--modality CT or --modality MR."
            )
        modality = next(iter(there))
    chosen = tuple(one for one in tree.labelled if one.series.modality in (modality, ""))
    if not chosen:
        raise DataError(
            f"{folder}: no labelled series of {modality}; there are: {', '.join(sorted(there))}. "
            "Choose another modality."
        )
    return chosen, modality


def _meant(said: References, series: Sequence[Series]) -> list[Series]:
    """The series that a label names; where it names none, those in its frame of reference."""
    if said.series:
        return [one for one in series if one.uid in said.series]
    return [one for one in series if said.frame and one.frame == said.frame]


def _folder_of(series: Series) -> Path:
    return Path(os.path.commonpath([path.parent for path in series.files]))


def _series_below(series: Iterable[Series]) -> dict[Path, set[str]]:
    """UIDs of the series that have a file in a folder or below it."""
    below: dict[Path, set[str]] = defaultdict(set)
    for one in series:
        for parent in {path.parent for path in one.files}:
            for folder in (parent, *parent.parents):
                below[folder].add(one.uid)
    return below
