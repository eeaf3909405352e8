"""Which scans there are, whose they are, and which subset each belongs to."""

from __future__ import annotations

import json
import os
import random
import re
import warnings
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from medsam_tune.data.checks import DataError, read_json
from medsam_tune.data.intensity import MODALITIES
from medsam_tune.data.labels import is_structure_set, label_names, labels_present, organ_files
from medsam_tune.data.readers import ENDINGS, case_id
from medsam_tune.data.series import choose_series
from medsam_tune.data.studies import Labelled, Tree, choose_labelled, read_tree
from medsam_tune.files import written_whole

SUBSETS = ("training", "validation", "test")
_SHOWN = 10  # files or cases that a message lists before it counts the rest
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_FOLDERS = (("imagesTr", "labelsTr"), ("images", "labels"))
_OR_PAIRS = "".join(f", or {images}/ and {labels}/" for images, labels in _FOLDERS)


@dataclass(frozen=True)
class Case:
    """One scan.

    Attributes:
        image: NIfTI, NRRD or MetaImage file, or a folder of DICOM.
        label: label map on the image's grid, a DICOM SEG or RTSTRUCT, a folder with a file for
            each organ, or None.
        patient: whose scan it is; two scans of one patient stay in one subset.
        series: SeriesInstanceUID (or its end) where the folder holds several.
        name: of the case, where the image's own is not unique or tells who it is.
        copy: 0 for the scan itself, else which deformed copy of it.

    Raises:
        DataError: a name that is not safe as a file's.
    """

    image: Path
    label: Path | None
    patient: str
    series: str | None = None
    name: str | None = None
    copy: int = 0

    def __post_init__(self) -> None:
        if self.name is not None and not _SAFE_NAME.fullmatch(self.name):
            raise DataError(
                f"{self.image}: the case's name is {self.name!r}; expected up to 64 letters, "
                "digits, '-', '_' and '.', the first a letter or a digit, as results are named "
                "after it."
            )

    @property
    def id(self) -> str:
        """Its name, or the image's without its ending; it names the case everywhere."""
        return (self.name or case_id(self.image)) + (f"~{self.copy}" if self.copy else "")


@dataclass(frozen=True)
class Datalist:
    """Scans in three subsets, and what their labels mean.

    Attributes:
        name: of the data set.
        modality: of `intensity.MODALITIES`: "CT", "MR", "XR" or "US".
        labels: label id -> name, without the background 0.
        training: what is learned from.
        validation: what checkpoints are chosen on.
        test: held out; read by evaluation only.
    """

    name: str
    modality: str
    labels: Mapping[int, str]
    training: tuple[Case, ...] = ()
    validation: tuple[Case, ...] = ()
    test: tuple[Case, ...] = ()

    @property
    def cases(self) -> list[Case]:
        """Of all subsets."""
        return [case for subset in SUBSETS for case in getattr(self, subset)]

    def subset(self, name: str) -> tuple[Case, ...]:
        """The cases of one subset.

        Args:
            name: "training", "validation" or "test".

        Raises:
            DataError: an unknown or an empty subset.
        """
        sizes = {subset: len(getattr(self, subset)) for subset in SUBSETS}
        there = ", ".join(f"{subset} ({size})" for subset, size in sizes.items() if size) or "none"
        if name not in sizes:
            raise DataError(f"{self.name}: no subset {name!r}; there are: {there}.")
        if sizes[name] == 0:
            raise DataError(f"{self.name}: subset {name!r} has no case; there are: {there}.")
        cases: tuple[Case, ...] = getattr(self, name)
        return cases


def with_copies(cases: Sequence[Case], copies: int) -> list[Case]:
    """Cases, and so many deformed copies of each, see `scans.Deformation`."""
    return [replace(case, copy=n) for n in range(copies + 1) for case in cases]


