"""Scans and label maps from files: NIfTI by nibabel, DICOM, NRRD and MetaImage by SimpleITK."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import nibabel as nib
import numpy as np
import SimpleITK as sitk
import torch
from monai.data import MetaTensor
from monai.data.image_reader import ImageReader
from monai.transforms import EnsureChannelFirst
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from medsam_tune.errors import DataError, warn
from medsam_tune.formats.dicom.series import LPS_TO_RAS, choose_series, has_dicom_prefix
from medsam_tune.formats.dicom.stack import Volume, read_series, reason_of
from medsam_tune.formats.mending import Mending
from medsam_tune.formats.volume import (
    POSITION_TOLERANCE,
    check_memory,
    check_not_empty,
    same_affine,
    show_affine,
)

_NIFTI = (".nii", ".nii.gz")
_ITK = (".nrrd", ".nhdr", ".mha", ".mhd")
ENDINGS = (*_NIFTI, *_ITK)


def case_id(path: Path) -> str:
    """A file's name without its ending, or a folder's name."""
    return re.sub(r"\.(nii|nii\.gz|nrrd|nhdr|mha|mhd|dcm|ima)$", "", path.name, flags=re.IGNORECASE)


def is_nifti(path: Path) -> bool:
    """By its name."""
    return path.name.lower().endswith(_NIFTI)


def _is_itk(path: Path) -> bool:
    if path.is_dir() or path.name.lower().endswith((*_ITK, ".dcm", ".ima", ".dicom")):
        return True
    return has_dicom_prefix(path)


def load_image(
    path: Path, mending: Mending | None = None, series_uid: str | None = None
) -> MetaTensor:
    """Read one scan or label map; every failure names the file.

    A header's texts, which may hold names, are left behind.

    Args:
        path: .nii, .nii.gz, .nrrd, .nhdr, .mha or .mhd file, or DICOM: a file, or a folder with one
            series in it.
        mending: whether uneven series are resampled, and guessed orientations refused.
        series_uid: SeriesInstanceUID (or its end) where a folder holds several.

    Returns:
        (C, X, Y, Z) float32 in the file's own axis order (DICOM: columns, rows, slices), affine in
        nibabel's RAS+ millimetres; `meta["notes"]` says what was changed on the way, and for DICOM
        `meta["series_uid"]` and `meta["frame_uid"]` which series and frame of reference it is.

    Raises:
        DataError: the file is missing, empty, truncated, or of another kind; its qform and sform
            differ; it does not fit into memory; a series that is refused, see `data.dicom`.
    """
    mending = mending or Mending()
    if not path.exists():
        raise DataError(f"no such file: {path}. Correct the path in the datalist.")
    if path.is_file() and path.stat().st_size == 0:
        raise DataError(f"the file has zero bytes ({path}). Copy it again.")
    if is_nifti(path):
        return _load_nifti(path, mending.strict)
    return image_from(SimpleITKReader(series_uid, mending.resample_uneven).read(path))


@dataclass(frozen=True)
class Grid:
    """The size and the place of a scan.

    Attributes:
        shape: (I, J, K) in the file's own axis order, or with the number of volumes behind.
        affine: (4, 4) float64, RAS+ millimetres.
    """

    shape: tuple[int, ...]
    affine: NDArray[np.float64]


def read_grid(path: Path, series_uid: str | None = None) -> Grid:
    """What `load_image` would read, by the header; no voxel is read.

    Args:
        path: of the scan.
        series_uid: SeriesInstanceUID (or its end) where a folder holds several.

    Raises:
        DataError: the file cannot be read.
    """
    if is_nifti(path):
        with _nifti_errors(path):
            file = _open_nifti(path)
        return Grid(file.shape, np.asarray(file.affine, dtype=np.float64))
    if path.name.lower().endswith(_ITK):
        header = _itk_header(path)
        size = header.GetSize()
        return Grid((*size, 1) if len(size) == 2 else tuple(size), _itk_affine(header))
    series = choose_series(path, series_uid)
    return Grid(series.shape, series.affine)


def image_from(volume: Volume) -> MetaTensor:
    """(C, X, Y, Z) float32 of a volume, with what `load_image` keeps of its file."""
    array, meta = SimpleITKReader().get_data(volume)
    return cast(MetaTensor, EnsureChannelFirst()(MetaTensor(torch.from_numpy(array), meta=meta)))


class SimpleITKReader(ImageReader):
    """MONAI's reader for DICOM, NRRD and MetaImage.

    Register it, `LoadImaged(keys).register(SimpleITKReader())`: a reader given as `reader=` whose
    refusal is raised is passed over by MONAI for the next one, which may not refuse.

    Args:
        series_uid: SeriesInstanceUID (or its end) where a folder holds several series.
        resample_uneven: interpolate uneven or tilted DICOM series instead of refusing them.
    """

    def __init__(self, series_uid: str | None = None, resample_uneven: bool = False) -> None:
        super().__init__()
        self.series_uid = series_uid
        self.resample_uneven = resample_uneven

    def verify_suffix(self, filename: Any) -> bool:
        """Whether all of them are folders, DICOM, NRRD or MetaImage."""
        names = [filename] if isinstance(filename, (str, Path)) else filename
        return all(_is_itk(Path(name)) for name in names)

    def read(self, data: Any, **_: Any) -> Volume:
        """The volume of a file, of a folder with one DICOM series, or of a list of its files.

        Raises:
            DataError: see `load_image`.
        """
        paths = [Path(data)] if isinstance(data, (str, Path)) else [Path(part) for part in data]
        if len(paths) == 1 and paths[0].name.lower().endswith(_ITK):
            return _read_itk(paths[0])
        series = choose_series(paths[0] if len(paths) == 1 else paths, self.series_uid)
        return read_series(series, self.resample_uneven)

    def get_data(self, img: Volume) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """(I, J, K) or (C, I, J, K) float32, and MONAI's metadata with the affine in RAS+."""
        channels = 0 if img.array.ndim == 4 else float("nan")
        return img.array, {
            "affine": img.affine.copy(),
            "original_affine": img.affine.copy(),
            "spatial_shape": np.asarray(img.array.shape[-3:]),
            "original_channel_dim": channels,
            "space": "RAS",
            "notes": list(img.notes),
            "series_uid": img.series,
            "frame_uid": img.frame,
        }


