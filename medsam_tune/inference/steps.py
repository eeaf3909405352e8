"""Steps of an evaluator over jobs: read a scan or refuse it, segment it or refuse it, write it."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, cast

import monai
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents
from torch import Tensor

from medsam_tune.console import LOG
from medsam_tune.engines import SupervisedEvaluator
from medsam_tune.errors import DataError, about
from medsam_tune.failures import MEMORY, explain, unexpected
from medsam_tune.formats.dicom.series import is_uid
from medsam_tune.formats.open import is_flat
from medsam_tune.inference.aftercare import Aftercare
from medsam_tune.inference.canvas import Found, FoundObject
from medsam_tune.inference.inferers import VolumeInferer
from medsam_tune.inference.instances import refuse_volume, write_instances
from medsam_tune.inference.jobs import Job
from medsam_tune.inference.output import write_masks
from medsam_tune.inference.predictions import Predictions
from medsam_tune.inference.probabilities import write_probabilities
from medsam_tune.inference.prompt_files import kind_of_prompts
from medsam_tune.inference.records import begin_record, drop_record, end_record
from medsam_tune.inference.scans import LoadPromptedScan, PromptedScan, prepare_scan
from medsam_tune.inference.scenes import Scene
from medsam_tune.prompts import SlicePrompts
from medsam_tune.slices.frames import ScanGrid
from medsam_tune.version import __version__


@dataclass(frozen=True)
class ReadScan:
    """A job on its way to the model.

    Attributes:
        job: the job.
        scan: its slices and prompts; None if it is refused, or a scene.
        scene: True for a scene that is read while it is segmented, see `scenes.Scene`.
        problem: why it is refused.
        sha256: hashes of the files of the scan and of the prompts.
        seconds: time of reading.
    """

    job: Job
    scan: PromptedScan | None
    problem: str = ""
    sha256: tuple[str, str | None] = ("", None)
    seconds: float = 0.0
    scene: bool = False


class ReadOrRefuse:
    """Transform of jobs: reads a scan and its prompts, or says why it cannot be read.

    Args:
        read: transform that reads.
        predictions: predictions that the jobs are of.
    """

    def __init__(self, read: LoadPromptedScan, predictions: Predictions) -> None:
        self.read = read
        self.predictions = predictions

    def __call__(self, job: Job) -> ReadScan:
        """Read a scan; whatever is wrong with it is its own refusal, if there are others."""
        start, case = perf_counter(), job.case
        item = {"scan": case.image, "series": case.series, "name": case.name}
        try:
            with about(f"case {case.id}"):
                if self.predictions.goes_on:  # else it was checked before
                    self.predictions.check(job)
                hashes = job.scan_hash(), job.prompts_hash()
                scene = self.predictions.streams(job)
                if scene:
                    self.read.refuse(job.prompts)
                scan = None if scene else self.read({**item, "prompts": job.prompts})
                if scan is not None and self.predictions.instances:
                    refuse_volume(scan.image)
        except Exception as error:
            if not self.predictions.goes_on:
                raise
            known = isinstance(error, (DataError, OSError)) or explain(error)[1] == MEMORY
            problem = explain(error)[0] if known else unexpected(error)
            return ReadScan(job, None, _of_case(job, problem))
        return ReadScan(job, scan, "", hashes, perf_counter() - start, scene)


class PredictOrRefuse:
    """`iteration_update` of an evaluator over `ReadScan`s: its own, but a bad scan is refused.

    Args:
        predictions: predictions that the scans are of.
    """

    def __init__(self, predictions: Predictions) -> None:
        self.predictions = predictions

    def __call__(self, engine: SupervisedEvaluator, item: ReadScan) -> dict[str, Any]:
        """Segment and write a scan; what its own data or memory forbids refuses it alone."""
        if item.problem:
            self.predictions.refuse(item.problem)
            return {}
        try:
            with about(f"case {item.job.case.id}"):
                if item.scene:
                    return self._scene(engine, item)
                return engine._iteration(engine, item)  # type: ignore[arg-type]
        except Exception as error:
            problem, code = explain(error)
            own = isinstance(error, DataError) or code == MEMORY
            if not own or not self.predictions.goes_on:
                raise
        engine.state.output = None  # with what is in memory
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.predictions.refuse(_of_case(item.job, problem))
        return {}

    def _scene(self, engine: SupervisedEvaluator, item: ReadScan) -> dict[str, Any]:
        """Have a scene segmented while it is written."""
        inferer = cast(VolumeInferer, engine.inferer)
        labels = self.predictions.runs.labels
        scene = inferer.scene(item.job.case.image, engine.network, labels, engine.half)
        state: Any = engine.state
        state.output = {"pred": scene}
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return state.output  # type: ignore[no-any-return]


def _of_case(job: Job, problem: str) -> str:
    """A problem with the case named, as `errors.about` does it."""
    subject = f"case {job.case.id}: "
    return problem if problem.startswith(subject) else subject + problem


def prepare_read(
    item: ReadScan, device: torch.device, non_blocking: bool = False, **options: Any
) -> tuple[Tensor, None, tuple[SlicePrompts | None], dict[str, Any]]:
    """`prepare_batch` of an evaluator over `ReadScan`s, see `scans.prepare_scan`."""
    assert item.scan is not None
    return prepare_scan(item.scan, device, non_blocking, **options)


class WritePrediction:
    """Handler of an evaluator over `ReadScan`s, whose inferer is `detailed`: writes the files.

    They are the masks, the probabilities if wanted, and the record, `mask.prediction.json`. Before
    the masks, it is written as not finished; then as:

        finished        true
        case, scan      id; path below the folder that was given (null if the case has a name of its
                        own), SeriesInstanceUID and SHA-256 of the files
        prompts         name of the file, kind and SHA-256; null without
        runs            name of each run's folder and SHA-256 of its tuned file
        labels          label id -> name
        masks, probabilities    names of the files
        volumes_ml      label id -> volume in the masks, millilitres
        objects         label, number of slices and predicted quality (mean over these) of each
                        object of the prompts; without prompts, of each label. Of a run with
                        calibration.json also the Dice that is to be expected of it, and whether
                        it should be looked at
        settings        what else changes the masks
        versions, device, seconds
        files           name of each mask and of each file of probabilities -> SHA-256

    Nothing of a header is in it but the UID.

    Args:
        predictions: predictions that the scans are of.
        aftercare: what is done to the masks; nothing by default.
    """

    def __init__(self, predictions: Predictions, aftercare: Aftercare | None = None) -> None:
        self.predictions = predictions
        self.aftercare = aftercare
        self._start = 0.0

    def attach(self, engine: Engine) -> None:
        """Attach to an engine; MONAI calls it."""
        engine.add_event_handler(Events.ITERATION_STARTED, self._started)
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self)

    def _started(self, _: Engine) -> None:
        self._start = perf_counter()

    def __call__(self, engine: Engine) -> None:
        """Write the files of one scan."""
        state: Any = engine.state
        item: ReadScan = state.batch
        found: Found | Scene = state.output["pred"]
        job, labels = item.job, self.predictions.runs.labels
        grid = self._grid(item, found)
        begin_record(job.record, self.predictions.targets(job))
        try:
            masks = self._masks(job, found, grid)
            maps = (
                {}
                if isinstance(found, Scene)
                or found.logits is None
                or not self.predictions.probabilities
                else write_probabilities(found.logits, grid, job.mask, labels)
            )
        except BaseException:
            drop_record(job.record)
            raise
        content = self._record(item, found, grid, masks, maps, state.device)
        end_record(job.record, content, [*masks, *maps.values()])
        self.predictions.done += 1
        what = "pixels of the image" if is_flat(job.case.image) else "voxels of the scan"
        for path, counts in masks.items():
            LOG.info(f"{path}: {sum(counts.values())} {what} are in the mask")

    @staticmethod
    def _grid(item: ReadScan, found: Found | Scene) -> ScanGrid:
        """Grid of the scan."""
        if isinstance(found, Scene):
            return found.grid
        assert item.scan is not None
        return item.scan.grid

    def _masks(
        self, job: Job, found: Found | Scene, grid: ScanGrid
    ) -> Mapping[Path, Mapping[int, int]]:
        """Write the masks; a scene is segmented meanwhile."""
        labels = self.predictions.runs.labels
        if isinstance(found, Scene):
            if self.aftercare is not None and not self.aftercare.does_nothing:
                raise ValueError(
                    "after-care (smooth_slices, min_volume_ml, largest_component, fill_holes) "
                    "needs a whole mask, and a scene is written part by part; leave it out."
                )
            return found.write(job.mask)
        if self.predictions.instances:
            return write_instances(
                found,
                grid,
                job.mask,
                job.case.image.name,
                labels,
                self.predictions.runs.rules.components or 1,
                self.aftercare,
            )
        return write_masks(
            found.labels,
            grid,
            job.mask,
            labels,
            self.aftercare,
            source=self.predictions.source_of(job),
            format=self.predictions.format,
            logits=found.logits,
        )

    def _record(
        self,
        item: ReadScan,
        found: Found | Scene,
        grid: ScanGrid,
        masks: Mapping[Path, Mapping[int, int]],
        maps: Mapping[int, Path],
        device: torch.device,
    ) -> dict[str, Any]:
        """The content of the record, see the class."""
        job, objects = item.job, found.objects
        millilitres = float(np.prod(grid.spacing)) / 1000
        voxels = dict.fromkeys((one.label for one in objects), 0)
        for counts in masks.values():
            voxels.update(counts)
        return {
            "case": job.case.id,
            "scan": {
                "path": job.path,
                "series": grid.series if is_uid(grid.series) else None,
                "sha256": item.sha256[0],
            },
            "prompts": None
            if job.prompts is None
            else {
                "file": job.prompts.name,
                "kind": kind_of_prompts(job.prompts),
                "sha256": item.sha256[1],
            },
            **self.predictions.about,
            "masks": [path.name for path in masks],
            "probabilities": [path.name for path in maps.values()],
            "volumes_ml": {str(k): round(n * millilitres, 4) for k, n in voxels.items()},
            "objects": [self._about(one, job.prompts is not None) for one in objects],
            "versions": {
                "medsam_tune": __version__,
                "torch": torch.__version__,
                "monai": monai.__version__,
                "python": platform.python_version(),
            },
            "device": str(device),
            "seconds": round(item.seconds + perf_counter() - self._start, 2),
        }

    def _about(self, one: FoundObject, prompted: bool) -> dict[str, Any]:
        found: dict[str, Any] = {"label": one.label, "slices": one.slices}
        found["quality"] = round(one.quality, 4)
        calibration = self.predictions.runs.calibration if one.slices else None
        if calibration and (known := calibration.least(one.label, one.quality, prompted)):
            found |= {"expected_dice": round(known[0], 4), "review": known[1]}
        return found