def find_cases(folder: Path, *, modality: str | None = None) -> Datalist:
    """All labelled cases of a folder, in `training`.

    Args:
        folder: Medical Segmentation Decathlon or nnU-Net raw layout (`dataset.json`); or
            `images/` and `labels/` with files of the same names; or DICOM studies in any layout,
            where each SEG or RTSTRUCT is paired with the series that it refers to. A `labels.json`
            such as `{"1": "spleen"}` names the labels; without it they are read for their values.
        modality: of `intensity.MODALITIES`; by default what dataset.json or the series say. Of
            DICOM studies, only series of this modality are taken.

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
        _modality(modality, {}, folder)
    if has_pairs(folder):
        cases, content = paired_cases(folder)
        modality = _modality(modality, content, folder)
    else:
        tree = _tree_of(folder)
        labelled, modality = choose_labelled(tree, folder, modality)
        unused = len(tree.others) + len(tree.labelled) - len(labelled)
        if unused:
            warnings.warn(f"{folder}: {unused} series without a label left out.", stacklevel=2)
        cases, content = studies_cases(labelled), {}
    return Datalist(
        name=str(content.get("name", folder.resolve().name)),
        modality=modality,
        labels=labels_of(folder, cases, content),
        training=cases,
    )


def has_pairs(folder: Path) -> bool:
    """Whether a folder is laid out as pairs of images and labels, by dataset.json or by name."""
    return (folder / "dataset.json").is_file() or _image_and_label_folders(folder) is not None


def paired_cases(folder: Path) -> tuple[tuple[Case, ...], dict[str, Any]]:
    """The cases of a folder of pairs, and what its dataset.json says, if there is one.

    Raises:
        DataError: see `find_cases`.
    """
    description = folder / "dataset.json"
    content = read_json(description) if description.is_file() else {}
    entries = content.get("training")
    if isinstance(entries, list):
        cases = _cases(entries, folder, description)
        _refuse_missing(cases, description)
    else:
        cases = _pair_folders(folder)
    if not cases:
        raise DataError(
            f"{folder}: no case in it; expected scans as {', '.join(ENDINGS)}, or folders of DICOM."
        )
    _refuse_same_names(cases, folder)
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
) -> dict[int, str]:
    """Label id -> name: from dataset.json, labels.json, or the label files themselves.

    Args:
        folder: that was searched.
        cases: found in it.
        content: of its dataset.json.

    Raises:
        DataError: ids or names that are none, or of two meanings.
    """
    return _labels_of(folder, content or {}, folder / "dataset.json") or _labels_in(cases, folder)


def _tree_of(folder: Path) -> Tree:
    try:
        return read_tree(folder)
    except DataError as error:
        raise DataError(
            f"{folder}: no known layout; expected a dataset.json{_OR_PAIRS}, or DICOM studies "
            f"with SEG or RTSTRUCT ({error})"
        ) from error


def split_cases(
    datalist: Datalist,
    fractions: tuple[float, float, float],
    seed: int = 0,
    present: Mapping[str, Collection[int]] | None = None,
) -> Datalist:
    """Divide all cases anew, so that no patient is in two subsets.

    The result depends on the patients, their labels, the fractions and the seed, not on the order
    of the files.

    Args:
        datalist: its present subsets are put together first.
        fractions: of the patients in training, validation and test; their sum is 1.
        seed: of the shuffle.
        present: patient -> label ids, from `labels_of_patients`; rare labels are then shared out
            among the subsets as the patients are.

    Raises:
        DataError: fractions that are negative or do not add up to 1, or fewer patients than
            subsets to fill.
    """
    if min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise DataError(
            f"fractions {fractions} of training, validation and test; expected three numbers "
            "of 0 or more that add up to 1, e.g. 0.7 0.1 0.2."
        )
    patients = _shuffled(datalist.cases, seed)
    groups = _grouped(patients, _share(len(patients), fractions), present)
    return _with_subsets(datalist, groups)


def fold_cases(
    datalist: Datalist,
    folds: int,
    seed: int = 0,
    present: Mapping[str, Collection[int]] | None = None,
) -> list[Datalist]:
    """k datalists for cross-validation: each patient is a test case in exactly one.

    The fold after the test fold is for validation, the others for training.

    Args:
        datalist: its present subsets are put together first.
        folds: k, at least 3.
        seed: of the shuffle.
        present: see `split_cases`.

    Raises:
        DataError: fewer than 3 folds, or fewer patients than folds.
    """
    if folds < 3:
        raise DataError(
            f"{folds} folds; expected at least 3: one to test, one to validate, one to train."
        )
    patients = _shuffled(datalist.cases, seed)
    groups = _grouped(patients, _share(len(patients), [1 / folds] * folds), present)
    lists = []
    for i in range(folds):
        test, validation = i, (i + 1) % folds
        rest = set().union(*(g for j, g in enumerate(groups) if j not in (test, validation)))
        lists.append(_with_subsets(datalist, [rest, groups[validation], groups[test]]))
    return lists


def few_shots(datalist: Datalist, shots: int, seed: int = 0) -> Datalist:
    """So many of the training patients with all their scans; validation and test as they are.

    With the same seed, the patients of fewer shots are among those of more.

    Args:
        datalist: after the split.
        shots: patients kept, at least 1.
        seed: of the choice.

    Raises:
        DataError: no shot, or more shots than training patients.
    """
    if shots < 1:
        raise DataError(f"{shots} shots; expected at least 1 training patient.")
    patients = _shuffled(datalist.training, seed)
    if shots > len(patients):
        raise DataError(
            f"{shots} shots, but {len(patients)} training patients in {datalist.name}; expected at "
            "most as many. Ask for fewer shots, raise the training fraction, or add scans."
        )
    kept = set(patients[:shots])
    return replace(datalist, training=tuple(c for c in datalist.training if c.patient in kept))


def labels_of_patients(datalist: Datalist, jobs: int = 2) -> dict[str, set[int]]:
    """Which labels each patient has; reads every label map.

    Args:
        datalist: cases of all subsets.
        jobs: files read at once.

    Raises:
        DataError: a label map that cannot be read.
    """
    cases = datalist.cases

    def read(case: Case) -> set[int]:
        return labels_present(case.id, case.label, datalist.labels) if case.label else set()

    present: dict[str, set[int]] = {case.patient: set() for case in cases}
    with ThreadPoolExecutor(jobs) as pool:
        found = tqdm(pool.map(read, cases), total=len(cases), desc="labels", disable=None)
        for case, values in zip(cases, found, strict=True):
            present[case.patient].update(values)
    return present


def _shuffled(cases: Iterable[Case], seed: int) -> list[str]:
    """The patients of cases, in an order that the seed alone chooses."""
    patients = sorted({case.patient for case in cases})
    random.Random(seed).shuffle(patients)
    return patients


def _grouped(
    patients: Sequence[str],
    counts: Sequence[int],
    present: Mapping[str, Collection[int]] | None,
) -> list[set[str]]:
    """Patients in groups of the given sizes; where their labels differ, each label shared out.

    References:
        Sechidis et al., "On the stratification of multi-label data", ECML PKDD 2011.
    """
    groups: list[set[str]] = [set() for _ in counts]
    labels = {p: frozenset(present.get(p, ())) if present else frozenset() for p in patients}
    if len(set(labels.values())) == 1:  # nothing to stratify by
        rest = iter(patients)
        return [{next(rest) for _ in range(count)} for count in counts]
    room = list(counts)
    total = Counter(label for patient in patients for label in labels[patient])
    share = [count / len(patients) for count in counts]
    wanted = [{label: n * part for label, n in total.items()} for part in share]
    left = list(patients)
    while left:
        remaining = Counter(label for patient in left for label in labels[patient])
        rarest = min(remaining, key=lambda label: (remaining[label], label)) if remaining else None
        patient = next(p for p in left if rarest is None or rarest in labels[p])
        need = [
            (0.0 if rarest is None else wanted[i][rarest], places, -i)
            for i, places in enumerate(room)
            if places
        ]
        best = -max(need)[2]
        groups[best].add(patient)
        room[best] -= 1
        for label in labels[patient]:
            wanted[best][label] -= 1
        left.remove(patient)
    return groups


def _with_subsets(datalist: Datalist, groups: Sequence[Collection[str]]) -> Datalist:
    training, validation, test = (
        tuple(
            sorted(
                (case for case in datalist.cases if case.patient in group),
                key=lambda case: (case.patient, case.id),
            )
        )
        for group in groups
    )
    return replace(datalist, training=training, validation=validation, test=test)


def write_datalist(datalist: Datalist, path: Path) -> None:
    """Write MONAI's (the Decathlon's) JSON; a file that is there is replaced in one step.

    Args:
        datalist: what to write.
        path: .json file; files below its folder are written relative to it.
    """
    path = Path(path)
    content = {
        "name": datalist.name,
        "modality": {"0": datalist.modality},
        "labels": {"0": "background", **{str(k): v for k, v in sorted(datalist.labels.items())}},
        **{
            subset: [_entry(case, path.parent) for case in getattr(datalist, subset)]
            for subset in SUBSETS
        },
    }
    with written_whole(path) as file:
        file.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")


def leaks_of(datalist: Datalist) -> list[str]:
    """Patients and scans that are in several subsets, one sentence each."""
    return _leaks({subset: getattr(datalist, subset) for subset in SUBSETS})


def _leaks(subsets: Mapping[str, Sequence[Case]]) -> list[str]:
    names: dict[Hashable, str] = {}
    where: dict[Hashable, dict[str, None]] = {}
    for subset, cases in subsets.items():
        for case in cases:
            scan = f"{case.image}{f', series {case.series}' if case.series else ''}"
            for key, name in (
                (case.patient, f"patient {case.patient}"),
                ((case.image.resolve(), case.series), scan),
            ):
                names[key] = name
                where.setdefault(key, {})[subset] = None
    return [
        f"{names[key]} is in {' and in '.join(found)}"
        for key, found in where.items()
        if len(found) > 1
    ]


def read_datalist(path: Path, *, with_leaks: bool = False) -> Datalist:
    """Read and check what `write_datalist` writes.

    Args:
        path: .json file.
        with_leaks: accept a patient or a file in two subsets, for a report of them.

    Raises:
        DataError: no such file, not JSON, missing keys, missing scans (all of them at once), one
            patient or one file in two subsets.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(
            f"{path}: no such datalist. Make one: medsam-tune split DIR --out {path.name}"
        )
    content = read_json(path)
    missing = [key for key in ("labels", "training") if key not in content]
    if missing:
        raise DataError(
            f"{path}: the keys {', '.join(missing)} are missing; expected name, modality, labels, "
            "training, validation, test. `medsam-tune split` writes them."
        )
    subsets = {key: _cases(content.get(key, []), path.parent, path) for key in SUBSETS}
    cases = [case for members in subsets.values() for case in members]
    _refuse_missing(cases, path)
    leaks = [] if with_leaks else _leaks(subsets)
    if leaks:
        raise DataError(
            f"{path}: {_some(leaks)}; expected each patient and each scan in one subset. Make the "
            "split again: medsam-tune split"
        )
    scans = {(case.image.resolve(), case.series): case for case in cases}
    _refuse_same_names(scans.values() if with_leaks else cases, path)
    labels = _labels_of(path.parent, content, path)
    if not labels:
        raise DataError(f"{path}: labels names none but the background; expected at least one.")
    return Datalist(
        name=str(content.get("name", path.stem)),
        modality=_modality(None, content, path),
        labels=labels,
        **subsets,
    )


