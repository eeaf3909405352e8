"""Results that cannot be written as DICOM, or only with care."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import torch
from pydicom.dataset import Dataset

from medsam_tune.formats.dicom.seg import read_segmentation
from medsam_tune.formats.mending import Mending
from medsam_tune.formats.open import load_image
from medsam_tune.inference.output import Source, refuse_taken_masks, write_masks
from medsam_tune.slices.cut import grid_of
from medsam_tune.slices.intensity import Percentiles
from medsam_tune.slices.rules import ScanRules
from tests.bad_inputs.table import NO_COUNTERPART, BadInput
from tests.dicom_series import write_series
from tests.scans import LABELS, small_scan, write_nifti

Made = tuple[Source, Path]  # and the file to write


def series(
    change: Callable[[int, Dataset], object] | None = None,
    name: str = "mask.dcm",
    codes: str | None = None,
) -> Callable[[Path], Made]:
    """A maker of a series, and of a table of codes."""

    def make(folder: Path) -> Made:
        if codes is not None:
            (folder / "codes.csv").write_text(codes)
        table = None if codes is None else folder / "codes.csv"
        return Source(write_series(folder / "series", change), codes=table), folder / name

    return make


def nifti(folder: Path) -> Made:
    return Source(write_nifti(folder / "scan.nii.gz", small_scan()[0])), folder / "mask.dcm"


def own_image(folder: Path) -> Made:
    source, _ = series()(folder)
    assert source.scan is not None
    return source, next(Path(source.scan).glob("*-3.dcm"))


def without(*tags: str) -> Callable[[int, Dataset], None]:
    def change(_: int, image: Dataset) -> None:
        for tag in tags:
            setattr(image, tag, "")

    return change


def uneven(k: int, image: Dataset) -> None:
    image.ImagePositionPatient = [-3.0, 4.0, k + 0.4 * k * k]


def odd_texts(_: int, image: Dataset) -> None:
    image.SpecificCharacterSet, image.PatientSex = "", "U"
    with pydicom.config.disable_value_validation():
        image.add_new("PatientBirthDate", "DA", "19701399")


def almost_parallel(k: int, image: Dataset) -> None:
    image.ImageOrientationPatient = [1, k * 1e-7, 0, 0, 1, 0]


def planned(format: str | None = None) -> Callable[[Made], None]:
    """Ours, before a model runs."""

    def call(made: Made) -> None:
        source, path = made
        refuse_taken_masks(path, LABELS, overwrite=True, source=source, format=format)

    return call


def written(fill: int) -> Callable[[Made], Any]:
    """Ours, all of it."""

    def call(made: Made) -> Any:
        source, path = made
        grid = grid_of(load_image(Path(str(source.scan)), Mending()), ScanRules(Percentiles()))
        found = torch.zeros(grid.size[::-1], dtype=torch.uint8)
        found[2:4, 3:6, 1:5] = fill
        refuse_taken_masks(path, LABELS, source=source)
        write_masks(found, grid, path, LABELS, source=source)
        return read_segmentation(path).ids, grid.to_file(found)

    return call


def same_voxels(pair: tuple[np.ndarray, np.ndarray]) -> None:
    ids, expected = pair
    np.testing.assert_array_equal(ids, expected[..., expected.any(axis=(0, 1))])
    assert ids.any()


def no_voxel(pair: tuple[np.ndarray, np.ndarray]) -> None:
    assert not pair[0].any()


def refused(name: str, what: str, make: Any, message: str, format: str | None = None) -> BadInput:
    return BadInput(111, name, what, make, planned(format), NO_COUNTERPART, message)


INPUTS: tuple[BadInput, ...] = (
    refused(
        "seg-of-nifti",
        "DICOM SEG asked for of a NIfTI scan",
        nifti,
        r"scan\.nii\.gz: is not DICOM; a DICOM SEG refers to DICOM images\. Write the mask as",
    ),
    refused(
        "seg-without-uids",
        "DICOM SEG of a series without the UIDs of its images",
        series(without("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID")),
        r"\.dcm: has no SOPClassUID and no SOPInstanceUID and no StudyInstanceUID, by which a",
    ),
    refused(
        "rtstruct-without-frame",
        "RTSTRUCT of a series without FrameOfReferenceUID",
        series(without("FrameOfReferenceUID")),
        r"\.dcm: has no FrameOfReferenceUID; an RTSTRUCT lies at a place in the patient\.",
        "rtstruct",
    ),
    refused(
        "seg-uneven",
        "DICOM SEG of a series whose slices have to be resampled",
        series(uneven),
        r"expected even spacing\..* For a DICOM SEG, which lies on the images as they are, it",
    ),
    refused(
        "rtstruct-as-nifti",
        "RTSTRUCT asked for under a name of NIfTI",
        series(name="mask.nii.gz"),
        r"mask\.nii\.gz: --format rtstruct writes \.dcm, and the name ends otherwise; correct one",
        "rtstruct",
    ),
    refused(
        "seg-over-an-image",
        "DICOM SEG asked for in place of an image of its series",
        own_image,
        r"-3\.dcm: is an input; choose another file for the output\.",
    ),
    refused(
        "codes-of-another",
        "table of codes with a label that the model lacks",
        series(codes="label,type\nheart,SCT^80891009^Heart\n"),
        r"codes\.csv, line 2: no label is 'heart'; expected an id or a name of: 1 \(liver\), 2 \(",
    ),
    refused(
        "codes-without-scheme",
        "table of codes with a word for a code",
        series(codes="label,type\nliver,Liver\n"),
        r"codes\.csv, line 2: type is 'Liver'; expected scheme\^code\^meaning, such as SCT",
    ),
    refused(
        "codes-for-nifti",
        "table of codes for a NIfTI mask, which has no place for it",
        series(name="mask.nii.gz", codes="label\nliver\n"),
        r"mask\.nii\.gz: has no place for --codes; leave it out, or write a \.dcm\.",
    ),
    BadInput(
        111,
        "seg-odd-texts",
        "DICOM SEG of a series with an empty SpecificCharacterSet and a date that is none",
        series(odd_texts),
        written(1),
        NO_COUNTERPART,
        handled="written; what is of no form is left empty",
        check=same_voxels,
    ),
    BadInput(
        111,
        "seg-almost-parallel",
        "DICOM SEG of a series whose orientations differ in the seventh digit",
        series(almost_parallel),
        written(2),
        NO_COUNTERPART,
        handled="written, each frame on its image",
        check=same_voxels,
    ),
    BadInput(
        111,
        "seg-empty",
        "DICOM SEG of a mask without a voxel",
        series(),
        written(0),
        NO_COUNTERPART,
        handled="written: valid, all segments described, frames of two slices",
        check=no_voxel,
    ),
)
