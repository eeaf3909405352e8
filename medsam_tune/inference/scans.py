"""Scans and their prompts, ready for an inferer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.data.utils import orientation_ras_lps
from monai.utils import convert_to_numpy
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from medsam_tune.cases.datalist import Case
from medsam_tune.cases.load import check_scan, load_case
from medsam_tune.errors import DataError, about, warn
from medsam_tune.formats import image as pictures
from medsam_tune.formats.mending import Mending
from medsam_tune.formats.open import one_volume
from medsam_tune.formats.volume import GeoReference, Volume, check_extent, image_from
from medsam_tune.inference.prompt_files import read_prompts
from medsam_tune.inference.requests import NEEDS_PROMPTS
from medsam_tune.prompts import SlicePrompts
from medsam_tune.slices.cut import cut
from medsam_tune.slices.frames import ScanGrid
from medsam_tune.slices.rules import ScanRules
from medsam_tune.slices.streamed import warn_if_shrunk

Scan = str | Path | Tensor | NDArray[Any] | Image.Image
"""A file, a DICOM folder, or an image in memory: a MetaTensor, or an array with an affine; of a 2-D
image Pillow's, or an array (H, W) or (H, W, C) without an affine."""

Affine = Tensor | NDArray[Any]
"""(4, 4) from indices of an array to RAS+ millimetres."""

_FEW = 8  # different values of a label map; scanners make more
_IN_MEMORY = Path("image in memory")  # stands for the file's name in messages
# What a file says of an image beside its voxels and its place, as `Volume.meta` names it.
_SAID = (
    *("modality", "guess", "codes", "channels", "stored", "gaps"),
    *("spacing_known", "georeference"),
)


@dataclass(frozen=True)
class PromptedScan:
    """A scan ready for the inferer, and the grid that leads back to it.

    Attributes:
        case: id of the scan.
        image: (Z, C, H, W) uint8 slices.
        prompts: prompts in the slice frame; None for all labels of the model.
        grid: grid of the file and of its slices.
    """

    case: str
    image: Tensor
    prompts: SlicePrompts | None
    grid: ScanGrid


class LoadPromptedScan:
    """Transform: a scan and its prompts -> `PromptedScan`.

    Args:
        rules: rules from scans to slices, as in training.
        labels: label id -> name; prompts may use these.
        mending: choice of faults to mend, as in training; by default all are refused.
        prompted: True if the model needs prompts, False if it takes none, None if either may come.
        reading: how a label map among the prompts is read: `prompts_as`, `jitter`, `seed` and
            `coding` of `read_prompts`.
        trained_side: longest side of the slices of training, pixels, if it is known; see
            `streamed.warn_if_shrunk`.
    """

    def __init__(
        self,
        rules: ScanRules,
        labels: Mapping[int, str],
        mending: Mending | None = None,
        prompted: bool | None = None,
        reading: Mapping[str, Any] | None = None,
        trained_side: int | None = None,
    ) -> None:
        self.rules = rules
        self.labels = labels
        self.mending = mending or Mending()
        self.prompted = prompted
        self.reading = dict(reading or {})
        self.trained_side = trained_side

    def __call__(self, item: Mapping[str, Any]) -> PromptedScan:
        """Read one scan.

        Args:
            item: `scan`, see `Scan`; `affine`, see `opened`; `series`, the SeriesInstanceUID (or
                its end) if a folder holds several; `name`, the case's, if it has another one than
                its file; `prompts`, a file, its content, or None.

        Raises:
            DataError: an unusable scan or unusable prompts; before the scan is read, prompts that
                are missing, or that the model does not take.
            ValueError: an array without an affine.
        """
        self.refuse(item["prompts"])
        case, slices, grid = self.opened(
            item["scan"], item.get("affine"), item.get("series"), item.get("name")
        )
        scan = item["scan"]
        file = Path(scan) if isinstance(scan, (str, Path)) else None
        return PromptedScan(case, slices, self.prompts(item["prompts"], grid, file), grid)

    def opened(
        self,
        scan: Scan,
        affine: Affine | None = None,
        series: str | None = None,
        name: str | None = None,
    ) -> tuple[str, Tensor, ScanGrid]:
        """The slices of a scan.

        Args:
            scan: file, DICOM folder, or image (1, I, J, K) or (I, J, K) of any real type, in the
                scanner's unit (CT: Hounsfield units); or a 2-D image, see `Scan`. It is checked as
                a file is.
            affine: affine of an array, as in NIfTI; a MetaTensor has its own, a 2-D image none.
            series: SeriesInstanceUID (or its end) where a folder holds several.
            name: name of the case; by default that of its file.

        Returns:
            id of the scan, slices (Z, C, H, W) uint8, and the grid that leads back.
        """
        path = Path(scan) if isinstance(scan, (str, Path)) else _IN_MEMORY
        case = Case(path, None, "", series, name)
        with about(f"case {case.id}"):
            if isinstance(scan, (str, Path)):
                warn_if_shrunk(path, self.rules, self.trained_side)
                image, _ = load_case(case, self.labels, self.mending, self.rules.expected)
            else:
                flat = affine is None and self._is_flat(scan)
                image = _picture(scan) if flat else _in_memory(scan, affine)
                image = one_volume(image, self.mending.volume_index, _IN_MEMORY)
                check_scan(image, _IN_MEMORY, self.mending, self.rules.expected)
            if self.rules.modality != "RGB":  # a page of black and white is no label map
                _warn_of_a_label_map(image)
            return case.id, *cut(image, self.rules)

    def _is_flat(self, scan: Tensor | NDArray[Any] | Image.Image) -> bool:
        """Whether an image without an affine is a 2-D image."""
        if isinstance(scan, (Image.Image, MetaTensor)):
            return isinstance(scan, Image.Image)
        return scan.ndim == 2 or (scan.ndim == 3 and self.rules.modality == "RGB")

    def refuse(self, prompts: object) -> None:
        """Refuse prompts that are missing, or that the model does not take.

        Raises:
            DataError: see `prompted`.
        """
        if self.prompted and prompts is None:
            raise DataError(NEEDS_PROMPTS)
        if self.prompted is False and prompts is not None:
            raise DataError(
                f"{'prompts' if isinstance(prompts, Mapping) else prompts}: the model was trained "
                "without prompts and finds every label itself; leave --prompts out."
            )

    def prompts(
        self,
        source: str | Path | Mapping[str, Any] | None,
        grid: ScanGrid,
        scan: Path | None = None,
    ) -> SlicePrompts | None:
        """Prompts on the slices of a grid, see `read_prompts`; None stays None."""
        if source is None:
            return None
        components = self.rules.components
        options = {"components": components, "scan": scan, **self.reading}
        return read_prompts(source, grid, self.labels, **options)


