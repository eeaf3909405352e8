"""Predictions of one scan or many: what is to do, what is refused, and how it ends."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import BaseFileLock
from monai.engines import SupervisedEvaluator

from medsam_tune.cases.places import find_scans
from medsam_tune.console import LOG, tracked
from medsam_tune.errors import DataError
from medsam_tune.failures import DONE, REFUSED, USER
from medsam_tune.files import hold_folder, remove_leftovers
from medsam_tune.inference.jobs import Job, is_done, jobs_for, refuse_taken_jobs
from medsam_tune.inference.output import ending_of, refuse_taken_masks
from medsam_tune.inference.tuned_runs import TunedRuns

_FILE = re.compile(r"\.[A-Za-z]\w{1,4}")  # ending of a new name that is meant for a file


class Predictions:
    """The predictions of a command: what is to be done, what was refused, and how it ended.

    With several scans, one that cannot be read or segmented is refused in one line, and the others
    go on. An error of the only scan is raised.

    Args:
        scans: a scan, a folder, or a datalist; see `places.find_scans`.
        output: folder of the masks; or for one scan the mask.
        runs: runs that predict.
        prompts: see `jobs.jobs_for`.
        subset: subset of a datalist.
        series: SeriesInstanceUID, or its end, of one scan of DICOM.
        ending: ending of masks in a folder.
        separate: masks by label are written.
        probabilities: probabilities are written.
        resume: leave out what is done: the record and the files are there, and the scan and its
            prompts are those of the record. Other masks are made again, but those of other runs or
            settings only with `overwrite`.
        overwrite: replace masks that are there.
        settings: settings that change the masks, for the records.

    Attributes:
        jobs: scans to do; after `open`.
        refused: scans that could not be done, one line each.
        done: number of scans that are done, and how many of them were `before`.
    """

    def __init__(
        self,
        scans: str | Path,
        output: str | Path,
        runs: TunedRuns,
        *,
        prompts: str | Path | None = None,
        subset: str | None = None,
        series: str | None = None,
        ending: str = ".nii.gz",
        separate: bool = False,
        probabilities: bool = False,
        resume: bool = False,
        overwrite: bool = False,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.scans = Path(scans)
        self.output = Path(output)
        self.runs = runs
        self.prompts = prompts
        self.subset = subset
        self.series = series
        self.ending = ending
        self.separate = separate
        self.probabilities = probabilities
        self.resume = resume
        self.overwrite = overwrite
        self.settings = {**(settings or {}), "separate": separate}
        self.jobs: tuple[Job, ...] = ()
        self.refused: list[str] = []
        self.done = self.before = 0
        self._number = 0
        self._lock: BaseFileLock | None = None

    @property
    def goes_on(self) -> bool:
        """Whether a refused scan leaves others to do."""
        return self._number > 1

    @property
    def about(self) -> dict[str, Any]:
        """What the records of all masks have in common."""
        labels = {str(key): name for key, name in self.runs.labels.items()}
        return {"runs": self.runs.description, "labels": labels, "settings": self.settings}

    def open(self) -> None:
        """Find the scans and their prompts, and take the output folder for this process.

        Raises:
            DataError: no scan; an output that is taken; another process predicts into the folder.
        """
        single = bool(ending_of(self.output)) and not self.output.is_dir()
        if not single:
            self._refuse_folder()
        beside = () if single else (self.output,)
        found = find_scans(
            self.scans,
            subset=self.subset,
            series=self.series,
            modality=self.runs.rules.modality,
            leave_out=(*beside, *([] if self.prompts is None else [Path(self.prompts)])),
        )
        jobs = jobs_for(found, self.output, self.ending, self.prompts)
        self._number = len(jobs) + len(found.refused)
        problems = [*found.refused.values(), *(job.problem for job in jobs if job.problem)]
        if problems and not self.goes_on:
            raise DataError(problems[0])
        if not single:
            self.output.mkdir(parents=True, exist_ok=True)
            self._lock = hold_folder(self.output, "predicts")
        try:
            self._take(jobs)
        except BaseException:
            self._release()
            raise
        for problem in problems:
            self.refuse(problem)

    def _refuse_folder(self) -> None:
        if ending_of(f"mask{self.ending}") != self.ending or not self.ending:
            raise DataError(f"ending is {self.ending!r}; expected one of a mask, such as .nii.gz.")
        if self.output.is_dir():
            if self.scans.is_dir() and self.output.samefile(self.scans):
                raise DataError(
                    f"{self.output}: is the folder of the scans; choose another for the masks, or "
                    "a new one in it."
                )
        elif _FILE.fullmatch(self.output.suffix):
            refuse_taken_masks(self.output, {})  # for its ending
        elif self.output.exists():
            raise DataError(f"{self.output}: is a file; expected a folder for the masks.")

    def _take(self, jobs: tuple[Job, ...]) -> None:
        """Settle which jobs are to do; remove what a killed process left of them."""
        options = {"separate": self.separate, "probabilities": self.probabilities}
        replace = self.overwrite or self.resume
        refuse_taken_jobs(jobs, self.runs.labels, **options, replace=replace)
        to_do = [job for job in jobs if not job.problem]
        if self._lock is not None:
            names = [path.name for job in jobs for path in job.targets(self.runs.labels, **options)]
            remove_leftovers(self.output, names)
        if self.resume:
            about, labels = self.about, self.runs.labels
            done = [
                is_done(
                    job, about, job.targets(labels, **options), self.probabilities, self.overwrite
                )
                for job in tracked(to_do, "compare", unit="scan")
            ]
            self.done = self.before = sum(done)
            to_do = [job for job, is_there in zip(to_do, done, strict=True) if not is_there]
        self.jobs = tuple(to_do)

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()

    def refuse(self, problem: str) -> None:
        """Note why a scan cannot be done, and say it."""
        self.refused.append(problem)
        LOG.warning(f"refused: {problem}")

    def run(self, evaluator: SupervisedEvaluator) -> None:
        """Do all jobs, and say at the end what was refused.

        Args:
            evaluator: evaluator over the jobs.

        Raises:
            SystemExit: scans were refused; its code is 3, or 1 if nothing is done.
        """
        try:
            if self.jobs:
                evaluator.run()
        finally:
            self._release()
        if self.goes_on:
            there = f" ({self.before} were there)" if self.resume else ""
            said = f"{self.done} mask{'s' * (self.done != 1)}{there}, {len(self.refused)} refused"
            LOG.info("\n".join([f"{said}:" if self.refused else said, *self.refused]))
        code = (REFUSED if self.done else USER) if self.refused else DONE
        if code:
            raise SystemExit(code)
