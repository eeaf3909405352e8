"""Label maps: one file, whose values are the ids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, cast

import torch
from monai.data import MetaTensor

from medsam_tune.cases.checks import check_pair, label_values
from medsam_tune.cases.labels.grid import placed
from medsam_tune.errors import DataError
from medsam_tune.formats.mending import Mending
from medsam_tune.formats.open import load_label
from medsam_tune.formats.volume import HIGHEST_ID


@dataclass(frozen=True)
class LabelMap:
    """A label map in any format that `load_image` reads; see `LabelFile`.

    Attributes:
        path: the file, or a folder of DICOM images.
    """

    path: Path
    numbered: ClassVar[bool] = True
    folds_case: ClassVar[bool] = False
    names_are_present: ClassVar[bool] = True

    def names(self) -> dict[int, str]:
        """Every value above 0, named "label 1", "label 2", ...

        Raises:
            DataError: values that are no ids.
        """
        values = load_label(self.path).as_tensor()
        no_ids = values[(values != values.round()) | (values < 0)].unique().tolist()
        ids = label_values(values) if not no_ids else []
        no_ids += [value for value in ids if value > HIGHEST_ID]
        if no_ids:
            raise DataError(
                f"label map holds values that are no ids: {no_ids[:10]} "
                f"({self.path}); expected 0, 1, 2, ... {HIGHEST_ID}. Export it again."
            )
        return {value: f"label {value}" for value in ids if value}

    def present(self, labels: Mapping[int, str]) -> set[int]:
        """Labels that have a voxel."""
        return set(label_values(load_label(self.path).as_tensor())) & set(labels)

    def onto(
        self, image: MetaTensor, image_path: Path, labels: Mapping[int, str], mending: Mending
    ) -> MetaTensor:
        """See `LabelFile.onto`.

        Raises:
            DataError: it does not lie on the image's grid, or has values that `labels` lacks.
        """
        label = placed(load_label(self.path, mending), self.path, image, mending.resample_label)
        check_pair(image, label, labels, image_path, self.path)
        return cast(MetaTensor, label.to(torch.int32))
