"""Audit: read every scan of a datalist or a folder once, and report its faults."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.data import MetaTensor

from medsam_tune.cases.checks import Expected, check_image
from medsam_tune.cases.datalist import (
    SUBSETS,
    Case,
    Datalist,
    leaks_of,
    read_datalist,
)
from medsam_tune.cases.description import known_modality
from medsam_tune.cases.folders import has_pairs, paired_cases, studies_cases
from medsam_tune.cases.labels.names import labels_of
from medsam_tune.cases.load import load_case, voxel_hash
from medsam_tune.console import tracked
from medsam_tune.errors import DataError, about
from medsam_tune.failures import REFUSED, unexpected
from medsam_tune.files import file_hash, written_whole
from medsam_tune.formats.dicom.series import Series
from medsam_tune.formats.dicom.stack import read_series
from medsam_tune.formats.dicom.studies import read_tree
from medsam_tune.formats.listing import files_below
from medsam_tune.formats.mending import Mending
from medsam_tune.formats.open import ENDINGS, is_flat, scans_among
from medsam_tune.formats.volume import image_from

SOUND, LEAKING = 0, 4
"""What `medsam-tune check` exits with, beside `REFUSED`; 1 is an error of the call itself, 2 of its
options. Where scans are refused and others leak, it is `LEAKING`."""

_MILLIMETRES = 1000.0  # of a metre


@dataclass
class Finding:
    """What is known of one scan after reading it.

    Attributes:
        case: id of the case, or description of the series in a folder of DICOM.
        subset: subset of the datalist; empty without one.
        flat: True of a 2-D image.
        problem: reason of the refusal; empty for a sound scan.
        shape: (I, J, K) number of voxels of the file's array.
        spacing: millimetres along those axes; empty where nothing says them.
        orientation: nibabel's axis codes, e.g. "RAS".
        range: lowest and highest value.
        labels: label id -> number of voxels.
        notes: changes made while reading.
        voxels: hash of the values in LPS order, equal for equal scans in different files.
    """

    case: str
    subset: str = ""
    flat: bool = False
    problem: str = ""
    shape: tuple[int, ...] = ()
    spacing: tuple[float, ...] = ()
    orientation: str = ""
    range: tuple[float, ...] = ()
    labels: dict[int, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    voxels: str = ""


_Task = Callable[[], Finding]


@dataclass(frozen=True)
class Report:
    """The findings of all scans, and which of them are the same scan.

    Attributes:
        source: datalist, folder or file that was checked.
        findings: one for each scan.
        leaks: the same patient, file or voxels in two subsets; one sentence each.
        twice: the same file or voxels twice in one subset; one sentence each.
        modality: modality of the datalist; empty where there is none.
    """

    source: str
    findings: tuple[Finding, ...]
    leaks: tuple[str, ...]
    twice: tuple[str, ...]
    modality: str = ""

    @property
    def outcome(self) -> int:
        """`SOUND`, `REFUSED` or `LEAKING`."""
        if self.leaks:
            return LEAKING
        return REFUSED if any(one.problem for one in self.findings) else SOUND

    def lines(self) -> list[str]:
        """Lines for a terminal: every sound scan, then every problem."""
        sound = [one for one in self.findings if not one.problem]
        refused = [one for one in self.findings if one.problem]
        lines = [_line(one) for one in sound]
        lines += [f"refused: {one.problem}" for one in refused]
        lines += [f"leak: {text}" for text in self.leaks]
        lines += [f"twice: {text}" for text in self.twice]
        lines.append(
            f"{self.source}: {len(sound)} sound, {len(refused)} refused, {len(self.leaks)} leaks"
        )
        return lines

    def write(self, path: Path) -> None:
        """Write the report as JSON, whole or not at all."""
        content = {**asdict(self), "outcome": self.outcome}
        with written_whole(path) as beside:
            beside.write_text(json.dumps(content, indent=1) + "\n")


def _line(one: Finding) -> str:
    low, high = one.range
    parts = [f"{one.case}: {_size(one)}, {low:g} to {high:g}"]
    if one.labels:
        parts.append("labels " + ", ".join(f"{k} ({n})" for k, n in one.labels.items()))
    return "; ".join([*parts, *one.notes])


def _size(one: Finding) -> str:
    """Size of a scan and of its voxels, in words; of a 2-D image in pixels and metres."""
    if one.flat:
        sides = dict.fromkeys(f"{mm / _MILLIMETRES:.4g}" for mm in one.spacing[:2])
        pixel = f" of {' x '.join(sides)} m" if sides else ""
        return f"{one.shape[0]} x {one.shape[1]} pixels{pixel}"
    spacing = " x ".join(f"{mm:.4g}" for mm in one.spacing)
    spacing = f"{spacing} mm" if spacing else "of no known spacing"
    return f"{' x '.join(map(str, one.shape))}, {spacing}, {one.orientation}"


def check_place(
    place: Path,
    jobs: int = 2,
    progress: bool = True,
    mending: Mending | None = None,
    any_unit: bool = False,
) -> Report:
    """Read every scan of a place.

    Args:
        place: a datalist (.json), a folder, table or COCO file that `find_cases` knows, any other
            folder, whose DICOM series and scans are read one by one, or one file.
        jobs: number of scans read at once.
        progress: show it on standard error.
        mending: choice of faults to mend; by default all are refused.
        any_unit: accept CT whose values cannot be Hounsfield units, for another intensity rule.

    Raises:
        DataError: the datalist or the folder itself is refused, e.g. for missing files.
    """
    if not place.exists():
        raise DataError(f"{place}: no such file or folder. Correct the path.")
    mending = mending or Mending()
    leaks: list[str] = []
    twice: list[str] = []
    known: set[tuple[str, str]] = set()
    modality = ""
    if place.suffix == ".json" and not has_pairs(place):
        data = read_datalist(place, with_leaks=True)
        leaks += leaks_of(data)
        known = _same_bytes(data, leaks, twice)
        modality = data.modality
        expected = _expected(modality, any_unit)
        tasks = [
            _case_task(case, subset, data.labels_in_files, mending, expected)
            for subset in SUBSETS
            for case in getattr(data, subset)
        ]
    else:
        tasks = _tasks(place, mending, any_unit)
    with ThreadPoolExecutor(jobs) as pool:
        done = pool.map(lambda task: task(), tasks)
        findings = tuple(tracked(done, "check", len(tasks), "scan", show=progress))
    _same_voxels(findings, known, leaks, twice)
    return Report(str(place), findings, tuple(leaks), tuple(twice), modality)


def _tasks(place: Path, mending: Mending, any_unit: bool) -> list[_Task]:
    if has_pairs(place):
        cases, content = paired_cases(place)
        labels = labels_of(place, cases, content)[0].in_files
        expected = _expected(_modality_said(content, place), any_unit)
        return [_case_task(case, "", labels, mending, expected) for case in cases]
    if place.name.lower().endswith(ENDINGS):
        return [_scan_task(place, mending)]
    files = files_below(place) if place.is_dir() else [place]
    scans = scans_among(files)
    flat = bool(scans) and is_flat(scans[0])
    tasks = [] if flat else [_scan_task(path, mending) for path in scans]
    if not tasks or len(scans) < len(files):
        tasks += _tree_tasks(place, bool(scans), mending)
    # Images beside DICOM are previews.
    return tasks or [_scan_task(path, mending) for path in scans]


def _modality_said(content: Mapping[str, Any], place: Path) -> str:
    """The modality that dataset.json names; empty where it names none."""
    try:
        return known_modality(None, content, place)
    except DataError:
        return ""


def _expected(modality: str, any_unit: bool) -> Expected:
    return Expected(modality, hounsfield=modality == "CT" and not any_unit)


def _task(finding: Finding, read: Callable[[], tuple[MetaTensor, MetaTensor | None]]) -> _Task:
    """Task that fills the finding with what `read` gives, or with the reason of the refusal."""

    def run() -> Finding:
        try:
            image, label = read()
            _describe(finding, image)
            if label is not None:
                _describe_label(finding, label)
        except DataError as error:
            finding.problem = str(error)
        except Exception as error:  # of one scan of thousands; the others' findings are kept
            finding.problem = f"{finding.case}: {unexpected(error)}"
        return finding

    return run


def _case_task(
    case: Case, subset: str, labels: Mapping[int, str], mending: Mending, expected: Expected
) -> _Task:
    finding = Finding(case.id, subset, is_flat(case.image))
    return _task(finding, lambda: load_case(case, labels, mending, expected))


def _scan_task(path: Path, mending: Mending) -> _Task:
    case = Case(path, None, "")
    return _case_task(case, "", {}, mending, Expected())


def _tree_tasks(place: Path, optional: bool, mending: Mending) -> list[_Task]:
    """Tasks of a DICOM tree: series with their SEG or RTSTRUCT, then those without one."""
    try:
        tree = read_tree(place)
    except DataError:
        if optional:  # there are other scans; a README beside them is no fault
            return []
        raise
    cases = studies_cases(tree.labelled)
    labels = labels_of(place, cases)[0].in_files if cases else {}
    tasks = [_case_task(case, "", labels, mending, Expected()) for case in cases]
    tasks += [_series_task(series, mending) for series in tree.others]
    for path, problem in tree.problems.items():
        tasks.append(partial(Finding, path.name, problem=problem))
    return tasks


def _series_task(series: Series, mending: Mending) -> _Task:
    name = str(series)

    def read() -> tuple[MetaTensor, None]:
        with about(name):
            image = image_from(read_series(series, mending.resample_uneven))
            check_image(image, series.files[0].parent)
        return image, None

    return _task(Finding(name), read)


def _describe(finding: Finding, image: MetaTensor) -> None:
    """Fill in what a sound scan (1, X, Y, Z) is like; shape and spacing of the file's own axes."""
    affine = np.asarray(image.meta["original_affine"], dtype=np.float64)
    values = image.as_tensor()
    shape = image.meta.get("spatial_shape")
    finding.shape = tuple(int(n) for n in (values.shape[1:] if shape is None else shape))
    if image.meta.get("spacing_known", True):
        finding.spacing = tuple(np.linalg.norm(affine[:3, :3], axis=0).round(4).tolist())
    finding.orientation = "".join(nib.orientations.aff2axcodes(affine))
    finding.range = (float(np.nanmin(values)), float(np.nanmax(values)))
    finding.notes = tuple(image.meta.get("notes", ()))
    finding.voxels = voxel_hash(image)


