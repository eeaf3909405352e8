"""Polygons as a label: on the ground, of a GeoTIFF, or in pixels, as xBD has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from monai.data import MetaTensor

from medsam_tune.cases.checks import check_turned
from medsam_tune.cases.classes import PLAIN, Coding
from medsam_tune.cases.description import IGNORE
from medsam_tune.cases.labels.grid import of_image
from medsam_tune.errors import DataError, listed
from medsam_tune.formats import vectors
from medsam_tune.formats.extra import geo
from medsam_tune.formats.mending import Mending
from medsam_tune.formats.volume import Region

_PIXELS = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
"""Transform of polygons in pixels."""


@dataclass(frozen=True)
class Outlines:
    """Polygons; see `LabelFile`. Each is an object of its own.

    A pixel belongs to a polygon that its centre lies in; where several overlap, to the smallest.

    Attributes:
        path: GeoPackage, GeoJSON or shapefile, or a file of `vectors.is_in_pixels`.
        coding: names the column that says the class, by its id or its name; without one, all
            polygons are of the one label.
        region: part of the image whose label it is; the image itself says where that lies.
    """

    path: Path
    coding: Coding = PLAIN
    region: Region | None = None
    folds_case: ClassVar[bool] = False
    names_are_present: ClassVar[bool] = True

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether it is named like a file of polygons, or has polygons in pixels."""
        return vectors.is_vector(path) or vectors.is_in_pixels(path)

    @property
    def numbered(self) -> bool:
        """False if the column holds names."""
        return not self.coding.column or all(key.isdecimal() for key in self._classes())

    def names(self) -> dict[int, str]:
        """The classes of the column, or "label 1"."""
        if not self.coding.column:
            return {1: "label 1"}
        found = sorted(self._classes())
        if self.numbered:
            return {int(key): f"label {key}" for key in found if int(key)}
        return dict(enumerate(found, start=1))

    def present(self, labels: Mapping[int, str]) -> set[int]:
        """Labels that a polygon has, anywhere."""
        frame = self._all()
        return {one for one in self._ids(frame, labels) if one} & set(labels)

    def onto(
        self, image: MetaTensor, image_path: Path, labels: Mapping[int, str], mending: Mending
    ) -> MetaTensor:
        """See `LabelFile.onto`; the result has two channels.

        Raises:
            DataError: the image has no place on the ground, and the polygons have; a refusal of
                `vectors.read` or `vectors.read_in_pixels`; a class that is no label.
        """
        width, height = (int(n) for n in image.meta["spatial_shape"][:2])
        frame, notes, transform = self._on(image, image_path, (width, height))
        ids = self._ids(frame, labels)
        found = np.zeros((2, height, width), np.int32)
        if len(frame):
            rasterio = geo("rasterio", self.path, "a file of polygons")
            features = geo("rasterio.features", self.path, "a file of polygons")
            order = np.argsort(-frame.geometry.area.to_numpy(), kind="stable")
            shapes = [frame.geometry.iloc[n] for n in order]
            numbers = [(shape, rank) for rank, shape in enumerate(shapes, start=1)]
            where = {
                "out_shape": (height, width),
                "transform": rasterio.Affine(*transform),
            }
            found[1] = features.rasterize(numbers, fill=0, dtype="int32", **where)
            found[0] = np.array([0, *ids], np.int32)[np.array([0, *(order + 1)])][found[1]]
            found[1][found[0] == 0] = 0
        whole = of_image(found.transpose(0, 2, 1)[..., None].copy(), self.path, image)
        whole.meta["notes"] = list(notes)
        return whole

    def _on(
        self, image: MetaTensor, image_path: Path, size: tuple[int, int]
    ) -> tuple[Any, tuple[str, ...], Sequence[float]]:
        """The polygons of an image of (W, H) pixels, what was changed, and their transform."""
        if vectors.is_in_pixels(self.path):
            check_turned(image, image_path, self.path)
            corner = None if self.region is None else self.region[:2]
            return *vectors.read_in_pixels(self.path, size, corner), _PIXELS
        reference = image.meta.get("georeference")
        if reference is None:
            raise DataError(
                f"{self.path}: polygons need an image with a place on the ground, and {image_path} "
                "has none. Take the GeoTIFF that they were drawn on, or masks."
            )
        part = self.region is not None
        return *vectors.read(self.path, reference, size, part=part), reference.transform

    def _all(self) -> Any:
        """All polygons."""
        pixels = vectors.is_in_pixels(self.path)
        return (vectors.read_in_pixels if pixels else vectors.read)(self.path)[0]

    def _classes(self) -> set[str]:
        """Texts in the column."""
        return set(self._column(self._all()))

    def _column(self, frame: Any) -> list[str]:
        """Text of each polygon in the column; whole numbers without a point."""
        name = self.coding.column
        if not len(frame):
            return []  # a file without features may lack the column too
        if name not in frame.columns:
            columns = listed((str(one) for one in frame.columns if one != frame.geometry.name), 10)
            raise DataError(
                f"{self.path}: has no column {name!r}; it has {columns or 'none'}. Correct the "
                "class map's column."
            )
        said = []
        for index, value in frame[name].items():
            if value is None or value != value:  # NaN
                raise DataError(
                    f"{self.path}: feature {index} has no {name}; expected its class. Fill it in, "
                    "or take the feature out."
                )
            whole = isinstance(value, float) and value.is_integer()
            said.append(str(int(value) if whole else value).strip())
        return said

    def _ids(self, frame: Any, labels: Mapping[int, str]) -> list[int]:
        """Label id of each polygon, 0 for the background."""
        if not self.coding.column:
            only = [number for number in labels if labels[number] != IGNORE]
            if len(only) != 1:
                raise DataError(
                    f"{self.path}: nothing says which polygons are of which label, "
                    f"{listed(labels[number] for number in only)}; expected a column that does: "
                    'label in prompts; in training, {"column": "type", "classes": [...]} in '
                    "classes.json."
                )
            return only * len(frame)
        meant = {str(number): number for number in labels}
        meant |= {name: number for number, name in labels.items()} | dict(self.coding.values)
        texts = self._column(frame)
        unknown = sorted({text for text in texts if text not in meant})
        if unknown:
            raise DataError(
                f"{self.path}: {self.coding.column} is {listed(map(repr, unknown), 6)} of some "
                f"polygons; expected {listed(labels.values(), 10)}. Name each in classes.json, or "
                "take these polygons out."
            )
        return [meant[text] for text in texts]