def _entry(case: Case, folder: Path) -> dict[str, str]:
    files = {"image": case.image, "label": case.label}
    entry = {key: _relative(file, folder) for key, file in files.items() if file is not None}
    optional = {"series": case.series, "name": case.name}
    said = {key: value for key, value in optional.items() if value is not None}
    return {**entry, "patient": case.patient, **said}


def _relative(file: Path, folder: Path) -> str:
    file, folder = Path(os.path.abspath(file)), Path(os.path.abspath(folder))
    return (file.relative_to(folder) if file.is_relative_to(folder) else file).as_posix()


def _cases(entries: Any, folder: Path, source: Path) -> tuple[Case, ...]:
    """The entries of one subset; a bare string, as in the Decathlon's `test`, has no label."""
    if not isinstance(entries, list):
        raise DataError(f"{source}: a subset is {type(entries).__name__}; expected a list.")
    cases = []
    for index, entry in enumerate(entries):
        entry = {"image": entry} if isinstance(entry, str) else entry
        if not isinstance(entry, dict) or not isinstance(entry.get("image"), str):
            raise DataError(f"{source}: entry {index} has no image; expected {{'image', 'label'}}.")
        image = Path(os.path.normpath(folder / entry["image"]))
        label = entry.get("label")
        cases.append(
            Case(
                image=image,
                label=None if label is None else Path(os.path.normpath(folder / str(label))),
                patient=str(entry.get("patient", case_id(image))),
                series=None if entry.get("series") is None else str(entry["series"]),
                name=None if entry.get("name") is None else str(entry["name"]),
            )
        )
    return tuple(cases)


