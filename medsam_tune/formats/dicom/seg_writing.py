"""DICOM SEG of a mask that lies on the images of a series, by highdicom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam_tune.errors import DataError
from medsam_tune.files import written_whole
from medsam_tune.formats.dicom.codes import Code, Structure
from medsam_tune.formats.dicom.headers import import_highdicom, import_pydicom, without_warnings
from medsam_tune.formats.dicom.sources import (
    WAY_OUT,
    Algorithm,
    Frame,
    Sources,
    common,
    use_charset,
)

SEGMENTATIONS = ("binary", "labelmap")
"""What a SEG may hold: a bit for each segment, which every viewer reads; or the ids themselves."""

HIGHEST_NUMBER = 65535
"""Highest number of a segment."""

Masks = NDArray[np.integer] | Mapping[int, NDArray[np.bool_]]
"""Label ids (I, J, K); or label id -> (I, J, K) bool, which may overlap."""


def write_segmentation(
    path: Path,
    masks: Masks,
    sources: Sources,
    structures: Sequence[Structure],
    algorithm: Algorithm,
    kind: str = "binary",
) -> None:
    """Write a mask as DICOM SEG, whole or not at all.

    Binary segments have the numbers 1, 2, 3 and so on in the order of the label ids, as DICOM wants
    it; those of a labelmap are the label ids. Slices without any segment are left out. A segment
    without a voxel is described and has no frame; if all are, there are frames of two slices.

    Args:
        path: file to write.
        masks: on the grid of the images, in their order.
        sources: images that it refers to.
        structures: description of each label, by id.
        algorithm: what drew it.
        kind: one of `SEGMENTATIONS`.

    Raises:
        DataError: highdicom cannot make one of these images.
        ValueError: masks that overlap as a labelmap.
    """
    segmentation = _segmentation(path, masks, sources, structures, algorithm, kind)
    with without_warnings(), written_whole(path) as beside:
        segmentation.save_as(beside)


def try_segmentation(
    path: Path,
    sources: Sources,
    structures: Sequence[Structure],
    algorithm: Algorithm,
    kind: str = "binary",
) -> None:
    """Make an empty SEG and write nothing; the reasons why one cannot be made come up.

    Raises:
        DataError: ids of segments that are too high for a labelmap; as in `write_segmentation`.
    """
    highest = max(one.label for one in structures)
    if kind == "labelmap" and highest > HIGHEST_NUMBER:
        raise DataError(
            f"{path}: label id {highest}; a labelmap of DICOM holds ids up to {HIGHEST_NUMBER}. "
            "Leave segmentation=labelmap out."
        )
    nothing = np.zeros(sources.grid.shape, np.uint8)
    _segmentation(path, nothing, sources, structures, algorithm, kind)


def _segmentation(
    path: Path,
    masks: Masks,
    sources: Sources,
    structures: Sequence[Structure],
    algorithm: Algorithm,
    kind: str,
) -> Any:
    """highdicom's `Segmentation`."""
    highdicom = import_highdicom(path, "a DICOM SEG")
    planes = _planes(masks)
    pixels = _pixels(masks, planes, [one.label for one in structures], kind)
    places = [
        highdicom.PlanePositionSequence("PATIENT", sources.frames[k].instance.position)
        for k in planes
    ]
    try:
        with without_warnings():
            found = highdicom.seg.Segmentation(
                source_images=_images(sources),
                pixel_array=pixels,
                segmentation_type=kind.upper(),
                segment_descriptions=[
                    _described(highdicom, one, one.label if kind == "labelmap" else n, algorithm)
                    for n, one in enumerate(structures, start=1)
                ],
                plane_positions=places,
                omit_empty_frames=bool(pixels.any()),
                content_label="SEGMENTATION",
                content_creator_name="",
                **common(sources, algorithm, f"{algorithm.name} segmentation"),
            )
            use_charset(found, sources, structures)
            return found
    except Exception as error:  # whatever headers make highdicom stumble on
        raise DataError(
            f"{sources.path}: highdicom cannot make a DICOM SEG of these images "
            f"({type(error).__name__}). {WAY_OUT}"
        ) from error


def _planes(masks: Masks) -> list[int]:
    """Indices of the slices with a voxel.

    An empty mask has two in the middle: of several frames in one place, dcmqi knows no spacing.
    """
    every = list(masks.values()) if isinstance(masks, Mapping) else [masks]
    filled = np.any([mask.any(axis=(0, 1)) for mask in every], axis=0)
    middle = len(filled) // 2
    return np.flatnonzero(filled).tolist() or [*range(max(middle - 1, 0), middle + 1)]


