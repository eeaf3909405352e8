"""Folders with a file for each organ, as TotalSegmentator writes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from monai.data import MetaTensor

from medsam_tune.cases.checks import check_pair, label_values
from medsam_tune.cases.labels.grid import placed
from medsam_tune.errors import DataError, listed
from medsam_tune.formats.listing import entries_of
from medsam_tune.formats.mending import Mending
from medsam_tune.formats.open import case_id, load_label, scans_among


@dataclass(frozen=True)
class OrganFolder:
    """A folder with a file for each organ; see `LabelFile`.

    Attributes:
        path: the folder; each file has its organ's name, and what is above 0 is that organ.
    """

    path: Path
    numbered: ClassVar[bool] = False
    folds_case: ClassVar[bool] = False
    names_are_present: ClassVar[bool] = False

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether it is a folder."""
        return path.is_dir()

    def files(self) -> dict[str, Path]:
        """Organ -> file.

        Raises:
            DataError: there is no file, or an organ has several.
        """
        found = scans_among(entries_of(self.path))
        if not found:
            raise DataError(
                f"{self.path}: no label map in it; expected a file for each organ, e.g. "
                "liver.nii.gz."
            )
        twice = [name for name, count in Counter(map(case_id, found)).items() if count > 1]
        if twice:
            raise DataError(
                f"{self.path}: several files of {listed(twice)}; expected one file for each organ. "
                "Remove the others."
            )
        return {case_id(one): one for one in found}

    def names(self) -> dict[int, str]:
        """Names of the files, counted from 1."""
        return dict(enumerate(self.files(), start=1))

    def present(self, labels: Mapping[int, str]) -> set[int]:
        """Labels whose file has a voxel."""
        ids = {name: i for i, name in labels.items()}
        organs = {ids[name]: file for name, file in self.files().items() if name in ids}
        return {i for i, file in organs.items() if load_label(file).max() > 0}

    def onto(
        self, image: MetaTensor, image_path: Path, labels: Mapping[int, str], mending: Mending
    ) -> MetaTensor:
        """See `LabelFile.onto`.

        Raises:
            DataError: a file does not lie on the image's grid, is of no label, or overlaps another.
        """
        ids = {name: i for i, name in labels.items()}
        merged = torch.zeros((1, *image.shape[1:]), dtype=torch.int32)
        for name, file in self.files().items():
            if name not in ids:
                raise DataError(
                    f"{file} is of no label that the datalist names; known: {', '.join(ids)}. "
                    "Rename or remove the file."
                )
            organ = placed(load_label(file, mending), file, image, mending.resample_label)
            check_pair(image, organ, label_values(organ.as_tensor()), image_path, file)
            inside = organ.as_tensor() > 0
            twice = int((inside & (merged > 0)).sum())
            if twice:
                raise DataError(
                    f"{twice} voxels of {file} are in another organ's file as well; expected each "
                    "voxel in one. Correct the label maps."
                )
            merged[inside] = ids[name]
        return MetaTensor(merged, meta=dict(image.meta))
