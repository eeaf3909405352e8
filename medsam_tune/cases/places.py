"""Scans of a place without their labels: one, a folder of scans, DICOM studies, a datalist."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from medsam_tune.cases.datalist import Case, read_datalist, refuse_same_names
from medsam_tune.cases.description import of_dicom
from medsam_tune.cases.pairs import folders_of_pairs
from medsam_tune.errors import DataError, warn
from medsam_tune.formats.dicom.series import Series, find_objects, is_uid
from medsam_tune.formats.dicom.studies import folder_of, series_below
from medsam_tune.formats.listing import files_below
from medsam_tune.formats.open import ENDINGS, is_flat, scans_among

DOMAIN = "domain"
"""Column of a datalist that says the domain of a scan."""


@dataclass(frozen=True)
class Scans:
    """The scans of a place.

    Attributes:
        cases: scans without labels, each with an id of its own.
        folder: folder that their paths are told relative to.
        refused: file that belongs to no scan, e.g. a damaged one of DICOM -> the reason.
    """

    cases: tuple[Case, ...]
    folder: Path
    refused: Mapping[Path, str] = field(default_factory=dict)


def find_scans(
    place: Path,
    *,
    subset: str | None = None,
    domain: str | None = None,
    series: str | None = None,
    modality: str = "",
    leave_out: Iterable[Path] = (),
) -> Scans:
    """All scans of a place.

    A file is named without its ending. A DICOM series that lies alone in the folder, or in a folder
    of it, is named after that folder; any other by its SeriesInstanceUID, whatever the folders
    above it are named.

    Args:
        place: a scan; a folder, which is searched with its sub-folders (of `images/` and `labels/`
            or `masks/`, in it or in each of its folders, the images); or a datalist, .json, whose
            labels are not looked at.
        subset: subset of a datalist; None takes all.
        domain: value of the column "domain" of a datalist; None takes all.
        series: SeriesInstanceUID, or its end: `place` is then one scan.
        modality: modality of the scans that are wanted. Series of another one are left out with a
            warning, unless they have a folder of their own. Empty takes any.
        leave_out: folders below the place that hold no scans, such as that of the masks.

    Raises:
        DataError: no such place, no scan in it, two scans of one name; a subset that the datalist
            does not have, or without a datalist.
    """
    place = Path(place)
    if not os.path.lexists(place):
        raise DataError(f"{place}: no such file or folder. Correct the path.")
    if place.is_file() and place.suffix.lower() == ".json":
        data = read_datalist(place, with_leaks=True, with_missing=True, unlabelled=True)
        cases = data.cases if subset is None else list(data.subset(subset))
        refuse_same_names(cases, place)
        cases = [case for case in cases if domain in (None, case.columns.get(DOMAIN))]
        return Scans(tuple(replace(case, label=None) for case in cases), place.parent)
    for what, name in (("subset", subset), (DOMAIN, domain)):
        if name is not None:
            raise DataError(f"{place}: is no datalist, so it has no {what} {name!r}. Leave it out.")
    if series is not None or not place.is_dir() or place.name.lower().endswith(ENDINGS):
        return Scans((Case(place, None, "", series),), place.parent)
    pairs = folders_of_pairs(place)
    own = pairs.get("")
    leave_out = [*leave_out, *(labels for _, labels in pairs.values())]
    found = _of_folder(place if own is None else own[0], modality, leave_out)
    if not found.cases and not found.refused:
        raise DataError(
            f"{place}: no scan in it; expected files that end in {', '.join(ENDINGS)}, or images "
            "of DICOM. Give the folder that holds them."
        )
    refuse_same_names(found.cases, place)
    return found


def _of_folder(place: Path, modality: str, leave_out: Iterable[Path]) -> Scans:
    left = [os.path.realpath(folder) for folder in leave_out]
    left = [folder for folder in left if folder != os.path.realpath(place)]
    files = [
        path
        for path in files_below(place)
        if path.name != "DICOMDIR"
        and not any(Path(os.path.realpath(path)).is_relative_to(folder) for folder in left)
    ]
    scans = scans_among(files)
    cases = [Case(path, None, "") for path in scans]
    others = [path for path in files if not path.name.lower().endswith(ENDINGS)]
    try:
        objects = find_objects(others) if others else None
    except DataError:  # nothing of DICOM among them
        objects = None
    if objects is None:
        return Scans(tuple(cases), place)
    if scans and is_flat(scans[0]):  # images beside DICOM are previews
        cases = []
    cases += _of_series(objects.series, place, modality)
    return Scans(tuple(cases), place, objects.problems)


def _of_series(series: Sequence[Series], place: Path, modality: str) -> list[Case]:
    """The cases of series, as `find_scans` names them."""
    below = series_below(series)
    cases, passed_over = [], []
    for one in series:
        folder = folder_of(one)
        alone = len(below[folder]) == 1
        uid = None if alone else one.uid
        if alone and place in (folder, folder.parent) and _flat(one):
            cases.append(Case(folder, None, "", uid))
        elif modality and one.modality and of_dicom(one.modality) != modality:
            passed_over.append(one.modality)
        else:
            cases.append(Case(folder, None, "", uid, name=_name_of(one.uid)))
    if passed_over:
        counts = ", ".join(f"{n} of {kind}" for kind, n in sorted(Counter(passed_over).items()))
        warn(f"{place}: series of another modality than {modality} left out: {counts}.")
    return sorted(cases, key=lambda case: case.id)


def _flat(series: Series) -> bool:
    """Whether all files of a series lie in one folder."""
    return len({path.parent for path in series.files}) == 1


def _name_of(uid: str) -> str:
    """A SeriesInstanceUID as the name of a case; a hash of what is none, which may be any text."""
    if is_uid(uid):
        return uid
    return f"series-{hashlib.sha256(uid.encode()).hexdigest()[:12]}"