def _pixels(
    masks: Masks, planes: Sequence[int], labels: Sequence[int], kind: str
) -> NDArray[np.integer]:
    """(planes, rows, columns) numbers of segments; of masks by label (..., segments) 0 and 1."""
    if isinstance(masks, Mapping):
        if kind == "labelmap":
            raise ValueError(
                "segmentation is 'labelmap', in which masks cannot overlap; expected binary for "
                "separate masks."
            )
        stacked = np.stack([masks[label][..., planes] for label in labels], axis=-1)
        return stacked.transpose(2, 1, 0, 3).astype(np.uint8)
    ids = masks[..., planes].transpose(2, 1, 0)
    numbers = ids if kind == "labelmap" else np.searchsorted([0, *labels], ids)
    return numbers.astype(np.uint8 if numbers.max(initial=0) < 256 else np.uint16)


def _described(highdicom: Any, one: Structure, number: int, algorithm: Algorithm) -> Any:
    """highdicom's `SegmentDescription`."""
    found = highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=one.name,
        segmented_property_category=concept(highdicom, one.category),
        segmented_property_type=concept(highdicom, one.type),
        algorithm_type=algorithm.kind,
        algorithm_identification=algorithm.sequence(highdicom),
        anatomic_regions=[concept(highdicom, one.region)] if one.region else None,
        display_color=highdicom.color.CIELabColor.from_rgb(*one.colour),
    )
    if one.side is not None:
        side = concept(highdicom, one.side)
        kind = found.SegmentedPropertyTypeCodeSequence[0]
        kind.SegmentedPropertyTypeModifierCodeSequence = [side]
    return found


def concept(highdicom: Any, code: Code) -> Any:
    """highdicom's `CodedConcept`."""
    return highdicom.sr.CodedConcept(code.value, code.scheme, code.meaning)


def _images(sources: Sources) -> list[Any]:
    """What highdicom has to know of the images, and nothing else of their headers."""
    if sources.frames[0].instance.frame:
        return [_image(sources, sorted(sources.frames, key=lambda one: one.instance.frame))]
    return [_image(sources, [frame]) for frame in sources.frames]


def _image(sources: Sources, frames: Sequence[Frame]) -> Any:
    """The header of a file, both as that of a single image and of a multi-frame one.

    Slices are as thick as they are apart; orientation and spacing are those of the volume.

    Args:
        sources: all images.
        frames: frames of the file, in its own order.
    """
    dataset = import_pydicom().Dataset
    image, shared, measures, direction = (dataset() for _ in range(4))
    image.SOPClassUID, image.SOPInstanceUID = frames[0].sop_class, frames[0].uid
    image.StudyInstanceUID, image.SeriesInstanceUID = sources.series.study, sources.series.uid
    image.Modality = sources.series.modality
    image.Columns, image.Rows = frames[0].instance.size
    image.NumberOfFrames = len(frames)
    for tag, text in sources.patient.items():
        setattr(image, tag, text)
    columns, rows, slices = np.linalg.norm(sources.grid.affine[:3, :3], axis=0)
    measures.PixelSpacing = _numbers((rows, columns))
    measures.SliceThickness = measures.SpacingBetweenSlices = _numbers([slices])[0]
    image.update(measures)
    shared.PixelMeasuresSequence = [measures]
    image.FrameOfReferenceUID = sources.series.frame
    image.ImagePositionPatient = _numbers(frames[0].instance.position)
    direction.ImageOrientationPatient = _numbers(sources.orientation.ravel())
    image.update(direction)
    shared.PlaneOrientationSequence = [direction]
    image.SharedFunctionalGroupsSequence = [shared]
    image.PerFrameFunctionalGroupsSequence = [_place(dataset, frame) for frame in frames]
    return image


def _place(dataset: Any, frame: Frame) -> Any:
    """Functional groups of a frame."""
    place, groups = dataset(), dataset()
    place.ImagePositionPatient = _numbers(frame.instance.position)
    groups.PlanePositionSequence = [place]
    return groups


def _numbers(values: Any) -> list[Any]:
    """Numbers as DICOM writes them, in at most 16 letters."""
    kind = import_pydicom().valuerep.DS
    return [kind(float(value), auto_format=True) for value in values]
