"""DICOM RTSTRUCT: contours in patient coordinates become a label map on the image's grid.

Contours are placed by position alone, so a volume may be stored, or turned, in any way.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray

from medsam_tune.cases.labels.grid import affine_of
from medsam_tune.cases.labels.polygons import Points, fill
from medsam_tune.errors import DataError
from medsam_tune.formats.dicom.references import check_references
from medsam_tune.formats.dicom.rtstruct import Region, organ_regions, read_regions
from medsam_tune.formats.mending import Mending
from medsam_tune.formats.open import dicom_modality
from medsam_tune.formats.volume import LPS_TO_RAS

PLANE_TOLERANCE = 0.5
"""Largest accepted distance of a contour's points from the centre of their slice, millimetres (or a
quarter of the slices' spacing, where that is less)."""

SNAP_TOLERANCE = 0.01
"""Points this near to a voxel's centre are on it, share of a voxel; files round millimetres."""


@dataclass(frozen=True)
class StructureSet:
    """A DICOM RTSTRUCT, whose ROIs have the labels' names; see `LabelFile`.

    Attributes:
        path: the file.
    """

    path: Path
    numbered: ClassVar[bool] = False
    folds_case: ClassVar[bool] = True
    names_are_present: ClassVar[bool] = False

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether the header's Modality says so."""
        return dicom_modality(path) == "RTSTRUCT"

    def names(self) -> dict[int, str]:
        """Numbers and names of the ROIs with contours, except the body's outline and the couch."""
        return {region.number: region.name for region in organ_regions(self.path)}

    def present(self, labels: Mapping[int, str]) -> set[int]:
        """Labels that have a contour."""
        return set(self.named(labels)[0])

    def named(self, labels: Mapping[int, str]) -> tuple[dict[int, Region], int]:
        """The ROIs that the datalist names, compared without regard to case.

        Args:
            labels: label id -> name.

        Returns:
            label id -> ROI, for the labels that the structure set has; and how many ROIs have
            another name.

        Raises:
            DataError: as in `read_regions`; a name that two ROIs or two labels have, or ROIs of
                which the datalist names none.
        """
        regions = read_regions(self.path)
        ids: dict[str, int] = {}
        for number, name in labels.items():
            if (other := ids.setdefault(name.strip().casefold(), number)) != number:
                raise DataError(
                    f"labels {other} and {number} are both {name!r} but for their case; "
                    f"in a structure set they are one ROI ({self.path}). Rename one in the "
                    "datalist."
                )
        found: dict[int, Region] = {}
        for region in regions:
            label = ids.get(region.name.casefold())
            if label is None:
                continue
            if label in found:
                raise DataError(
                    f"ROIs {found[label].number} and {region.number} are both "
                    f"{labels[label]!r} ({self.path}); expected one. Remove or rename one of them."
                )
            found[label] = region
        if regions and not found:
            raise DataError(
                f"none of the {len(regions)} ROIs with contours has a name of the "
                f"datalist: {', '.join(labels.values())} ({self.path}). Correct the names in the "
                "datalist's labels, or take the case out."
            )
        return found, len(regions) - len(found)

    def onto(
        self, image: MetaTensor, image_path: Path, labels: Mapping[int, str], mending: Mending
    ) -> MetaTensor:
        """See `LabelFile.onto`; ROIs that `labels` does not name are left out.

        A voxel whose centre lies on a contour is inside; if it belongs to no ROI otherwise, and is
        on the contours of two, it is of the lower id. `meta["notes"]` counts ROIs that were left
        out and slices without a contour. The contours lie in planes across one axis of the image.

        Raises:
            DataError: it was drawn in another frame of reference; names as in `named`; contours
                beside the slices' centres or outside the image; ROIs that overlap.
        """
        check_references(image, self.path)
        regions, extra = self.named(labels)
        affine = affine_of(image)
        notes = [f"{extra} ROIs that the datalist does not name left out"] if extra else []
        indices = {i: _voxels(region, affine) for i, region in sorted(regions.items())}
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        axis = _across([points for contours in indices.values() for points in contours], spacing)
        count = image.shape[1 + axis]
        by_slice: dict[int, dict[int, list[Points]]] = defaultdict(lambda: defaultdict(list))
        for label, contours in indices.items():
            for points in contours:
                k = _slice_of(self.path, labels[label], points, axis, spacing, count)
                by_slice[k][label].append(np.delete(points, axis, axis=1))
            if without := _skipped(k for k in by_slice if label in by_slice[k]):
                notes.append(f"{labels[label]}: {without} slices between its contours without one")
        merged = np.zeros(image.shape[1:], dtype=np.int32)
        planes = np.moveaxis(merged, axis, 0)  # a view
        twice: dict[tuple[int, int], int] = defaultdict(int)
        for k, drawn in by_slice.items():
            _draw(planes[k], drawn, twice)
        if twice:
            raise _overlap(self.path, twice, labels)
        meta = {**image.meta, "notes": notes}
        return MetaTensor(torch.from_numpy(merged)[None], meta=meta)