def _picture(image: Tensor | NDArray[Any] | Image.Image) -> MetaTensor:
    """A 2-D image, as a file of it would be loaded."""
    if isinstance(image, Image.Image):
        return image_from(pictures.volume_of(image, _IN_MEMORY))
    return image_from(pictures.volume_from(np.array(convert_to_numpy(image))))


def _in_memory(image: Tensor | NDArray[Any] | Image.Image, affine: Affine | None) -> MetaTensor:
    """A copy of an image (1, I, J, K) or (I, J, K), as a file of it would be loaded.

    Raises:
        DataError: voxels larger than any.
        ValueError: an affine is missing, there twice, or not (4, 4).
    """
    meta: Mapping[str, Any] = {}
    if isinstance(image, Image.Image):
        raise ValueError("affine is given, and a 2-D image has none; leave it out.")
    if isinstance(image, MetaTensor):
        if affine is not None:
            raise ValueError("affine is given, but the image has its own; leave it out.")
        meta = image.meta
        affine = image.affine
        if meta.get("space") == "LPS":
            affine = orientation_ras_lps(affine)
    elif affine is None:
        raise ValueError(
            "affine is missing; an array needs the (4, 4) from its indices to RAS+ millimetres."
        )
    place = np.array(convert_to_numpy(affine), dtype=np.float64)
    if place.shape != (4, 4):
        raise ValueError(f"affine has shape {place.shape}; expected (4, 4), RAS+ millimetres.")
    array = np.array(convert_to_numpy(image), dtype=np.float32)  # a copy, to be mended
    known = {name: meta[name] for name in _SAID if meta.get(name) is not None}
    if isinstance(said := known.get("georeference"), Mapping):  # as `SimpleITKReader` says it
        known["georeference"] = GeoReference(**said)
    volume = Volume(array, place, **known)
    if volume.spacing_known and volume.georeference is None:  # those of 2-D images have any size
        check_extent(_IN_MEMORY, array.shape[-3:], place)
    return image_from(volume)


def _warn_of_a_label_map(image: Tensor) -> None:
    """Warn of whole values so few that the scan is rather a label map that was taken for it."""
    found = image.unique()
    if len(found) <= _FEW and bool((found == found.round()).all()):
        warn(
            f"the scan holds only {len(found)} values, from {float(found.min()):g} to "
            f"{float(found.max()):g}: it looks like a label map."
        )


def prepare_scan(
    item: PromptedScan, device: torch.device, non_blocking: bool = False, **_: Any
) -> tuple[Tensor, None, tuple[SlicePrompts | None], dict[str, Any]]:
    """`prepare_batch` of an evaluator over `PromptedScan`s; volumes stay where they are loaded."""
    return item.image, None, (item.prompts,), {}
