"""Made-up DICOM studies as an archive exports them: CT series, and a SEG or RTSTRUCT of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam_tune.formats.dicom.codes import structures
from medsam_tune.formats.dicom.headers import import_pydicom
from medsam_tune.formats.dicom.rtstruct_writing import write_structure_set
from medsam_tune.formats.dicom.seg_writing import write_segmentation
from medsam_tune.formats.dicom.sources import Algorithm, read_sources
from medsam_tune.synthetic.phantom import LABELS, make_phantom

_DRAWN_BY = Algorithm("medsam_tune.synthetic", "1", {}, "")
_ABOVE = 1024  # added to Hounsfield units in the file; RescaleIntercept takes it off


def write_archive(
    folder: Path,
    count: int = 12,
    seed: int = 0,
    shape: tuple[int, int, int] = (96, 80, 24),
    spacing: tuple[float, float, float] = (3.6, 3.2, 5.0),
    noise: float = 12.0,
    first: int = 0,
    labelled: bool = True,
    rtstruct: bool = False,
) -> Path:
    """Write the phantoms of `write_phantoms` as DICOM studies.

    Args:
        folder: folder for `patient_000/CT/000.dcm` and so on, and `patient_000/SEG/label.dcm` or
            `patient_000/RTSTRUCT/label.dcm`.
        count: number of patients, one series each.
        seed: seed; it fixes pixels, headers and identifiers.
        shape: (X, Y, Z) voxels: right-left, anterior-posterior, feet-head.
        spacing: (x, y, z) millimetres.
        noise: standard deviation of the noise, Hounsfield units.
        first: number of the first patient.
        labelled: write the labels too.
        rtstruct: labels are an RTSTRUCT, contours in each slice, instead of a DICOM SEG.

    Returns:
        the folder.

    Raises:
        DataError: the extra `dicom` is not installed.
    """
    folder = Path(folder)
    for number in range(first, first + count):
        rng = np.random.default_rng([seed, number])
        image, label = make_phantom(rng, shape, spacing, noise)
        study = folder / f"patient_{number:03d}"
        _write_series(study / "CT", image, spacing, (seed, number))
        if labelled:
            kind = "RTSTRUCT" if rtstruct else "SEG"
            (study / kind).mkdir(parents=True, exist_ok=True)
            sources = read_sources(study / "CT", None, f"a DICOM {kind}")
            write = write_structure_set if rtstruct else write_segmentation
            write(study / kind / "label.dcm", label, sources, structures(LABELS), _DRAWN_BY)
    return folder


def _write_series(
    folder: Path,
    image: NDArray[np.int16],
    spacing: tuple[float, float, float],
    identity: tuple[int, int],
) -> None:
    """A CT series of an image (X, Y, Z) int16 HU, LPS; one file for each slice."""
    folder.mkdir(parents=True, exist_ok=True)
    pydicom: Any = import_pydicom()
    uid, dataset = pydicom.uid, pydicom.dataset
    corner = -np.array(spacing) * (np.array(image.shape) - 1) / 2

    def unique(*words: object) -> str:
        return str(uid.generate_uid(entropy_srcs=["archive", *map(str, (*identity, *words))]))

    for k in range(image.shape[2]):
        file = dataset.Dataset()
        file.file_meta = dataset.FileMetaDataset()
        file.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
        file.file_meta.MediaStorageSOPClassUID = file.SOPClassUID = uid.CTImageStorage
        file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID = unique("image", k)
        file.StudyInstanceUID, file.SeriesInstanceUID = unique("study"), unique("series")
        file.FrameOfReferenceUID = unique("frame")
        file.PatientID = f"PHANTOM{identity[1]:03d}"
        file.PatientName, file.PatientBirthDate = f"Phantom^{identity[1]:03d}", ""
        file.PatientSex = file.StudyDate = file.StudyTime = file.AccessionNumber = ""
        file.StudyID = file.ReferringPhysicianName = file.Manufacturer = ""
        file.Modality, file.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
        file.SeriesDescription, file.SeriesNumber = "synthetic abdomen", 2
        file.PatientPosition, file.PositionReferenceIndicator, file.Laterality = "HFS", "", ""
        file.AcquisitionNumber, file.InstanceNumber, file.KVP = 1, k + 1, 120
        file.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        file.ImagePositionPatient = [*corner[:2].tolist(), float(corner[2] + k * spacing[2])]
        file.PixelSpacing, file.SliceThickness = [spacing[1], spacing[0]], spacing[2]
        file.Columns, file.Rows = image.shape[:2]
        file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
        file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 16, 12, 11, 0
        file.RescaleSlope, file.RescaleIntercept, file.RescaleType = 1, -_ABOVE, "HU"
        file.WindowCenter, file.WindowWidth = 40, 400
        stored = (image[:, :, k].T.astype(np.int32) + _ABOVE).clip(0, 4095).astype("<u2")
        file.PixelData = np.ascontiguousarray(stored).tobytes()
        file.save_as(folder / f"{k:03d}.dcm", enforce_file_format=True)
