"""Cases of a folder, by its layout, and what their labels mean."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from medsam_tune.cases.classes import FILE, PLAIN, read_classes
from medsam_tune.cases.coco import coco_at, coco_cases
from medsam_tune.cases.datalist import (
    Case,
    Datalist,
    cases_from,
    refuse_missing,
    refuse_same_names,
)
from medsam_tune.cases.description import Labels, known_modality, of_dicom
from medsam_tune.cases.labels.masks import Mask, refuse_other_palettes
from medsam_tune.cases.labels.names import labels_of
from medsam_tune.cases.labels.segments import labels_of_segments
from medsam_tune.cases.pairs import (
    OR_PAIRS,
    TABLE,
    folder_pairs,
    has_folders,
    several_channels,
    table_pairs,
)
from medsam_tune.errors import DataError, listed, warn
from medsam_tune.files import read_json
from medsam_tune.formats import coco, geotiff
from medsam_tune.formats.dicom.seg import segment_names
from medsam_tune.formats.dicom.series import choose_series
from medsam_tune.formats.dicom.studies import Labelled, Tree, choose_labelled, read_tree
from medsam_tune.formats.open import ENDINGS, reader_of, stem_of

_GAPS = 254
"""Id of pixels without data, where no label is above it; 255 is the white of masks."""


def find_cases(
    folder: Path,
    *,
    modality: str | None = None,
    labels: Labels | None = None,
    secret: Callable[[], bytes] | None = None,
    classes: Path | None = None,
) -> Datalist:
    """All labelled cases of a folder, in `training`.

    Args:
        folder: Medical Segmentation Decathlon or nnU-Net raw layout (`dataset.json`); or
            `images/` and `labels/` (or `masks/`) with files of the same names, see
            `pairs.folder_pairs`; or a table of pairs, see `pairs.table_pairs`; or DICOM studies in
            any layout, where each SEG or RTSTRUCT is paired with the series that it refers to; or
            COCO's JSON, or a folder that holds one, see `coco.coco_at`. A
            `labels.json` such as `{"1": "spleen"}` names the labels, or `classes.json` those of
            masks and their colours; without them labels are read for their values.
        modality: one of `description.MODALITIES`; by default what dataset.json or the series say,
            and RGB of 2-D images. Of DICOM studies, only series of this modality are taken.
        labels: labels by name, instead of what the folder says; every label is read for them.
        secret: gives the key of the hashes that stand for DICOM patients, such as
            `patients.secret_beside`; called only if there is DICOM. None takes a key of this
            process, so that a later call gives other hashes.
        classes: class map instead of the folder's `classes.json`, see `cases.classes`.

    Raises:
        DataError: no such folder, another layout, files that are missing or have no partner, a
            modality that is not known, or is another in a DICOM header; labels that have values
            without a name, or lack one.

    References:
        Antonelli et al., "The Medical Segmentation Decathlon", Nature Communications 2022.
    """
    folder = Path(folder)
    if not folder.is_dir() and folder.suffix.lower() not in (TABLE, coco.ENDING):
        raise DataError(f"{folder}: no such folder; expected one with dataset.json or images/.")
    if folder.is_file() and folder.suffix.lower() == coco.ENDING and not coco.is_coco(folder):
        raise DataError(
            f"{folder}: is no COCO file; expected one with {', '.join(coco.KEYS)}, or the folder "
            "of the data set."
        )
    if modality is not None:
        known_modality(modality, {}, folder)
    labelled: tuple[Labelled, ...] = ()
    coding = PLAIN
    if has_pairs(folder):
        cases, content = paired_cases(folder, classes)
        coding = cases[0].coding
        if labels is not None and labels.united:
            coding = replace(coding, united=labels.united)
            cases = tuple(replace(case, coding=coding) for case in cases)
        cases, kinds = _by_headers(cases, secret)
        flat = all(Mask.recognises(case.image) for case in cases)
        if not (coding.colours or coding.instances):
            masks = (case.label for case in cases if case.label is not None)
            refuse_other_palettes(path for path in masks if Mask.recognises(path))
        modality = _modality_of(modality, content, kinds, folder, flat)
    elif classes is not None:
        raise DataError(
            f"{classes}: class maps are of masks of images, and {folder} holds none. Leave "
            "--classes out."
        )
    elif labels is not None and labels.united:
        raise DataError(
            f"--labels names {listed({str(n) for n in labels.united.values()})} twice; values that "
            "are one label are of label maps and masks, and segments have names. Name each once."
        )
    else:
        tree = _tree_of(folder, secret and secret())
        labelled, modality = choose_labelled(tree, folder, modality)
        unused = len(tree.others) + len(tree.labelled) - len(labelled)
        if unused:
            warn(f"{folder}: {unused} series without a label left out.")
        cases, content = studies_cases(labelled), {}
    meant, present = labels_of(folder, cases, content, labels)
    meant = _with_gaps(meant, cases)
    for one in labelled:
        if one.present is not None:
            of_segment = labels_of_segments(segment_names(one.label), meant.in_files)
            present[one.name] = frozenset(of_segment[n] for n in one.present & {*of_segment})
    name = content.get("name")
    return Datalist(
        name=name if isinstance(name, str) else stem_of(folder),
        modality=modality,
        labels=meant.names,
        training=cases,
        ignore=meant.ignore,
        present=present,
        coding=coding,
    )


def _with_gaps(meant: Labels, cases: Iterable[Case]) -> Labels:
    """The labels, with an id to ignore where a GeoTIFF may hold pixels without data."""
    if meant.ignore is not None or not any(
        reader_of(case.image) is geotiff and geotiff.has_gaps(case.image) for case in cases
    ):
        return meant
    highest = max(meant.names, default=0)
    return replace(meant, ignore=_GAPS if highest < _GAPS else max(highest, 255) + 1)


def has_pairs(folder: Path) -> bool:
    """Whether it is a table of pairs, or a folder of them, by dataset.json or name; or COCO's."""
    if folder.suffix.lower() == TABLE:
        return folder.is_file()
    return _is_paired(folder) or coco_at(folder) is not None


