"""After-care of masks: what a user may ask for once the model has answered; off by default."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

_TOUCHING = ndimage.generate_binary_structure(3, 3)  # voxels that share a corner are one piece


class Aftercare:
    """Clean each label's mask in the scan's own grid; the steps run in the order of the arguments.

    MONAI's `RemoveSmallObjects` takes a label of a label map for one piece, whatever lies apart.

    Args:
        smooth_slices: standard deviation, in slices, of a smoothing of the mask across slices; it
            closes and removes what is on single slices. 0 leaves it out.
        min_volume_ml: pieces below this volume are removed, millilitres.
        largest_component: keep the largest piece only.
        fill_holes: fill what a piece encloses on all sides.

    Raises:
        ValueError: a number below 0, or a switch that is none.
    """

    def __init__(
        self,
        smooth_slices: float = 0.0,
        min_volume_ml: float = 0.0,
        largest_component: bool = False,
        fill_holes: bool = False,
    ) -> None:
        for name, value in (("smooth_slices", smooth_slices), ("min_volume_ml", min_volume_ml)):
            if isinstance(value, bool) or not 0 <= value < float("inf"):
                raise ValueError(f"{name} is {value!r}; expected a number, 0 or more.")
        for name, switch in (("largest_component", largest_component), ("fill_holes", fill_holes)):
            if not isinstance(switch, bool):
                raise ValueError(f"{name} is {switch!r}; expected true or false.")
        self.smooth_slices = smooth_slices
        self.min_volume_ml = min_volume_ml
        self.largest_component = largest_component
        self.fill_holes = fill_holes

    @property
    def does_nothing(self) -> bool:
        """Whether every step is off."""
        return not (
            self.smooth_slices or self.min_volume_ml or self.largest_component or self.fill_holes
        )

    def mask(
        self, mask: NDArray[np.bool_], voxel_ml: float, slice_axis: int = 2
    ) -> NDArray[np.bool_]:
        """Clean one mask.

        Args:
            mask: (I, J, K) bool.
            voxel_ml: volume of a voxel, millilitres.
            slice_axis: axis along which the model's slices are stacked.
        """
        if self.smooth_slices:
            soft = ndimage.gaussian_filter1d(
                mask.astype(np.float32), self.smooth_slices, axis=slice_axis, mode="nearest"
            )
            mask = soft > 0.5
        if self.min_volume_ml or self.largest_component:
            pieces, _ = ndimage.label(mask, _TOUCHING)
            sizes = np.bincount(pieces.ravel())
            sizes[0] = 0
            kept = sizes * voxel_ml >= self.min_volume_ml * (1 - 1e-9)
            if self.largest_component:
                kept &= np.arange(len(sizes)) == sizes.argmax()
            kept[0] = False
            mask = kept[pieces]
        if self.fill_holes:
            mask = ndimage.binary_fill_holes(mask)
        return mask

    def labels(
        self, labels: NDArray[np.integer], voxel_ml: float, slice_axis: int = 2
    ) -> NDArray[np.integer]:
        """Clean each label of a label map; no label grows over another.

        Args:
            labels: (I, J, K) label ids.
            voxel_ml: volume of a voxel, millilitres.
            slice_axis: axis along which the model's slices are stacked.
        """
        if self.does_nothing:
            return labels
        cleaned = np.zeros_like(labels)
        for label in np.unique(labels[labels > 0]):
            mask = self.mask(labels == label, voxel_ml, slice_axis)
            cleaned[mask & (cleaned == 0) & ((labels == 0) | (labels == label))] = label
        return cleaned
