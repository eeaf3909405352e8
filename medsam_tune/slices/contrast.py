"""Grey levels: background of a scan, values to bytes, and warnings of lost contrast."""

from __future__ import annotations

import numpy as np
import torch
from monai.utils import convert_to_tensor
from numpy.typing import NDArray
from torch import Tensor

from medsam_tune.errors import DataError, warn
from medsam_tune.formats.volume import every_nth, with_meta_of

BACKGROUND_SHARE = 0.25
"""Smallest share of a scan's outermost voxels that hold exactly the value of its background."""

FEW_LEVELS = 16
"""Number of grey levels below which a window warns. Shares say nothing: air alone, which becomes
one level, is more than half of many scans."""

FLAT_SHARE = 0.5
"""Share of the voxels besides the background above which one grey level for them warns."""

_ENOUGH = 8  # voxels of one value; of few, two are easily the same
_FLAT_RANGE = 0.02  # of the middle 98 % of a scan's values; noise of the air is narrower
_SAMPLE = 1_000_000  # number of voxels that the warnings look at


def background_of(image: Tensor) -> float | None:
    """The exact value that a scan of MR or a radiograph holds where nothing was measured.

    The sign of a value says nothing: normalised scans have tissue on both sides of zero, and their
    background at zero or below it. It is

    - the one value that at least `BACKGROUND_SHARE` of the outermost voxels hold exactly, such as
      zero around a masked head, or the value that normalisation made of it; not the highest value
      of the scan, which is saturation;
    - else 0 in scans without a negative value, as in MedSAM and nnU-Net;
    - else none: every voxel is measured, as where air is noise.

    Args:
        image: (C, ...) in the scanner's unit; one image or volume in each channel.

    Returns:
        the value, or None.
    """
    values = plain(image)
    finite = values[values.isfinite()]
    if not finite.numel():
        return None
    lowest, highest = (float(one) for one in finite.aminmax())
    edge = _outermost(values)
    there, counts = np.unique(edge, return_counts=True)
    if counts.size and counts.max() >= max(BACKGROUND_SHARE * edge.size, _ENOUGH):
        usual = float(there[counts.argmax()])
        if usual < highest:
            return usual
    return 0.0 if lowest >= 0 else None


def check_percentiles(lower: float, upper: float) -> None:
    """Refuse percentiles out of order or outside 0..100."""
    if not 0 <= lower < upper <= 100:
        raise DataError(f"percentiles are {lower} and {upper}; expected 0 <= lower < upper <= 100")


def to_bytes(image: Tensor, low: float, high: float, *, fine: bool = False) -> Tensor:
    """Values from `low` to `high` become 0..255, others are clipped; all 0 where there is no range.

    Args:
        image: any shape, float.
        low: value that becomes 0.
        high: value that becomes 255.
        fine: keep values between whole numbers.

    Returns:
        uint8 of the same shape; float16 if `fine`.
    """
    values = plain(image)
    kind = torch.float16 if fine else torch.uint8
    if high <= low:
        found = torch.zeros_like(values, dtype=kind)
    else:
        # One copy of the scan, then in place: a whole-body CT is half a gigabyte as float32.
        scaled = values.clamp(low, high).sub_(low).mul_(255 / (high - low))
        found = (scaled if fine else scaled.round_()).to(kind)
    return with_meta_of(image, found)


def _outermost(values: Tensor) -> NDArray[np.floating]:
    """Finite voxels of (C, ...) at either end of an axis with three voxels or more."""
    axes = [axis for axis in range(1, values.ndim) if values.shape[axis] > 2]
    faces = [values.select(axis, end).flatten() for axis in axes for end in (0, -1)]
    if not faces:
        return np.empty(0, np.float32)
    edge = torch.cat(faces)
    return np.asarray(edge[edge.isfinite()].cpu().numpy())


def warn_if_flat(inside: Tensor, low: float, high: float) -> None:
    """Warn where a rule makes one grey level of most of a scan.

    Args:
        inside: (N,) finite values besides the background.
        low: value that becomes 0.
        high: value that becomes 255.
    """
    values = _sample(inside)
    share = (np.clip(values, low, high) - low) / (high - low) if high > low else values * 0
    levels = np.round(255 * share).astype(np.intp)
    counts = np.bincount(levels)
    level = int(counts.argmax())
    if counts[level] <= FLAT_SHARE * levels.size:
        return
    first, last = np.percentile(values[levels == level], [1, 99])
    if last - first > _FLAT_RANGE * np.ptp(np.percentile(values, [1, 99])):
        warn(
            f"{counts[level] / levels.size:.0%} of the voxels besides the background, most of them "
            f"from {first:.4g} to {last:.4g}, become one grey level, as 0 to 255 is {low:.4g} to "
            f"{high:.4g}. Look for single voxels far out of the scan's range, or choose another "
            "intensity rule."
        )


def warn_of_few_levels(image: Tensor, found: Tensor, rule: str) -> None:
    """Warn where next to nothing is left of a scan of many values.

    Args:
        image: (1, ...) in the scanner's unit.
        found: (C, ...) uint8, what the rule made of it; one channel with levels is enough.
        rule: what the rule is called.
    """
    levels = max((np.unique(_sample(channel)).size for channel in found), default=FEW_LEVELS)
    if levels >= FEW_LEVELS:
        return
    values = _sample(image)
    if np.unique(values).size >= FEW_LEVELS:
        warn(
            f"{rule}: {levels} grey levels are left of a scan whose values run from "
            f"{values.min():.4g} to {values.max():.4g}. Choose a window that lies in that range."
        )


def plain(image: Tensor) -> Tensor:
    """Float values without MONAI's metadata; float32 and float64 are not copied."""
    values: Tensor = convert_to_tensor(image, track_meta=False)
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


def _sample(values: Tensor) -> NDArray[np.float32]:
    """(N,) values; of many, every so many."""
    flat = plain(every_nth(values, max(1, values.numel() // _SAMPLE)))
    return np.asarray(flat.cpu().numpy(), dtype=np.float32)
