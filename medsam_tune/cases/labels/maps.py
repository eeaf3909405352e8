"""Label maps on their image's grid.

Sources: a file, a DICOM SEG or RTSTRUCT, or a folder with a file for each organ.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Orientation, ResampleToMatch
from numpy.typing import NDArray

from medsam_tune.cases.checks import check_affine, check_pair, label_values
from medsam_tune.errors import DataError
from medsam_tune.formats.dicom.headers import object_kind
from medsam_tune.formats.dicom.references import check_references
from medsam_tune.formats.dicom.rtstruct import named_regions, organ_regions, rasterise
from medsam_tune.formats.dicom.seg import read_segmentation, segment_names
from medsam_tune.formats.mending import Mending
from medsam_tune.formats.open import ENDINGS, case_id, load_image
from medsam_tune.formats.volume import (
    DIRECTION_TOLERANCE,
    POSITION_TOLERANCE,
    image_from,
    same_affine,
)


def load_label(
    path: Path,
    image: MetaTensor,
    image_path: Path,
    labels: Mapping[int, str],
    mending: Mending | None = None,
) -> MetaTensor:
    """A label map on the grid of its image.

    Args:
        path: a file that `load_image` reads; a DICOM SEG, whose segment numbers are the ids; a
            DICOM RTSTRUCT, whose ROIs have the labels' names; or a folder with a file for each
            organ, named after it, where all above 0 is that organ.
        image: (1, X, Y, Z), in the orientation that the label shall have.
        image_path: for messages.
        labels: label id -> name.
        mending: whether a label of another grid is resampled.

    Returns:
        (1, X, Y, Z) int32, of the image's affine.

    Raises:
        DataError: a label that does not lie on the image's grid, or was drawn in another frame of
            reference; values that are no ids, organs that overlap, an organ without an id. ROIs of
            an RTSTRUCT that `labels` does not name are left out, which `meta["notes"]` says.
    """
    resample = bool(mending and mending.resample_label)
    if path.is_dir():
        return _merged(path, image, image_path, labels, resample)
    kind = label_kind(path)
    if kind == "RTSTRUCT":
        check_references(image, path)
        return rasterise(path, image, labels)
    if kind == "SEG":
        label = _placed(image_from(read_segmentation(path)), path, image, resample)
        label = _on_grid(path, label, image)
        check_references(image, path)
    else:
        label = _placed(load_image(path), path, image, resample)
    check_pair(image, label, labels, image_path, path)
    return cast(MetaTensor, label.to(torch.int32))


def labels_present(path: Path, labels: Mapping[int, str]) -> set[int]:
    """Which of the labels a label file, SEG or folder of organs has a voxel of.

    Of an RTSTRUCT, which it has a contour of.

    Raises:
        DataError: it cannot be read.
    """
    if path.is_dir():
        ids = {name: i for i, name in labels.items()}
        organs = {name: load_image(file) for name, file in organ_files(path).items()}
        return {ids[name] for name, organ in organs.items() if name in ids and organ.max() > 0}
    kind = label_kind(path)
    if kind == "RTSTRUCT":
        return set(named_regions(path, labels)[0])
    label = image_from(read_segmentation(path)) if kind == "SEG" else load_image(path)
    return set(label_values(label.as_tensor())) & set(labels)


def label_names(path: Path) -> dict[int, str]:
    """Ids in a label file and their names, as far as it says.

    Of an RTSTRUCT the numbers and names of its ROIs, but the body's outline and the couch.

    Raises:
        DataError: it cannot be read, or holds values that are no ids.
    """
    kind = label_kind(path)
    if kind == "RTSTRUCT":
        return {region.number: region.name for region in organ_regions(path)}
    if kind == "SEG":
        return segment_names(path)
    values = load_image(path).as_tensor()
    odd = values[(values != values.round()) | (values < 0)]
    if len(odd):
        raise DataError(
            f"label map holds values that are no ids: {odd.unique()[:10].tolist()} "
            f"({path}); expected 0, 1, 2, ... Export it again."
        )
    return {value: f"label {value}" for value in label_values(values) if value}


def label_kind(path: Path) -> str:
    """Modality of a DICOM file, "SEG" or "RTSTRUCT"; empty for other files and for folders."""
    if not path.is_file() or path.name.lower().endswith(ENDINGS):
        return ""
    return object_kind(path)


def _placed(label: MetaTensor, path: Path, image: MetaTensor, resample: bool) -> MetaTensor:
    """In the image's orientation; on its grid as well, where the label's is another and may be."""
    check_affine(label, path)
    axes = nib.orientations.aff2axcodes(_affine(image))
    label = cast(MetaTensor, Orientation(axcodes=axes, labels=None)(label))
    same = label.shape[1:] == image.shape[1:] and same_affine(_affine(label), _affine(image))
    if same or not resample:
        return label
    onto = ResampleToMatch(mode="nearest", padding_mode="zeros", dtype=np.float64)
    return cast(MetaTensor, onto(label, image))


def _on_grid(path: Path, label: MetaTensor, image: MetaTensor) -> MetaTensor:
    """A part of the image's grid, as a SEG that leaves empty slices out, filled up to all of it."""
    step = np.linalg.inv(_affine(image)) @ _affine(label)
    start = np.round(step[:3, 3]).astype(int)
    spacing = np.linalg.norm(_affine(image)[:3, :3], axis=0)
    turned = np.abs(step[:3, :3] - np.eye(3)).max() > DIRECTION_TOLERANCE
    beside = (np.abs(step[:3, 3] - start) * spacing).max() > 10 * POSITION_TOLERANCE
    stop = start + label.shape[1:]
    if turned or beside or (start < 0).any() or (stop > image.shape[1:]).any():
        raise DataError(
            f"the segmentation's grid is no part of the image's ({path}); they must "
            "come from the same series. Choose the segmentation of this series."
        )
    filled = torch.zeros_like(image.as_tensor())
    filled[(slice(None), *map(slice, start, stop))] = label.as_tensor()
    return MetaTensor(filled, meta=dict(image.meta))


def _affine(image: MetaTensor) -> NDArray[np.float64]:
    return np.asarray(image.affine, dtype=np.float64)


def organ_files(folder: Path) -> dict[str, Path]:
    """Organ -> file of a folder.

    Raises:
        DataError: there is none.
    """
    files = [path for path in sorted(folder.iterdir()) if path.name.lower().endswith(ENDINGS)]
    if not files:
        raise DataError(
            f"{folder}: no label map in it; expected a file for each organ, e.g. liver.nii.gz."
        )
    return {case_id(path): path for path in files}


def _merged(
    folder: Path,
    image: MetaTensor,
    image_path: Path,
    labels: Mapping[int, str],
    resample: bool,
) -> MetaTensor:
    ids = {name: i for i, name in labels.items()}
    merged = torch.zeros(image.shape, dtype=torch.int32)
    for name, path in organ_files(folder).items():
        if name not in ids:
            raise DataError(
                f"{path} is of no label that the datalist names; known: "
                f"{', '.join(ids)}. Rename or remove the file."
            )
        organ = _placed(load_image(path), path, image, resample)
        check_pair(image, organ, label_values(organ.as_tensor()), image_path, path)
        inside = organ.as_tensor() > 0
        twice = int((inside & (merged > 0)).sum())
        if twice:
            raise DataError(
                f"{twice} voxels of {path} are in another organ's file as well; "
                "expected each voxel in one. Correct the label maps."
            )
        merged[inside] = ids[name]
    return MetaTensor(merged, meta=dict(image.meta))
