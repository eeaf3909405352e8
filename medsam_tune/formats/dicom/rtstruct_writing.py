"""DICOM RTSTRUCT of a mask that lies on the images of a series, by highdicom and contourpy.

Not by rt-utils 1.2: its contours run through the centres of pixels, so that half a pixel is lost
around an organ; it takes columns for rows where pixels or slices are not square; it knows no
multi-frame files; it copies descriptions and the patient's age and weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam_tune.errors import DataError
from medsam_tune.files import written_whole
from medsam_tune.formats.dicom.codes import Structure
from medsam_tune.formats.dicom.contours import outlines
from medsam_tune.formats.dicom.geometry import plane_of
from medsam_tune.formats.dicom.headers import import_highdicom, import_pydicom, without_warnings
from medsam_tune.formats.dicom.seg_writing import Masks, concept
from medsam_tune.formats.dicom.sources import (
    PATIENT,
    WAY_OUT,
    Algorithm,
    Frame,
    Sources,
    common,
    use_charset,
)

_DETACHED_STUDY = "1.2.840.10008.3.1.2.3.1"  # the class of a referenced study, as PS3.3 wants it


def write_structure_set(
    path: Path,
    masks: Masks,
    sources: Sources,
    structures: Sequence[Structure],
    algorithm: Algorithm,
) -> None:
    """Write a mask as RTSTRUCT, whole or not at all.

    ROINumbers are the label ids. The contours are `contours.outlines`, in the planes of the images.
    An ROI without a voxel has no contour.

    Args:
        path: file to write.
        masks: on the grid of the images, in their order.
        sources: images that it refers to.
        structures: description of each label, by id.
        algorithm: what drew it.

    Raises:
        DataError: highdicom or pydicom cannot make one of these images.
    """
    labels = [one.label for one in structures]
    if isinstance(masks, Mapping):
        contours = {k: _contours(_slice_by_slice(masks[k]), sources) for k in labels}
    else:
        ids = _slice_by_slice(masks)
        contours = {k: _contours(ids == k, sources) for k in labels}
    content = structure_set(path, contours, sources, structures, algorithm)
    with without_warnings(), written_whole(path) as beside:
        content.save_as(beside, enforce_file_format=True)


def structure_set(
    path: Path,
    contours: Mapping[int, Sequence[tuple[Frame, NDArray[np.float64]]]],
    sources: Sources,
    structures: Sequence[Structure],
    algorithm: Algorithm,
) -> Any:
    """A structure set as a pydicom data set.

    Args:
        path: file to write, for messages.
        contours: label id -> slice and (N, 3) LPS millimetres of each contour.
        sources: images that it refers to.
        structures: description of each label, by id.
        algorithm: what drew it.

    Raises:
        DataError: see `write_structure_set`.
    """
    highdicom, pydicom = import_highdicom(path, "an RTSTRUCT"), import_pydicom()
    try:
        with without_warnings():
            content = highdicom.SOPClass(
                study_instance_uid=sources.series.study,
                sop_class_uid=pydicom.uid.RTStructureSetStorage,
                modality="RTSTRUCT",
                transfer_syntax_uid=pydicom.uid.ExplicitVRLittleEndian,
                **{PATIENT[tag]: text for tag, text in sources.patient.items()},
                **common(sources, algorithm, f"{algorithm.name} structure set"),
            )
            content.OperatorsName = ""
            content.FrameOfReferenceUID = sources.series.frame
            content.PositionReferenceIndicator = ""
            content.StructureSetLabel = algorithm.name[:16]
            content.StructureSetDate = content.InstanceCreationDate
            content.StructureSetTime = content.InstanceCreationTime
            content.ApprovalStatus = "UNAPPROVED"
            content.ReferencedFrameOfReferenceSequence = [_frame_of_reference(sources)]
            rois = [_roi(highdicom, one, sources, algorithm) for one in structures]
            content.StructureSetROISequence = rois
            content.ROIContourSequence = [_drawn(one, contours[one.label]) for one in structures]
            seen = [_observed(highdicom, n, one) for n, one in enumerate(structures, start=1)]
            content.RTROIObservationsSequence = seen
            use_charset(content, sources, structures)
            return content
    except Exception as error:  # whatever headers make highdicom and pydicom stumble on
        raise DataError(
            f"{sources.path}: no RTSTRUCT can be made of these images ({type(error).__name__}). "
            f"{WAY_OUT}"
        ) from error


def _contours(mask: NDArray[np.bool_], sources: Sources) -> list[tuple[Frame, NDArray[np.float64]]]:
    """Slice and (N, 3) LPS millimetres of each contour of a mask (K, I, J)."""
    found = []
    for k in np.flatnonzero(mask.any(axis=(1, 2))):
        frame = sources.frames[k]
        position, steps = plane_of(frame.instance)
        found += [(frame, position + points @ steps) for points in outlines(mask[k])]
    return found


def _slice_by_slice(array: NDArray[Any]) -> NDArray[Any]:
    """(I, J, K) -> (K, I, J), each slice in one piece of memory, which is ten times as fast."""
    return np.ascontiguousarray(array.transpose(2, 0, 1))


def _dataset(**tags: Any) -> Any:
    """A pydicom data set with some tags."""
    found = import_pydicom().Dataset()
    for tag, value in tags.items():
        setattr(found, tag, value)
    return found


def _image(frame: Frame) -> Any:
    """A reference to the image of a slice."""
    found = _dataset(ReferencedSOPClassUID=frame.sop_class, ReferencedSOPInstanceUID=frame.uid)
    if frame.instance.frame:
        found.ReferencedFrameNumber = frame.instance.frame
    return found


def _frame_of_reference(sources: Sources) -> Any:
    """The frame of reference, the study, the series and all of its images."""
    files = {frame.uid: frame for frame in sources.frames}
    images = [
        _dataset(ReferencedSOPClassUID=one.sop_class, ReferencedSOPInstanceUID=uid)
        for uid, one in files.items()
    ]
    series = _dataset(SeriesInstanceUID=sources.series.uid, ContourImageSequence=images)
    study = _dataset(
        ReferencedSOPClassUID=_DETACHED_STUDY,
        ReferencedSOPInstanceUID=sources.series.study,
        RTReferencedSeriesSequence=[series],
    )
    return _dataset(FrameOfReferenceUID=sources.series.frame, RTReferencedStudySequence=[study])


def _roi(highdicom: Any, one: Structure, sources: Sources, algorithm: Algorithm) -> Any:
    return _dataset(
        ROINumber=one.label,
        ReferencedFrameOfReferenceUID=sources.series.frame,
        ROIName=one.name,
        ROIGenerationAlgorithm=algorithm.kind,
        ROIDerivationAlgorithmIdentificationSequence=algorithm.sequence(highdicom),
    )


def _drawn(one: Structure, contours: Sequence[tuple[Frame, NDArray[np.float64]]]) -> Any:
    found = _dataset(ReferencedROINumber=one.label, ROIDisplayColor=[*one.colour])
    if contours:
        found.ContourSequence = [_contour(frame, points) for frame, points in contours]
    return found


def _contour(frame: Frame, points: NDArray[np.float64]) -> Any:
    found = _dataset(
        ContourImageSequence=[_image(frame)],
        ContourGeometricType="CLOSED_PLANAR",
        NumberOfContourPoints=len(points),
    )
    texts = [f"{mm:.10g}" for mm in points.ravel().tolist()]  # 16 letters at most
    # As texts: pydicom's own numbers are one object each, and contours have millions.
    element = import_pydicom().DataElement("ContourData", "DS", texts, already_converted=True)
    found.add(element)
    return found


def _observed(highdicom: Any, number: int, one: Structure) -> Any:
    return _dataset(
        ObservationNumber=number,
        ReferencedROINumber=one.label,
        RTROIIdentificationCodeSequence=[concept(highdicom, one.type)],
        RTROIInterpretedType="",
        ROIInterpreter="",
    )
