"""The Python side of `medsam-tune predict`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.inferers import Inferer
from numpy.typing import NDArray
from torch import Tensor

from medsam_tune.formats.mending import Mending
from medsam_tune.inference.inferers import VolumeInferer
from medsam_tune.inference.output import write_mask
from medsam_tune.inference.scans import LoadPromptedScan, PromptedScan
from medsam_tune.methods.tuned import load_tuned, read_header
from medsam_tune.runs import read_record, tuned_file
from medsam_tune.sam.model import PromptableSam
from medsam_tune.slices.rules import ScanRules, rules_from


class Segmenter:
    """A tuned model with all it needs to segment a scan: the Python side of `predict`.

    Args:
        model: tuned `PromptableSam`.
        rules: rules from scans to slices, as in training.
        labels: label id -> name.
        device: device to run on; by default a GPU if there is one.
        inferer: inferer of the slices; by default a `VolumeInferer` of the labels and rules.
        mending: choice of faults to mend, as in training; by default all are refused.

    Example:
        >>> segmenter = Segmenter.from_run("runs/liver")
        >>> segmenter.predict("scan.nii.gz", "boxes.json", "mask.nii.gz")
    """

    def __init__(
        self,
        model: PromptableSam,
        rules: ScanRules,
        labels: Mapping[int, str],
        device: str | torch.device | None = None,
        inferer: Inferer | None = None,
        mending: Mending | None = None,
    ) -> None:
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = model.to(self.device).eval()
        self.load = LoadPromptedScan(
            rules, labels, mending, prompted=None if model.classes else True
        )
        self.inferer = inferer or VolumeInferer(labels, rules)

    @classmethod
    def from_run(
        cls,
        run: str | Path,
        checkpoint: str | Path | None = None,
        unfinished: bool = False,
        **options: Any,
    ) -> Segmenter:
        """The model of a training run's output folder.

        Args:
            run: folder written by `medsam-tune train`.
            checkpoint: checkpoint of the base, if it moved after training.
            unfinished: take the best weights so far of a training that is not finished.
            options: other arguments of the constructor.
        """
        record = read_record(run)
        tuned = tuned_file(run, unfinished)
        model = load_tuned(tuned, checkpoint=checkpoint or record.checkpoint)
        labels = read_header(tuned).labels
        options.setdefault("mending", Mending(**record.mending))
        return cls(model, rules_from(record.rules), labels, **options)

    def __call__(
        self, scan: str | Path, prompts: str | Path | Mapping[str, Any] | None = None
    ) -> NDArray[np.generic]:
        """Label array (I, J, K) in the scan's own grid, 0 = background."""
        item = self.load({"scan": scan, "prompts": prompts})
        return item.grid.to_file(self._labels(item))

    def predict(
        self, scan: str | Path, prompts: str | Path | Mapping[str, Any] | None, output: str | Path
    ) -> Path:
        """Segment a scan and write the mask as NIfTI in the scan's own grid.

        Args:
            scan: NIfTI, NRRD or MetaImage file, or a DICOM folder.
            prompts: prompt file, its content, or None for a model that needs no prompt.
            output: mask to write, .nii or .nii.gz.
        """
        item = self.load({"scan": scan, "prompts": prompts})
        write_mask(self._labels(item), item.grid, output)
        return Path(output)

    @torch.inference_mode()
    def _labels(self, item: PromptedScan) -> Tensor:
        return self.inferer(item.image, self.model, item.prompts)  # type: ignore[no-any-return]
