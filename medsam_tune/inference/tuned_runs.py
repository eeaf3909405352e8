"""Training runs as a model to predict with: one, or several that answer together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from medsam_tune.errors import DataError, listed
from medsam_tune.files import file_hash, files_hash
from medsam_tune.formats.mending import Mending
from medsam_tune.inference.confidence import Calibration, read_calibration
from medsam_tune.inference.ensembles import Ensemble, differences
from medsam_tune.inference.output import Source
from medsam_tune.methods.header import TunedHeader
from medsam_tune.methods.tuned import load_tuned, read_header
from medsam_tune.runs import RunRecord, read_record, tuned_file
from medsam_tune.sam.model import PromptableSam
from medsam_tune.seen import trained_side
from medsam_tune.slices.rules import ScanRules, rules_from


@dataclass(frozen=True)
class _Run:
    folder: Path
    record: RunRecord
    tuned: Path
    header: TunedHeader
    window: int | None = None

    @property
    def rules(self) -> ScanRules:
        rules = rules_from(self.record.rules)
        return rules if self.window is None else replace(rules, window=self.window)

    @property
    def mending(self) -> Mending:
        return Mending(**self.record.mending)

    @property
    def prompted(self) -> bool | None:
        return self.record.prompted if self.header.tuning.options.get("num_classes") else True


class TunedRuns:
    """Output folders of trainings, e.g. the folds of a cross-validation.

    Args:
        folders: one folder, or several. Their models have the same labels, cut the same slices, see
            `ensembles.differences`, and mend the same faults.
        unfinished: take the best weights so far of a training that is not finished.
        checkpoint: checkpoint of the base of all, if it moved after training.
        window: side of the windows that larger slices are seen in, pixels, as `ScanRules.window`;
            None for those of training.

    Attributes:
        labels: label id -> name.
        rules: rules from scans to slices.
        mending: choice of faults to mend.
        coding: how masks say their labels, see `RunRecord`.
        prompted: whether the model needs prompts (True), takes none (False), or either (None).

    Raises:
        DataError: no run in a folder, or one without weights; runs that do not fit together.
    """

    def __init__(
        self,
        folders: str | Path | Sequence[str | Path],
        unfinished: bool = False,
        checkpoint: str | Path | None = None,
        window: int | None = None,
    ) -> None:
        several = [folders] if isinstance(folders, (str, Path)) else folders
        self._runs = [_opened(Path(folder), unfinished, window) for folder in several]
        self._checkpoint = checkpoint
        first, *others = self._runs
        for other in others:
            _refuse_other(first, other)
        self.labels: Mapping[int, str] = first.header.labels
        self.rules = first.rules
        self.mending = first.mending
        self.coding = first.record.coding
        needs = {run.prompted for run in self._runs}
        if needs >= {True, False}:
            odd = next(run for run in self._runs if run.prompted is False)
            raise DataError(
                f"{odd.folder}: takes no prompts, and another run needs them; expected runs that "
                "can be asked alike. Leave it out."
            )
        self.prompted = next(iter(needs - {None}), None)

    def network(self) -> PromptableSam | Ensemble:
        """The tuned model, or the `Ensemble` of all, in evaluation mode."""
        networks = [
            load_tuned(run.tuned, checkpoint=self._checkpoint or run.record.checkpoint)
            for run in self._runs
        ]
        if len(networks) == 1:
            return networks[0]
        return Ensemble(networks, [run.rules for run in self._runs]).eval()

    @property
    def source(self) -> Source:
        """What DICOM results say of the model."""
        return Source(tuned=self.tuned_hash, run=self.name)

    @property
    def several(self) -> bool:
        """Whether several models answer together."""
        return len(self._runs) > 1

    @property
    def name(self) -> str:
        """Names of the runs' folders."""
        return listed(each["run"] for each in self.description)

    @property
    def tuned_hash(self) -> str:
        """SHA-256 of the tuned file; of several, see `files.files_hash`."""
        return files_hash(run.tuned for run in self._runs)

    @cached_property
    def trained_side(self) -> int | None:
        """Longest side of the slices that any run was trained on, pixels; None if unknown."""
        return max((side for run in self._runs if (side := trained_side(run.folder))), default=None)

    @cached_property
    def calibration(self) -> Calibration | None:
        """What the qualities of its masks mean; None of several runs, and where nobody measured."""
        return None if self.several else read_calibration(self._runs[0].folder)

    @cached_property
    def description(self) -> list[dict[str, Any]]:
        """Name of each run's folder, and SHA-256 of its tuned file."""
        return [
            {"run": run.folder.resolve().name, "tuned_sha256": file_hash(run.tuned)}
            for run in self._runs
        ]


def _opened(folder: Path, unfinished: bool, window: int | None) -> _Run:
    tuned = tuned_file(folder, unfinished)
    return _Run(folder, read_record(folder), tuned, read_header(tuned), window)


def _refuse_other(first: _Run, other: _Run) -> None:
    """Refuse a run whose masks mean something else, or whose slices are others."""
    found = [
        f"label {key} is {other.header.labels.get(key)!r} there, {first.header.labels.get(key)!r} "
        "here"
        for key in sorted({*first.header.labels, *other.header.labels})
        if first.header.labels.get(key) != other.header.labels.get(key)
    ]
    classes = [run.header.tuning.options.get("num_classes") or 0 for run in (first, other)]
    if classes[0] != classes[1]:
        found.append(f"it has {classes[1]} classes there, {classes[0]} here")
    found += differences(first.rules, other.rules)
    if first.mending != other.mending:
        found.append(
            f"mending is {other.mending.describe()} there, {first.mending.describe()} here"
        )
    if found:
        raise DataError(
            f"{other.folder}: cannot be averaged with {first.folder}: "
            f"{listed(found, separator='; ')}. Give runs of the same labels and rules, such as "
            "the folds of a cross-validation."
        )
