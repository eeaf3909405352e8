"""The Python side of `medsam-tune predict`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from monai.data import MetaTensor
from numpy.typing import NDArray
from torch import Tensor

from medsam_tune.engines import autocast, check_amp
from medsam_tune.files import refuse_taken
from medsam_tune.formats.mending import Mending
from medsam_tune.formats.vectors import is_vector
from medsam_tune.formats.volume import Volume, image_from
from medsam_tune.inference.aftercare import Aftercare
from medsam_tune.inference.canvas import Found
from medsam_tune.inference.embedded import EmbeddedVolume
from medsam_tune.inference.ensembles import Ensemble
from medsam_tune.inference.inferers import VolumeInferer
from medsam_tune.inference.instances import (
    refuse_separate_objects,
    refuse_volume,
    write_instances,
)
from medsam_tune.inference.output import (
    COCO,
    Source,
    format_for,
    masks_at,
    on_grid,
    refuse_taken_masks,
    write_masks,
)
from medsam_tune.inference.probabilities import probability_paths, write_probabilities
from medsam_tune.inference.prompt_files.drawn import content_of, label_named
from medsam_tune.inference.records import (
    own_files,
    record_of,
    refuse_input,
    refuse_lost,
    refuse_owned,
)
from medsam_tune.inference.scans import Affine, LoadPromptedScan, Scan
from medsam_tune.inference.tuned_runs import TunedRuns
from medsam_tune.prompts import SlicePrompts
from medsam_tune.sam.model import PromptableSam
from medsam_tune.slices.frames import ScanGrid
from medsam_tune.slices.rules import ScanRules

PromptSource = str | Path | Mapping[str, Any] | Sequence[Any] | NDArray[Any] | Tensor
"""A prompt file, or its content, see `inference.prompt_files.read_prompts`; of a 2-D image a box or
points, see `inference.prompt_files.drawn.content_of`."""


class Segmenter:
    """A tuned model with all it needs to segment a scan: the Python side of `predict`.

    Args:
        model: tuned `PromptableSam`, or an `Ensemble` of several.
        rules: rules from scans to slices, as in training.
        labels: label id -> name.
        device: device to run on; by default a GPU if there is one.
        inferer: inferer of the slices; by default a `VolumeInferer` of the labels and rules.
        mending: choice of faults to mend, as in training; by default all are refused.
        prompted: True if the model needs prompts, False if it takes none, None if either may come;
            by default what the model can do.
        reading: how a label map among the prompts is read, see `LoadPromptedScan`.
        aftercare: what is done to masks in the scan's grid; nothing by default.
        source: what DICOM results say of the model: `tuned`, `run`, `algorithm` and `version`.
        trained_side: longest side of the slices of training, see `LoadPromptedScan`.
        amp: compute in bfloat16, as by `predict --set amp=true`; None: on a GPU.

    Raises:
        ValueError: `amp` on a processor without bfloat16.

    Example:
        >>> segmenter = Segmenter.from_run("runs/liver")
        >>> segmenter.predict("scan.nii.gz", "boxes.json", "mask.nii.gz")
    """

    def __init__(
        self,
        model: PromptableSam | Ensemble,
        rules: ScanRules,
        labels: Mapping[int, str],
        device: str | torch.device | None = None,
        inferer: VolumeInferer | None = None,
        mending: Mending | None = None,
        prompted: bool | None = None,
        reading: Mapping[str, Any] | None = None,
        aftercare: Aftercare | None = None,
        source: Source | None = None,
        trained_side: int | None = None,
        amp: bool | None = None,
    ) -> None:
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = model.to(self.device).eval()
        self.labels = dict(labels)
        needed = prompted if model.classes else True
        self.load = LoadPromptedScan(rules, labels, mending, needed, reading, trained_side)
        self.inferer = inferer or VolumeInferer(labels, rules)
        self.aftercare = aftercare
        self.source = source or Source()
        self.amp = amp
        check_amp(self.device, bool(amp))

    @classmethod
    def from_run(
        cls,
        run: str | Path | Sequence[str | Path],
        checkpoint: str | Path | None = None,
        unfinished: bool = False,
        window: int | None = None,
        **options: Any,
    ) -> Segmenter:
        """The model of a training run's output folder, or of several that answer together.

        Args:
            run: folder written by `medsam-tune train`; or several, see `Ensemble`.
            checkpoint: checkpoint of the base, if it moved after training.
            unfinished: take the best weights so far of a training that is not finished.
            window: side of the windows that larger slices are seen in, see `TunedRuns`.
            options: other arguments of the constructor.

        Raises:
            DataError: see `TunedRuns`.
        """
        runs = TunedRuns(run, unfinished, checkpoint, window)
        known: dict[str, Any] = {"mending": runs.mending, "prompted": runs.prompted}
        known |= {"source": runs.source, "reading": {"coding": runs.coding}}
        known |= {"trained_side": runs.trained_side}
        return cls(runs.network(), runs.rules, runs.labels, **known | options)

    def segment(
        self,
        scan: Scan,
        prompts: PromptSource | None = None,
        affine: Affine | None = None,
        label: int | str | None = None,
    ) -> MetaTensor:
        """Segment a scan.

        Args:
            scan: NIfTI, NRRD or MetaImage file, or a DICOM folder; a MetaTensor (1, I, J, K) or
                (I, J, K); or such an array with its affine. An image in memory has any real type,
                is in the scanner's unit (CT: Hounsfield units), and is checked as a file is. Or a
                2-D image: its file, Pillow's image, or an array (H, W) or (H, W, C).
            prompts: prompt file, its content, the name of a label, or None for all labels of the
                model. Of a 2-D image, also a box x0, y0, x1, y1, several such boxes, or points
                (x, y, 1) and (x, y, 0), in its pixels.
            affine: (4, 4) from the indices (i, j, k) of an array to RAS+ millimetres, as nibabel
                has it; a MetaTensor has its own, and a 2-D image none.
            label: id or name of the label of a box or points, if the model has several.

        Returns:
            (1, I, J, K) label ids on the scan's own grid, 0 = background, in the smallest type that
            holds them; affine in RAS+ millimetres. Of a 2-D image I = W, J = H and K = 1, so that
            `mask[0, :, :, 0].T` is (H, W).

        Raises:
            DataError: an unusable scan, or prompts that are unusable, missing or not taken.
            ValueError: an array without an affine, or a MetaTensor with a second one; a box or
                points of another shape, or of no label.
        """
        if (named := label_named(prompts, self.labels)) is not None:
            prompts = None
        content = content_of(prompts, self.labels, label)
        item = self.load({"scan": scan, "affine": affine, "prompts": content})
        volume = self._opened(item.image, item.prompts)
        return self._mask(volume, item.prompts, item.grid, named)

    def probabilities(
        self, scan: Scan, prompts: PromptSource | None = None, affine: Affine | None = None
    ) -> dict[int, MetaTensor]:
        """The probability of each label that is asked for; of an ensemble, of the mean logit.

        Args:
            scan: see `segment`.
            prompts: see `segment`.
            affine: see `segment`.

        Returns:
            label id -> (1, I, J, K) float32 in [0, 1] on the scan's own grid; 0 (1e-7) on slices
            where the label was not asked for, or is said to be absent. Labels may overlap.
        """
        content = content_of(prompts, self.labels)
        item = self.load({"scan": scan, "affine": affine, "prompts": content})
        volume = self._opened(item.image, item.prompts)
        logits = self._answer(volume, item.prompts, probabilities=True).logits
        assert logits is not None
        grid = item.grid
        return {
            label: image_from(
                Volume(
                    grid.to_file(logits.probabilities(label)).copy(),
                    grid.affine,
                    guess=grid.guess,
                    codes=grid.codes,
                )
            )
            for label in logits.labels
        }

    def open(self, scan: Scan, affine: Affine | None = None) -> Session:
        """A scan, opened for prompt after prompt; see `segment`."""
        _, slices, grid = self.load.opened(scan, affine)
        return Session(self, slices, grid)

    def predict(
        self,
        scan: Scan,
        prompts: PromptSource | None,
        output: str | Path,
        affine: Affine | None = None,
        separate: bool = False,
        probabilities: bool = False,
        series: str | None = None,
        format: str | None = None,
        codes: str | Path | None = None,
        segmentation: str = Source.segmentation,
        instances: bool = False,
        overwrite: bool = False,
    ) -> list[Path]:
        """Segment a scan and write the mask in the scan's own grid.

        No record is written, as `medsam-tune predict` does; that of masks which are replaced is
        deleted, with the other files that it lists.

        Args:
            scan: see `segment`.
            prompts: see `segment`.
            output: mask to write: .nii, .nii.gz, .nrrd, .mha; or, of a DICOM series, .dcm.
            affine: see `segment`.
            separate: write a mask for each label, which may overlap, see `write_masks`.
            probabilities: write the probability of each label as well, see `probability_paths`.
            series: SeriesInstanceUID (or its end) where a folder holds several.
            format: name of the format, see `output.format_for`: "rtstruct" for .dcm, which is a SEG
                otherwise.
            codes: CSV of codes and colours of the labels in DICOM, see `formats.dicom.codes`.
            segmentation: what a SEG holds: "binary", or "labelmap", which has the label ids.
            instances: of a 2-D image, write the numbers of objects instead of labels, see
                `instances.write_instances`; a .json (COCO) has them anyway.
            overwrite: replace files that are there; never the scan or the prompts.

        Returns:
            the files that were written.

        Raises:
            DataError: as in `segment`; before the model runs, a mask that cannot be written so, and
                a file that is there or is an input.
            ValueError: as in `segment`; settings that are unknown or contradict each other.
        """
        source = replace(
            self.source,
            scan=scan if isinstance(scan, (str, Path)) else None,
            series=series,
            prompted=prompts is not None,
            codes=codes,
            segmentation=segmentation,
        )
        inputs = [*(each for each in (scan, prompts) if isinstance(each, (str, Path))), codes]
        record = self._refuse_taken(
            output, separate, probabilities, overwrite, inputs, source, format
        )
        instances = instances or format_for(output, format) == COCO
        refuse_separate_objects(separate, instances)
        content = content_of(prompts, self.labels)
        item = self.load({"scan": scan, "affine": affine, "series": series, "prompts": content})
        if instances:
            refuse_volume(item.image)
        volume = self._opened(item.image, item.prompts)
        kept = probabilities or is_vector(Path(output))
        found = self._answer(volume, item.prompts, separate, kept, instances)
        replaced = own_files(record)
        record.unlink(missing_ok=True)
        if instances:
            name = Path(scan).name if isinstance(scan, (str, Path)) else "image"
            smallest = self.load.rules.components or 1
            place = item.grid, Path(output), name, self.labels
            written = write_instances(found, *place, smallest, self.aftercare)
        else:
            about: dict[str, Any] = {"source": source, "format": format, "logits": found.logits}
            written = write_masks(
                found.labels, item.grid, output, self.labels, self.aftercare, **about
            )
        files = [*written]
        if probabilities and found.logits is not None:
            files += write_probabilities(found.logits, item.grid, output, self.labels).values()
        for path in {*replaced} - {*files}:
            path.unlink()
        return files

    def _refuse_taken(
        self,
        output: str | Path,
        separate: bool,
        probabilities: bool,
        overwrite: bool,
        inputs: Sequence[str | Path | None],
        source: Source,
        format: str | None,
    ) -> Path:
        """Refuse outputs that are there or an input, or cannot be written; the masks' record."""
        way_out, record = "say overwrite=True", record_of(Path(output))
        options: dict[str, Any] = {"source": source, "format": format, "way_out": way_out}
        refuse_taken_masks(output, self.labels, separate, overwrite, inputs, **options)
        targets = masks_at(output, self.labels, separate)
        if probabilities:
            targets += probability_paths(output, self.labels).values()
        for path in targets:
            refuse_taken(path, overwrite, inputs, way_out)
        refuse_taken(record, True, inputs)
        refuse_input(record, targets, inputs)
        refuse_owned(record, targets)
        if not overwrite:
            refuse_lost(record, targets, way_out)
        return record

    def _opened(self, slices: Tensor, prompts: SlicePrompts | None) -> EmbeddedVolume:
        """A volume for one set of prompts."""
        followed = prompts is not None and bool(prompts.spread)
        return self.inferer.open(slices, self.model, keep=followed)

    @torch.inference_mode()
    def _answer(
        self,
        volume: EmbeddedVolume,
        prompts: SlicePrompts | None,
        separate: bool = False,
        probabilities: bool = False,
        instances: bool = False,
    ) -> Found:
        with autocast(self.device, self.amp):
            asked, options = {"": prompts}, (separate, probabilities, instances)
            return self.inferer.segment(volume, self.model, asked, *options)[""]

    def _mask(
        self,
        volume: EmbeddedVolume,
        prompts: SlicePrompts | None,
        grid: ScanGrid,
        named: int | None,
    ) -> MetaTensor:
        """(1, I, J, K) label ids on the scan's own grid; of one label alone if it is named."""
        found = self._answer(volume, prompts, separate=named is not None).labels
        if named is not None:
            found = cast(Mapping[int, Tensor], found)[named].to(torch.int32) * named
        array = on_grid(cast(Tensor, found), grid, self.aftercare).copy()  # without odd strides
        return image_from(Volume(array, grid.affine, guess=grid.guess, codes=grid.codes))


class Session:
    """A scan that answers prompt after prompt; each slice is encoded once. Threads may share it.

    Args:
        segmenter: model and rules.
        slices: (Z, C, H, W) uint8.
        grid: grid of the scan.

    Example:
        >>> session = segmenter.open("scan.nii.gz")
        >>> mask = session.segment({"objects": [{"label": 1, "points": [[60, 70, 12, 1]]}]})
    """

    def __init__(self, segmenter: Segmenter, slices: Tensor, grid: ScanGrid) -> None:
        self.grid = grid
        self._segmenter = segmenter
        self._volume = segmenter.inferer.open(slices, segmenter.model)

    def segment(
        self, prompts: PromptSource | None = None, label: int | str | None = None
    ) -> MetaTensor:
        """Segment the scan; see `Segmenter.segment`."""
        segmenter = self._segmenter
        if (named := label_named(prompts, segmenter.labels)) is not None:
            prompts = None
        content = content_of(prompts, segmenter.labels, label)
        segmenter.load.refuse(content)
        asked = segmenter.load.prompts(content, self.grid)
        return segmenter._mask(self._volume, asked, self.grid, named)
