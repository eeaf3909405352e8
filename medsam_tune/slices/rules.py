"""The rules by which a scan becomes slices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from medsam_tune.cases.checks import Expected
from medsam_tune.cases.description import MODALITIES
from medsam_tune.errors import DataError
from medsam_tune.slices.frames import ModelFrame, ScanGrid
from medsam_tune.slices.intensity import Intensity, intensity_from

PLANES = {"axial": "LPS", "coronal": "LIP", "sagittal": "PIL"}
"""Plane -> directions in which its columns, rows and slices run, as nibabel's codes."""

_NORMALS = ("sagittal", "coronal", "axial")  # planes by the axis across them: R-L, A-P, I-S
_TIE = 0.99  # spacings count as equal from this ratio on
_SMALLEST_WINDOW = 32  # pixels
_MILLIMETRES = 1000.0  # of a metre


@dataclass(frozen=True)
class ScanRules:
    """Rules from a scan to the model's input: chosen in YAML, recorded, used at prediction.

    Attributes:
        intensity: rule from scanner values to 8 bits, see `slices.intensity`.
        plane: plane of the slices: "axial", "coronal", "sagittal", or "finest", which takes the
            plane with the smallest pixels in each scan (axial where they are equal).
        spacing: millimetres along columns, rows and slices after resampling; 0 keeps an axis. None
            keeps all.
        gsd: ground sample distance: metres along columns and rows of an image after resampling,
            instead of `spacing`; an image of unknown resolution is kept as it is, unless `pixel`
            says it. None keeps all.
        pixel: metres of a pixel of images that do not say it, such as tiles in PNG, for `gsd`; what
            an image says itself counts. None: it is unknown.
        upsampling: largest accepted enlargement by `gsd`, of a side; more shows no more detail.
        neighbours: take the slice before, the slice itself and the slice after as three channels.
        squash: scale both sides of a slice to the model's input instead of padding the shorter one.
        modality: one of `datalist.MODALITIES`; DICOM series of another are refused. Empty accepts
            any.
        components: pixels of the smallest piece of a label that is an object of its own, with its
            own box in training, evaluation and where prompts are taken from a label map; pieces are
            connected components, or the objects that a mask tells apart. None: a label is one
            object, in however many pieces. For 2-D images.
        window: side in pixels of the windows that larger slices are cut into, after resampling;
            None takes slices whole. Training sees random windows, prediction overlapping ones.

    Raises:
        DataError: an unknown plane or modality, a spacing that is not three numbers, a gsd, a pixel
            or an upsampling that is none, gsd and spacing at once, a pixel without gsd, components
            that are no number of pixels, or a window that is none of 32 or more.
    """

    intensity: Intensity
    plane: str = "axial"
    spacing: Sequence[float] | None = None
    neighbours: bool = False
    squash: bool = False
    modality: str = ""
    window: int | None = None
    components: int | None = None
    gsd: float | None = None
    upsampling: float = 4.0
    pixel: float | None = None

    def __post_init__(self) -> None:
        if self.plane not in (*PLANES, "finest"):
            raise DataError(
                f"plane is {self.plane!r}; expected one of {', '.join((*PLANES, 'finest'))}."
            )
        if self.modality not in ("", *MODALITIES):
            raise DataError(
                f"modality is {self.modality!r}; expected one of {', '.join(MODALITIES)}."
            )
        for name in ("neighbours", "squash"):
            if not isinstance(getattr(self, name), bool):
                raise DataError(f"{name} is {getattr(self, name)!r}; expected true or false.")
        if self.spacing is not None:
            object.__setattr__(self, "spacing", _three(self.spacing))
        _check_gsd(self.gsd, self.pixel, self.upsampling, self.spacing)
        if self.window is not None and (
            type(self.window) is not int or self.window < _SMALLEST_WINDOW
        ):
            raise DataError(
                f"window is {self.window!r}; expected null for whole slices, or the side of a "
                f"window, a whole number of pixels, {_SMALLEST_WINDOW} or more."
            )
        if self.components is not None and (
            type(self.components) is not int or self.components < 1
        ):
            raise DataError(
                f"components is {self.components!r}; expected null for one object of each label, "
                "or the pixels of the smallest piece that is an object, 1 or more."
            )

    def describe(self) -> dict[str, Any]:
        """Return the rules as JSON for `rules_from`."""
        return {
            "intensity": self.intensity.describe(),
            "plane": self.plane,
            "spacing": self.spacing,
            "neighbours": self.neighbours,
            "squash": self.squash,
            "modality": self.modality,
            "window": self.window,
            "components": self.components,
            "gsd": self.gsd,
            "upsampling": self.upsampling,
            "pixel": self.pixel,
        }

    @property
    def expected(self) -> Expected:
        """What a scan has to be."""
        return Expected(self.modality, self.intensity.hounsfield)

    @property
    def channels(self) -> int:
        """Number of channels C of a slice."""
        return 3 if self.neighbours else self.intensity.channels

    def repeats(self, in_channels: int) -> int:
        """Number of repeats of a slice's channels for a model.

        Args:
            in_channels: number of channels that the model takes.

        Raises:
            DataError: a slice has several channels, and the model takes another number.
        """
        if self.channels not in (1, in_channels):
            raise DataError(
                f"a slice has {self.channels} channels, the model takes {in_channels}. Choose "
                f"other windows or neighbours, or set in_channels={self.channels}."
            )
        return in_channels // self.channels

    @property
    def stored(self) -> ScanRules:
        """The rules without those that apply after slices are read from a store."""
        return replace(self, neighbours=False, squash=False, window=None, components=None)

    def grid(
        self, shape: Sequence[int], affine: NDArray[np.float64], spacing_known: bool = True
    ) -> ScanGrid:
        """The grid of a scan and of its slices.

        Args:
            shape: (I, J, K), shape of the file's array.
            affine: (4, 4), affine of that array, RAS+ millimetres.
            spacing_known: whether its millimetres are true; otherwise `pixel` stands for them, and
                without it `gsd` is left out.

        Raises:
            DataError: `gsd` enlarges the pixels more than `upsampling`.
        """
        axes = PLANES[_finest(affine) if self.plane == "finest" else self.plane]
        whole = ScanGrid(affine, (int(shape[0]), int(shape[1]), int(shape[2])), axes)
        spacing, own = self.spacing, tuple(whole.spacing)
        if self.pixel is not None and not spacing_known:
            own = (_MILLIMETRES * self.pixel, _MILLIMETRES * self.pixel, own[2])
        if self.gsd is not None and (spacing_known or self.pixel is not None):
            spacing = (_MILLIMETRES * self.gsd, _MILLIMETRES * self.gsd, 0.0)
            self._check_upsampling(max(own[:2]) / _MILLIMETRES, self.gsd)
        if spacing is None:
            return whole
        w, h, k = (
            max(1, round(size * mm / wanted)) if wanted else size
            for size, mm, wanted in zip(whole.size, own, spacing, strict=True)
        )
        return replace(whole, size=(w, h, k))

    def _check_upsampling(self, pixel: float, gsd: float) -> None:
        if pixel > self.upsampling * gsd:
            least = np.ceil(1000 * pixel / self.upsampling) / 1000
            raise DataError(
                f"a pixel is {pixel:.4g} m, and rules::gsd is {gsd:g} m: {pixel / gsd:.3g} times "
                f"smaller; expected at most {self.upsampling:g} times. Set rules::gsd to "
                f"{least:g} or more, to null to keep the pixels, or raise "
                "rules::upsampling."
            )

    def frame(self, size: tuple[int, int], image_size: int) -> ModelFrame:
        """The map between slices of size (H, W) and the model's square input."""
        return ModelFrame(size, image_size, self.squash)


