"""One case's files become an image and its label on one grid, in the plane that was chosen."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import torch
from monai.data import MetaTensor
from monai.transforms import Orientation, Rand3DElasticd
from torch import Tensor

from medsam_tune.cases.checks import check_image
from medsam_tune.cases.datalist import Case
from medsam_tune.cases.labels.maps import load_label
from medsam_tune.errors import DataError
from medsam_tune.formats.open import load_image
from medsam_tune.slices.rules import Reading


def load_case(
    case: Case, labels: Mapping[int, str], reading: Reading | None = None
) -> tuple[MetaTensor, MetaTensor | None]:
    """Read, check and orient one scan.

    Args:
        case: the files.
        labels: label id -> name that the label may hold besides 0.
        reading: plane, and what is mended instead of refused.

    Returns:
        image (1, W, H, K) float32 in the scanner's unit and label (1, W, H, K) int32 or None, both
        in the orientation of the plane (axial: LPS), not resampled, affines in nibabel's RAS+
        millimetres; `meta["original_affine"]` and `meta["spatial_shape"]` are the file's own,
        `meta["notes"]` what was changed.

    Raises:
        DataError: see `load_image`, `check_image` and `load_label`.
    """
    reading = reading or Reading()
    image = load_image(case.id, case.image, reading, case.series)
    image = _one_volume(case.id, image, reading.volume_index, case.image)
    _fill(image, reading.fill_nan)
    check_image(case.id, image, case.image)
    axes = reading.axes(image.affine.numpy())
    image = cast(MetaTensor, Orientation(axcodes=axes, labels=None)(image))
    if case.label is None:
        return image, None
    return image, load_label(case.id, case.label, image, case.image, labels, reading)


@dataclass(frozen=True)
class Deformation:
    """Elastic deformation of a whole scan, before it is cut into slices; MONAI's `Rand3DElastic`.

    Attributes:
        sigma: least and largest standard deviation of the kernel that smooths the field, voxels.
        magnitude: least and largest factor of the smoothed field, whose values are below 1, voxels.
        rotation: largest angle about the axis across the slices, radians.
    """

    sigma: tuple[float, float] = (5.0, 8.0)
    magnitude: tuple[float, float] = (50.0, 150.0)
    rotation: float = 0.17

    def describe(self) -> dict[str, object]:
        """As JSON, for the keys of the slice store."""
        return asdict(self)

    def __call__(
        self, image: MetaTensor, label: MetaTensor | None, seed: int
    ) -> tuple[MetaTensor, MetaTensor | None]:
        """Image and label (1, W, H, K) on the grid they had; the same seed deforms alike."""
        keys = ["image"] if label is None else ["image", "label"]
        elastic = Rand3DElasticd(
            keys,
            sigma_range=self.sigma,
            magnitude_range=self.magnitude,
            prob=1.0,
            rotate_range=(0.0, 0.0, self.rotation),
            mode=["bilinear", "nearest"][: len(keys)],
            padding_mode=["border", "zeros"][: len(keys)],
        ).set_random_state(seed)
        values: dict[Hashable, Tensor] = {"image": image.as_tensor()}
        if label is not None:
            values["label"] = label.as_tensor().float()
        moved = elastic(values)
        image = MetaTensor(torch.as_tensor(moved["image"]), meta=dict(image.meta))
        if label is None:
            return image, None
        ids = torch.as_tensor(moved["label"]).to(label.dtype)
        return image, MetaTensor(ids, meta=dict(label.meta))


def _one_volume(case_id: str, image: MetaTensor, index: int | None, path: Path) -> MetaTensor:
    if index is None or image.shape[0] == 1:
        return image
    if not 0 <= index < image.shape[0]:
        raise DataError(
            f"case {case_id}: no volume {index} ({path}); it has {image.shape[0]}, counted from 0."
        )
    _note(image, f"volume {index} of {image.shape[0]}")
    return cast(MetaTensor, image[index : index + 1])


def _fill(image: MetaTensor, value: float | None) -> None:
    values = image.as_tensor()
    bad = ~torch.isfinite(values)
    if value is not None and bad.any():
        values[bad] = value
        _note(image, f"{int(bad.sum())} NaN or infinite voxels set to {value:g}")


def _note(image: MetaTensor, text: str) -> None:
    image.meta["notes"] = [*image.meta.get("notes", []), text]
