"""Elastic deformation of whole scans."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import asdict, dataclass

import torch
from monai.data import MetaTensor
from monai.transforms import Rand3DElasticd
from torch import Tensor


@dataclass(frozen=True)
class Deformation:
    """Elastic deformation of a whole scan before it is cut into slices; MONAI's `Rand3DElastic`.

    Attributes:
        sigma: smallest and largest standard deviation of the kernel that smooths the field, voxels.
        magnitude: smallest and largest factor of the smoothed field (values below 1), voxels.
        rotation: largest angle about the axis across the slices, radians.
    """

    sigma: tuple[float, float] = (5.0, 8.0)
    magnitude: tuple[float, float] = (50.0, 150.0)
    rotation: float = 0.17

    def describe(self) -> dict[str, object]:
        """Return the settings as JSON, for the keys of the slice store."""
        return asdict(self)

    def __call__(
        self, image: MetaTensor, label: MetaTensor | None, seed: int
    ) -> tuple[MetaTensor, MetaTensor | None]:
        """Deform image and label (1, W, H, K); the grid stays, the seed fixes the result."""
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
            # By rank, as float32 does not hold every label id.
            found = label.as_tensor()
            ids = torch.cat([found.new_zeros(1), found.unique()]).unique()
            values["label"] = torch.searchsorted(ids, found.contiguous()).float()
        moved = elastic(values)
        image = MetaTensor(torch.as_tensor(moved["image"]), meta=dict(image.meta))
        if label is None:
            return image, None
        ranks = torch.as_tensor(moved["label"]).long()
        return image, MetaTensor(ids[ranks], meta=dict(label.meta))