def _is_paired(folder: Path) -> bool:
    return (folder / "dataset.json").is_file() or has_folders(folder)


def paired_cases(
    folder: Path, classes: Path | None = None
) -> tuple[tuple[Case, ...], dict[str, Any]]:
    """The cases of a folder or table of pairs, and what its dataset.json and class map say.

    Args:
        folder: folder, or table.
        classes: class map; by default `classes.json` of the folder, if there is one.

    Raises:
        DataError: as in `find_cases`.
    """
    content: dict[str, Any] = {}
    if folder.suffix.lower() == TABLE:
        cases, description = table_pairs(folder), folder
        refuse_missing(cases, folder)
    elif not _is_paired(folder) and (file := coco_at(folder)) is not None:
        (cases, content), description = coco_cases(file), file
        refuse_missing(cases, file)
    else:
        cases, content, description = _folder_cases(folder)
    if not cases:
        raise DataError(
            f"{folder}: no case in it; expected scans as {', '.join(ENDINGS)}, or folders of DICOM."
        )
    refuse_same_names(cases, folder)
    own = description.parent / FILE
    if classes is not None or (own.is_file() and "labels" not in content):
        found = read_classes(own if classes is None else classes)
        content = {**content, **found.content()}
        cases = tuple(replace(case, coding=found.coding) for case in cases)
    return cases, content


def _folder_cases(folder: Path) -> tuple[tuple[Case, ...], dict[str, Any], Path]:
    """The cases of a folder of pairs, and what its dataset.json says, and its path."""
    description = folder / "dataset.json"
    content = read_json(description) if description.is_file() else {}
    entries = content.get("training")
    if isinstance(entries, list):
        cases = tuple(map(_as_it_lies, cases_from(entries, folder, description)))
        refuse_missing(cases, description)
    else:
        cases = folder_pairs(folder)
    return cases, content, description


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
            f"{folder}: no known layout; expected a dataset.json{OR_PAIRS}, or DICOM studies "
            f"with SEG or RTSTRUCT ({error})"
        ) from error


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
        raise several_channels(case.image)
    return replace(case, image=channel)


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
    given: str | None,
    content: Mapping[str, Any],
    kinds: Mapping[str, str],
    folder: Path,
    flat: bool,
) -> str:
    """The modality that is given, that dataset.json or all DICOM headers say, or RGB of images."""
    headers = {of_dicom(kind) for kind in kinds.values()}
    says = "modality" in content or "channel_names" in content
    if given is None and not says and flat:
        return "RGB"
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
