"""Rules from scanner values to the 8 bits of SAM's input, one for each modality.

A rule is a MONAI transform (1, ...) float -> (C, ...) uint8; that of images takes colours too. Its
`describe()` goes into cache keys and run records; `intensity_from` makes the same rule from it. A
rule that leaves next to nothing of a scan's contrast warns.

The rules for MR measure a scan without its background (`background_of`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Protocol

import numpy as np
import torch
from monai.transforms import Transform
from torch import Tensor

from medsam_tune.errors import DataError
from medsam_tune.slices.colours import Colours
from medsam_tune.slices.contrast import (
    background_of,
    check_percentiles,
    plain,
    to_bytes,
    warn_if_flat,
    warn_of_few_levels,
)


class Intensity(Protocol):
    """Protocol of a rule."""

    @property
    def channels(self) -> int:
        """Number of output channels C."""

    @property
    def hounsfield(self) -> bool:
        """True if the rule is one for Hounsfield units: scans in another unit are refused."""

    def __call__(self, image: Tensor) -> Tensor:
        """(1, X, Y, Z) float in the scanner's unit -> (C, X, Y, Z) uint8, or float16 in 0..255.

        C is above 1 of `Windows`, and of `Colours`, which take several channels as well.
        """

    @property
    def words(self) -> str:
        """What the rule does, for a reader of a report."""

    def describe(self) -> dict[str, object]:
        """The rule as JSON: `name` and its parameters."""


@dataclass(frozen=True)
class Window(Transform):
    """A display window: its range becomes 0..255, values outside are clipped.

    It warns where a scan gets fewer than `FEW_LEVELS` grey levels.

    Attributes:
        center: centre, in Hounsfield units for CT.
        width: width in the same unit, positive.
        hounsfield: True for the windows of `WINDOWS` and `window_of`. A window of your own fits
            the values that you know, in any unit.
        fine: keep steps finer than one of 255, for a wide window: float16 in 0..255, which has
            eight times as many from 128 on, more below, and takes twice the disk space. In 8 bits
            the window "full" has steps of 16 HU.

    Raises:
        DataError: a width that is not positive.
    """

    center: float
    width: float
    hounsfield: bool = field(default=False, compare=False)
    fine: bool = False
    channels: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not 0 < self.width < np.inf:
            raise DataError(f"window width is {self.width} HU; expected a positive number.")
        if not np.isfinite(self.center):
            raise DataError(f"window center is {self.center} HU; expected a finite number.")

    def __call__(self, image: Tensor) -> Tensor:
        """(C, X, Y, Z) float HU -> uint8 of the same shape, or float16."""
        found = self.bytes_of(image)
        warn_of_few_levels(image, found, f"the window from {self.low:g} to {self.high:g}")
        return found

    @property
    def low(self) -> float:
        """The value that becomes 0."""
        return self.center - self.width / 2

    @property
    def high(self) -> float:
        """The value that becomes 255."""
        return self.center + self.width / 2

    def bytes_of(self, image: Tensor) -> Tensor:
        """(C, X, Y, Z) float HU -> uint8 of the same shape, or float16, without a warning."""
        return to_bytes(image, self.low, self.high, fine=self.fine)

    @property
    def words(self) -> str:
        """Such as "window, centre 40, width 400 HU"."""
        unit = " HU" if self.hounsfield else ""
        return f"window, centre {self.center:g}, width {self.width:g}{unit}"

    def describe(self) -> dict[str, object]:
        """`{"name": "window", "center": HU, "width": HU, "hounsfield": bool}`, and `"fine"`."""
        said: dict[str, object] = {
            "name": "window",
            "center": float(self.center),
            "width": float(self.width),
            "hounsfield": self.hounsfield,
        }
        return said | ({"fine": True} if self.fine else {})


@dataclass(frozen=True)
class Windows(Transform):
    """Several CT windows of one scan as the channels of its image.

    Attributes:
        windows: names in `WINDOWS` or (center, width) in Hounsfield units; three for SAM's input.

    Raises:
        DataError: no window, or an unknown name.
    """

    windows: tuple[str | tuple[float, float], ...] = ("lung", "abdomen", "bone")
    hounsfield: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.windows or isinstance(self.windows, str):
            raise DataError(
                f"windows is {self.windows!r}; expected a list of names or [center, width], one "
                "for each channel."
            )
        rules = (window_of(one) for one in self.windows)
        pairs = tuple((float(one.center), float(one.width)) for one in rules)
        object.__setattr__(self, "windows", pairs)

    @property
    def channels(self) -> int:
        """Number of windows."""
        return len(self.windows)

    def __call__(self, image: Tensor) -> Tensor:
        """(1, X, Y, Z) float HU -> (C, X, Y, Z) uint8."""
        found = torch.cat([window_of(pair).bytes_of(image) for pair in self.windows])
        warn_of_few_levels(image, found, f"the {len(self.windows)} windows")
        return found

    @property
    def words(self) -> str:
        """Such as "windows of centre and width 40 and 400, 400 and 1800 HU"."""
        said = ", ".join(
            f"{one.center:g} and {one.width:g}" for one in map(window_of, self.windows)
        )
        return f"windows of centre and width {said} HU"

    def describe(self) -> dict[str, object]:
        """`{"name": "windows", "windows": [[HU, HU], ...]}`."""
        return {"name": "windows", "windows": [list(pair) for pair in self.windows]}


@dataclass(frozen=True)
class ZScore(Transform):
    """Range around the mean for MR: mean +- n standard deviations become 0..255.

    They are those of all finite voxels but the background, which is what `background_of` says, and
    becomes 0. It warns where more than half of the voxels besides the background, of different
    values, become one grey level.

    Attributes:
        deviations: n, number of standard deviations.

    Raises:
        DataError: `deviations` is not above zero.
    """

    deviations: float = 3.0
    channels: ClassVar[int] = 1
    hounsfield: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 < self.deviations < np.inf:
            raise DataError(f"deviations is {self.deviations}; expected a positive number.")

    def __call__(self, image: Tensor) -> Tensor:
        """(C, X, Y, Z) float -> uint8 of the same shape; the background becomes 0."""
        background, inside = _measured(image)
        if inside.numel() < 2:
            return to_bytes(image, 0, 0)
        mean, reach = float(inside.mean()), self.deviations * float(inside.std())
        warn_if_flat(inside, mean - reach, mean + reach)
        return _without(background, image, to_bytes(image, mean - reach, mean + reach))

    @property
    def words(self) -> str:
        """Such as "3 standard deviations around the mean of each scan"."""
        return f"{self.deviations:g} standard deviations around the mean of each scan"

    def describe(self) -> dict[str, object]:
        """`{"name": "z_score", "deviations": number}`."""
        return {"name": "z_score", "deviations": float(self.deviations)}


@dataclass(frozen=True)
class Percentiles(Transform):
    """Percentiles for MR and radiographs, which have no unit: they become 0 and 255.

    They are those of all finite voxels but the background, which is what `background_of` says, and
    becomes 0. It warns where more than half of the voxels besides the background, of different
    values, become one grey level.

    Attributes:
        lower: percentile that becomes 0.
        upper: percentile that becomes 255.

    Raises:
        DataError: percentiles out of order or outside 0..100.

    References:
        Ma et al., "Segment anything in medical images", Nature Communications 2024 (0.5, 99.5).
    """

    lower: float = 0.5
    upper: float = 99.5
    channels: ClassVar[int] = 1
    hounsfield: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_percentiles(self.lower, self.upper)

    def __call__(self, image: Tensor) -> Tensor:
        """(C, X, Y, Z) float -> uint8 of the same shape; all zeros for a constant image."""
        background, inside = _measured(image)
        if inside.numel() == 0:
            return to_bytes(image, 0, 0)
        # torch.quantile stops at 16 million values
        low, high = map(float, np.percentile(inside.cpu().numpy(), [self.lower, self.upper]))
        warn_if_flat(inside, low, high)
        return _without(background, image, to_bytes(image, low, high))

    @property
    def words(self) -> str:
        """Such as "percentiles 0.5 to 99.5 of each scan"."""
        return f"percentiles {self.lower:g} to {self.upper:g} of each scan"

    def describe(self) -> dict[str, object]:
        """`{"name": "percentiles", "lower": percent, "upper": percent}`."""
        return {"name": "percentiles", "lower": float(self.lower), "upper": float(self.upper)}


# Centre and width, HU. Usual presets of radiology workstations; Radiopaedia, "Windowing (CT)", rID
# 45254, and for the abdomen also MedSAM's soft-tissue window. `full` is the range of 12-bit CT.
WINDOWS: Mapping[str, Window] = {
    name: Window(center, width, hounsfield=True)
    for name, (center, width) in {
        "abdomen": (40, 400),
        "liver": (30, 150),
        "lung": (-600, 1500),
        "mediastinum": (50, 350),
        "bone": (400, 1800),
        "spine": (50, 250),
        "brain": (40, 80),
        "subdural": (75, 215),
        "stroke": (40, 40),
        "temporal bone": (600, 2800),
        "full": (1023.5, 4095),
    }.items()
}


def full_range() -> Window:
    """CT from -1024 to 3071 HU in steps of 2 HU at most, see `Window.fine`."""
    return replace(WINDOWS["full"], fine=True)


def window_of(window: str | Sequence[float]) -> Window:
    """A window by its name in `WINDOWS`, or by (center, width) in Hounsfield units.

    Raises:
        DataError: an unknown name, or not a pair of numbers.
    """
    if isinstance(window, str):
        if window not in WINDOWS:
            raise DataError(f"window {window!r} is not known; known: {', '.join(WINDOWS)}.")
        return WINDOWS[window]
    if not hasattr(window, "__len__") or len(window) != 2:
        raise DataError(f"window {window!r}: expected a name, or center and width in HU.")
    return Window(float(window[0]), float(window[1]), hounsfield=True)


_KINDS: Mapping[str, Callable[..., Intensity]] = {
    "window": Window,
    "windows": Windows,
    "percentiles": Percentiles,
    "z_score": ZScore,
    "colours": Colours,
}
USUAL: Mapping[str, Callable[[], Intensity]] = {
    "CT": lambda: WINDOWS["abdomen"],
    "MR": Percentiles,
    "XR": Percentiles,
    "US": lambda: Window(127.5, 255),
    "RGB": Colours,
}
"""Modality, one of `description.MODALITIES` -> its usual rule."""


def for_modality(modality: str) -> Intensity:
    """The usual rule of a modality.

    Args:
        modality: "CT" (abdomen window), "MR" or "XR" (percentiles), "US" (8 bits, unchanged),
            "RGB" (`Colours`).

    Raises:
        DataError: another modality.
    """
    if modality not in USUAL:
        raise DataError(f"no intensity rule for modality {modality!r}; known: {', '.join(USUAL)}.")
    return USUAL[modality]()


def intensity_from(description: Mapping[str, object]) -> Intensity:
    """The rule from its `describe()`.

    Args:
        description: `name` and the rule's parameters.

    Raises:
        DataError: an unknown name, or parameters that the rule does not have.
    """
    name = str(description.get("name"))
    if name not in _KINDS:
        raise DataError(f"intensity rule {name!r} is not known; known: {', '.join(_KINDS)}.")
    parameters = {key: value for key, value in description.items() if key != "name"}
    try:
        return _KINDS[name](**parameters)
    except TypeError as error:
        raise DataError(f"intensity rule {name!r} does not take {parameters}: {error}.") from error


def _measured(image: Tensor) -> tuple[float | None, Tensor]:
    """The background, and the (N,) finite values besides it."""
    background, values = background_of(image), plain(image)
    kept = values.isfinite()
    if background is not None:
        kept &= values != background
    return background, values[kept]


def _without(background: float | None, image: Tensor, found: Tensor) -> Tensor:
    """Bytes of an image with its background at 0."""
    return found if background is None else found * (plain(image) != background)
