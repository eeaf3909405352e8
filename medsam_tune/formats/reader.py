"""A reader for MONAI's `LoadImage`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from monai.data.image_reader import ImageReader
from numpy.typing import NDArray

from medsam_tune.formats import itk
from medsam_tune.formats.dicom import headers
from medsam_tune.formats.dicom.series import choose_series
from medsam_tune.formats.dicom.stack import read_series
from medsam_tune.formats.mending import Mending
from medsam_tune.formats.volume import Volume


class SimpleITKReader(ImageReader):
    """Image reader of MONAI for DICOM, NRRD and MetaImage.

    Register it: `LoadImaged(keys).register(SimpleITKReader())`. Do not pass it as `reader=`: when
    such a reader refuses a file, MONAI tries the next one, which may accept it.

    Args:
        series_uid: SeriesInstanceUID (or its end) where a folder holds several series.
        resample_uneven: interpolate uneven or tilted DICOM series instead of refusing them.
    """

    def __init__(self, series_uid: str | None = None, resample_uneven: bool = False) -> None:
        super().__init__()
        self.series_uid = series_uid
        self.resample_uneven = resample_uneven

    def verify_suffix(self, filename: Any) -> bool:
        """Whether all names are folders, DICOM, NRRD or MetaImage."""
        names = [filename] if isinstance(filename, (str, Path)) else filename
        return all(_is_known(Path(name)) for name in names)

    def read(self, data: Any, **_: Any) -> Volume:
        """The volume of a file, of a folder with one DICOM series, or of a list of its files.

        Raises:
            DataError: as in `load_image`.
        """
        paths = [Path(data)] if isinstance(data, (str, Path)) else [Path(part) for part in data]
        if len(paths) == 1 and paths[0].name.lower().endswith(itk.ENDINGS):
            return itk.read(paths[0], Mending())
        series = choose_series(paths[0] if len(paths) == 1 else paths, self.series_uid)
        return read_series(series, self.resample_uneven)

    def get_data(self, img: Volume) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """(I, J, K) or (C, I, J, K) float32, and MONAI's metadata with the affine in RAS+."""
        return img.array, img.meta()


def _is_known(path: Path) -> bool:
    if path.is_dir() or path.name.lower().endswith((*itk.ENDINGS, *headers.ENDINGS)):
        return True
    return headers.has_dicom_prefix(path)
