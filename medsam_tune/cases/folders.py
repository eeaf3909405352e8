"""Cases of a folder, by its layout, and what their labels mean."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from medsam_tune.cases.datalist import (
    Case,
    Datalist,
    cases_from,
    known_modality,
    named_labels,
    refuse_missing,
    refuse_same_names,
)
from medsam_tune.cases.labels.open import open_label
from medsam_tune.errors import DataError, about, listed, warn
from medsam_tune.files import read_json
from medsam_tune.formats.dicom.series import choose_series
from medsam_tune.formats.dicom.studies import Labelled, Tree, choose_labelled, read_tree
from medsam_tune.formats.listing import entries_of
from medsam_tune.formats.open import ENDINGS, name_from, stem_of

_FOLDERS = (("imagesTr", "labelsTr"), ("images", "labels"))
_OR_PAIRS = "".join(f", or {images}/ and {labels}/" for images, labels in _FOLDERS)


def find_cases(
    folder: Path, *, modality: str | None = None, secret: bytes | None = None
) -> Datalist:
    """All labelled cases of a folder, in `training`.

    Args:
        folder: Medical Segmentation Decathlon or nnU-Net raw layout (`dataset.json`); or
            `images/` and `labels/` with files of the same names; or DICOM studies in any layout,
            where each SEG or RTSTRUCT is paired with the series that it refers to. A `labels.json`
            such as `{"1": "spleen"}` names the labels; without it they are read for their values.
        modality: one of `datalist.MODALITIES`; by default what dataset.json or the series say. Of
            DICOM studies, only series of this modality are taken.
        secret: key of the hashes that stand for DICOM patients, from `patients.secret_beside`; None
            takes one of this process, so that a later call gives other hashes.

    Raises:
        DataError: no such folder, another layout, files that are missing or have no partner, a
            modality that is not known.

    References:
        Antonelli et al., "The Medical Segmentation Decathlon", Nature Communications 2022.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; expected one with dataset.json or images/.")
    if modality is not None:
        known_modality(modality, {}, folder)
    labelled: tuple[Labelled, ...] = ()
    if has_pairs(folder):
        cases, content = paired_cases(folder, secret)
        modality = known_modality(modality, content, folder)
    else:
        tree = _tree_of(folder, secret)
        labelled, modality = choose_labelled(tree, folder, modality)
        unused = len(tree.others) + len(tree.labelled) - len(labelled)
        if unused:
            warn(f"{folder}: {unused} series without a label left out.")
        cases, content = studies_cases(labelled), {}
    labels, present = labels_of(folder, cases, content)
    present |= {one.name: one.present & set(labels) for one in labelled if one.present is not None}
    return Datalist(
        name=str(content.get("name", folder.resolve().name)),
        modality=modality,
        labels=labels,
        training=cases,
        present=present,
    )


def has_pairs(folder: Path) -> bool:
    """Whether a folder is laid out as pairs of images and labels, by dataset.json or by name."""
    return (folder / "dataset.json").is_file() or _image_and_label_folders(folder) is not None


def paired_cases(
    folder: Path, secret: bytes | None = None
) -> tuple[tuple[Case, ...], dict[str, Any]]:
    """The cases of a folder of pairs, and what its dataset.json says, if there is one.

    Args:
        folder: folder of pairs.
        secret: as in `find_cases`.

    Raises:
        DataError: as in `find_cases`.
    """
    description = folder / "dataset.json"
    content = read_json(description) if description.is_file() else {}
    entries = content.get("training")
    if isinstance(entries, list):
        cases = cases_from(entries, folder, description)
        refuse_missing(cases, description)
    else:
        cases = _pair_folders(folder, secret)
    if not cases:
        raise DataError(
            f"{folder}: no case in it; expected scans as {', '.join(ENDINGS)}, or folders of DICOM."
        )
    refuse_same_names(cases, folder)
    return cases, content


def studies_cases(labelled: Iterable[Labelled]) -> tuple[Case, ...]:
    """The cases of a tree of DICOM studies, named without anything of the patient."""
    return tuple(
        Case(
            image=one.folder,
            label=one.label,
            patient=one.patient,
            series=None if one.alone else one.series.uid,
            name=one.name,
        )
        for one in sorted(labelled, key=lambda one: one.name)
    )


