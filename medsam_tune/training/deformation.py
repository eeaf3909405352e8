"""Elastic deformation of whole scans."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import AffineGrid, Resample
from scipy.ndimage import gaussian_filter


@dataclass(frozen=True)
class Deformation:
    """Elastic deformation of a whole scan before it is cut into slices.

    That of MONAI's `Rand3DElastic`, whose smoothing takes over a kilobyte of memory for each voxel.

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
        draw = np.random.default_rng(seed)
        sigma, magnitude = draw.uniform(*self.sigma), draw.uniform(*self.magnitude)
        angle = draw.uniform(-self.rotation, self.rotation)
        grid: Any = AffineGrid(rotate_params=(0.0, 0.0, angle))(spatial_size=image.shape[1:])[0]
        for axis, size in zip(grid[:3], image.shape[1:], strict=True):
            if size == 1:  # a 2-D image, which would move out of its only slice
                continue
            noise = draw.uniform(-1, 1, axis.shape).astype(np.float32)
            smooth = gaussian_filter(noise, sigma, mode="constant", truncate=3, output=noise)
            axis += torch.from_numpy(magnitude * smooth)
        resample = Resample()
        moved = resample(image.as_tensor(), grid, mode="bilinear", padding_mode="border")
        image = MetaTensor(torch.as_tensor(moved), meta=dict(image.meta))
        if label is None:
            return image, None
        # By rank, as float32 does not hold every label id.
        found = label.as_tensor()
        ids = torch.cat([found.new_zeros(1), found.unique()]).unique()
        ranks = torch.searchsorted(ids, found.contiguous(), out_int32=True).float()
        moved = resample(ranks, grid, mode="nearest", padding_mode="zeros")
        return image, MetaTensor(ids[torch.as_tensor(moved).long()], meta=dict(label.meta))
