"""Reads every scan of a datalist or a folder once, and says what is wrong with which."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
from monai.data import MetaTensor
from tqdm import tqdm

from medsam_tune.data.checks import DataError, check_image
from medsam_tune.data.datalist import SUBSETS, Case, find_cases, read_datalist
from medsam_tune.data.dicom import Series, find_series, read_series
from medsam_tune.data.readers import ENDINGS, case_id, image_from, load_image
from medsam_tune.data.scans import load_case
from medsam_tune.files import written_whole

SOUND, REFUSED, LEAKING = 0, 3, 4
"""What `medsam-tune check` exits with; 1 is an error of the call itself, 2 of its options. Where
scans are refused and others leak, it is `LEAKING`."""


@dataclass
class Finding:
    """What is known of one scan after reading it.

    Attributes:
        case: id, or the series in a folder of DICOM.
        subset: of the datalist, or empty.
        problem: why it is refused; empty for a sound one.
        shape: (I, J, K) voxels of the file's array.
        spacing: along those axes, millimetres.
        orientation: nibabel's axis codes, e.g. "RAS".
        range: lowest and highest value.
        labels: label id -> voxels.
        notes: what was changed on the way.
        voxels: hash of the values, whatever the file.
    """

    case: str
    subset: str = ""
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
        source: what was checked.
        findings: one for each scan.
        leaks: same voxels in two subsets; one sentence each.
        twice: same voxels twice in one subset.
    """

    source: str
    findings: tuple[Finding, ...]
    leaks: tuple[str, ...]
    twice: tuple[str, ...]

    @property
    def outcome(self) -> int:
        """`SOUND`, `REFUSED` or `LEAKING`."""
        if self.leaks:
            return LEAKING
        return REFUSED if any(one.problem for one in self.findings) else SOUND

    def lines(self) -> list[str]:
        """For a terminal: every sound scan in a line, then every problem."""
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
        """As JSON, whole or not at all."""
        content = {**asdict(self), "outcome": self.outcome}
        with written_whole(path) as beside:
            beside.write_text(json.dumps(content, indent=1) + "\n")


def _line(one: Finding) -> str:
    size = " x ".join(map(str, one.shape))
    spacing = " x ".join(f"{mm:.4g}" for mm in one.spacing)
    low, high = one.range
    parts = [f"{one.case}: {size}, {spacing} mm, {one.orientation}, {low:g} to {high:g}"]
    if one.labels:
        parts.append("labels " + ", ".join(f"{k} ({n})" for k, n in one.labels.items()))
    return "; ".join([*parts, *one.notes])


def check_place(place: Path, jobs: int = 2, progress: bool = True) -> Report:
    """Read every scan of a place.

    Args:
        place: a datalist (.json), a folder that `find_cases` knows, any other folder, whose DICOM
            series and scans are read one by one, or one file.
        jobs: scans read at once.
        progress: show a bar on standard error, if that is a terminal.

    Raises:
        DataError: the datalist or the folder itself is refused, e.g. for a patient in two subsets.
    """
    if not place.exists():
        raise DataError(f"{place}: no such file or folder. Correct the path.")
    tasks = _tasks(place)
    with ThreadPoolExecutor(jobs) as pool:
        done = pool.map(lambda task: task(), tasks)
        disable = None if progress else True
        findings = tuple(tqdm(done, total=len(tasks), desc="check", unit="scan", disable=disable))
    leaks, twice = _same_voxels(findings)
    return Report(str(place), findings, leaks, twice)


def _tasks(place: Path) -> list[_Task]:
    if place.suffix == ".json":
        data = read_datalist(place)
        return [
            _case_task(case, subset, data.labels)
            for subset in SUBSETS
            for case in getattr(data, subset)
        ]
    if (place / "dataset.json").is_file() or (place / "labels").is_dir():
        data = find_cases(place, modality="CT")  # it does not matter here
        return [_case_task(case, "", data.labels) for case in data.training]
    if place.name.lower().endswith(ENDINGS):
        return [_scan_task(place)]
    files = [path for path in sorted(place.rglob("*")) if path.is_file()]
    scans = [path for path in files if path.name.lower().endswith(ENDINGS)]
    tasks = [_scan_task(path) for path in scans]
    if not tasks or len(scans) < len(files):
        tasks += _series_tasks(place, bool(tasks))
    return tasks


def _task(finding: Finding, read: Callable[[], tuple[MetaTensor, MetaTensor | None]]) -> _Task:
    """Fills the finding in with what `read` gives, or with why it is refused."""

    def run() -> Finding:
        try:
            image, label = read()
        except DataError as error:
            finding.problem = str(error)
            return finding
        _describe(finding, image)
        if label is not None:
            counts = np.bincount(label.as_tensor().numpy().ravel())
            finding.labels = {int(k): int(counts[k]) for k in np.flatnonzero(counts) if k}
        return finding

    return run


def _case_task(case: Case, subset: str, labels: Mapping[int, str]) -> _Task:
    return _task(Finding(case.id, subset), lambda: load_case(case, labels))


def _scan_task(path: Path) -> _Task:
    name = case_id(path)

    def read() -> tuple[MetaTensor, None]:
        image = load_image(name, path)
        check_image(name, image, path)
        return image, None

    return _task(Finding(name), read)


def _series_tasks(place: Path, optional: bool) -> list[_Task]:
    try:
        found = find_series(place)
    except DataError:
        if optional:  # there are other scans; a README beside them is no fault
            return []
        raise

    def task(series: Series) -> _Task:
        name = str(series)

        def read() -> tuple[MetaTensor, None]:
            try:
                image = image_from(read_series(series))
                check_image(name, image, series.files[0].parent)
            except DataError as error:
                raise DataError(f"{name}: {error}") from error
            return image, None

        return _task(Finding(name), read)

    return [task(series) for series in found]


def _describe(finding: Finding, image: MetaTensor) -> None:
    """Fill in what a sound scan (1, X, Y, Z) is like; shape and spacing of the file's own axes."""
    affine = np.asarray(image.meta["original_affine"], dtype=np.float64)
    values = image.as_tensor()
    shape = image.meta.get("spatial_shape")
    finding.shape = tuple(int(n) for n in (values.shape[1:] if shape is None else shape))
    finding.spacing = tuple(np.linalg.norm(affine[:3, :3], axis=0).round(4).tolist())
    finding.orientation = "".join(nib.orientations.aff2axcodes(affine))
    finding.range = (float(values.min()), float(values.max()))
    finding.notes = tuple(image.meta.get("notes", ()))
    finding.voxels = hashlib.sha256(values.contiguous().numpy().data).hexdigest()[:16]


def _same_voxels(findings: Sequence[Finding]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    first: dict[str, Finding] = {}
    leaks, twice = [], []
    for one in findings:
        if not one.voxels:
            continue
        other = first.setdefault(one.voxels, one)
        if other is not one:
            text = f"{other.case} and {one.case} hold the same voxels"
            if other.subset != one.subset:
                leaks.append(f"{text}, one in {other.subset}, one in {one.subset}")
            else:
                twice.append(text)
    return tuple(leaks), tuple(twice)
