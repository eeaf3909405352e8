"""Scans and label maps from files of any format, found by the file's ending."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol, cast

import numpy as np
from monai.data import MetaTensor
from numpy.typing import NDArray

from medsam_tune.errors import DataError, listed
from medsam_tune.formats import geotiff, image, itk, nifti, tiff, vectors
from medsam_tune.formats.dicom import headers
from medsam_tune.formats.dicom.series import choose_series
from medsam_tune.formats.dicom.stack import read_series, read_series_grid
from medsam_tune.formats.listing import entries_of, files_below
from medsam_tune.formats.mending import Mending
from medsam_tune.formats.volume import GeoReference, Grid, Region, Volume, image_from


class Format(Protocol):
    """What the module of a format offers."""

    @property
    def ENDINGS(self) -> tuple[str, ...]:
        """Endings of the files that it reads, in lower case."""

    @property
    def WRITTEN(self) -> tuple[str, ...]:
        """Endings of the files that it writes."""

    def read(self, path: Path, mending: Mending, ids: bool = False) -> Volume:
        """Read a file; with `ids`, label ids as they are, instead of float32."""

    def read_grid(self, path: Path) -> Grid:
        """Size and place by the header; no voxel is read."""

    def write(
        self,
        path: Path,
        array: NDArray[np.generic],
        affine: NDArray[np.float64],
        codes: tuple[int, int] | None = None,
    ) -> None:
        """Write label ids or float (I, J, K), whole or not at all; affine in RAS+ millimetres."""


FORMATS: tuple[Format, ...] = (nifti, itk, geotiff, image)
"""All formats except DICOM, which has no fixed ending: every other file is read as DICOM. TIFF
without a geo-reference is read as other images are where Pillow reads it, see `reader_of`."""

ENDINGS = tuple(dict.fromkeys(ending for one in FORMATS for ending in one.ENDINGS))
WRITTEN = tuple(ending for one in FORMATS for ending in one.WRITTEN)

ID_BYTES = 160
"""Longest id of a case in UTF-8; results and temporary files add to it, and names end at 255."""


def load_image(
    path: Path,
    mending: Mending | None = None,
    series_uid: str | None = None,
    region: Region | None = None,
) -> MetaTensor:
    """Read one scan or label map; every failure names the file.

    Texts of the header, which may name the patient, are not kept.

    Args:
        path: file of one of `ENDINGS`, or a folder that is named like one and holds one; or DICOM:
            a file, or a folder with one series in it.
        mending: choice of faults to mend; by default all are refused.
        series_uid: SeriesInstanceUID (or its end) where a folder holds several.
        region: part of a 2-D image; None for all of it.

    Returns:
        (C, I, J, K) float32 in the file's own axis order (DICOM: columns, rows, slices), affine in
        nibabel's RAS+ millimetres; a 2-D image is one slice, K = 1, and C = 3 where it has colours,
        or the bands of a TIFF. `meta["notes"]` says what was changed on the way,
        `meta["channels"]` the channels of each volume, `meta["stored"]` the type of an image's own
        numbers, `meta["gaps"]` that NaN stands for pixels without data; for GeoTIFF
        `meta["georeference"]` is its `GeoReference`; and for DICOM
        `meta["series_uid"]` and `meta["frame_uid"]` which series and frame of reference it is,
        `meta["modality"]` its Modality, and `meta["spacing_known"]` whether it has millimetres.

    Raises:
        DataError: the file is missing, empty, truncated, or of another kind; it does not fit into
            memory; a refusal of the format's own `read`, or of `dicom.stack.read_series`.
    """
    return _load(path, mending or Mending(), series_uid, False, region)


def load_label(
    path: Path, mending: Mending | None = None, region: Region | None = None
) -> MetaTensor:
    """Read one label map as `load_image` does, but with the exact ids.

    Args:
        path: as in `load_image`.
        mending: choice of faults to mend. Uneven series are refused always, as there are no ids
            between ids.
        region: part of a mask of an image; None for all of it.

    Returns:
        (C, I, J, K) in a type that holds the file's numbers, see `volume.exact`.

    Raises:
        DataError: as in `load_image`.
    """
    mending = replace(mending or Mending(), resample_uneven=False)
    return _load(path, mending, None, True, region)


def _load(
    path: Path, mending: Mending, series_uid: str | None, ids: bool, region: Region | None
) -> MetaTensor:
    path = scan_at(path)
    if not path.exists():
        raise _missing(path)
    if path.is_file() and path.stat().st_size == 0:
        raise DataError(f"the file has zero bytes ({path}). Copy it again.")
    found = reader_of(path)
    if found is geotiff:
        volume = geotiff.read(path, mending, ids, region)
    elif found is not None:
        volume = _part(found.read(path, mending, ids), region)
    else:
        volume = read_series(choose_series(path, series_uid), mending.resample_uneven)
    return one_volume(image_from(volume), mending.volume_index, path)


def _missing(path: Path) -> DataError:
    return DataError(f"no such file: {path}. Correct the path in the datalist.")


def _part(volume: Volume, region: Region | None) -> Volume:
    """The part of a 2-D image."""
    if region is None:
        return volume
    x0, y0, x1, y1 = region
    return replace(volume, array=volume.array[..., x0:x1, y0:y1, :])


def one_volume(image: MetaTensor, index: int | None, path: Path) -> MetaTensor:
    """The volume that is asked for; the metadata keeps how many there were.

    Args:
        image: (C, I, J, K) of C volumes.
        index: number of a volume, from 0; None for all.
        path: file that it came from, for messages.

    Raises:
        DataError: no volume of that number.
    """
    channels = int(image.meta.get("channels", 1))
    count = image.shape[0] // channels
    image.meta["volumes"] = count
    if index is None or count == 1:
        return image
    if not 0 <= index < count:
        raise DataError(f"no volume {index} ({path}); it has {count}, counted from 0.")
    image.meta["notes"] = [*image.meta["notes"], f"volume {index} of {count}"]
    return cast(MetaTensor, image[index * channels : (index + 1) * channels])


def scan_at(path: Path) -> Path:
    """The file that is meant by a path: itself, or the one in a folder that is named like a file.

    Raises:
        DataError: a folder such as c1.nii/ with no scan in it, or with several.
    """
    if format_of(path) is None or not path.is_dir():
        return path
    inside = scans_among(one for one in entries_of(path) if one.is_file())
    if len(inside) != 1:
        names = listed(one.name for one in inside) or "none"
        raise DataError(
            f"{path}: a folder that is named like a file, with {len(inside)} scans in it: {names}; "
            "expected one. Move the scan out, or rename the folder."
        )
    return inside[0]


def read_grid(path: Path, series_uid: str | None = None, region: Region | None = None) -> Grid:
    """Size and place of what `load_image` would read, by the header; no voxel is read.

    Args:
        path: file or folder of the scan.
        series_uid: SeriesInstanceUID (or its end) where a folder holds several.
        region: part of a 2-D image; None for all of it.

    Raises:
        DataError: the file cannot be read.
    """
    path = scan_at(path)
    found = reader_of(path)
    if found is geotiff:
        return geotiff.read_grid(path, region)
    if found is not None:
        whole = found.read_grid(path)
        if region is None:
            return whole
        return replace(whole, shape=(region[2] - region[0], region[3] - region[1], 1))
    return read_series_grid(choose_series(path, series_uid))


def write_array(
    path: Path,
    array: NDArray[np.generic],
    affine: NDArray[np.float64],
    codes: tuple[int, int] | None = None,
    georeference: GeoReference | None = None,
) -> None:
    """Write label ids or probabilities in the format of the ending, whole or not at all.

    Args:
        path: file of one of `WRITTEN`.
        array: (I, J, K) label ids, or float.
        affine: (4, 4) from indices (i, j, k) to RAS+ millimetres.
        codes: qform_code and sform_code of the scan, if it is NIfTI; other formats have none.
        georeference: place on the earth, for GeoTIFF; other formats have none.

    Raises:
        DataError: another ending.
    """
    found = format_of(path)
    if found is None or not path.name.lower().endswith(found.WRITTEN):
        raise DataError(f"{path}: expected a name that ends in {', '.join(WRITTEN)}.")
    if found is geotiff:
        geotiff.write(path, array, affine, codes, georeference)
    else:
        found.write(path, array, affine, codes)


def stem_of(path: Path) -> str:
    """A file's name without its ending, or a folder's name."""
    name = path.name or path.resolve().name
    known = (*ENDINGS, *headers.ENDINGS, *vectors.ENDINGS)
    ending = next((e for e in known if name.lower().endswith(e)), "")
    return name[: len(name) - len(ending)]


def case_id(path: Path) -> str:
    """`stem_of` a path, as the name of a case; see `name_from`."""
    return name_from(stem_of(path))


def name_from(text: str) -> str:
    """A text that is safe in messages, tables and names of files; itself, where it is so.

    What cannot be printed becomes "_" (line breaks, bytes that are not UTF-8), and so does a
    leading "-", "=", "+", "@" or ".", which programs take for an option, a formula or a hidden
    file. What is longer than `ID_BYTES` is cut. A hash of the whole text then keeps names apart.
    """
    printed = "".join(letter if letter.isprintable() else "_" for letter in text)
    if printed.startswith(("-", "=", "+", "@", ".")):
        printed = f"_{printed[1:]}"
    if printed == text and len(text.encode()) <= ID_BYTES:
        return text
    mark = hashlib.sha256(os.fsencode(text)).hexdigest()[:8]
    return f"{printed.encode()[: ID_BYTES - 9].decode(errors='ignore')}-{mark}"


def dicom_modality(path: Path) -> str:
    """Modality of a DICOM file, such as "CT" or "SEG"; empty for other files and for folders."""
    if not path.is_file() or format_of(path) is not None:
        return ""
    return headers.object_kind(path)


def files_of(path: Path) -> Sequence[Path]:
    """The files that a scan or label is made of: itself, or all below a folder."""
    if path.is_dir():
        return files_below(path)
    return vectors.parts_of(path) if vectors.is_vector(path) else [path]


def scans_among(paths: Iterable[Path]) -> list[Path]:
    """The paths that are named like a file of a known format.

    2-D images beside other scans are previews, as TotalSegmentator writes them, and left out.
    """
    named = [path for path in paths if format_of(path) is not None]
    return [path for path in named if not is_flat(path)] or named


def is_flat(path: Path) -> bool:
    """Whether a path is named like a 2-D image."""
    return format_of(path) in (geotiff, image)


def scan_files(path: Path, series_uid: str | None = None) -> Sequence[Path]:
    """The files that `load_image` would read.

    Args:
        path: file or folder of the scan.
        series_uid: SeriesInstanceUID (or its end) where a folder holds several.

    Raises:
        DataError: no such file, or no such series.
    """
    path = scan_at(path)
    if not path.exists():
        raise _missing(path)
    if format_of(path) is not None:
        return [path, *itk.data_files(path)]
    return choose_series(path, series_uid).files


def reader_of(path: Path) -> Format | None:
    """The format that reads a file: `format_of` it, but of a TIFF as its content says."""
    found = format_of(path)
    return image if found is geotiff and not tiff.needs_rasterio(path) else found


def palette_of(path: Path) -> list[tuple[int, int, int]] | None:
    """Colours of an image's palette by index; None of an image without one.

    Raises:
        DataError: the header cannot be read.
    """
    if reader_of(path) is geotiff:
        return geotiff.palette_of(path)
    return image.palette_of(path)


def is_coloured(path: Path) -> bool:
    """Whether an image is stored as red, green and blue, even if all of it is grey.

    Raises:
        DataError: the header cannot be read.
    """
    if reader_of(path) is geotiff:
        with geotiff.opened(path) as file:
            return len(geotiff.bands_of(file)) >= 3
    return image.is_coloured(path)


def format_of(path: Path) -> Format | None:
    """The format that a name's ending says; None for DICOM and all else."""
    name = path.name.lower()
    return next((one for one in FORMATS if name.endswith(one.ENDINGS)), None)
