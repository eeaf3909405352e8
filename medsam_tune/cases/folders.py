"""Cases of a folder, by its layout, and what their labels mean."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from medsam_tune.cases.datalist import (
    Case,
    Datalist,
    cases_from,
    refuse_missing,
    refuse_same_names,
)
from medsam_tune.cases.description import Labels, known_modality, of_dicom
from medsam_tune.cases.guesses import guessed_patient
from medsam_tune.cases.labels.names import labels_of
from medsam_tune.errors import DataError, listed, warn
from medsam_tune.files import read_json
from medsam_tune.formats.dicom.series import choose_series
from medsam_tune.formats.dicom.studies import Labelled, Tree, choose_labelled, read_tree
from medsam_tune.formats.listing import entries_of
from medsam_tune.formats.open import ENDINGS, name_from, stem_of

_FOLDERS = (("imagesTr", "labelsTr"), ("images", "labels"))
_OR_PAIRS = "".join(f", or {images}/ and {labels}/" for images, labels in _FOLDERS)
_CHANNEL = "_0000"  # of nnU-Net's images


def find_cases(
    folder: Path,
    *,
    modality: str | None = None,
    labels: Labels | None = None,
    secret: Callable[[], bytes] | None = None,
) -> Datalist:
    """All labelled cases of a folder, in `training`.

    Args:
        folder: Medical Segmentation Decathlon or nnU-Net raw layout (`dataset.json`); or
            `images/` and `labels/` with files of the same names; or DICOM studies in any layout,
            where each SEG or RTSTRUCT is paired with the series that it refers to. A `labels.json`
            such as `{"1": "spleen"}` names the labels; without it they are read for their values.
        modality: one of `description.MODALITIES`; by default what dataset.json or the series say.
            Of DICOM studies, only series of this modality are taken.
        labels: labels by name, instead of what the folder says; every label is read for them.
        secret: gives the key of the hashes that stand for DICOM patients, such as
            `patients.secret_beside`; called only if there is DICOM. None takes a key of this
            process, so that a later call gives other hashes.

    Raises:
        DataError: no such folder, another layout, files that are missing or have no partner, a
            modality that is not known, or is another in a DICOM header; labels that have values
            without a name, or lack one.

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
        cases, content = paired_cases(folder)
        cases, kinds = _by_headers(cases, secret)
        modality = _modality_of(modality, content, kinds, folder)
    else:
        tree = _tree_of(folder, secret and secret())
        labelled, modality = choose_labelled(tree, folder, modality)
        unused = len(tree.others) + len(tree.labelled) - len(labelled)
        if unused:
            warn(f"{folder}: {unused} series without a label left out.")
        cases, content = studies_cases(labelled), {}
    meant, present = labels_of(folder, cases, content, labels)
    held = set(meant.in_files)
    present |= {one.name: one.present & held for one in labelled if one.present is not None}
    name = content.get("name")
    return Datalist(
        name=name if isinstance(name, str) else folder.resolve().name,
        modality=modality,
        labels=meant.names,
        training=cases,
        ignore=meant.ignore,
        present=present,
    )


def has_pairs(folder: Path) -> bool:
    """Whether a folder is laid out as pairs of images and labels, by dataset.json or by name."""
    return (folder / "dataset.json").is_file() or image_and_label_folders(folder) is not None


def paired_cases(folder: Path) -> tuple[tuple[Case, ...], dict[str, Any]]:
    """The cases of a folder of pairs, and what its dataset.json says, if there is one.

    Raises:
        DataError: as in `find_cases`.
    """
    description = folder / "dataset.json"
    content = read_json(description) if description.is_file() else {}
    entries = content.get("training")
    if isinstance(entries, list):
        cases = tuple(map(_as_it_lies, cases_from(entries, folder, description)))
        refuse_missing(cases, description)
    else:
        cases = _pair_folders(folder)
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


def _tree_of(folder: Path, secret: bytes | None) -> Tree:
    try:
        return read_tree(folder, secret)
    except DataError as error:
        raise DataError(
            f"{folder}: no known layout; expected a dataset.json{_OR_PAIRS}, or DICOM studies "
            f"with SEG or RTSTRUCT ({error})"
        ) from error


