"""Checks that reject inputs which would otherwise silently corrupt training.

Each check is one small function. Its message names the files by path, what was found, what was
expected and what to do; it never holds text from a file's header, which may name the patient.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor

from medsam_tune.errors import DataError, listed
from medsam_tune.formats.image import TURNED, is_turned_unseen
from medsam_tune.formats.volume import (
    DIRECTION_TOLERANCE,
    POSITION_TOLERANCE,
    check_not_empty,
    every_nth,
    in_memory_order,
    same_affine,
    show_affine,
)

ANY_UNIT = "intensity=$medsam_tune.slices.intensity.Percentiles()"
"""Setting that trains on CT in any unit, as it is typed after `--set`."""

_REGION_RANGE = 20  # HU; soft tissue of one organ varies more by its noise
_FULL_RANGES = {255.0: 8, 65535.0: 16}  # highest value -> bits
_NOT_SAID = ("", "OT")  # DICOM's "other", of secondary captures
DICOM_KINDS: Mapping[str, frozenset[str]] = {
    "CT": frozenset({"CT"}),
    "MR": frozenset({"MR"}),
    "XR": frozenset({"CR", "DX", "DR", "MG", "RF", "RG", "XA", "IO", "PX"}),
    "US": frozenset({"US", "IVUS", "BDUS"}),
    "RGB": frozenset(),
}
"""Modality of a datalist, one of `description.MODALITIES` -> DICOM's Modality of its series."""


@dataclass(frozen=True)
class Expected:
    """What the scans of a datalist or of a run have to be.

    Attributes:
        modality: one of `description.MODALITIES`; empty accepts any.
        hounsfield: True refuses scans whose values cannot be Hounsfield units.
    """

    modality: str = ""
    hounsfield: bool = False


def check_expected(image: MetaTensor, expected: Expected, path: Path) -> None:
    """Refuse a scan of another modality, or in another unit.

    Args:
        image: (1, X, Y, Z) finite values in the scanner's unit; `meta["modality"]` is DICOM's
            Modality, which other formats do not have.
        expected: what the scan has to be.
        path: file or folder that it came from.

    Raises:
        DataError: DICOM of another modality; values that cannot be Hounsfield units.
    """
    check_modality(str(image.meta.get("modality") or ""), expected.modality, path)
    if expected.hounsfield:
        _check_hounsfield(image.as_tensor(), path)


def check_modality(found: str, expected: str, path: Path) -> None:
    """Refuse DICOM of another modality.

    Args:
        found: DICOM's Modality of the scan; "" where nothing says it.
        expected: key of `DICOM_KINDS`; "" for any.
        path: file or folder of the scan.

    Raises:
        DataError: it is of another.
    """
    if not expected or found in _NOT_SAID or found in DICOM_KINDS[expected]:
        return
    kind = found if re.fullmatch("[A-Z]{2,16}", found) else "of no known kind"
    ours = next((one for one, kinds in DICOM_KINDS.items() if found in kinds), None)
    way = (
        f"none of {', '.join(DICOM_KINDS)} is it, so take it out"
        if ours is None
        else f"take it out, or into a datalist of its own: medsam-tune split --modality {ours}"
    )
    raise DataError(
        f"the Modality of the DICOM series is {kind} ({path}); expected {expected}, the modality "
        f"of the datalist or the run; {way}."
    )


def check_image(image: MetaTensor, path: Path) -> None:
    """Refuse an image that is not one finite 3-D volume with a place in the world.

    Args:
        image: (C, X, Y, Z), any dtype, as loaded, before orientation; `meta["channels"]` is C.
        path: file that it came from.

    Raises:
        DataError: 4-D or several channels, an empty dimension, NaN or Inf, a bad affine.
    """
    _check_dimensions(image, path)
    _check_finite(image, path, "Mend the file, or fill them in: mending::fill_nan=-1024.")
    check_affine(image, path)


def check_pair(
    image: MetaTensor,
    label: MetaTensor,
    labels: Iterable[int],
    image_path: Path,
    label_path: Path,
) -> None:
    """Refuse a label that does not lie on its image's grid or has values that are not labels.

    Args:
        image: (1, X, Y, Z), checked by `check_image`.
        label: (1, X, Y, Z), its affine checked; both in the same orientation, as files may store
            the same grid in different ways.
        labels: expected ids; 0 (background) is always allowed.
        image_path: file of the image.
        label_path: file of the label.

    Raises:
        DataError: another shape or affine than the image's, values that are not integers or not
            in `labels`.
    """
    _check_same_shape(image, label, image_path, label_path)
    _check_finite(label, label_path, "Export the label again.")
    _check_same_affine(image, label, image_path, label_path)
    _check_integers(label, label_path)
    _check_values(label, labels, label_path)


