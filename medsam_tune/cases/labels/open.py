"""Labels of any kind, behind one protocol."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Protocol

from monai.data import MetaTensor

from medsam_tune.cases.classes import PLAIN, Coding
from medsam_tune.cases.labels.coco import CocoLabel
from medsam_tune.cases.labels.maps import LabelMap
from medsam_tune.cases.labels.masks import Mask
from medsam_tune.cases.labels.organs import OrganFolder
from medsam_tune.cases.labels.outlines import Outlines
from medsam_tune.cases.labels.rtstruct import StructureSet
from medsam_tune.cases.labels.seg import Segmentation
from medsam_tune.cases.labels.united import United
from medsam_tune.formats.mending import Mending
from medsam_tune.formats.open import scan_at
from medsam_tune.formats.volume import Region


class LabelFile(Protocol):
    """The label of one scan, as a file or a folder.

    Attributes:
        numbered: True if an id means the same in every label of a data set; False if only names
            do, as of ROIs.
        folds_case: True if names are compared without regard to case.
        names_are_present: True if `names` holds exactly the ids that have a voxel.
    """

    @property
    def numbered(self) -> bool:
        """See above."""

    folds_case: ClassVar[bool]
    names_are_present: ClassVar[bool]

    def names(self) -> dict[int, str]:
        """Ids and their names, as far as the file says.

        Raises:
            DataError: here and below, the file cannot be read, or its kind refuses it.
        """

    def present(self, labels: Mapping[int, str]) -> set[int]:
        """Ids of those of the labels (id -> name) that it has."""

    def onto(
        self, image: MetaTensor, image_path: Path, labels: Mapping[int, str], mending: Mending
    ) -> MetaTensor:
        """Put the label on the grid of its image.

        Args:
            image: (C, X, Y, Z), in the orientation that the label map shall have.
            image_path: file or folder of the image, for messages.
            labels: label id -> name.
            mending: `resample_label` brings a label of another grid onto the image's.

        Returns:
            (1, X, Y, Z) int32 label ids, with the image's affine; or (2, X, Y, Z), where the label
            tells objects of a label apart: ids, and the number of the object, 0 for none.
        """


class LabelKind(Protocol):
    """The class of a kind of label."""

    def __call__(self, path: Path) -> LabelFile:
        """The label at a path."""

    def recognises(self, path: Path) -> bool:
        """Whether a path is of this kind."""


KINDS: tuple[LabelKind, ...] = (OrganFolder, Segmentation, StructureSet)
"""All kinds but masks and polygons of images, which need a coding, COCO's JSON, which needs the
image, and label maps, which all others are."""


def open_label(
    path: Path,
    coding: Coding = PLAIN,
    region: Region | None = None,
    image: Path | None = None,
) -> LabelFile:
    """Find the kind of the label at a path; only a header is read.

    Args:
        path: label map in any format that `load_image` reads, DICOM SEG or RTSTRUCT, COCO's JSON,
            or a folder with a file for each organ; or a folder that is named like a file and holds
            one.
        coding: how the mask of an image says its labels, and which values are one label.
        region: part of the image whose label it is; None for all of it.
        image: file of the image, which tells those of COCO's JSON apart.

    Raises:
        DataError: a folder that is named like a file, with no scan in it, or with several.
    """
    label = _opened(scan_at(path), coding, region, image)
    if coding.united and isinstance(label, LabelMap | Mask):
        return United(label, coding.united)
    return label  # of other kinds, names say what is one label


def _opened(path: Path, coding: Coding, region: Region | None, image: Path | None) -> LabelFile:
    """The label as its kind has it."""
    if Outlines.recognises(path):
        return Outlines(path, coding, region)
    if Mask.recognises(path):
        return Mask(path, coding, region)
    if CocoLabel.recognises(path):
        return CocoLabel(path, image)
    return next((kind for kind in KINDS if kind.recognises(path)), LabelMap)(path)