def rules_from(description: Mapping[str, Any]) -> ScanRules:
    """The rules from their `describe()`.

    Args:
        description: `intensity`, from `Intensity.describe`, and the other fields.

    Raises:
        DataError: fields that the rules do not have.
    """
    try:
        fields = {key: value for key, value in description.items() if key != "intensity"}
        return ScanRules(intensity_from(description["intensity"]), **fields)
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"rules {description} are not those of a scan: {error}. Another version wrote "
            "them; train again."
        ) from error


def _check_gsd(gsd: Any, pixel: Any, upsampling: Any, spacing: Any) -> None:
    for name, value, unit in (
        ("gsd", gsd, "metres of a pixel after resampling, or null"),
        ("pixel", pixel, "metres of a pixel of images that do not say it, or null"),
        ("upsampling", upsampling, "a factor"),
    ):
        number = type(value) in (int, float) and 0 < value < np.inf
        if not number and (value is not None or "null" not in unit):
            raise DataError(f"{name} is {value!r}; expected {unit}, a positive number.")
    if pixel is not None and gsd is None:
        raise DataError(
            f"pixel is {pixel:g} and gsd is null; expected both, as gsd resamples from pixel. Set "
            "rules::gsd, or leave rules::pixel out."
        )
    if gsd is not None and spacing is not None:
        raise DataError(
            f"gsd is {gsd} and spacing is {spacing}; expected one of them: metres, or millimetres."
        )


def _three(spacing: Any) -> tuple[float, float, float]:
    try:
        x, y, z = (float(mm) for mm in (() if isinstance(spacing, str) else spacing))
    except (TypeError, ValueError):
        x = y = z = np.nan
    if not all(0 <= mm < np.inf for mm in (x, y, z)):
        raise DataError(
            f"spacing is {spacing}; expected millimetres along columns, rows and slices, 0 to keep "
            "an axis."
        )
    return x, y, z


def _finest(affine: NDArray[np.float64]) -> str:
    """The plane across the axis with the largest spacing."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    by_axis = np.zeros(3)
    for file_axis, (axis, _flip) in enumerate(nib.orientations.io_orientation(affine)):
        by_axis[int(axis)] = spacing[file_axis]
    coarse = [n for n, mm in zip(_NORMALS, by_axis, strict=True) if mm >= _TIE * by_axis.max()]
    return coarse[-1]  # axial comes last
