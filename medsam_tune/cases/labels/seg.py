"""DICOM SEG: the segments' numbers are the ids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, cast

import numpy as np
import torch
from monai.data import MetaTensor

from medsam_tune.cases.checks import check_pair, label_values
from medsam_tune.cases.labels.grid import affine_of, placed
from medsam_tune.errors import DataError
from medsam_tune.formats.dicom.references import check_references
from medsam_tune.formats.dicom.seg import read_segmentation, segment_names
from medsam_tune.formats.mending import Mending
from medsam_tune.formats.open import dicom_modality
from medsam_tune.formats.volume import DIRECTION_TOLERANCE, POSITION_TOLERANCE, image_from


@dataclass(frozen=True)
class Segmentation:
    """A DICOM SEG; see `LabelFile`.

    Attributes:
        path: the file.
    """

    path: Path
    numbered: ClassVar[bool] = True
    folds_case: ClassVar[bool] = False
    names_are_present: ClassVar[bool] = False  # a segment may be empty

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether the header's Modality says so."""
        return dicom_modality(path) == "SEG"

    def names(self) -> dict[int, str]:
        """Numbers and labels of the segments."""
        return segment_names(self.path)

    def present(self, labels: Mapping[int, str]) -> set[int]:
        """Labels that have a voxel."""
        label = image_from(read_segmentation(self.path))
        return set(label_values(label.as_tensor())) & set(labels)

    def onto(
        self, image: MetaTensor, image_path: Path, labels: Mapping[int, str], mending: Mending
    ) -> MetaTensor:
        """See `LabelFile.onto`.

        Raises:
            DataError: it is no part of the image's grid, was drawn in another frame of reference,
                or has segments that `labels` lacks.
        """
        found = image_from(read_segmentation(self.path))
        label = placed(found, self.path, image, mending.resample_label)
        label = _filled_up(label, self.path, image)
        check_references(image, self.path)
        check_pair(image, label, labels, image_path, self.path)
        return cast(MetaTensor, label.to(torch.int32))


def _filled_up(label: MetaTensor, path: Path, image: MetaTensor) -> MetaTensor:
    """A part of the image's grid, as of a SEG without its empty slices, becomes all of it."""
    step = np.linalg.inv(affine_of(image)) @ affine_of(label)
    start = np.round(step[:3, 3]).astype(int)
    spacing = np.linalg.norm(affine_of(image)[:3, :3], axis=0)
    turned = np.abs(step[:3, :3] - np.eye(3)).max() > DIRECTION_TOLERANCE
    beside = (np.abs(step[:3, 3] - start) * spacing).max() > 10 * POSITION_TOLERANCE
    stop = start + label.shape[1:]
    if turned or beside or (start < 0).any() or (stop > image.shape[1:]).any():
        raise DataError(
            f"the segmentation's grid is no part of the image's ({path}); they must come from the "
            "same series. Choose the segmentation of this series."
        )
    filled = torch.zeros_like(image.as_tensor())
    filled[(slice(None), *map(slice, start, stop))] = label.as_tensor()
    return MetaTensor(filled, meta=dict(image.meta))
