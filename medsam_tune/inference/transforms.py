"""MONAI dictionary transforms from scans to the model's volumes, and from masks to scans."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform, MapTransform, SaveImaged
from monai.utils import convert_to_numpy, convert_to_tensor
from numpy.typing import NDArray
from torch import Tensor

from medsam_tune.formats import geotiff
from medsam_tune.formats.mending import Mending
from medsam_tune.formats.open import reader_of, write_array
from medsam_tune.formats.volume import with_meta_of
from medsam_tune.inference.aftercare import Aftercare
from medsam_tune.inference.prompt_files.label_maps import label_on
from medsam_tune.inference.scans import LoadPromptedScan
from medsam_tune.slices.frames import slices_from_volume, volume_from_slices
from medsam_tune.slices.rules import ScanRules

Data = Mapping[Hashable, Any]


class ScanRulesd(MapTransform, InvertibleTransform):
    """Scans by the rules of a training: what the model sees, as one volume.

    Args:
        keys: scans, MetaTensors (1, I, J, K) or (I, J, K) in the scanner's unit (CT: Hounsfield
            units), or channels of a 2-D image (C, I, J, 1), checked as files are; they become
            (C, X, Y, Z) uint8, whose slices along Z are the model's.
        rules: rules from scans to slices.
        mending: choice of faults to mend, as in training; by default all are refused.
        allow_missing_keys: skip keys that are absent.

    The inverse brings label maps (1, X, Y, Z) back to the scan's own grid, by the nearest voxel.

    Raises:
        DataError: an unusable scan, as in `predict`.
        ValueError: a scan without metadata, which has no place.
    """

    def __init__(
        self,
        keys: KeysCollection,
        rules: ScanRules,
        mending: Mending | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.rules = rules
        self._opened = LoadPromptedScan(rules, {}, mending).opened

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        """The dictionary with its scans as the model sees them."""
        found = dict(data)
        for key in self.key_iterator(found):
            _, slices, grid = self._opened(found[key])
            volume = _placed(found[key], volume_from_slices(slices), grid.affine_of_slices)
            found[key] = self.push_transform(  # type: ignore[no-untyped-call]
                volume, orig_size=grid.shape, extra_info={"affine": grid.affine}
            )
        return found

    def inverse(self, data: Data) -> dict[Hashable, Any]:
        """The dictionary with its label maps on the scans' own grids."""
        found = dict(data)
        for key in self.key_iterator(found):
            done = self.pop_transform(found[key])
            affine = np.asarray(convert_to_numpy(done["extra_info"]["affine"]))
            grid = self.rules.grid(done["orig_size"], affine, _has_spacing(found[key]))
            slices = slices_from_volume(convert_to_tensor(found[key], track_meta=False))
            arrays = [torch.from_numpy(grid.to_file(channel)) for channel in slices.unbind(1)]
            found[key] = _placed(found[key], torch.stack(arrays), grid.affine)
        return found


class PromptMapd(MapTransform):
    """Label maps as prompts: on the slices of a scan, which a `ScanRulesd` after it cuts.

    Args:
        keys: label maps, MetaTensors (1, I, J, K) or (I, J, K) of any real type, on the scan's grid
            in any orientation; they become (1, X, Y, Z) int32.
        rules: rules from scans to slices.
        labels: label ids that they may have.
        image: key of the scan.
        allow_missing_keys: skip keys that are absent.

    Raises:
        DataError: a label map on another grid, or with other values.
    """

    def __init__(
        self,
        keys: KeysCollection,
        rules: ScanRules,
        labels: Iterable[int],
        image: str = "image",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.rules = rules
        self.labels = list(labels)
        self.image = image

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        """The dictionary with its label maps on slices."""
        found = dict(data)
        scan = found[self.image]
        affine = np.asarray(scan.affine, dtype=np.float64)
        grid = self.rules.grid(scan.shape[-3:], affine, _has_spacing(scan))
        grid = replace(grid, guess=scan.meta.get("guess", ""))
        for key in self.key_iterator(found):
            path = Path(found[key].meta.get("filename_or_obj", str(key)))
            truth = label_on(found[key], grid, self.labels, path)
            volume = volume_from_slices(truth[:, None])
            found[key] = _placed(found[key], volume, grid.affine_of_slices)
        return found


class Aftercared(MapTransform):
    """After-care of masks on the scan's own grid, see `Aftercare`.

    Args:
        keys: label maps (1, I, J, K), MetaTensors.
        rules: rules from scans to slices; they say along which axis the slices are stacked.
        aftercare: what is done to the masks.
        allow_missing_keys: skip keys that are absent.
    """

    def __init__(
        self,
        keys: KeysCollection,
        rules: ScanRules,
        aftercare: Aftercare,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.rules = rules
        self.aftercare = aftercare

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        """The dictionary with its masks cleaned."""
        found = dict(data)
        for key in self.key_iterator(found):
            mask = found[key]
            affine = np.asarray(mask.affine, dtype=np.float64)
            grid = self.rules.grid(mask.shape[1:], affine, _has_spacing(mask))
            labels = convert_to_numpy(mask[0])
            cleaned = self.aftercare.labels(labels, grid.voxel_ml, grid.slice_axis)
            found[key] = with_meta_of(mask, torch.from_numpy(cleaned)[None].to(mask.device))
        return found


class SaveImageThered(SaveImaged):
    """MONAI's `SaveImaged`, but that the mask of a GeoTIFF is a GeoTIFF in the same place.

    It has the coordinate system and transform of the image that the mask's metadata name, and its
    name with `output_postfix` and ".tif". All arguments are those of `SaveImaged`.
    """

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        """The dictionary, once its masks (1, I, J, K) are written."""
        found = dict(data)
        for key in self.key_iterator(found):
            mask = found[key]
            source = Path(str(mask.meta.get("filename_or_obj", "")))
            if not source.is_file() or reader_of(source) is not geotiff:
                self.saver(mask)
                continue
            words = self.saver.fname_formatter(mask.meta, self.saver)
            usual = Path(self.saver.folder_layout.filename(**words))
            path = usual.with_name(f"{usual.name.removesuffix(self.saver.output_ext)}.tif")
            array = convert_to_numpy(mask[0]).astype(np.uint8)
            affine = np.asarray(mask.affine, dtype=np.float64)
            place = geotiff.read_grid(source).georeference
            write_array(path, array, affine, georeference=place)
        return found


def _has_spacing(image: MetaTensor) -> bool:
    """Whether an image's millimetres are true, see `Volume`."""
    return bool(image.meta.get("spacing_known", True))


def _placed(image: MetaTensor, voxels: Tensor, affine: NDArray[np.float64]) -> MetaTensor:
    """Voxels (C, X, Y, Z) with an image's metadata and trace, at another place."""
    made = cast(MetaTensor, with_meta_of(image, voxels))
    made.affine = torch.from_numpy(affine)
    return made
