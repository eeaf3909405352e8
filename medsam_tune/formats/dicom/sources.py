"""What a DICOM result says of the images that it was drawn on, and of the program that drew it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam_tune.errors import DataError
from medsam_tune.formats.dicom.codes import Structure
from medsam_tune.formats.dicom.geometry import affine_of
from medsam_tune.formats.dicom.headers import (
    Instance,
    import_highdicom,
    import_pydicom,
    read_header,
    understood,
)
from medsam_tune.formats.dicom.series import Series, choose_series
from medsam_tune.formats.dicom.stack import frames_as_they_are
from medsam_tune.formats.volume import Grid, same_affine, show_affine

WAY_OUT = "Write the mask as .nii.gz instead."

_UIDS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
PATIENT = {
    "PatientName": "patient_name",
    "PatientID": "patient_id",
    "PatientBirthDate": "patient_birth_date",
    "PatientSex": "patient_sex",
    "StudyID": "study_id",
    "StudyDate": "study_date",
    "StudyTime": "study_time",
    "AccessionNumber": "accession_number",
    "ReferringPhysicianName": "referring_physician_name",
}
"""What the modules of patient and study must have, even if it is empty (types 1 and 2): tag ->
argument of highdicom's `SOPClass`. Nothing else of a patient is copied."""


@dataclass(frozen=True)
class Frame:
    """One slice of the volume of a series.

    Attributes:
        instance: where it lies.
        sop_class: SOPClassUID of its file.
        uid: SOPInstanceUID of its file.
    """

    instance: Instance
    sop_class: str
    uid: str


@dataclass(frozen=True)
class Sources:
    """Images that a result refers to.

    Attributes:
        path: file or folder of the scan, for messages.
        series: their series.
        frames: slices in the order of the volume.
        patient: tag -> text, of what says who and which study it is.
        charset: SpecificCharacterSet of the images; empty where they have none.
    """

    path: Path
    series: Series
    frames: tuple[Frame, ...]
    patient: Mapping[str, str]
    charset: tuple[str, ...] = ()

    @property
    def orientation(self) -> NDArray[np.float64]:
        """(2, 3) directions along a row and along a column."""
        found = self.frames[0].instance.orientation
        assert found is not None
        return found

    @property
    def grid(self) -> Grid:
        """Size and place of their volume."""
        first = self.frames[0].instance
        positions = [one.instance.position for one in self.frames]
        affine = affine_of(first, np.array(positions, dtype=np.float64))
        return Grid((*first.size, len(self.frames)), affine)

    def check(self, shape: tuple[int, ...], affine: NDArray[np.float64]) -> None:
        """Refuse a mask that does not lie on the images.

        Raises:
            DataError: another size or place.
        """
        grid = self.grid
        if tuple(shape) != grid.shape or not same_affine(affine, grid.affine):
            raise DataError(
                f"{self.path}: the mask has {tuple(shape)} voxels at {show_affine(affine)}, the "
                f"images {grid.shape} at {show_affine(grid.affine)}; a DICOM result lies on the "
                f"images as they are. {WAY_OUT}"
            )


@dataclass(frozen=True)
class Algorithm:
    """What drew a result.

    Attributes:
        name: name of the program.
        version: its version.
        parameters: further facts, by name, such as the sha256 of the weights.
        serial: what tells this model from others, of at most 64 letters.
        prompted: whether somebody prompted it.
    """

    name: str
    version: str
    parameters: Mapping[str, str]
    serial: str = ""
    prompted: bool = False

    @property
    def kind(self) -> str:
        """DICOM's word for how a segment came about."""
        return "SEMIAUTOMATIC" if self.prompted else "AUTOMATIC"

    def sequence(self, highdicom: Any) -> Any:
        """highdicom's `AlgorithmIdentificationSequence`."""
        from pydicom.sr.codedict import codes

        return highdicom.AlgorithmIdentificationSequence(
            name=self.name,
            family=codes.DCM.ArtificialIntelligence,
            version=self.version,
            source=self.name,
            parameters={key: re.sub(r"[,=\\]", "_", text) for key, text in self.parameters.items()},
        )


