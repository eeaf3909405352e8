"""The maps between a file's voxels, world, slices and the model's square input. One small place.

A *volume* is (C, X, Y, Z) in LPS order: x grows to the patient's left, y to posterior, z to
superior. Its *slices* are (Z, C, H, W) with H = Y (rows, anterior to posterior) and W = X
(columns, right to left). The *model frame* is the slice, its longest side scaled to S, padded
with zeros at the right or the bottom. Pixel coordinates are continuous with pixel i covering
[i, i + 1], so a box's upper bounds are exclusive.
"""

from __future__ import annotations

from dataclasses import dataclass

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor


def slices_from_volume(volume: Tensor) -> Tensor:
    """(C, X, Y, Z) LPS -> (Z, C, H, W)."""
    return volume.permute(3, 0, 2, 1)


def volume_from_slices(slices: Tensor) -> Tensor:
    """(Z, C, H, W) -> (C, X, Y, Z) LPS."""
    return slices.permute(1, 3, 2, 0)


@dataclass(frozen=True)
class ScanGrid:
    """Where a scan's voxels lie: the file's own array, its LPS slices, and the world.

    Attributes:
        affine: (4, 4) float64 of the file's array (i, j, k), nibabel's RAS+ millimetres.
        shape: (I, J, K) of the file's array.
    """

    affine: NDArray[np.float64]
    shape: tuple[int, int, int]

    @property
    def _to_lps(self) -> NDArray[np.float64]:
        """nibabel's (3, 2) orientation transform of the file's axes to LPS axes."""
        return np.asarray(
            nib.orientations.ornt_transform(
                nib.orientations.io_orientation(self.affine),
                nib.orientations.axcodes2ornt(("L", "P", "S")),
            )
        )

    def to_file(self, labels: Tensor) -> NDArray[np.generic]:
        """Label slices (Z, H, W) -> the file's own array (I, J, K)."""
        volume = volume_from_slices(labels[:, None])[0].cpu().numpy()  # (X, Y, Z)
        back = nib.orientations.ornt_transform(
            nib.orientations.axcodes2ornt(("L", "P", "S")),
            nib.orientations.io_orientation(self.affine),
        )
        return np.ascontiguousarray(nib.orientations.apply_orientation(volume, back))

    def box_to_slices(self, box: NDArray[np.float64]) -> NDArray[np.float64]:
        """A 3-D box in voxels of the file -> (x0, y0, z0, x1, y1, z1) in LPS slices.

        Args:
            box: (6,) i0, j0, k0, i1, j1, k1, upper bounds exclusive.

        Returns:
            (6,) float64, upper bounds exclusive: x along W, y along H, z along slices.
        """
        lower, upper = np.empty(3), np.empty(3)
        for axis, (target, flip) in enumerate(self._to_lps):
            low, high = box[axis], box[axis + 3]
            if flip < 0:
                low, high = self.shape[axis] - high, self.shape[axis] - low
            lower[int(target)], upper[int(target)] = low, high
        return np.concatenate([lower, upper])

    def box_from_world(self, box: NDArray[np.float64]) -> NDArray[np.float64]:
        """A 3-D box in LPS millimetres -> the box around it in voxels of the file.

        Args:
            box: (6,) x0, y0, z0, x1, y1, z1 in LPS millimetres.

        Returns:
            (6,) float64 i0, j0, k0, i1, j1, k1, upper bounds exclusive.
        """
        ras = np.diag([-1.0, -1.0, 1.0])
        corners = np.array(
            [[box[3 * a], box[1 + 3 * b], box[2 + 3 * c]] for a, b, c in np.ndindex(2, 2, 2)]
        )
        voxels = nib.affines.apply_affine(np.linalg.inv(self.affine), corners @ ras) + 0.5
        return np.concatenate([voxels.min(0), voxels.max(0)])

    @property
    def slice_axis(self) -> int:
        """Axis of the file's array (0, 1 or 2) along which the axial slices are stacked."""
        return int(np.flatnonzero(self._to_lps[:, 0] == 2)[0])


class ModelFrame:
    """The map between slices of one size and the model's square input.

    Args:
        size: (H, W) of the slices, pixels.
        image_size: S, side of the model's input, pixels.
    """

    def __init__(self, size: tuple[int, int], image_size: int) -> None:
        self.size = size
        self.image_size = image_size
        self.scale = image_size / max(size)
        h, w = (max(1, round(side * self.scale)) for side in size)
        self.inner = (h, w)
        self._pad = (0, image_size - w, 0, image_size - h)

    def image(self, image: Tensor) -> Tensor:
        """(N, C, H, W) float -> (N, C, S, S), bilinear, zeros where the slice does not reach."""
        shrinks = self.scale < 1
        inner = F.interpolate(
            image, self.inner, mode="bilinear", align_corners=False, antialias=shrinks
        )
        return F.pad(inner, self._pad)

    def masks(self, masks: Tensor) -> Tensor:
        """(N, P, H, W) bool -> (N, P, S, S) bool, nearest."""
        inner = F.interpolate(masks.to(torch.uint8), self.inner, mode="nearest-exact")
        return F.pad(inner, self._pad).bool()

    def boxes(self, boxes: Tensor) -> Tensor:
        """(..., 4) XYXY in the slice frame -> the model frame."""
        return boxes * self._ratio(boxes)

    def boxes_to_slice(self, boxes: Tensor) -> Tensor:
        """(..., 4) XYXY in the model frame -> the slice frame."""
        return boxes / self._ratio(boxes)

    def logits(self, logits: Tensor) -> Tensor:
        """(N, P, h, w) logits of the model frame -> (N, P, H, W), bilinear, in the slice frame."""
        full = F.interpolate(logits, (self.image_size,) * 2, mode="bilinear", align_corners=False)
        h, w = self.inner
        shrinks = self.scale > 1
        return F.interpolate(
            full[..., :h, :w], self.size, mode="bilinear", align_corners=False, antialias=shrinks
        )

    def _ratio(self, boxes: Tensor) -> Tensor:
        (h, w), (inner_h, inner_w) = self.size, self.inner
        return boxes.new_tensor([inner_w / w, inner_h / h, inner_w / w, inner_h / h])
