"""Masks as files in the scan's own grid, in the format that a file's ending says."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from medsam_tune.errors import DataError, nearest
from medsam_tune.files import refuse_taken
from medsam_tune.formats import coco, geotiff, image, vectors
from medsam_tune.formats.open import WRITTEN, format_of, is_flat, read_grid, write_array
from medsam_tune.inference import dicom_output as dicom
from medsam_tune.inference.aftercare import Aftercare
from medsam_tune.inference.canvas import LogitCanvas
from medsam_tune.inference.dicom_output import Source as Source
from medsam_tune.inference.polygons import write_polygons
from medsam_tune.slices.frames import ScanGrid

COCO = "coco"
"""Name of COCO's JSON among the formats; it holds objects, see `instances.write_instances`."""

FORMATS = {
    **{ending.removeprefix("."): ending for ending in (*WRITTEN, *vectors.WRITTEN)},
    COCO: coco.ENDING,
    **dict.fromkeys(dicom.KINDS, ".dcm"),
}
"""Name of a format -> ending of its files; of several with one ending, the first is its default."""

_ODD = re.compile(r"[^\w.+-]+")


def format_for(path: str | Path, format: str | None = None) -> str:
    """The format of a mask, a key of `FORMATS`, by what is asked for and by its file's ending.

    Raises:
        DataError: an ending of no format, or of another than is asked for.
        ValueError: no such format.
    """
    if format is not None and format not in FORMATS:
        raise ValueError(
            f"format is {format!r}; expected one of {', '.join(FORMATS)}.{nearest(format, FORMATS)}"
        )
    name = Path(path).name.lower()
    fitting = [key for key, ending in FORMATS.items() if name.endswith(ending)]
    if not fitting:
        *others, last = dict.fromkeys(FORMATS.values())
        raise DataError(f"{path}: expected a name that ends in {', '.join(others)} or {last}.")
    if format is not None and format not in fitting:
        raise DataError(
            f"{path}: --format {format} writes {FORMATS[format]}, and the name ends otherwise; "
            "correct one of them."
        )
    return format or fitting[0]


def write_masks(
    found: Tensor | Mapping[int, Tensor],
    grid: ScanGrid,
    path: str | Path,
    labels: Mapping[int, str],
    aftercare: Aftercare | None = None,
    *,
    source: Source | None = None,
    format: str | None = None,
    logits: LogitCanvas | None = None,
) -> dict[Path, dict[int, int]]:
    """Write a label map, or a mask for each label, in the scan's own grid, whole or not at all.

    Masks by label are a file each, see `mask_paths`; in DICOM they are one file, whose segments or
    ROIs may overlap.

    Args:
        found: (Z, H, W) integer label slices, or label id -> (Z, H, W) bool.
        grid: grid of the scan.
        path: file to write; of masks by label, see `mask_paths`.
        labels: label id -> name.
        aftercare: what is done to the masks; nothing by default.
        source: what a DICOM result says of its origin.
        format: name of the format, see `format_for`; by default that of the ending.
        logits: logits of the labels, whose probabilities polygons tell; None leaves them out.

    Returns:
        file -> label id -> number of its voxels in the scan's own grid, of each that has one.

    Raises:
        DataError: another ending, ids that are none, or a refusal of `check_output`.
    """
    chosen = format_for(path, format)
    if chosen in dicom.KINDS:
        origin = source or Source()
        counts = _write_dicom(found, grid, Path(path), labels, aftercare, origin, chosen)
        return {Path(path): counts}
    if isinstance(found, Tensor):
        if vectors.is_vector(Path(path)):
            return {Path(path): _write_polygons(found, grid, Path(path), labels, aftercare, logits)}
        return {Path(path): write_mask(found, grid, path, aftercare)}
    paths = mask_paths(path, labels)
    written = {}
    for label, mask in found.items():
        count = sum(write_mask(mask, grid, paths[label], aftercare).values())
        written[paths[label]] = {label: count} if count else {}
    return written


