"""DICOM SEG: the segments' names say which labels they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray

from medsam_tune.cases.checks import check_pair, label_values
from medsam_tune.cases.labels.grid import affine_of, placed
from medsam_tune.cases.labels.segments import labels_of_segments, refuse_unclear
from medsam_tune.errors import DataError
from medsam_tune.formats.dicom.geometry import plane_of
from medsam_tune.formats.dicom.references import check_references
from medsam_tune.formats.dicom.seg import Planes, read_segmentation, segment_names
from medsam_tune.formats.mending import Mending
from medsam_tune.formats.open import dicom_modality
from medsam_tune.formats.volume import LPS_TO_RAS, image_from

PLANE_TOLERANCE = 0.1
"""Largest accepted distance of a frame's pixels from the centres of the image's voxels, millimetres
(or a fifth of the spacing, where that is less): what `dicom.stack` accepts of slices."""


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
        found = labels_of_segments(segment_names(self.path), labels)
        return {found[n] for n in _drawn(read_segmentation(self.path)) if n in found}

    def onto(
        self, image: MetaTensor, image_path: Path, labels: Mapping[int, str], mending: Mending
    ) -> MetaTensor:
        """See `LabelFile.onto`; slices that the file has no frame of are background.

        Raises:
            DataError: its frames do not lie on the image's voxels, it was drawn in another frame of
                reference, or it has segments that are no label, see `labels_of_segments`, or one
                label together.
        """
        planes = self._labelled(labels)
        ids = _on_voxels(planes, image)
        if ids is not None:
            label = MetaTensor(torch.from_numpy(ids)[None], meta=dict(image.meta))
        elif mending.resample_label:
            label = placed(image_from(planes.volume), self.path, image, resample=True)
        else:
            raise DataError(
                f"the segmentation's grid is no part of the image's ({self.path}); they must come "
                "from the same series. Choose the segmentation of this series, or "
                "mending::resample_label=true."
            )
        check_references(image, self.path)
        check_pair(image, label, labels, image_path, self.path)
        meta = {**image.meta, "notes": list(planes.notes)}
        return MetaTensor(label.as_tensor().to(torch.int32), meta=meta)

    def _labelled(self, labels: Mapping[int, str]) -> Planes:
        """The planes with label ids in place of the segments' numbers."""
        planes = read_segmentation(self.path)
        segments, drawn = segment_names(self.path), _drawn(planes)
        segments = {**dict.fromkeys(drawn, ""), **segments}  # a pixel may be of none
        found = labels_of_segments(segments, labels)
        refuse_unclear(segments, found, drawn, labels, self.path)
        if all(found[n] == n for n in drawn):
            return planes
        ids = np.zeros_like(planes.ids)
        for number in drawn:
            ids[planes.ids == number] = found[number]
        return replace(planes, ids=ids)


def _drawn(planes: Planes) -> list[int]:
    """Numbers of the segments with a voxel."""
    return [number for number in label_values(torch.from_numpy(planes.ids)) if number]


def _on_voxels(planes: Planes, image: MetaTensor) -> NDArray[np.int32] | None:
    """(X, Y, Z) ids of planes that lie on the voxels of an image; None where they do not."""
    filled = np.zeros(image.shape[1:], np.int32)
    inverse = np.linalg.inv(LPS_TO_RAS @ affine_of(image))
    spacing = np.linalg.norm(affine_of(image)[:3, :3], axis=0)
    allowed = np.minimum(PLANE_TOLERANCE / spacing, 0.2)  # share of a voxel
    last = np.array(planes.ids.shape[:2]) - 1
    corners = np.array([(0, 0), (1, 0), (0, 1), (1, 1)]) * last  # (4, 2) column, row
    taken = set()
    for p, place in enumerate(planes.places):
        position, steps = plane_of(place)
        steps = steps @ inverse[:3, :3].T  # (2, 3) in voxels
        axes = np.abs(steps).argmax(axis=1)
        signs = np.sign(steps[[0, 1], axes]).astype(int)
        whole = np.zeros((2, 3), int)
        whole[[0, 1], axes] = signs
        start = inverse[:3, :3] @ position + inverse[:3, 3]
        first = np.round(start).astype(int)
        beside = np.abs(start - first + corners @ (steps - whole)).max(axis=0)
        low, high = (end(first, first + last @ whole) for end in (np.minimum, np.maximum))
        k = 3 - axes.sum()
        if axes[0] == axes[1] or (beside > allowed).any() or first[k] in taken:
            return None
        if (low < 0).any() or (high >= filled.shape).any():
            return None
        taken.add(first[k])
        view = np.moveaxis(filled, (*axes, k), (0, 1, 2))  # columns, rows, slices
        (i0, j0), (i1, j1) = low[axes], high[axes] + 1
        view[i0:i1, j0:j1, first[k]] = planes.ids[:: signs[0], :: signs[1], p]
    return filled
