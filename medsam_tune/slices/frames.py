"""Maps between a file's voxels, the world, slices and the model's square input.

A *volume* is (C, X, Y, Z); its axes run along the columns, rows and slices of the chosen plane
(`rules.PLANES`). Axial slices are LPS: x grows to the patient's left, y to posterior, z to
superior. Its *slices* are (Z, C, H, W) with H = Y (rows) and W = X (columns). The *model frame* is
the slice with its longest side scaled to S, padded with zeros at the right or the bottom; or, if
squashed, with both sides scaled to S, as MedSAM was trained. Pixel coordinates are continuous:
pixel i covers [i, i + 1], so a box's upper bounds are exclusive.
"""

from __future__ import annotations

from dataclasses import dataclass

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from medsam_tune.errors import DataError
from medsam_tune.formats.volume import LPS_TO_RAS, GeoReference


def slices_from_volume(volume: Tensor) -> Tensor:
    """(C, X, Y, Z) -> (Z, C, H, W)."""
    return volume.permute(3, 0, 2, 1)


def volume_from_slices(slices: Tensor) -> Tensor:
    """(Z, C, H, W) -> (C, X, Y, Z)."""
    return slices.permute(1, 3, 2, 0)


def resized(volume: Tensor, size: tuple[int, int, int], nearest: bool = False) -> Tensor:
    """(C, X, Y, Z) -> (C, *size) of the same extent; linear, or nearest voxel for labels.

    A single slice that is shrunk is smoothed first, as images are shrunk by any factor.
    """
    if tuple(volume.shape[1:]) == size:
        return volume
    if nearest:  # by index, as float32 does not hold every label id
        for axis, (old, new) in enumerate(zip(volume.shape[1:], size, strict=True), start=1):
            centres = (torch.arange(new, device=volume.device) + 0.5) * (old / new)
            volume = volume.index_select(axis, centres.long().clamp(max=old - 1))
        return volume
    if volume.shape[-1] == size[-1] == 1:
        flat = volume[None, ..., 0].float()
        return F.interpolate(flat, size[:2], mode="bilinear", antialias=True)[0, ..., None]
    return F.interpolate(volume[None].float(), size, mode="trilinear", align_corners=False)[0]


def with_neighbours(slices: Tensor) -> Tensor:
    """(Z, 1, H, W) -> (Z, 3, H, W): slice before, slice, slice after; the ends repeat themselves.

    The three channels are views of one copy.

    Raises:
        DataError: slices with several channels.
    """
    if slices.shape[1] != 1:
        raise DataError(
            f"neighbours need one channel of each slice, the intensity rule gives "
            f"{slices.shape[1]}. Choose one window, or rules::neighbours=false."
        )
    padded = torch.cat([slices[:1], slices, slices[-1:]])[:, 0]
    return padded.unfold(0, 3, 1).permute(0, 3, 1, 2)