def _write_dicom(
    found: Tensor | Mapping[int, Tensor],
    grid: ScanGrid,
    path: Path,
    labels: Mapping[int, str],
    aftercare: Aftercare | None,
    source: Source,
    kind: str,
) -> dict[int, int]:
    """Write masks as DICOM; label id -> number of voxels."""
    if isinstance(found, Tensor):
        array = on_grid(found, grid, aftercare)
        dicom.write(path, array, grid.affine, labels, source, kind)
        return _counts(array)
    masks = {k: on_grid(mask, grid, aftercare) > 0 for k, mask in sorted(found.items())}
    dicom.write(path, masks, grid.affine, {k: labels[k] for k in masks}, source, kind)
    return {k: n for k, mask in masks.items() if (n := int(mask.sum()))}


def _write_polygons(
    found: Tensor,
    grid: ScanGrid,
    path: Path,
    labels: Mapping[int, str],
    aftercare: Aftercare | None,
    logits: LogitCanvas | None,
) -> dict[int, int]:
    """Write the pieces of a label map as polygons; label id -> number of pixels."""
    array = on_grid(found, grid, aftercare)
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=path.parent, prefix=".scene") as folder:
        maps = Path(folder) / "labels.tif"
        write_array(maps, array, grid.affine, georeference=grid.georeference)
        beside = None
        if logits is not None:
            beside = Path(folder) / "probability.tif"
            likely = np.zeros(array.shape, np.float32)
            for label in logits.labels:
                own = array == label
                likely[own] = grid.to_file(logits.probabilities(label))[own]
            write_array(beside, likely, grid.affine, georeference=grid.georeference)
        write_polygons(path, maps, labels, beside)
    return _counts(array)


def mask_paths(path: str | Path, labels: Mapping[int, str]) -> dict[int, Path]:
    """Label id -> file of its own mask: `mask.nii.gz` becomes `mask_1_liver.nii.gz`.

    Signs of a name that files should not have become "_".
    """
    path = Path(path)
    ending = ending_of(path)
    stem = path.name.removesuffix(ending)
    return {
        label: path.with_name(f"{stem}_{label}_{_ODD.sub('_', name)[:64]}{ending}")
        for label, name in labels.items()
    }


def masks_at(path: str | Path, labels: Mapping[int, str], separate: bool) -> list[Path]:
    """Files that a mask may be written to: itself, or one for each label; in DICOM always one."""
    several = separate and ending_of(path).lower() not in {FORMATS[kind] for kind in dicom.KINDS}
    return [*mask_paths(path, labels).values()] if several else [Path(path)]


def ending_of(path: str | Path) -> str:
    """The ending of a mask's name as it is written, such as ".nii.gz"; empty for other names."""
    name = Path(path).name
    known = (ending for ending in FORMATS.values() if name.lower().endswith(ending))
    return name[len(name) - len(next(known, "")) :]


def refuse_taken_masks(
    path: str | Path,
    labels: Mapping[int, str],
    separate: bool = False,
    overwrite: bool = False,
    inputs: Iterable[str | Path | None] = (),
    *,
    source: Source | None = None,
    format: str | None = None,
    way_out: str = "say --overwrite",
) -> None:
    """Refuse masks that are there already or that cannot be written, and an input as output.

    Args:
        path: mask to write.
        labels: label id -> name.
        separate: one file for each label is written instead; in DICOM it is one file all the same.
        overwrite: replace files that are there.
        inputs: files that are read.
        source: what a DICOM result says of its origin.
        format: name of the format, see `format_for`; by default that of the ending.
        way_out: how a user has files replaced.

    Raises:
        DataError: see above; as in `check_output`.
    """
    format_for(path, format)
    given = [*inputs]
    for each in masks_at(path, labels, separate):
        refuse_taken(each, overwrite, given, way_out)
    check_output(path, labels, separate, source, format)