def _voxels(region: Region, affine: NDArray[np.float64]) -> list[Points]:
    """Contours of (N, 3) points in voxels of the image, centres at whole numbers."""
    inverse = np.linalg.inv(LPS_TO_RAS @ affine)
    found = []
    for points in region.contours:
        voxels = points @ inverse[:3, :3].T + inverse[:3, 3]
        whole = np.round(voxels)
        found.append(np.where(np.abs(voxels - whole) <= SNAP_TOLERANCE, whole, voxels))
    return found


def _across(contours: Sequence[Points], spacing: NDArray[np.float64]) -> int:
    """The axis along which the contours are flat."""
    if not contours:
        return 2
    extents = np.max([np.ptp(points, axis=0) for points in contours], axis=0)
    return int(np.argmin(extents * spacing))


def _slice_of(
    path: Path,
    name: str,
    points: Points,
    axis: int,
    spacing: NDArray[np.float64],
    count: int,
) -> int:
    """Index of the slice that a contour lies in."""
    heights = points[:, axis]
    k = round(float(heights.mean()))
    off = float(np.abs(heights - k).max() * spacing[axis])
    if off > min(PLANE_TOLERANCE, spacing[axis] / 4):
        raise DataError(
            f"a contour of {name!r} has points {off:.2f} mm beside the centre of the nearest "
            f"slice, the slices are {spacing[axis]:.2f} mm apart ({path}); expected "
            "contours in the image's slices. Choose the structure set of this series."
        )
    if not 0 <= k < count:
        raise DataError(
            f"a contour of {name!r} lies in slice {k} of 0 to {count - 1} ({path}); "
            "the structure set must come from the same series. Choose that of this series, or "
            "give the whole scan."
        )
    return k


def _skipped(slices: Iterable[int]) -> int:
    """Number of whole numbers that are missing between the lowest and the highest."""
    found = set(slices)
    return max(found) - min(found) + 1 - len(found) if found else 0


def _draw(
    plane: NDArray[np.int32],
    drawn: Mapping[int, Sequence[Points]],
    twice: dict[tuple[int, int], int],
) -> None:
    """Write ids into a slice (W, H), in place; voxels inside two ROIs are counted in `twice`."""
    filled = {label: fill(contours, plane.shape) for label, contours in sorted(drawn.items())}
    for label, (window, inside, _) in filled.items():
        part = plane[window]
        for other in np.unique(part[inside & (part > 0)]).tolist():
            twice[other, label] += int((inside & (part == other)).sum())
        part[inside] = label
    for label, (window, _, edge) in filled.items():
        part = plane[window]
        part[edge & (part == 0)] = label


def _overlap(
    path: Path, twice: Mapping[tuple[int, int], int], labels: Mapping[int, str]
) -> DataError:
    listed = "; ".join(
        f"{labels[one]!r} and {labels[two]!r} in {count}" for (one, two), count in twice.items()
    )
    return DataError(
        f"ROIs overlap in {sum(twice.values())} voxels ({path}): {listed}; expected "
        "each voxel in one. Take one of them out of the datalist's labels, or correct the contours."
    )
