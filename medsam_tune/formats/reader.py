"""A reader for MONAI's `LoadImage`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.data.image_reader import ImageReader
from monai.transforms import LoadImaged
from numpy.typing import NDArray

from medsam_tune.errors import DataError
from medsam_tune.formats.dicom import headers
from medsam_tune.formats.dicom.series import choose_series
from medsam_tune.formats.dicom.stack import read_series
from medsam_tune.formats.mending import Mending
from medsam_tune.formats.open import ENDINGS, reader_of, scan_at
from medsam_tune.formats.volume import Volume, same_affine


class SimpleITKReader(ImageReader):
    """Image reader of MONAI for DICOM, NIfTI, NRRD, MetaImage and 2-D images.

    It reads as `load_image` does: coordinates become millimetres, whatever unit the file has.

    Register it: `LoadImaged(keys).register(SimpleITKReader())`, or take `scan_loader`. Do not pass
    it as `reader=`: when such a reader refuses a file, MONAI tries the next one, which may accept
    it.

    Args:
        series_uid: SeriesInstanceUID (or its end) where a folder holds several series.
        mending: choice of faults to mend; by default all are refused. All volumes of a 4-D file
            are read, whatever `volume_index` says.
    """

    def __init__(self, series_uid: str | None = None, mending: Mending | None = None) -> None:
        super().__init__()
        self.series_uid = series_uid
        self.mending = mending or Mending()

    def verify_suffix(self, filename: Any) -> bool:
        """Whether all names are folders, DICOM, or of one of the other formats."""
        names = [filename] if isinstance(filename, (str, Path)) else filename
        return all(_is_known(Path(name)) for name in names)

    def read(self, data: Any, **_: Any) -> Volume:
        """The volume of a file, of a folder with one DICOM series, or of a list of its files.

        Files of other formats than DICOM become the channels of one volume.

        Raises:
            DataError: as in `load_image`; several files that do not lie on one grid.
        """
        paths = [Path(data)] if isinstance(data, (str, Path)) else [Path(part) for part in data]
        paths = [scan_at(path) for path in paths]
        formats = [one for one in map(reader_of, paths) if one is not None]
        if len(formats) == len(paths):
            read = [one.read(path, self.mending) for one, path in zip(formats, paths, strict=True)]
            return read[0] if len(read) == 1 else _stacked(read, paths)
        series = choose_series(paths[0] if len(paths) == 1 else paths, self.series_uid)
        return read_series(series, self.mending.resample_uneven)

    def get_data(self, img: Volume) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """(I, J, K) or (C, I, J, K) float32, and MONAI's metadata with the affine in RAS+.

        MONAI takes plain values alone there: the `GeoReference` of a GeoTIFF is a dictionary.
        """
        meta = img.meta()
        if img.georeference is not None:
            meta["georeference"] = asdict(img.georeference)
        return img.array, meta


def scan_loader(
    keys: KeysCollection, mending: Mending | None = None, series_uid: str | None = None
) -> LoadImaged:
    """MONAI's `LoadImaged` with a `SimpleITKReader`, for configs.

    Args:
        keys: keys of the files or DICOM folders in a dictionary.
        mending: see `SimpleITKReader`.
        series_uid: see `SimpleITKReader`.
    """
    load = LoadImaged(keys)
    load.register(SimpleITKReader(series_uid, mending))
    return load


def _is_known(path: Path) -> bool:
    if path.is_dir() or path.name.lower().endswith((*ENDINGS, *headers.ENDINGS)):
        return True
    return headers.has_dicom_prefix(path)


def _stacked(volumes: Sequence[Volume], paths: Sequence[Path]) -> Volume:
    """Volumes of one grid as the channels of one."""
    first = volumes[0]
    for volume, path in zip(volumes, paths, strict=True):
        same = volume.array.shape == first.array.shape and same_affine(volume.affine, first.affine)
        if not same:
            raise DataError(
                f"{path} does not lie on the grid of {paths[0]}; expected files of one shape and "
                "place as the channels of an image. Resample it."
            )
    arrays = [one.array if one.array.ndim == 4 else one.array[None] for one in volumes]
    return replace(first, array=np.concatenate(arrays))