def check_output(
    path: str | Path,
    labels: Mapping[int, str],
    separate: bool = False,
    source: Source | None = None,
    format: str | None = None,
) -> None:
    """Refuse what cannot be written, before a model runs.

    Args:
        path: mask to write.
        labels: label id -> name.
        separate: masks of labels may overlap.
        source: what a DICOM result says of its origin.
        format: name of the format, see `format_for`.

    Raises:
        DataError: another ending; a refusal of `dicom_output.check`.
        ValueError: settings that contradict each other.
    """
    chosen, origin = format_for(path, format), source or Source()
    flat = (*image.WRITTEN, *geotiff.WRITTEN, *vectors.WRITTEN)
    if FORMATS[chosen] in flat and not (origin.scan is None or _is_image(Path(origin.scan))):
        raise DataError(
            f"{path}: a 2-D image holds one slice, and {origin.scan} is no 2-D image. Write the "
            "mask as .nii.gz."
        )
    if FORMATS[chosen] in vectors.WRITTEN:
        _check_polygons(Path(path), separate, origin.scan)
    if chosen in dicom.KINDS:
        dicom.check(Path(path), labels, origin, chosen, separate)
    elif origin.codes is not None:
        raise DataError(f"{path}: has no place for --codes; leave it out, or write a .dcm.")
    elif origin.segmentation != Source.segmentation:
        raise ValueError(
            f"segmentation is {origin.segmentation!r}, which is for a DICOM SEG; leave it out."
        )


def _is_image(scan: Path) -> bool:
    """Whether a scan is a 2-D image: a file of one, or DICOM of one slice, such as a radiograph."""
    return is_flat(scan) or (format_of(scan) is None and read_grid(scan).shape[2:] == (1,))


def _check_polygons(path: Path, separate: bool, scan: Path | str | None) -> None:
    """Refuse polygons of an image without a place on the ground, and a file for each label."""
    if separate:
        raise ValueError(
            f"{path}: separate masks are a file each; expected a .tif, or polygons of all labels "
            "in one file. Leave --separate out."
        )
    place = None if scan is None else read_grid(Path(scan)).georeference
    if place is None or not place.crs:
        raise DataError(
            f"{path}: polygons need an image with a coordinate system, and {scan} has none. Write "
            "the mask as .tif or .png."
        )


def write_mask(
    labels: Tensor, grid: ScanGrid, path: str | Path, aftercare: Aftercare | None = None
) -> dict[int, int]:
    """Write label slices in the scan's own grid, whole or not at all.

    A NIfTI mask has the qform_code and sform_code of a NIfTI scan, and lies in millimetres.

    Args:
        labels: (Z, H, W) integer label slices, or bool.
        grid: grid of the scan.
        path: file to write, of one of `formats.open.WRITTEN`.
        aftercare: what is done to the masks; nothing by default.

    Returns:
        label id -> number of its voxels in the scan's own grid, of each that has one.

    Raises:
        DataError: another ending, or ids that are none, see `write_array`.
    """
    array = on_grid(labels, grid, aftercare)
    write_array(Path(path), array, grid.affine, grid.codes, grid.georeference)
    return _counts(array)


def _counts(array: NDArray[np.integer]) -> dict[int, int]:
    """Label id -> number of its voxels, of each that has one."""
    ids, counts = np.unique(array[array > 0], return_counts=True)
    return dict(zip(ids.tolist(), counts.tolist(), strict=True))


def on_grid(
    labels: Tensor, grid: ScanGrid, aftercare: Aftercare | None = None
) -> NDArray[np.integer]:
    """Label slices (Z, H, W), integer or bool -> (I, J, K) ids in the scan's own grid."""
    array: Any = grid.to_file(labels)
    if array.dtype == bool:
        array = array.astype(np.uint8)
    if aftercare is not None:
        array = aftercare.labels(array, grid.voxel_ml, grid.slice_axis)
    return array  # type: ignore[no-any-return]