def read_sources(path: Path, series_uid: str | None, what: str) -> Sources:
    """Read what a result has to say of a series; no pixel is read.

    Args:
        path: folder or file of the scan.
        series_uid: SeriesInstanceUID (or its end) where a folder holds several.
        what: kind of the result, e.g. "a DICOM SEG", for messages.

    Raises:
        DataError: highdicom is not installed; a series without the UIDs that a result must refer
            to, or one whose slices have to be resampled; as in `choose_series`.
    """
    import_highdicom(path, what)
    series = choose_series(path, series_uid)
    try:
        instances = frames_as_they_are(series)
    except DataError as error:
        raise DataError(
            f"{error} For {what}, which lies on the images as they are, it is not resampled; "
            f"for a resampled scan, write the mask as .nii.gz."
        ) from error
    uids = {file: _uids(file, what) for file in dict.fromkeys(one.path for one in instances)}
    frames = tuple(Frame(one, *uids[one.path]) for one in instances)
    first = instances[0]
    lacks = {
        "FrameOfReferenceUID": not series.frame,
        "ImagePositionPatient": first.position is None,
        "ImageOrientationPatient": first.orientation is None,
        "PixelSpacing": first.spacing is None,
    }
    if any(lacks.values()):
        raise DataError(
            f"{first}: has no {' and no '.join(tag for tag, absent in lacks.items() if absent)}; "
            f"{what} lies at a place in the patient. {WAY_OUT}"
        )
    return Sources(path, series, frames, *_patient(first.path))


def common(sources: Sources, algorithm: Algorithm, description: str) -> dict[str, Any]:
    """Arguments of highdicom's `SOPClass` that every result has.

    Args:
        sources: images that it refers to.
        algorithm: what drew it.
        description: SeriesDescription.
    """
    uid = import_pydicom().uid.generate_uid
    return {
        "series_instance_uid": str(uid()),
        "series_number": min(max(sources.series.number or 0, 0), 10**6) + 1000,
        "sop_instance_uid": str(uid()),
        "instance_number": 1,
        "manufacturer": algorithm.name,
        "manufacturer_model_name": algorithm.name,
        "software_versions": algorithm.version,
        "device_serial_number": algorithm.serial or "0",
        "series_description": description,
        "specific_character_set": "ISO_IR 192",  # UTF-8
    }


def use_charset(content: Any, sources: Sources, structures: Iterable[Structure]) -> None:
    """Write a result in the character set of its images, where its own texts allow that.

    Programs such as dcentvfy compare the names of patients byte by byte.

    Args:
        content: pydicom data set in UTF-8.
        sources: images that it refers to.
        structures: labels that it describes.
    """
    codes = [(one.category, one.type, one.region) for one in structures]
    texts = [one.name for one in structures]
    texts += [code.meaning for each in codes for code in each if code is not None]
    if sources.charset and all(map(str.isascii, texts)):
        content.SpecificCharacterSet = list(sources.charset)


def _uids(path: Path, what: str) -> tuple[str, str]:
    """SOPClassUID and SOPInstanceUID of a file."""
    header = read_header(path, _UIDS)
    with understood(path):
        found = {uid: str((header or {}).get(uid) or "") for uid in _UIDS}
    if absent := [uid for uid, text in found.items() if not text]:
        raise DataError(
            f"{path}: has no {' and no '.join(absent)}, by which {what} refers to its images. "
            f"{WAY_OUT}"
        )
    return found["SOPClassUID"], found["SOPInstanceUID"]


def _patient(path: Path) -> tuple[dict[str, str], tuple[str, ...]]:
    """Tag -> text of `PATIENT`, and the character set, where pydicom knows it.

    What is of no form that may be written is left empty.
    """
    header = read_header(path, ("SpecificCharacterSet", *PATIENT))
    with understood(path):
        texts = {tag: str((header or {}).get(tag) or "").strip() for tag in PATIENT}
        charset = (header or {}).get("SpecificCharacterSet") or ()
    sets = (charset,) if isinstance(charset, str) else tuple(charset)
    known = set(import_pydicom().charset.python_encoding)
    fitting = {tag: text if _fits(tag, text) else "" for tag, text in texts.items()}
    return fitting, sets if any(sets) and set(sets) <= known else ()


def _fits(tag: str, text: str) -> bool:
    kinds = import_pydicom().valuerep
    kind = kinds.DA if tag.endswith("Date") else kinds.TM if tag.endswith("Time") else str
    if tag == "PatientSex":
        return text in ("M", "F", "O")
    try:
        return "\\" not in text and kind(text) is not None
    except ValueError:
        return False