def image_and_label_folders(folder: Path) -> tuple[Path, Path] | None:
    """The folders of images and of labels in a folder, if it has both."""
    for images, labels in _FOLDERS:
        if (folder / images).is_dir() and (folder / labels).is_dir():
            return folder / images, folder / labels
    return None


def _pair_folders(folder: Path) -> tuple[Case, ...]:
    """Images and labels of the same stem; nnU-Net's channel suffix goes if that finds a label."""
    images, labels = image_and_label_folders(folder) or (None, None)
    if images is None or labels is None:
        raise DataError(f"{folder}: no known layout; expected a dataset.json{_OR_PAIRS}.")
    by_stem = {stem_of(file): file for file in _scans(labels)}
    named = set(by_stem)
    cases, alone = [], []
    for image in _scans(images):
        stem = stem_of(image)
        if stem not in named and (found := re.fullmatch(r"(.*)_000[1-9]", stem)):
            if found[1] in named:
                raise _several_channels(image.with_name(found[1]))
        stem = stem if stem in by_stem else stem.removesuffix(_CHANNEL)
        label = by_stem.pop(stem, None)
        if label is None:
            alone.append(image.name)
        else:
            cases.append(Case(image, label, guessed_patient(name_from(stem)), guessed=True))
    if alone or by_stem:
        raise DataError(
            f"{folder}: images without a label: {listed(alone) or 'none'}; labels without an "
            f"image: {listed(file.name for file in by_stem.values()) or 'none'}; expected one "
            "label of the same name for each image. Add or remove files."
        )
    return tuple(cases)


def _as_it_lies(case: Case) -> Case:
    """The case with its image: nnU-Net's first version lists `a.nii.gz` for `a_0000.nii.gz`."""
    if os.path.exists(case.image):
        return case
    stem = stem_of(case.image)
    ending = case.image.name[len(stem) :]
    channel, other = (case.image.with_name(f"{stem}_000{n}{ending}") for n in (0, 1))
    if not os.path.exists(channel):
        return case
    if os.path.exists(other):
        raise _several_channels(case.image)
    return replace(case, image=channel)


def _several_channels(image: Path) -> DataError:
    return DataError(
        f"{image}: has several channels, a file for each ({_CHANNEL}, _0001, ...); expected one "
        "image for each label. Copy the channel to train on, with its labels, into a folder."
    )


def _by_headers(
    cases: Iterable[Case], secret: Callable[[], bytes] | None
) -> tuple[tuple[Case, ...], dict[str, str]]:
    """The cases with the patients that DICOM headers say; and case id -> DICOM's Modality."""
    found, kinds = [], {}
    for case in cases:
        if not case.image.name.lower().endswith(ENDINGS):
            try:
                series = choose_series(case.image, case.series, secret and secret())
            except DataError:
                pass  # reading the case says why, and refuses it alone
            else:
                kinds[case.id] = series.modality
                if case.guessed and series.patient:
                    case = replace(case, patient=series.patient, guessed=False)
        found.append(case)
    return tuple(found), kinds


def _modality_of(
    given: str | None, content: Mapping[str, Any], kinds: Mapping[str, str], folder: Path
) -> str:
    """The modality that is given, that dataset.json says, or that all DICOM headers say."""
    headers = {of_dicom(kind) for kind in kinds.values()}
    says = "modality" in content or "channel_names" in content
    if given is None and not says and len(headers) == 1 and (one := headers.pop()) is not None:
        return one
    modality = known_modality(given, content, folder)
    for case, kind in kinds.items():
        if of_dicom(kind) not in (modality, None):
            raise DataError(
                f"{folder}: case {case} is of {kind} by its DICOM header, the data set of "
                f"{modality}; expected one modality. Choose the other by --modality, or take the "
                "case out."
            )
    return modality


def _scans(folder: Path) -> Iterator[Path]:
    """Files of known endings, and folders: of a DICOM series, or of a file for each organ."""
    for path in entries_of(folder):
        if path.is_dir() or path.name.lower().endswith((*ENDINGS, ".dcm")):
            yield path