def _describe_label(finding: Finding, label: MetaTensor) -> None:
    """Fill in the notes and the voxels of each id of a label map, the first channel."""
    finding.notes = tuple(dict.fromkeys([*finding.notes, *label.meta.get("notes", ())]))
    counts: Counter[int] = Counter()
    for part in label.as_tensor()[:1].split(
        1, dim=-1
    ):  # of all at once, an int64 copy would be made
        ids, numbers = np.unique(part.numpy(), return_counts=True)
        counts.update(dict(zip(ids.tolist(), numbers.tolist(), strict=True)))
    finding.labels = {k: counts[k] for k in sorted(counts) if k}


def _same_bytes(data: Datalist, leaks: list[str], twice: list[str]) -> set[tuple[str, str]]:
    """Compare image files before any is decoded; only those of equal size are read.

    Returns:
        ids of the cases of each pair that is now listed.
    """
    by_size: dict[int, list[tuple[str, Case]]] = defaultdict(list)
    for subset in SUBSETS:
        for case in getattr(data, subset):
            if case.image.is_file() and case.region is None:  # parts are compared by pixels
                by_size[case.image.stat().st_size].append((subset, case))
    listed = set()
    for members in by_size.values():
        first: dict[str, tuple[str, Case]] = {}
        for subset, case in members if len(members) > 1 else ():
            content = file_hash(case.image)
            other_subset, other = first.setdefault(content, (subset, case))
            if other is case:
                continue
            listed.add((other.id, case.id))
            if case.image.resolve() != other.image.resolve() or subset == other_subset:
                text = f"{other.id} and {case.id} are the same file"
                _list_pair(text, other_subset, subset, leaks, twice)
    return listed


def _same_voxels(
    findings: Sequence[Finding],
    known: Collection[tuple[str, str]],
    leaks: list[str],
    twice: list[str],
) -> None:
    first: dict[str, Finding] = {}
    for one in findings:
        if not one.voxels:
            continue
        other = first.setdefault(one.voxels, one)
        if other is not one and (other.case, one.case) not in known:
            text = f"{other.case} and {one.case} hold the same voxels"
            _list_pair(text, other.subset, one.subset, leaks, twice)


def _list_pair(text: str, first: str, second: str, leaks: list[str], twice: list[str]) -> None:
    if first == second:
        twice.append(text)
    else:
        leaks.append(f"{text}, one in {first}, one in {second}")
