"""Jobs of a prediction: which scan, by which prompts, into which files; and which are done."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medsam_tune.cases.datalist import Case
from medsam_tune.cases.places import Scans
from medsam_tune.errors import DataError, listed
from medsam_tune.files import file_hash, files_hash, flat, named_hash, read_json, refuse_taken
from medsam_tune.formats import coco
from medsam_tune.formats.listing import entries_of
from medsam_tune.formats.open import files_of, name_from, scan_files, stem_of
from medsam_tune.inference.output import ending_of, masks_at
from medsam_tune.inference.probabilities import probability_paths
from medsam_tune.inference.records import RECORD, record_of, refuse_input, refuse_owned

_MARKUPS = (".mrk.json", ".json")


@dataclass(frozen=True)
class Job:
    """A scan to segment.

    Attributes:
        case: the scan; it has no label.
        path: its path as the record tells it; None where its name hides the file's.
        mask: file to write; of masks by label, see `output.mask_paths`.
        prompts: file or folder of its prompts, or None.
        problem: why it cannot be done; empty where nothing is known.
    """

    case: Case
    path: str | None
    mask: Path
    prompts: Path | None = None
    problem: str = ""

    @property
    def record(self) -> Path:
        """The file beside the mask that says how it was made."""
        return record_of(self.mask)

    def targets(self, labels: Mapping[int, str], separate: bool, probabilities: bool) -> list[Path]:
        """All files that may be written, the record last."""
        masks = masks_at(self.mask, labels, separate)
        maps = probability_paths(self.mask, labels).values() if probabilities else ()
        return [*masks, *maps, self.record]

    def scan_hash(self) -> str:
        """SHA-256 of the scan's files, see `files.files_hash`."""
        return files_hash(scan_files(self.case.image, self.case.series))

    def prompts_hash(self) -> str | None:
        """SHA-256 of the prompts: of a folder with the names in it, which say the labels."""
        if self.prompts is None or not self.prompts.is_dir():
            return None if self.prompts is None else file_hash(self.prompts)
        return named_hash(self.prompts, files_of(self.prompts))


def jobs_for(
    scans: Scans, output: Path, ending: str, prompts: str | Path | None
) -> tuple[Job, ...]:
    """One job for each scan.

    Args:
        scans: scans of a place.
        output: folder of the masks, which get the names of the cases; or for one scan the mask.
        ending: ending of masks in a folder.
        prompts: a folder with a file for each case, named after it: `a.json`, `a.mrk.json`, or a
            label map such as `a.nii.gz`; or COCO's JSON of all; or the prompts of the only scan; or
            None.

    Raises:
        DataError: one mask or one file of prompts for several scans; no such folder of prompts.
    """
    cases, single = scans.cases, bool(ending_of(output)) and not output.is_dir()
    if single and len(cases) != 1:
        raise DataError(
            f"{output}: is one mask, and there are {len(cases)} scans: "
            f"{listed((case.id for case in cases), 5)}; expected a folder as --output. One series "
            "of DICOM is chosen by --series."
        )
    found = None if prompts is None else _prompts_of(cases, Path(prompts))
    jobs = []
    for case in cases:
        path = None if case.name else Path(os.path.relpath(case.image, scans.folder)).as_posix()
        mask = output if single else output / f"{case.id}{ending}"
        given = None if found is None else found[case.id]
        if case.region is not None:
            given = (
                f"the datalist takes a part of {case.image}, and predict whole images; expected "
                "the image itself: predict it once, without the datalist."
            )
        if isinstance(given, str):
            jobs.append(Job(case, path, mask, problem=f"case {case.id}: {given}"))
        else:
            jobs.append(Job(case, path, mask, given))
    return tuple(jobs)


def _prompts_of(cases: Sequence[Case], prompts: Path) -> dict[str, Path | str]:
    """Case id -> its prompts, or why there are none."""
    if not prompts.is_dir():
        if len(cases) == 1 or coco.is_coco(prompts):
            return {case.id: prompts for case in cases}
        raise DataError(
            f"{prompts}: is no folder, and there are {len(cases)} scans; expected a folder of "
            "prompts with a file for each, named after it."
        )
    scans = {os.path.realpath(case.image) for case in cases}
    by_name: dict[str, list[Path]] = defaultdict(list)
    for path in entries_of(prompts):
        if os.path.realpath(path) not in scans and not path.name.endswith(RECORD):
            by_name[_name_of(path)].append(path)
    found: dict[str, Path | str] = {}
    for case in cases:
        own = by_name[case.id]
        if len(own) == 1:
            found[case.id] = own[0]
        elif not own and len(cases) == 1 and not _only_markups(by_name):
            # a folder may be a label: a file for each organ, a SEG
            found[case.id] = prompts
        else:
            names = listed(path.name for path in own) or "none"
            found[case.id] = (
                f"{prompts} has {len(own)} files of prompts for it: {names}; expected one: "
                f"{case.id}.json, {case.id}.mrk.json, or a label map such as {case.id}.nii.gz."
            )
    return found


