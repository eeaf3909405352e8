"""Predictions of one scan or many: what is to do, what is refused, and how it ends."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from filelock import BaseFileLock
from monai.engines import SupervisedEvaluator

from medsam_tune.cases.places import find_scans
from medsam_tune.console import LOG, tracked
from medsam_tune.errors import DataError, about
from medsam_tune.failures import DONE, REFUSED, USER
from medsam_tune.files import file_hash, hold_folder, remove_leftovers
from medsam_tune.formats import geotiff, vectors
from medsam_tune.inference.instances import refuse_separate_objects
from medsam_tune.inference.jobs import Job, is_done, jobs_for, refuse_taken_jobs
from medsam_tune.inference.output import COCO, FORMATS, Source, check_output, ending_of, format_for
from medsam_tune.inference.records import refuse_foreign, refuse_lost
from medsam_tune.inference.tuned_runs import TunedRuns
from medsam_tune.ranks import gathered, is_main, leave, my_part
from medsam_tune.slices.streamed import is_streamed

_FILE = re.compile(r"\.[A-Za-z]\w{1,4}")  # ending of a new name that is meant for a file


class Predictions:
    """The predictions of a command: what is to be done, what was refused, and how it ended.

    With several scans, one that cannot be read or segmented is refused in one line, and the others
    go on. An error of the only scan is raised.

    Of several ranks, the first finds what is to do, holds the output folder and says how it ended;
    each does its part of the scans.

    Args:
        scans: a scan, a folder, or a datalist; see `places.find_scans`.
        output: folder of the masks; or for one scan the mask.
        runs: runs that predict.
        prompts: see `jobs.jobs_for`.
        subset: subset of a datalist.
        domain: value of its column "domain"; None takes all.
        series: SeriesInstanceUID, or its end, of one scan of DICOM.
        ending: ending of masks in a folder; by default that of the format, or .nii.gz, of images
            .png.
        format: name of the masks' format, see `output.format_for`.
        source: what DICOM results say of the model.
        separate: masks by label are written.
        probabilities: probabilities are written.
        instances: objects of images are written, numbered, instead of labels; so they are as COCO.
        resume: leave out what is done: the record and the files are there, and the scan and its
            prompts are those of the record. What a prediction wrote is made again otherwise, but
            only with `overwrite` if it is of other runs or settings, or was changed since.
        overwrite: replace masks that are there, and delete others of their record.
        settings: settings that change the masks, for the records.

    Attributes:
        jobs: scans for this rank to do; after `open`.
        refused: scans that could not be done, one line each; after `run` those of all ranks.
        done: number of scans that are done, and how many of them were `before`; as `refused`.
    """

    def __init__(
        self,
        scans: str | Path,
        output: str | Path,
        runs: TunedRuns,
        *,
        prompts: str | Path | None = None,
        subset: str | None = None,
        domain: str | None = None,
        series: str | None = None,
        ending: str | None = None,
        format: str | None = None,
        source: Source | None = None,
        separate: bool = False,
        probabilities: bool = False,
        instances: bool = False,
        resume: bool = False,
        overwrite: bool = False,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.scans = Path(scans)
        self.output = Path(output)
        self.runs = runs
        self.prompts = prompts
        self.subset = subset
        self.domain = domain
        self.series = series
        usual = ".png" if runs.rules.modality == "RGB" else ".nii.gz"
        self.ending = ending or FORMATS.get(format or "", usual)
        self.format = format
        self.source = source or Source()
        self.separate = separate
        self.probabilities = probabilities
        self.resume = resume
        self.overwrite = overwrite
        ends = (self.ending if self.output.is_dir() else self.output.name).lower()
        self.instances = instances or ends.endswith(FORMATS[COCO]) or format == COCO
        refuse_separate_objects(separate, self.instances)
        self.settings = {**(settings or {}), "separate": separate, "instances": self.instances}
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
    def needs_logits(self) -> bool:
        """Whether logits are kept: for files of probabilities, or for those that polygons tell."""
        one = "" if self.output.is_dir() else ending_of(self.output)
        return self.probabilities or vectors.is_vector(Path(f"mask{one or self.ending}"))

    @property
    def about(self) -> dict[str, Any]:
        """What the records of all masks have in common."""
        labels = {str(key): name for key, name in self.runs.labels.items()}
        return {"runs": self.runs.description, "labels": labels, "settings": self.settings}

    def open(self) -> None:
        """Find the scans and their prompts, and take the output folder for this process.

        Raises:
            DataError: no scan; an output that is taken; another process predicts into the folder.
            SystemExit: another rank has ended, and said why.
        """
        if is_main():
            self._open()
        first = gathered((self.jobs, self._number, self.settings))[0]
        jobs, self._number, self.settings = first
        self.jobs = my_part(jobs)

    def _open(self) -> None:
        """Settle what all ranks have to do."""
        single = bool(ending_of(self.output)) and not self.output.is_dir()
        if not single:
            self._refuse_folder()
        beside = () if single else (self.output,)
        found = find_scans(
            self.scans,
            subset=self.subset,
            domain=self.domain,
            series=self.series,
            modality=self.runs.rules.modality,
            leave_out=(*beside, *([] if self.prompts is None else [Path(self.prompts)])),
        )
        jobs = jobs_for(found, self.output, self.ending, self.prompts)
        self._number = len(jobs) + len(found.refused)
        problems = [*found.refused.values(), *(job.problem for job in jobs if job.problem)]
        if problems and not self.goes_on:
            raise DataError(problems[0])
        self._check_format(jobs)
        codes = self.source.codes
        self.settings["codes"] = None if codes is None else file_hash(Path(codes))
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

    def _check_format(self, jobs: Sequence[Job]) -> None:
        """Refuse settings of the format; of one scan, whatever keeps it from being written so."""
        try:
            for job in jobs[:1]:
                self.check(job)
        except DataError:
            if not self.goes_on or self.ending != ".dcm":
                raise
            self.source.described(self.runs.labels)  # of all scans; the rest is of that scan

    def streams(self, job: Job) -> bool:
        """Whether a scan is a scene that is segmented part by part, see `scenes.Scene`."""
        whole = (
            job.prompts is not None
            or self.instances
            or self.separate
            or self.probabilities
            or self.runs.several
        )
        ending = ending_of(job.mask).lower()
        if whole or ending not in (*geotiff.WRITTEN, *vectors.WRITTEN):
            return False
        return is_streamed(job.case.image, self.runs.rules)

    def source_of(self, job: Job) -> Source:
        """What a DICOM result of a scan says of its origin."""
        case = job.case
        prompted = job.prompts is not None
        return replace(self.source, scan=case.image, series=case.series, prompted=prompted)

    def check(self, job: Job) -> None:
        """Refuse a scan whose mask cannot be written in the format.

        Raises:
            DataError: see `output.check_output`.
            ValueError: as there.
        """
        source = self.source_of(job)
        check_output(job.mask, self.runs.labels, self.separate, source, self.format)

    def _refuse_folder(self) -> None:
        if ending_of(f"mask{self.ending}") != self.ending or not self.ending:
            raise DataError(f"ending is {self.ending!r}; expected one of a mask, such as .nii.gz.")
        format_for(f"mask{self.ending}", self.format)
        if self.output.is_dir():
            if self.scans.is_dir() and self.output.samefile(self.scans):
                raise DataError(
                    f"{self.output}: is the folder of the scans; choose another for the masks, or "
                    "a new one in it."
                )
        elif _FILE.fullmatch(self.output.suffix):
            raise DataError(
                f"{self.output}: ends in {self.output.suffix}, which is no ending of a mask; "
                f"expected one of {', '.join(dict.fromkeys(FORMATS.values()))}. For a folder of "
                "masks, choose a name without a dot, or make the folder before."
            )
        elif self.output.exists():
            raise DataError(f"{self.output}: is a file; expected a folder for the masks.")

    def targets(self, job: Job) -> list[Path]:
        """The files that may be written of a scan, without the record."""
        return job.targets(self.runs.labels, self.separate, self.probabilities)[:-1]

    def _take(self, jobs: tuple[Job, ...]) -> None:
        """Settle which jobs are to do; remove what a killed process left of them."""
        options = {"separate": self.separate, "probabilities": self.probabilities}
        replaced = self.overwrite or self.resume
        codes = [self.source.codes]
        refuse_taken_jobs(jobs, self.runs.labels, **options, replace=replaced, inputs=codes)
        to_do = [job for job in jobs if not job.problem]
        if self._lock is not None:
            names = [path.name for job in jobs for path in (*self.targets(job), job.record)]
            remove_leftovers(self.output, names)
        if self.resume:
            common = self.about
            done = [
                is_done(job, common, self.targets(job), self.probabilities, self.overwrite)
                for job in tracked(to_do, "compare", unit="scan")
            ]
            self.done = self.before = sum(done)
            to_do = [job for job, is_there in zip(to_do, done, strict=True) if not is_there]
        self.jobs = tuple(job for job in to_do if self.overwrite or self._may_write(job))

    def _may_write(self, job: Job) -> bool:
        """Whether nothing is replaced that has to stay; with `resume` else its scan is refused."""
        try:
            every = job.targets(self.runs.labels, self.separate, True)
            with about(f"case {job.case.id}"):
                refuse_lost(job.record, every)
                if self.resume:
                    refuse_foreign(job.record, self.targets(job))
        except DataError as error:
            if not self.resume or not self.goes_on:
                raise
            self.refuse(str(error))
            return False
        return True

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
            SystemExit: scans were refused; its code is 3, or 1 if nothing is done. The first rank
                alone raises it, as an end with a code ends the others at once.
        """
        try:
            if self.jobs:
                evaluator.run()
            self.refused = [*chain(*gathered(self.refused))]
            self.done = sum(gathered(self.done))
        finally:
            self._release()
        leave()
        if not is_main():
            return
        if not self.goes_on and self.before:
            LOG.info(f"{self.output}: is done already, of this scan, prompts, run and settings.")
        if self.goes_on:
            there = f" ({self.before} were there)" if self.resume else ""
            said = f"{self.done} mask{'s' * (self.done != 1)}{there}, {len(self.refused)} refused"
            LOG.info("\n".join([f"{said}:" if self.refused else said, *self.refused]))
        code = (REFUSED if self.done else USER) if self.refused else DONE
        if code:
            raise SystemExit(code)
