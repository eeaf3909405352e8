"""Trees of DICOM studies: which SEG or RTSTRUCT belongs to which series of images.

Folders may have any layout and may be named after patients. Pairs are therefore found by the UIDs
that the label objects refer to, and cases are numbered, so that no name identifies the patient.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medsam_tune.errors import DataError, listed, warn
from medsam_tune.formats.dicom.references import References, references
from medsam_tune.formats.dicom.rtstruct import organ_regions
from medsam_tune.formats.dicom.seg import read_segmentation, segment_names
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
        number: its place among all of the tree, from 1, by the UIDs of study and series.
        present: segments of a SEG that have a voxel; None for an RTSTRUCT.
    """

    series: Series
    label: Path
    folder: Path
    alone: bool
    number: int
    present: frozenset[int] | None

    @property
    def name(self) -> str:
        """Name for the case, such as "case_0001"."""
        return f"case_{self.number:04d}"

    @property
    def patient(self) -> str:
        """Keyed hash of PatientID; of the study, where there is none."""
        return self.series.patient or "unknown"


@dataclass(frozen=True)
class Tree:
    """What a folder of DICOM holds.

    Attributes:
        labelled: series with a label, by number.
        others: series without one, or with several.
        problems: file that keeps a case out, e.g. a label that cannot be read or paired -> the
            reason.
    """

    labelled: tuple[Labelled, ...]
    others: tuple[Series, ...]
    problems: Mapping[Path, str]


def read_tree(folder: Path, secret: bytes | None = None) -> Tree:
    """Pair all SEG and RTSTRUCT objects below a folder with their series.

    A file that cannot be read, or paired, keeps its own case out, and no other.

    Args:
        folder: studies in any layout.
        secret: key of the patients' hashes, see `patients.patient_key`.

    Raises:
        DataError: nothing below it is an image.
    """
    found = find_objects(folder, LABEL_KINDS, secret)
    series = found.series
    by_series: dict[str, list[Path]] = defaultdict(list)
    present: dict[Path, frozenset[int] | None] = {}
    problems = dict(found.problems)
    for path, kind in found.labels.items():
        try:
            one = _series_of(path, series, folder)
            present[path] = _read_whole(path, kind)
            by_series[one.uid].append(path)
        except DataError as error:
            problems[path] = str(error)
    labelled: list[Labelled] = []
    faulty: set[str] = set()
    below = series_below(series)
    for one in sorted(series, key=lambda one: (one.study, one.uid)):
        paths = by_series.get(one.uid, ())
        if len(paths) > 1:
            problems[paths[0]] = (
                f"{', '.join(map(str, paths))}: {len(paths)} labels of one series, {one.uid}; "
                "expected one. Take the others out of the folder."
            )
        elif paths and one.fault:
            problems[paths[0]] = one.fault
            faulty.add(one.uid)
        elif paths:
            at = folder_of(one)
            alone = len(below[at]) == 1
            number = len(labelled) + 1
            labelled.append(Labelled(one, paths[0], at, alone, number, present[paths[0]]))
    settled = {one.series.uid for one in labelled} | faulty
    others = tuple(one for one in series if one.uid not in settled)
    return Tree(tuple(labelled), others, problems)


def choose_labelled(
    tree: Tree, folder: Path, modality: str | None
) -> tuple[tuple[Labelled, ...], str]:
    """The labelled series of one modality, and which it is; a warning names what is kept out.

    Args:
        tree: result of `read_tree`.
        folder: folder of the tree, for messages.
        modality: "CT" or "MR"; None for the only one there is.

    Raises:
        DataError: no label that can be read and paired; several modalities, or another.
    """
    if tree.problems and not tree.labelled:
        raise DataError(listed(tree.problems.values(), separator="\n"))
    for problem in tree.problems.values():
        warn(f"left out: {problem}")
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


def _series_of(label: Path, series: Sequence[Series], folder: Path) -> Series:
    """The series of a label object.

    Raises:
        DataError: its header cannot be read, or means none or several of the series.
    """
    said = references(label)
    meant = _meant(said, series)
    if len(meant) != 1:
        found = f"{len(meant)} series" if meant else f"no series of images in {folder}"
        named = ", ".join(said.series) or "none"
        raise DataError(
            f"{label}: belongs to {found}; it names the series {named}; expected one. Put the "
            "series there, or take the label out."
        )
    return meant[0]


def _read_whole(label: Path, kind: str) -> frozenset[int] | None:
    """The segments that have a voxel; None for an RTSTRUCT.

    Raises:
        DataError: the label cannot be read.
    """
    if kind == "SEG":
        segment_names(label)
        return frozenset(np.unique(read_segmentation(label).ids).tolist()) - {0}
    organ_regions(label)
    return None


def _meant(said: References, series: Sequence[Series]) -> list[Series]:
    """The series that a label names; where it names none, those in its frame of reference."""
    if said.series:
        return [one for one in series if one.uid in said.series]
    return [one for one in series if said.frame and one.frame == said.frame]


def folder_of(series: Series) -> Path:
    """The smallest folder that holds all files of a series."""
    return Path(os.path.commonpath([path.parent for path in series.files]))


def series_below(series: Iterable[Series]) -> dict[Path, set[str]]:
    """Folder -> UIDs of the series that have a file in it or below it."""
    below: dict[Path, set[str]] = defaultdict(set)
    for one in series:
        for parent in {path.parent for path in one.files}:
            for folder in (parent, *parent.parents):
                below[folder].add(one.uid)
    return below