def _image_and_label_folders(folder: Path) -> tuple[Path, Path] | None:
    for images, labels in _FOLDERS:
        if (folder / images).is_dir() and (folder / labels).is_dir():
            return folder / images, folder / labels
    return None


def _pair_folders(folder: Path) -> tuple[Case, ...]:
    """Images and labels of the same stem; nnU-Net's channel suffix goes if that finds a label."""
    images, labels = _image_and_label_folders(folder) or (None, None)
    if images is None or labels is None:
        raise DataError(f"{folder}: no known layout; expected a dataset.json{_OR_PAIRS}.")
    by_stem = {case_id(file): file for file in _scans(labels)}
    cases, alone = [], []
    for image in _scans(images):
        stem = case_id(image)
        stem = stem if stem in by_stem else stem.removesuffix("_0000")
        label = by_stem.pop(stem, None)
        if label is None:
            alone.append(image.name)
        else:
            cases.append(Case(image, label, _patient_of(image) or stem))
    if alone or by_stem:
        raise DataError(
            f"{folder}: images without a label: {_some(alone) or 'none'}; labels without an "
            f"image: {_some(file.name for file in by_stem.values()) or 'none'}; expected one "
            "label of the same name for each image. Add or remove files."
        )
    return tuple(cases)


def _patient_of(image: Path) -> str:
    """A hash of the patient's id in a DICOM series; empty where nothing says."""
    return "" if image.name.lower().endswith(ENDINGS) else choose_series(image).patient


