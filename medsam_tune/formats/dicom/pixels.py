"""Values of DICOM images: decoded, rescaled, with padding as air and high values bright.

SimpleITK (GDCM) decodes the compressed syntaxes. Messages name files and counts, never the text of
a tag, as that may tell who the patient is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medsam_tune.errors import DataError
from medsam_tune.formats.dicom.headers import Instance, import_pydicom, understood
from medsam_tune.formats.dicom.series import Series
from medsam_tune.formats.dicom.structure import is_longer_than_its_file
from medsam_tune.formats.itk import itk_name, reason_of

AIR = -1024.0
"""Value of padding in a CT, HU."""


def read_pixels(
    instances: Sequence[Instance], modality: str, notes: list[str]
) -> NDArray[np.float32]:
    """Values of single images.

    Args:
        instances: images of one series, in order.
        modality: modality of the series.
        notes: list to which changes of the values are added.

    Returns:
        (I, J, K) float32, columns, rows and slices; each slice by its own rescale, MONOCHROME1
        inverted except in CT, padding as air.

    Raises:
        DataError: pixels that cannot be decoded, with their file.
    """
    for one in instances:
        if is_longer_than_its_file(one.path):
            raise _undecodable(one.path, "it is shorter than its elements say")
    inverted = instances[0].photometric == "MONOCHROME1"
    array = _pixels_as_stored(instances) if inverted else _pixels(instances)
    _set_padding(array, instances, modality, notes)
    return bright(array, modality, notes) if inverted else array


def check_grey(series: Series) -> None:
    """Refuse colour images."""
    for one in series.instances:
        if one.samples != 1 or one.photometric.startswith("PALETTE"):
            raise DataError(
                f"{one.path}: is a colour image ({one.photometric}); expected the grey values of "
                f"a {series.modality or 'CT or MR'} scan. Colour images are for the 2-D bundle."
            )


def check_rescale(instances: Sequence[Instance], modality: str) -> None:
    """Refuse values that are not in one known unit."""
    without = [one for one in instances if one.rescale is None]
    if without and len(without) < len(instances):
        raise DataError(
            f"{without[0]}: has no RescaleSlope and RescaleIntercept, but "
            f"{len(instances) - len(without)} other images of its series have; their values "
            "are not in one unit. Export the series again."
        )
    if without and modality == "CT":
        raise DataError(
            f"{without[0]}: is CT without RescaleSlope and RescaleIntercept, so that its "
            "values are not known to be HU. Export the series again."
        )


def _pixels(instances: Sequence[Instance]) -> NDArray[np.float32]:
    """(I, J, K) float32, each slice by its own rescale."""
    import SimpleITK as sitk

    reader = sitk.ImageSeriesReader()
    reader.SetOutputPixelType(sitk.sitkFloat32)
    reader.SetFileNames([itk_name(one.path) for one in instances])
    try:
        image = reader.Execute()
    except (RuntimeError, MemoryError) as error:
        raise _first_undecodable(instances) from error
    array = sitk.GetArrayViewFromImage(image)  # (K, J, I)
    if array.ndim != 3:
        raise DataError(
            f"{instances[0].path}: decodes to {array.ndim} dimensions; expected grey slices."
        )
    return np.array(array.transpose(2, 1, 0), order="F")


def _pixels_as_stored(instances: Sequence[Instance]) -> NDArray[np.float32]:
    """Values as `_pixels` gives them, by pydicom: GDCM inverts MONOCHROME1 wrongly, or fails."""
    planes = []
    for one in instances:
        try:
            pixels = import_pydicom().dcmread(one.path, force=True).pixel_array
        except (ValueError, RuntimeError, AttributeError, NotImplementedError) as error:
            raise DataError(
                f"{one.path}: its pixels cannot be read ({reason_of(error)}). Copy it again, or "
                "install its codec: pip install 'medsam_tune[dicom]'"
            ) from error
        slope, intercept = one.rescale or (1.0, 0.0)
        planes.append(pixels.astype(np.float32).T * np.float32(slope) + np.float32(intercept))
    return np.stack(planes, axis=-1)


def _first_undecodable(instances: Sequence[Instance]) -> DataError:
    """Error that names the file, which SimpleITK's own message does not always do."""
    import SimpleITK as sitk

    for one in instances:
        try:
            sitk.ReadImage(itk_name(one.path))
        except (RuntimeError, MemoryError) as error:
            return _undecodable(one.path, reason_of(error))
    return DataError(f"{instances[0].path}: the series cannot be read as one volume.")


def _undecodable(path: Path, reason: str) -> DataError:
    return DataError(
        f"{path}: its pixels cannot be read ({_syntax(path)}; {reason}). A truncated file: copy it "
        "again. A compression that is not known here: convert it, e.g. with dcmdjpeg or gdcmconv "
        "--raw."
    )


def _syntax(path: Path) -> str:
    """Name of a file's transfer syntax, such as "JPEG 2000 Image Compression"."""
    with understood(path):
        header = import_pydicom().dcmread(
            path, force=True, specific_tags=[], stop_before_pixels=True
        )
        uid = header.file_meta.get("TransferSyntaxUID")
        return "no transfer syntax" if uid is None else str(uid.name)


def _set_padding(
    array: NDArray[np.float32], instances: Sequence[Instance], modality: str, notes: list[str]
) -> None:
    """Fill padding in place, which each slice's own rescale finds; see `fill_padding`."""
    padded = np.zeros(array.shape, dtype=bool) if any(s.padding for s in instances) else None
    if padded is not None:
        for k, one in enumerate(instances):
            if one.padding is not None:
                slope, intercept = one.rescale or (1.0, 0.0)
                low, high = sorted(end * slope + intercept for end in one.padding)
                padded[..., k] = (array[..., k] >= low - 1e-3) & (array[..., k] <= high + 1e-3)
    fill_padding(array, padded, modality, notes)


def fill_padding(
    array: NDArray[np.float32],
    padded: NDArray[np.bool_] | None,
    modality: str,
    notes: list[str],
) -> None:
    """Set padding to air in CT, to the lowest measured value elsewhere; in place."""
    if padded is not None and padded.any() and not padded.all():
        value = AIR if modality == "CT" else float(array[~padded].min())
        array[padded] = value
        notes.append(f"padding set to {value:g} in {padded.mean():.1%} of the voxels")
    if modality == "CT" and array.min() < AIR:
        notes.append(f"{(array < AIR).mean():.1%} of the voxels below {AIR:g} HU set to that")
        np.maximum(array, AIR, out=array)


def bright(array: NDArray[np.float32], modality: str, notes: list[str]) -> NDArray[np.float32]:
    """Invert MONOCHROME1, except in CT, where values are HU however they are shown."""
    if modality == "CT":
        return array
    notes.append("MONOCHROME1: inverted")
    return np.asarray(array.max() + array.min() - array, dtype=np.float32)