def check_turned(
    image: MetaTensor, image_path: Path, label_path: Path, notes: Iterable[str] = ()
) -> None:
    """Refuse the label of an image that EXIF turns to the same size: no size says how it lies.

    Args:
        image: image as loaded; its notes say that it was turned.
        image_path: its file.
        label_path: file of the label.
        notes: what was done to the label; one that EXIF turned as well passes.

    Raises:
        DataError: see above.
    """
    if TURNED in notes or TURNED not in image.meta.get("notes", ()):
        return
    if is_turned_unseen(image_path):
        raise DataError(
            f"EXIF turns the image, and nothing says whether the label was drawn before or after "
            f"({image_path}, {label_path}); expected an image that lies as it is shown. Turn its "
            "pixels, e.g. by ImageOps.exif_transpose of Pillow, save it without EXIF, and look at "
            "it beside the label."
        )


def label_values(label: Tensor) -> list[int]:
    """The distinct values of an integer-valued tensor (..., Z), ascending; cheap on large scans."""
    found: set[int] = set()
    # Python numbers: torch would make the type of a small tensor of the 65536.
    low, high = (one.item() for one in in_memory_order(label).aminmax())
    countable = low >= 0 and high < 65536
    for part in label.split(1, dim=-1):
        # Counting is ten times faster than the sort in unique().
        flat = in_memory_order(part).flatten()
        values = flat.int().bincount().nonzero() if countable else flat.unique()
        found.update(int(value) for value in values)
    return sorted(found)


def _channels(image: Tensor) -> int:
    """Channels of a volume: 3 of a colour image, 1 of all else."""
    return int(image.meta.get("channels", 1)) if isinstance(image, MetaTensor) else 1


def _check_dimensions(image: Tensor, path: Path) -> None:
    if image.ndim != 4:
        raise DataError(
            f"image has {image.ndim - 1} dimensions, shape {tuple(image.shape[1:])}"
            f" ({path}); expected a 3-D volume."
        )
    check_not_empty(path, image.shape[1:])
    if image.shape[0] != _channels(image):
        raise DataError(
            f"image is 4-D, {image.shape[0]} volumes of {tuple(image.shape[1:])} "
            f"({path}); expected one 3-D volume. Choose it: mending::volume_index=0."
        )


def not_finite(image: Tensor) -> Tensor:
    """Find NaN and infinite voxels: (C, X, Y, Z) any dtype -> bool of the same shape."""
    return ~torch.isfinite(image.as_tensor() if isinstance(image, MetaTensor) else image)


def without_data(image: Tensor) -> Tensor | None:
    """Pixels of an image that hold no data: (1, X, Y, Z) bool; None where all do."""
    if not (isinstance(image, MetaTensor) and image.meta.get("gaps")):
        return None
    return image.as_tensor().isnan().all(0, keepdim=True)


def _check_finite(image: Tensor, path: Path, way_out: str) -> None:
    ends = in_memory_order(image).aminmax()  # both are NaN, if any voxel is
    if all(math.isfinite(end) for end in ends):
        return
    found = not_finite(image)
    if (gaps := without_data(image)) is not None:
        found &= ~gaps
    if not found.any():
        return
    bad = found.nonzero()
    first = tuple(bad[0, 1:].tolist())
    raise DataError(
        f"{len(bad)} NaN or infinite voxels, the first at {first} ({path}); "
        f"expected finite values. {way_out}"
    )


def check_affine(image: MetaTensor, path: Path) -> None:
    """Refuse an affine that is singular or not finite."""
    affine = np.asarray(image.affine, dtype=np.float64)
    volume = np.prod(np.linalg.norm(affine[:3, :3], axis=0))  # of a voxel with right angles
    if np.isfinite(affine).all() and abs(np.linalg.det(affine[:3, :3])) > 1e-6 * volume:
        return
    raise DataError(
        f"the affine {show_affine(affine)} is singular or not finite ({path}); it "
        "must place each voxel in the world. Export the scan again from its source."
    )


