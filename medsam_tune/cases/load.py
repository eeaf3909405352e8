"""Load one case: its image, and its label on the same grid."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from monai.data import MetaTensor
from monai.transforms import Orientation

from medsam_tune.cases.checks import Expected, check_expected, check_image, not_finite, without_data
from medsam_tune.cases.datalist import Case
from medsam_tune.cases.description import IGNORE
from medsam_tune.cases.labels.open import open_label
from medsam_tune.errors import about, warn
from medsam_tune.formats.mending import Mending
from medsam_tune.formats.open import load_image


def load_case(
    case: Case,
    labels: Mapping[int, str],
    mending: Mending | None = None,
    expected: Expected | None = None,
) -> tuple[MetaTensor, MetaTensor | None]:
    """Read and check one scan.

    Args:
        case: paths of its files.
        labels: label id -> name that the label may hold besides 0.
        mending: choice of faults to mend; by default all are refused.
        expected: modality and unit that the scan must have; by default any.

    Returns:
        Image (1, X, Y, Z) float32 in the scanner's unit (3 channels of a colour image), and label
        (1, X, Y, Z) int32 or None, both on the grid of the image's file; affines in nibabel's RAS+
        millimetres. A label has a second channel where it tells objects apart: their numbers.
        `meta["original_affine"]` and `meta["spatial_shape"]` are the file's own; `meta["notes"]`
        says what was changed. Pixels without data are NaN, and nobody annotated them, if `labels`
        has a label for that.

    Raises:
        DataError: a refusal of `load_image`, `check_scan`, or the label's kind.
    """
    mending = mending or Mending()
    with about(f"case {case.id}"):
        image = load_image(case.image, mending, case.series, case.region)
        check_scan(image, case.image, mending, expected)
        if case.label is None:
            return image, None
        opened = open_label(case.label, case.coding, case.region, case.image)
        label = opened.onto(image, case.image, labels, mending)
        return image, _without_gaps(image, label, labels)


def check_scan(
    image: MetaTensor, path: Path, mending: Mending, expected: Expected | None = None
) -> None:
    """Mend and check an image as every scan is, whatever it came from.

    Args:
        image: (C, X, Y, Z) float32; mended in place.
        path: file that it came from, for messages.
        mending: choice of faults to mend.
        expected: modality and unit that it must have; by default any.

    Raises:
        DataError: a refusal of `check_image` or `check_expected`.
    """
    _fill(image, mending.fill_nan)
    check_image(image, path)
    check_expected(image, expected or Expected(), path)


def voxel_hash(image: MetaTensor) -> str:
    """Hash of a scan's voxels in LPS order: the same for the scan under another name.

    Args:
        image: (C, X, Y, Z), image or label as `load_case` returns it.
    """
    same = cast(MetaTensor, Orientation(axcodes="LPS", labels=None)(image)).as_tensor()
    plain = same.contiguous() + 0  # -0.0 is 0.0
    return hashlib.sha256(plain.numpy().data).hexdigest()[:16]


def _without_gaps(image: MetaTensor, label: MetaTensor, labels: Mapping[int, str]) -> MetaTensor:
    """The label without what it says of pixels that hold no data."""
    gaps = without_data(image)
    if gaps is None:
        return label
    ignore = next((number for number, name in labels.items() if name == IGNORE), 0)
    if not ignore:
        warn("pixels without data count as background; the datalist names no label to ignore.")
    values = [ignore] + [0] * (label.shape[0] - 1)  # of the second channel, no object
    for channel, value in zip(label.as_tensor(), values, strict=True):
        channel[gaps[0]] = value
    return label


def _fill(image: MetaTensor, value: float | None) -> None:
    if value is None:
        return
    bad = not_finite(image)
    if (gaps := without_data(image)) is not None:
        bad &= ~gaps
    if bad.any():
        image.as_tensor()[bad] = value
        said = f"{int(bad.sum())} NaN or infinite voxels set to {value:g}"
        image.meta["notes"] = [*image.meta["notes"], said]