def labels_of(
    folder: Path, cases: Iterable[Case], content: Mapping[str, Any] | None = None
) -> tuple[dict[int, str], dict[str, frozenset[int]]]:
    """Label id -> name: from dataset.json, labels.json, or the label files themselves.

    Args:
        folder: folder that was searched.
        cases: cases found in it.
        content: content of its dataset.json.

    Returns:
        the labels; and case id -> label ids, of the label maps that were read for them.

    Raises:
        DataError: ids or names that are none, or of two meanings.
    """
    named = named_labels(folder, content or {}, folder / "dataset.json")
    return (named, {}) if named else _labels_in(cases, folder)


def _tree_of(folder: Path, secret: bytes | None) -> Tree:
    try:
        return read_tree(folder, secret)
    except DataError as error:
        raise DataError(
            f"{folder}: no known layout; expected a dataset.json{_OR_PAIRS}, or DICOM studies "
            f"with SEG or RTSTRUCT ({error})"
        ) from error


def _image_and_label_folders(folder: Path) -> tuple[Path, Path] | None:
    for images, labels in _FOLDERS:
        if (folder / images).is_dir() and (folder / labels).is_dir():
            return folder / images, folder / labels
    return None


def _pair_folders(folder: Path, secret: bytes | None) -> tuple[Case, ...]:
    """Images and labels of the same stem; nnU-Net's channel suffix goes if that finds a label."""
    images, labels = _image_and_label_folders(folder) or (None, None)
    if images is None or labels is None:
        raise DataError(f"{folder}: no known layout; expected a dataset.json{_OR_PAIRS}.")
    by_stem = {stem_of(file): file for file in _scans(labels)}
    cases, alone = [], []
    for image in _scans(images):
        stem = stem_of(image)
        stem = stem if stem in by_stem else stem.removesuffix("_0000")
        label = by_stem.pop(stem, None)
        if label is None:
            alone.append(image.name)
        else:
            cases.append(Case(image, label, _patient_of(image, secret) or name_from(stem)))
    if alone or by_stem:
        raise DataError(
            f"{folder}: images without a label: {listed(alone) or 'none'}; labels without an "
            f"image: {listed(file.name for file in by_stem.values()) or 'none'}; expected one "
            "label of the same name for each image. Add or remove files."
        )
    return tuple(cases)


def _patient_of(image: Path, secret: bytes | None) -> str:
    """A hash of the patient's id in a DICOM series; empty where it cannot be read."""
    if image.name.lower().endswith(ENDINGS):
        return ""
    try:
        return choose_series(image, secret=secret).patient
    except DataError:
        return ""  # reading the case says why, and refuses it alone


def _scans(folder: Path) -> Iterator[Path]:
    """Files of known endings, and folders: of a DICOM series, or of a file for each organ."""
    for path in entries_of(folder):
        if path.is_dir() or path.name.lower().endswith((*ENDINGS, ".dcm")):
            yield path


def _labels_in(
    cases: Iterable[Case], folder: Path
) -> tuple[dict[int, str], dict[str, frozenset[int]]]:
    """Ids and names that the label files speak of; and case id -> ids, where all were read.

    Raises:
        DataError: a number of two meanings, names beside numbers, or nothing but background.
    """
    exact: set[str] = set()  # names without a number
    folded: dict[str, str] = {}  # of kinds that compare them without regard to case
    found: dict[int, str] = {}
    present: dict[str, frozenset[int]] = {}
    for case in cases:
        if case.label is None:
            continue
        with about(f"case {case.id}"):
            label = open_label(case.label)
            ids = label.names()
        if label.names_are_present:
            present[case.id] = frozenset(ids)
        if not label.numbered:
            for name in ids.values():
                if label.folds_case:
                    folded.setdefault(name.casefold(), name)
                else:
                    exact.add(name)
            continue
        for number, name in ids.items():
            if found.setdefault(number, name) != name:
                raise DataError(
                    f"{case.label}: label {number} is {name!r}, in another case {found[number]!r}; "
                    "expected one meaning of a number. Export the labels with equal numbers."
                )
    known = {name.casefold() for name in exact}
    named = exact | {name for key, name in folded.items() if key not in known}
    if named and found:
        raise DataError(
            f"{folder}: some labels have names only (a file for each organ, or RTSTRUCT), some "
            "have numbers (label maps, or SEG); expected one kind, or a labels.json with both."
        )
    labels = dict(enumerate(sorted(named), start=1)) or dict(sorted(found.items()))
    if not labels:
        raise DataError(f"{folder}: all label maps are empty; expected values above 0.")
    return labels, present