def scaled(coordinates: Tensor, x: float, y: float) -> Tensor:
    """Scale points (..., 2) XY or boxes (..., 4) XYXY, float, by factors along x and y."""
    return coordinates * coordinates.new_tensor([x, y]).repeat(coordinates.shape[-1] // 2)


@dataclass(frozen=True)
class ScanGrid:
    """Grid of a scan: the file's own array, its slices, and the world.

    Attributes:
        affine: (4, 4) float64, from indices (i, j, k) of the file's array to RAS+ millimetres.
        shape: (I, J, K), shape of the file's array.
        axes: orientation of the slices' volume (X, Y, Z), "LPS" for axial slices.
        size: (X, Y, Z), shape of that volume after resampling; by default it is not resampled.
        codes: qform_code and sform_code of the file, if it is NIfTI.
        guess: what the file's header lacks, where the affine is a guess; empty where it says it.
        series: SeriesInstanceUID; empty where it is not DICOM.
        frame: FrameOfReferenceUID; empty where unknown.
        georeference: place of a 2-D image on the earth; None where it has none.
    """

    affine: NDArray[np.float64]
    shape: tuple[int, int, int]
    axes: str = "LPS"
    size: tuple[int, int, int] = (0, 0, 0)
    codes: tuple[int, int] | None = None
    guess: str = ""
    series: str = ""
    frame: str = ""
    georeference: GeoReference | None = None

    def __post_init__(self) -> None:
        if not any(self.size):
            object.__setattr__(self, "size", self._whole)

    @property
    def _to_slices(self) -> NDArray[np.float64]:
        """nibabel's (3, 2) orientation transform of the file's axes to the volume's."""
        return np.asarray(nib.orientations.ornt_transform(self._of_file, self._of_slices))

    @property
    def _of_file(self) -> NDArray[np.float64]:
        return np.asarray(nib.orientations.io_orientation(self.affine))

    @property
    def _of_slices(self) -> NDArray[np.float64]:
        return np.asarray(nib.orientations.axcodes2ornt(tuple(self.axes)))

    @property
    def _order(self) -> list[int]:
        """Axis of the file's array along X, Y and Z of the volume."""
        return np.argsort(self._to_slices[:, 0]).tolist()  # type: ignore[no-any-return]

    @property
    def _whole(self) -> tuple[int, int, int]:
        """(X, Y, Z) of the volume before resampling."""
        x, y, z = (self.shape[axis] for axis in self._order)
        return x, y, z

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres along X, Y and Z of the volume before resampling."""
        spacing = np.linalg.norm(self.affine[:3, :3], axis=0)
        x, y, z = (float(spacing[axis]) for axis in self._order)
        return x, y, z

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel of the file, millilitres."""
        return float(np.prod(self.spacing)) / 1000

    def to_file(self, labels: Tensor) -> NDArray[np.generic]:
        """Label slices (Z, H, W) -> the file's own array (I, J, K), by the nearest voxel."""
        volume = resized(volume_from_slices(labels[:, None]), self._whole, nearest=True)
        back = nib.orientations.ornt_transform(self._of_slices, self._of_file)
        array = nib.orientations.apply_orientation(volume[0].cpu().numpy(), back)
        return np.ascontiguousarray(array)

    def points_to_slices(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Points in voxels of the file -> points in slices.

        Args:
            points: (..., 3) i, j, k; voxel i covers [i, i + 1], so its centre is i + 0.5.

        Returns:
            (..., 3) float64: x along W, y along H, z along slices; slice z covers [z, z + 1].
        """
        found = np.empty(points.shape)
        for axis, (target, flip) in enumerate(self._to_slices):
            along = points[..., axis]
            found[..., int(target)] = self.shape[axis] - along if flip < 0 else along
        return found * np.divide(self.size, self._whole)

    def points_from_slices(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Points in slices -> points in voxels of the file; `points_to_slices` backwards."""
        volume = points * np.divide(self._whole, self.size)
        found = np.empty(points.shape)
        for axis, (target, flip) in enumerate(self._to_slices):
            along = volume[..., int(target)]
            found[..., axis] = self.shape[axis] - along if flip < 0 else along
        return found

    def points_from_world(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Points in LPS millimetres -> points in voxels of the file, as in `points_to_slices`."""
        ras = points @ LPS_TO_RAS[:3, :3]
        return np.asarray(nib.affines.apply_affine(np.linalg.inv(self.affine), ras) + 0.5)

    def box_to_slices(self, box: NDArray[np.float64]) -> NDArray[np.float64]:
        """3-D boxes in voxels of the file -> x0, y0, z0, x1, y1, z1 in slices.

        Args:
            box: (..., 6) i0, j0, k0, i1, j1, k1, upper bounds exclusive.

        Returns:
            (..., 6) float64, upper bounds exclusive: x along W, y along H, z along slices.
        """
        return _around(self.points_to_slices(_corners(box)))

    def box_from_slices(self, box: NDArray[np.float64]) -> NDArray[np.float64]:
        """3-D boxes in slices -> boxes in voxels of the file; `box_to_slices` backwards."""
        return _around(self.points_from_slices(_corners(box)))

    def box_from_world(self, box: NDArray[np.float64]) -> NDArray[np.float64]:
        """3-D boxes in LPS millimetres -> the boxes around them in voxels of the file.

        Args:
            box: (..., 6) x0, y0, z0, x1, y1, z1 in LPS millimetres.

        Returns:
            (..., 6) float64 i0, j0, k0, i1, j1, k1, upper bounds exclusive.
        """
        ends = [[3 * a, 1 + 3 * b, 2 + 3 * c] for a, b, c in np.ndindex(2, 2, 2)]
        return _around(self.points_from_world(box[..., ends]))  # of (..., 8, 3) corners

    @property
    def affine_of_slices(self) -> NDArray[np.float64]:
        """(4, 4) from indices (x, y, z) of the slices' volume (X, Y, Z) to RAS+ millimetres."""
        ends = self.points_from_slices(np.vstack([np.zeros(3), np.eye(3)]) + 0.5) - 0.5
        to_file = np.eye(4)
        to_file[:3] = np.column_stack([(ends[1:] - ends[0]).T, ends[0]])
        return self.affine @ to_file

    @property
    def slice_axis(self) -> int:
        """Axis of the file's array (0, 1 or 2) along which the slices are stacked."""
        return self._order[2]

    def index_in_file(self, z: int) -> int:
        """Index along `slice_axis` of the file's array of slice z's centre."""
        return int(self.points_from_slices(np.array([0.0, 0, z + 0.5]))[self.slice_axis])


def _corners(box: NDArray[np.float64]) -> NDArray[np.float64]:
    """Two opposite corners (..., 2, 3) of boxes (..., 6)."""
    return box.reshape(*box.shape[:-1], 2, 3)


def _around(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """The boxes (..., 6) around points (..., N, 3)."""
    return np.concatenate([points.min(-2), points.max(-2)], axis=-1)


class ModelFrame:
    """The map between slices of one size and the model's square input.

    Args:
        size: (H, W) of the slices, pixels.
        image_size: S, side of the model's input, pixels.
        squash: scale both sides to S instead of padding the shorter one.
    """

    def __init__(self, size: tuple[int, int], image_size: int, squash: bool = False) -> None:
        self.size = size
        self.image_size = image_size
        scale = image_size / max(size)
        h, w = (image_size if squash else max(1, round(side * scale)) for side in size)
        self.inner = (h, w)
        self.padding = (0, image_size - w, 0, image_size - h)

    @property
    def scale(self) -> tuple[float, float]:
        """Pixels of the model frame for each pixel of the slice, along x and y."""
        return self.inner[1] / self.size[1], self.inner[0] / self.size[0]

    def image(self, image: Tensor) -> Tensor:
        """(N, C, H, W) float -> (N, C, S, S), bilinear, padded with zeros."""
        shrinks = self.inner[0] < self.size[0] or self.inner[1] < self.size[1]
        inner = F.interpolate(
            image, self.inner, mode="bilinear", align_corners=False, antialias=shrinks
        )
        return F.pad(inner, self.padding)

    def masks(self, masks: Tensor) -> Tensor:
        """(N, P, H, W) bool -> (N, P, S, S) bool, nearest.

        A mask that would vanish keeps every pixel that it touches.
        """
        if masks.numel() == 0:
            return masks.new_zeros(*masks.shape[:2], self.image_size, self.image_size)
        inner = F.interpolate(masks.to(torch.uint8), self.inner, mode="nearest-exact").bool()
        lost = masks.flatten(2).any(2) & ~inner.flatten(2).any(2)
        if lost.any():
            inner[lost] = F.adaptive_max_pool2d(masks[lost].float(), self.inner) > 0
        return F.pad(inner, self.padding)

    def boxes(self, boxes: Tensor) -> Tensor:
        """(..., 4) XYXY in the slice frame -> the model frame."""
        return scaled(boxes, *self.scale)

    def logits(self, logits: Tensor) -> Tensor:
        """(N, P, h, w) logits of the model frame -> (N, P, H, W), bilinear, in the slice frame."""
        full = F.interpolate(logits, (self.image_size,) * 2, mode="bilinear", align_corners=False)
        return self.back(full)

    def back(self, image: Tensor, nearest: bool = False) -> Tensor:
        """(N, C, S, S) of the model frame -> (N, C, H, W) in the slice frame."""
        h, w = self.inner
        if nearest:
            return F.interpolate(image[..., :h, :w], self.size, mode="nearest-exact")
        shrinks = self.inner[0] > self.size[0] or self.inner[1] > self.size[1]
        return F.interpolate(
            image[..., :h, :w], self.size, mode="bilinear", align_corners=False, antialias=shrinks
        )