def _check_same_shape(image: Tensor, label: Tensor, image_path: Path, label_path: Path) -> None:
    found = _shape(label)
    if found == _shape(image):
        return
    raise DataError(
        f"label shape {found} differs from image shape {_shape(image)} "
        f"({label_path}, {image_path}); they must come from the same scan. "
        "Re-export the label on the image's grid, or choose mending::resample_label=true."
    )


def _check_same_affine(
    image: MetaTensor, label: MetaTensor, image_path: Path, label_path: Path
) -> None:
    expected = np.asarray(image.affine, dtype=np.float64)
    found = np.asarray(label.affine, dtype=np.float64)
    if same_affine(found, expected):
        return
    raise DataError(
        f"label affine {show_affine(found)} differs from image affine "
        f"{show_affine(expected)} ({label_path}, {image_path}) by more than "
        f"{POSITION_TOLERANCE} mm or {DIRECTION_TOLERANCE} in direction; they must lie on the same "
        "grid. Re-export the label, or choose mending::resample_label=true."
    )


def _check_integers(label: Tensor, path: Path) -> None:
    values = in_memory_order(label)
    odd = values != values.round()
    if not odd.any():
        return
    fractions = values[odd]
    raise DataError(
        f"label has values that are not integers: {_some(fractions.unique())} "
        f"({path}); expected label ids. If it was resampled, use nearest-neighbour interpolation."
    )


def _check_values(label: Tensor, labels: Iterable[int], path: Path) -> None:
    expected = sorted({0, *labels})
    values = label.as_tensor() if isinstance(label, MetaTensor) else label
    unexpected = [value for value in label_values(values) if value not in expected]
    if unexpected:
        raise DataError(
            f"label has the values {_some(unexpected)} ({path}); expected only "
            f"{', '.join(map(str, expected))}. Add them to the datalist's labels or remove them."
        )


def _shape(image: Tensor) -> tuple[int, ...]:
    """(C, X, Y, Z) -> (X, Y, Z); several volumes keep their count at the end, as in the file."""
    volumes, *shape = image.shape
    return tuple(shape) if volumes == _channels(image) else (*shape, volumes)


def _some(values: Iterable[float] | Tensor) -> str:
    """Values for a message: ids in full, others rounded."""
    numbers = map(float, values)
    return listed(f"{number:.0f}" if number.is_integer() else f"{number:g}" for number in numbers)


def _check_hounsfield(values: Tensor, path: Path) -> None:
    """Refuse values that are plainly of another unit.

    Scans in Hounsfield units may be cropped to one organ, hold no air, be padded with -3024, or be
    0 outside of a mask. So only three kinds are refused, none of which they can be.
    """
    low, high = (float(one) for one in in_memory_order(values).aminmax())
    if high - low <= _REGION_RANGE and bool((values != values.round()).any()):
        # Noise alone is wider, and scanners store whole numbers.
        found = "fractions in so small a range, so they were normalised"
        way = "Save the scan again in Hounsfield units"
    elif low == 0 and high in _FULL_RANGES:
        found = f"the whole range of {_FULL_RANGES[high]} bits, so they were scaled for pictures"
        way = "Save the scan again in Hounsfield units"
    elif _is_without_offset(values):
        found = "soft tissue at about 1000, so they are stored numbers without their offset"
        way = "Add the rescale intercept, usually -1024, and save the scan again"
    else:
        return
    raise DataError(
        f"values from {low:g} to {high:g} ({path}) cannot be Hounsfield units, which a CT window "
        f"expects: {found}. {way}. To take percentiles of each scan instead of a window: --set "
        f"'{ANY_UNIT}'."
    )


def _is_without_offset(values: Tensor) -> bool:
    """Whether soft tissue lies at 1024 instead of 0, and no air below it.

    Of dense bone, the only tissue of such Hounsfield units, no scan consists; it reaches further.
    """
    part = every_nth(values, max(1, values.numel() // 1_000_000))
    air = (part > -1500) & (part < -50)
    tissue = part[part > 200]
    if air.float().mean() > 0.001 or tissue.numel() < 0.1 * int((part != part.min()).sum()):
        return False
    return bool(((tissue > 850) & (tissue < 1200)).float().mean() > 0.6)