def _scans(folder: Path) -> Iterator[Path]:
    """Files of known endings, and folders: of a DICOM series, or of a file for each organ."""
    for path in sorted(folder.iterdir()):
        known = path.is_dir() or path.name.lower().endswith((*ENDINGS, ".dcm"))
        if known and not path.name.startswith("."):
            yield path


def _modality(given: str | None, content: Mapping[str, Any], source: Path) -> str:
    known = ", ".join(MODALITIES)
    if given is not None:
        if given not in MODALITIES:
            raise DataError(f"modality is {given!r}; expected one of {known}.")
        return given
    said = content.get("modality", content.get("channel_names", {}))
    text = " ".join(map(str, said.values() if isinstance(said, dict) else [said]))
    for modality in MODALITIES:
        if re.search(rf"\b{modality}I?\b", text, re.IGNORECASE):
            return modality
    found = f"{text!r} is none of" if text else "nothing says which of"
    raise DataError(f"{source}: {found} {known}. Say it: e.g. --modality CT.")


def _labels_of(folder: Path, content: Mapping[str, Any], source: Path) -> dict[int, str]:
    """Label ids and names in either direction: {"1": "spleen"}, or nnU-Net's {"spleen": 1}."""
    names = content.get("labels", {})
    if not names and (folder / "labels.json").is_file():
        source = folder / "labels.json"
        names = read_json(source)
    if not isinstance(names, dict):
        raise DataError(f'{source}: labels is not an object; expected e.g. {{"1": "spleen"}}.')
    labels = {}
    for key, value in names.items():
        key, value = (str(value), key) if isinstance(value, int) else (key, value)
        if not str(key).isdecimal() or not isinstance(value, str):
            raise DataError(
                f'{source}: label {key!r}: {value!r} is not an id and a name; expected e.g. "1": '
                '"spleen".'
            )
        labels[int(key)] = value
    labels.pop(0, None)
    return dict(sorted(labels.items()))


