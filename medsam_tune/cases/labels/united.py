"""Labels several of whose values mean one label: `--labels 2=kidney,3=kidney`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from monai.data import MetaTensor

from medsam_tune.cases.labels.maps import LabelMap
from medsam_tune.cases.labels.masks import Mask
from medsam_tune.formats.mending import Mending


@dataclass(frozen=True)
class United:
    """A label map or mask of which some values are read as another; see `LabelFile`.

    Attributes:
        label: the file as it is.
        values: value -> label id that it is read as.
    """

    label: LabelMap | Mask
    values: Mapping[int, int]
    numbered: ClassVar[bool] = True
    folds_case: ClassVar[bool] = False
    names_are_present: ClassVar[bool] = True

    def names(self) -> dict[int, str]:
        """See `LabelFile.names`."""
        known = dict.fromkeys((*self.values, *self.values.values()), "")
        found = self.label.names(known) if isinstance(self.label, Mask) else self.label.names()
        meant = {self.values.get(value, value) for value in found}
        return {value: f"label {value}" for value in sorted(meant)}

    def present(self, labels: Mapping[int, str]) -> set[int]:
        """Labels that have a voxel, in one of their values."""
        found = self.label.present(self._in_file(labels))
        return {self.values.get(value, value) for value in found} & {*labels}

    def onto(
        self, image: MetaTensor, image_path: Path, labels: Mapping[int, str], mending: Mending
    ) -> MetaTensor:
        """See `LabelFile.onto`."""
        whole = self.label.onto(image, image_path, self._in_file(labels), mending)
        ids = whole.as_tensor()[0]
        for value, number in self.values.items():
            ids[ids == value] = number
        return whole

    def _in_file(self, labels: Mapping[int, str]) -> dict[int, str]:
        """Value -> name of every value that the file may hold besides 0."""
        return dict(labels) | {
            value: labels[number] for value, number in self.values.items() if number in labels
        }