def _read_itk(path: Path) -> Volume:
    reader = _itk_header(path)
    check_memory(path, (*reader.GetSize(), reader.GetNumberOfComponents()))
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise _unreadable(path, error) from error
    array = sitk.GetArrayFromImage(image).astype(np.float32)
    if image.GetNumberOfComponentsPerPixel() > 1:
        array = np.moveaxis(array, -1, 0)
    dimension = min(image.GetDimension(), 3)
    if dimension < 3:
        array = array[..., None, :, :]
    axes = (*range(array.ndim - 3), *range(array.ndim - 1, array.ndim - 4, -1))
    return Volume(np.ascontiguousarray(array.transpose(axes)), _itk_affine(image))


def _itk_header(path: Path) -> sitk.ImageFileReader:
    """A reader that knows the file's size and place."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise _unreadable(path, error) from error
    return reader


def _unreadable(path: Path, error: RuntimeError) -> DataError:
    return DataError(
        f"cannot read {path}: {reason_of(error)}. Expected a whole NRRD or MetaImage; copy or "
        "export it again."
    )


def _itk_affine(image: Any) -> NDArray[np.float64]:
    """(4, 4) of an image's or a header's first three axes to RAS+ millimetres."""
    size = image.GetDimension()
    dimension = min(size, 3)
    direction = np.asarray(image.GetDirection()).reshape(size, size)[:dimension, :dimension]
    affine = np.eye(4)
    affine[:dimension, :dimension] = direction * np.asarray(image.GetSpacing())[:dimension]
    affine[:dimension, 3] = image.GetOrigin()[:dimension]
    return np.asarray(LPS_TO_RAS @ affine)


def _load_nifti(path: Path, strict: bool) -> MetaTensor:
    with _nifti_errors(path):
        file = _open_nifti(path)
        check_not_empty(path, file.shape)
        check_memory(path, file.shape)
        _check_nifti(path, file, strict)
        # Not by MONAI's reader: where the sform's spacing is not pixdim's to the last digit, it
        # takes the qform, even one that says nothing.
        values = np.asanyarray(file.dataobj).astype(np.float32)
    if values.ndim > 4:
        values = values.reshape(*values.shape[:3], -1)
    if values.ndim == 4:
        values = values[..., 0] if values.shape[3] == 1 else np.moveaxis(values, 3, 0)
    return image_from(Volume(values, np.asarray(file.affine, dtype=np.float64)))


@contextmanager
def _nifti_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (EOFError, zlib.error) as error:
        raise DataError(
            f"truncated or damaged gzip ({path}); {error}. Copy the file again."
        ) from error
    except DataError:
        raise
    except (ImageFileError, HeaderDataError, OSError, OverflowError, ValueError) as error:
        raise DataError(
            f"cannot read {path}: {_first_line(error)}. Expected a whole "
            "NIfTI file; copy or export it again."
        ) from error


def _open_nifti(path: Path) -> nib.Nifti1Image:
    """The file, its voxels not read."""
    file = nib.loadsave.load(path)
    if not isinstance(file, nib.Nifti1Image):
        raise ImageFileError(f"it is {type(file).__name__}")
    return file


def _check_nifti(path: Path, file: nib.Nifti1Image, strict: bool) -> None:
    """Values that are numbers, and an affine that is what the file says."""
    if file.get_data_dtype().kind not in "biuf":
        raise DataError(
            f"its values are colours or complex numbers ({path}); expected a real "
            "number for each voxel. Export it again."
        )
    header = file.header
    qform, sform = header.get_qform(coded=True)[0], header.get_sform(coded=True)[0]
    if qform is None and sform is None:
        found = f"neither qform nor sform is set ({path}); the orientation is a guess"
        if strict:
            raise DataError(f"{found}. Export the scan again from its source.")
        warn(f"{found}.")
    elif qform is not None and sform is not None and not same_affine(qform, sform):
        raise DataError(
            f"qform {show_affine(qform)} and sform {show_affine(sform)} differ "
            f"({path}); which of them places the scan is not known. Remove the wrong one and save "
            "the file."
        )
    elif sform is not None:
        spacing, pixdim = np.linalg.norm(sform[:3, :3], axis=0), header.get_zooms()[:3]
        if len(pixdim) == 3 and np.abs(spacing - pixdim).max() > POSITION_TOLERANCE:
            warn(
                f"pixdim {np.round(pixdim, 4).tolist()} is not the sform's spacing "
                f"{spacing.round(4).tolist()} ({path}); the sform is used."
            )


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__


def files_of(path: Path) -> Sequence[Path]:
    """The files that a scan is made of: itself, or all below a folder of DICOM."""
    return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
