"""Contours of a DICOM RTSTRUCT, by pydicom."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam_tune.errors import DataError
from medsam_tune.formats.dicom.headers import import_pydicom, without_warnings

_CLOSED = {"CLOSED_PLANAR", "CLOSEDPLANAR_XOR"}
_NO_ORGANS = {"EXTERNAL", "SUPPORT"}  # the body's outline and the couch, in every plan
_Points = NDArray[np.float64]


@dataclass(frozen=True)
class Region:
    """One ROI of a structure set.

    Attributes:
        number: ROINumber.
        name: ROIName, without blanks around it.
        kind: RTROIInterpretedType, such as "ORGAN", "PTV" or "EXTERNAL"; empty where unknown.
        contours: closed contours of (N, 3) float64 points each, LPS millimetres.
    """

    number: int
    name: str
    kind: str
    contours: tuple[_Points, ...]


def read_regions(path: Path) -> list[Region]:
    """The ROIs of a structure set that have closed contours; points and open lines are left out.

    Args:
        path: RTSTRUCT file.

    Raises:
        DataError: it cannot be read, or a contour is not made of points.
    """
    pydicom = import_pydicom()
    try:
        with without_warnings():
            content = pydicom.dcmread(path, force=True)
            names = {int(roi.ROINumber): roi for roi in content.get("StructureSetROISequence", ())}
            kinds = {
                int(one.ReferencedROINumber): str(one.get("RTROIInterpretedType") or "")
                for one in content.get("RTROIObservationsSequence", ())
            }
            regions = []
            for item in content.get("ROIContourSequence", ()):
                number = int(item.ReferencedROINumber)
                name = str(names[number].get("ROIName") or "").strip()
                contours = tuple(_closed(item))
                regions.append(Region(number, name, kinds.get(number, ""), contours))
    except Exception as error:  # whatever a broken file makes pydicom or numpy stumble on
        raise DataError(
            f"{path}: cannot read this RTSTRUCT ({type(error).__name__}). Export it again."
        ) from error
    return [region for region in regions if region.contours]


def _closed(item: Any) -> Iterator[_Points]:
    for contour in item.get("ContourSequence", ()):
        if contour.ContourGeometricType in _CLOSED:
            # As bytes: pydicom's own numbers are one object each, and contours have millions.
            value = contour.get_item("ContourData").value
            texts = value.strip(b"\0 ").split(b"\\") if isinstance(value, bytes) else value
            points = np.asarray(texts, dtype=np.float64).reshape(-1, 3)
            if not np.isfinite(points).all():
                raise ValueError("contour")
            yield points


def organ_regions(path: Path) -> list[Region]:
    """ROIs that may be an organ: not the body's outline and not the couch.

    Raises:
        DataError: as in `read_regions`.
    """
    return [one for one in read_regions(path) if one.name and one.kind not in _NO_ORGANS]