def _labels_in(cases: Iterable[Case], folder: Path) -> dict[int, str]:
    """Ids and names that the label files speak of."""
    organs: dict[str, str] = {}  # names of an RTSTRUCT are compared without regard to case
    found: dict[int, str] = {}
    for case in cases:
        if case.label is None:
            continue
        if case.label.is_dir():
            organs |= {name: name for name in organ_files(case.label)}
            continue
        if is_structure_set(case.label):
            for name in label_names(case.id, case.label).values():
                organs.setdefault(name.casefold(), name)
            continue
        for number, name in label_names(case.id, case.label).items():
            if found.setdefault(number, name) != name:
                raise DataError(
                    f"{case.label}: label {number} is {name!r}, in another case {found[number]!r}; "
                    "expected one meaning of a number. Export the labels with equal numbers."
                )
    if organs and found:
        raise DataError(
            f"{folder}: some labels have names only (a file for each organ, or RTSTRUCT), some "
            "have numbers (label maps, or SEG); expected one kind, or a labels.json with both."
        )
    labels = dict(enumerate(sorted(organs.values()), start=1)) or dict(sorted(found.items()))
    if not labels:
        raise DataError(f"{folder}: all label maps are empty; expected values above 0.")
    return labels


def _share(patients: int, fractions: Sequence[float]) -> list[int]:
    """Whole patients for each subset, by largest remainder, at least one where asked for any."""
    wanted = sum(fraction > 0 for fraction in fractions)
    if patients < wanted:
        raise DataError(
            f"{patients} patients cannot fill {wanted} subsets (fractions {tuple(fractions)}); "
            "expected at least one patient for each. Set a fraction to 0, or add scans."
        )
    exact = [patients * fraction for fraction in fractions]
    counts = [int(share + 1e-9) for share in exact]
    order = sorted(range(len(counts)), key=lambda i: counts[i] - exact[i])
    for i in order[: patients - sum(counts)]:
        counts[i] += 1
    for i, fraction in enumerate(fractions):
        if fraction > 0 and counts[i] == 0:
            counts[counts.index(max(counts))] -= 1
            counts[i] = 1
    return counts


def _refuse_missing(cases: Iterable[Case], source: Path) -> None:
    files = [file for case in cases for file in (case.image, case.label) if file is not None]
    missing = [str(file) for file in files if not file.exists()]
    if missing:
        raise DataError(
            f"{source}: {len(missing)} of {len(files)} files are missing: {_some(missing)}. "
            "Copy them there or remove their entries."
        )


def _refuse_same_names(cases: Iterable[Case], source: Path) -> None:
    twice = [name for name, count in Counter(case.id for case in cases).items() if count > 1]
    if twice:
        raise DataError(
            f"{source}: several images are named {_some(twice)}; expected each name once, "
            "because results are named after the scan. Rename the files."
        )


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    rest = f", ... ({len(listed)} in all)" if len(listed) > _SHOWN else ""
    return ", ".join(listed[:_SHOWN]) + rest
