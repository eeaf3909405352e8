"""COCO's JSON as labels: the objects of one of its images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from monai.data import MetaTensor
from numpy.typing import NDArray

from medsam_tune.cases.checks import check_turned
from medsam_tune.cases.description import IGNORE
from medsam_tune.cases.labels.grid import of_image
from medsam_tune.errors import DataError
from medsam_tune.formats import coco
from medsam_tune.formats.image import TURNED
from medsam_tune.formats.mending import Mending

_Map = NDArray[np.int32]


@dataclass(frozen=True)
class CocoLabel:
    """The objects of an image in COCO's JSON; see `LabelFile`.

    Categories are labels by their names; those that are no label of the data set are left out. In
    pixels of several objects, the smallest counts. Regions of objects that nobody told apart
    (`iscrowd`) are pixels that nobody annotated.

    Attributes:
        path: the file.
        image: the image; None if it is not known before `onto`.
    """

    path: Path
    image: Path | None = None
    numbered: ClassVar[bool] = False
    folds_case: ClassVar[bool] = False
    names_are_present: ClassVar[bool] = False

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether it is named like JSON."""
        return path.name.lower().endswith(coco.ENDING)

    def names(self) -> dict[int, str]:
        """Names of the categories that have an object, by their ids, counted from 1."""
        return dict(enumerate(coco.read(self.path).used.values(), start=1))

    def present(self, labels: Mapping[int, str]) -> set[int]:
        """Labels that have an object on the image."""
        if self.image is None:
            return set()
        found = coco.read(self.path)
        names = {
            found.categories[one.category]
            for one in found.picture_of(self.image).objects
            if not one.crowd
        }
        return {number for number, name in labels.items() if name in names}

    def onto(
        self, image: MetaTensor, image_path: Path, labels: Mapping[int, str], mending: Mending
    ) -> MetaTensor:
        """See `LabelFile.onto`; the result has two channels.

        Raises:
            DataError: no such image in the file, another size than the image's, an object that is
                none, or an image that EXIF turns.
        """
        found = coco.read(self.path)
        picture = found.picture_of(image_path)
        size = tuple(map(int, image.meta["spatial_shape"][:2]))
        if (picture.width, picture.height) != size:
            turned = TURNED in image.meta.get("notes", ())
            raise DataError(
                f"{self.path} says {picture.width} x {picture.height} pixels of the image, it has "
                f"{size[0]} x {size[1]} ({image_path}); expected the same size."
                f"{' The image is turned, as its EXIF says.' if turned else ''} Take the image "
                "that was annotated."
            )
        check_turned(image, image_path, self.path)
        try:
            ids, numbers, note = _painted(picture, found.categories, labels)
        except DataError as error:
            raise DataError(f"{self.path}, image {picture.file_name}: {error}") from error
        whole = of_image(np.stack([ids, numbers]), self.path, image)
        whole.meta["notes"] = [note] if note else []
        return whole


def _painted(
    picture: coco.Picture, categories: Mapping[int, str], labels: Mapping[int, str]
) -> tuple[_Map, _Map, str]:
    """(W, H, 1) label ids and numbers of objects, and what is said of objects without a pixel."""
    known = {name: number for number, name in labels.items()}
    ignore = known.get(IGNORE)
    ids, numbers = (np.zeros((picture.height, picture.width), np.int32) for _ in range(2))
    masks = []
    for one in picture.objects:
        label = ignore if one.crowd else known.get(categories[one.category])
        if label is not None:
            masks.append((np.flatnonzero(coco.mask_of(one, picture)), label, one.crowd))
    # Crowds lie below objects, and large objects below small ones.
    order = sorted(range(len(masks)), key=lambda i: (not masks[i][2], -len(masks[i][0])))
    for number, i in enumerate(order, start=1):
        pixels, label, crowd = masks[i]
        ids.flat[pixels], numbers.flat[pixels] = label, 0 if crowd else number
    objects = len(masks) - sum(crowd for *_, crowd in masks)
    hidden = objects - len(np.setdiff1d(np.unique(numbers), 0))
    note = f"{hidden} of {objects} objects have no pixel, or lie under smaller ones"
    return ids.T[..., None], numbers.T[..., None], note if hidden else ""