def _only_markups(by_name: Mapping[str, Sequence[Path]]) -> bool:
    """Whether files of prompts are no label: there is none, or all are JSON."""
    files = [path for paths in by_name.values() for path in paths]
    return all(path.name.lower().endswith(_MARKUPS) for path in files)


def _name_of(prompts: Path) -> str:
    """The case that a file of prompts is named after."""
    name = prompts.name
    ending = next((end for end in _MARKUPS if name.lower().endswith(end)), "")
    return name_from(name[: -len(ending)] if ending else stem_of(prompts))


def refuse_taken_jobs(
    jobs: Sequence[Job],
    labels: Mapping[int, str],
    *,
    separate: bool = False,
    probabilities: bool = False,
    replace: bool = False,
    inputs: Iterable[str | Path | None] = (),
) -> None:
    """Refuse outputs that are there already, or that are an input.

    Args:
        jobs: all jobs.
        labels: label id -> name.
        separate: masks by label are written.
        probabilities: probabilities are written.
        replace: replace outputs that are there.
        inputs: further files that are read.

    Raises:
        DataError: see above; a file of two jobs, or of another scan's prediction.
    """
    given = [*inputs]
    of_jobs = [path for job in jobs for path in (job.case.image, job.prompts)]
    read = [path for path in (*of_jobs, *given) if path is not None]
    inputs = {os.path.realpath(path) for path in read}
    there = []
    owners: dict[str, Job] = {}
    for job in jobs:
        own = [job.case.image, job.prompts, *given]
        alone = replace or len(jobs) > 1
        *targets, record = job.targets(labels, separate, probabilities)
        refuse_taken(record, True, own)  # without its mask it is of no use
        for path in (*targets, record):
            other = owners.setdefault(os.path.realpath(path), job)
            if other is not job:
                raise DataError(
                    f"{path}: is a file of the cases {other.case.id} and {job.case.id}, as masks "
                    "by label and probabilities are named after the scan and the label; expected "
                    "one case for each file. Rename one of the scans."
                )
        refuse_owned(record, targets)
        for target in targets:
            refuse_taken(target, alone, own)
            if os.path.realpath(target) in inputs:
                raise DataError(f"{target}: is an input; choose another folder for the output.")
        refuse_input(job.record, targets, read)
        there += [target.name for target in targets if os.path.lexists(target)][:1]
    if there and not replace:
        raise DataError(
            f"{jobs[0].mask.parent}: {len(there)} of {len(jobs)} scans have masks there already: "
            f"{listed(there, 5)}. Choose another folder, go on with --resume, or say --overwrite."
        )


def is_done(
    job: Job, about: Mapping[str, Any], targets: Sequence[Path], probabilities: bool, replace: bool
) -> bool:
    """Whether a job was done before: its record is there, its files too, and nothing changed.

    A mask whose record is not finished was being written when its process was killed.

    Args:
        job: the job.
        about: what the records of all jobs have in common, see `predictions.Predictions`.
        targets: files that may be written, see `Job.targets`.
        probabilities: probabilities are wanted.
        replace: what was made by another run or by other settings is done again.

    Raises:
        DataError: it was made by another run or by other settings, without `replace`.
    """
    if not job.record.is_file():
        return False
    record = read_json(job.record)
    if record.get("finished") is not True:
        return False
    common = ("runs", "labels", "settings")
    then, now = (flat({key: each.get(key) for key in common}) for each in (record, about))
    other = [
        f"{key} was {then.get(key)!r}, now {now.get(key)!r}"
        for key in sorted({*then, *now})
        if then.get(key) != now.get(key)
    ]
    if other and not replace:
        raise DataError(
            f"{job.record}: its mask was made otherwise: {listed(other, 5, '; ')}. Choose another "
            "folder, or say --overwrite to make such masks again."
        )
    files = [*_names(record, "masks"), *_names(record, "probabilities")]
    complete = bool(_names(record, "probabilities")) or not probabilities
    wanted = {path.name for path in targets} >= {*_names(record, "masks")}  # not of another ending
    there = all((job.mask.parent / name).is_file() for name in files)
    if other or not complete or not wanted or not there:
        return False
    try:
        hashes = job.scan_hash(), job.prompts_hash()
    except (DataError, OSError):  # its turn says why
        return False
    if job.prompts is not None and job.prompts.name != _said(record, "prompts", "file"):
        return False  # its name may say the label
    return hashes == (_said(record, "scan", "sha256"), _said(record, "prompts", "sha256"))


def _names(record: Mapping[str, Any], key: str) -> list[str]:
    names = record.get(key)
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def _said(record: Mapping[str, Any], key: str, inner: str) -> str | None:
    content = record.get(key)
    return content.get(inner) if isinstance(content, dict) else None
