"""What a DICOM result takes from its images, and images that it cannot refer to."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.datadict import DicomDictionary
from pydicom.dataset import Dataset

from medsam_tune.errors import DataError
from medsam_tune.formats.dicom.rtstruct_writing import write_structure_set
from medsam_tune.formats.dicom.seg_writing import try_segmentation, write_segmentation
from medsam_tune.formats.dicom.sources import PATIENT, Sources, read_sources
from tests.dicom_results import DRAWN_BY, SEEN, drawn, errors, scan
from tests.dicom_series import COUNT, write_series
from tests.phi import NAME, NUMBER, plant

Write = Callable[[Path, Sources], None]


def as_seg(path: Path, sources: Sources) -> None:
    write_segmentation(path, drawn(sources.grid.shape), sources, SEEN, DRAWN_BY)


def as_structure_set(path: Path, sources: Sources) -> None:
    write_structure_set(path, drawn(sources.grid.shape), sources, SEEN, DRAWN_BY)


WRITERS = (as_seg, as_structure_set)


def sources_of(folder: Path, change: Callable[[int, Dataset], object] | None = None) -> Sources:
    return read_sources(write_series(folder, change), None, "a DICOM SEG")


def elements(content: Dataset) -> Iterator[pydicom.DataElement]:
    """All elements, those of items too."""
    for element in content:
        yield element
        if element.VR == "SQ":
            for item in element.value:
                yield from elements(item)


def full_of_names(_: int, image: Dataset) -> None:
    """The patient's name in every text that DICOM knows, and in private ones."""
    for tag, (kind, _, _, retired, keyword) in DicomDictionary.items():
        if kind in ("LO", "SH", "ST", "LT", "UT", "UC", "PN") and not retired and tag > 0x00080000:
            if keyword not in image or keyword == "SeriesDescription":
                image.add_new(tag, kind, NAME)
    plant(image)
    sequence = Dataset()
    sequence.PersonName = sequence.InstitutionName = NAME
    image.ContributingEquipmentSequence = image.OtherPatientIDsSequence = [sequence]
    image.PatientAge, image.StudyDescription, image.PatientIdentityRemoved = "049Y", NAME, "NO"


@pytest.mark.parametrize("write", WRITERS)
def test_names_stay_in_the_patients_own_tags(tmp_path: Path, write: Write) -> None:
    sources = sources_of(tmp_path / "s", full_of_names)
    path = tmp_path / "result.dcm"
    write(path, sources)
    content = pydicom.dcmread(path)
    named = [one for one in elements(content) if re.search("Doe|MRN|19700101", str(one.value))]
    assert {one.keyword for one in named if one.VR != "SQ"} <= set(PATIENT)
    assert content.PatientName == NAME
    assert content.PatientID == f"{NUMBER}0"
    assert not [one for one in elements(content) if one.tag.is_private]
    for keyword in ("PatientAge", "PatientComments", "StudyDescription", "InstitutionName"):
        assert keyword not in content
    values = [str(content[tag].value) for tag in PATIENT]
    planted = sum(1 for text in values if re.search("Doe|MRN|19700101", text))
    assert len(re.findall(rb"Doe\W?Jane|MRN123456|19700101", path.read_bytes())) == planted


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize(
    ("charset", "name"),
    [
        ("", "Doe^Jane"),
        (None, "Doe^Jane"),
        ("ISO_IR 100", "Müller^Jürgen"),
        ("ISO_IR 192", "Дое^Ян"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
    ],
)
def test_names_in_any_character_set(
    tmp_path: Path, write: Write, charset: str | list[str] | None, name: str
) -> None:
    """highdicom refuses an empty one."""

    def change(_: int, image: Dataset) -> None:
        if charset is not None:
            image.SpecificCharacterSet = charset
        image.PatientName = name

    sources = sources_of(tmp_path / "s", change)
    write(tmp_path / "a.dcm", sources)
    assert pydicom.dcmread(tmp_path / "a.dcm").PatientName == name
    assert errors("dciodvfy", tmp_path / "a.dcm") == []
    found = errors("dcentvfy", tmp_path / "a.dcm", *(tmp_path / "s").iterdir())
    assert not [text for text in found if "PatientName" in text]


@pytest.mark.parametrize("write", WRITERS)
def test_values_of_no_form_are_left_empty(tmp_path: Path, write: Write) -> None:
    odd = {
        "PatientSex": "U",
        "PatientBirthDate": "19701399",
        "StudyDate": "yesterday",
        "StudyTime": "2561",
    }

    def change(_: int, image: Dataset) -> None:
        for tag, text in odd.items():
            with pydicom.config.disable_value_validation():
                image.add_new(tag, pydicom.datadict.dictionary_VR(tag), text)
        image.StudyID = "17"

    sources = sources_of(tmp_path / "s", change)
    write(tmp_path / "a.dcm", sources)
    content = pydicom.dcmread(tmp_path / "a.dcm")
    assert {str(content[tag].value or "") for tag in odd} == {""}
    assert content.StudyID == "17"
    assert errors("dciodvfy", tmp_path / "a.dcm") == []


def test_the_slices_are_those_of_the_volume(tmp_path: Path) -> None:
    sources = sources_of(tmp_path / "s")
    heights = [frame.instance.position[2] for frame in sources.frames]
    assert heights == sorted(heights)
    for frame in sources.frames:
        assert pydicom.dcmread(frame.instance.path).SOPInstanceUID == frame.uid
    assert len({frame.uid for frame in sources.frames}) == COUNT


def test_orientations_that_differ_in_the_last_digits(tmp_path: Path) -> None:
    """highdicom wants them equal."""

    def change(k: int, image: Dataset) -> None:
        image.ImageOrientationPatient = [1, k * 1e-7, 0, 0, 1, 0]
        image.ImagePositionPatient = [-3, 4, round(2.5 * k + 0.01 * (k % 2), 3)]

    sources = sources_of(tmp_path / "s", change)
    as_seg(tmp_path / "a.dcm", sources)
    content = pydicom.dcmread(tmp_path / "a.dcm")
    for frame in content.PerFrameFunctionalGroupsSequence:
        assert frame.DerivationImageSequence[0].SourceImageSequence


def without(*tags: str) -> Callable[[int, Dataset], None]:
    def change(_: int, image: Dataset) -> None:
        for tag in tags:
            setattr(image, tag, "")

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            without("SOPInstanceUID", "SOPClassUID", "StudyInstanceUID"),
            r"\.dcm: has no SOPClassUID and no SOPInstanceUID and no StudyInstanceUID, by which a "
            r"DICOM SEG refers to its images\. Write the mask as \.nii\.gz instead\.$",
        ),
        (without("SeriesInstanceUID"), r"has no SeriesInstanceUID, by which a DICOM SEG refers to"),
        (
            without("FrameOfReferenceUID"),
            r"\.dcm: has no FrameOfReferenceUID; a DICOM SEG lies at a place in the patient\.",
        ),
        (
            lambda k, image: setattr(image, "ImagePositionPatient", [0, 0, k + 0.4 * k * k]),
            r"expected even spacing\. .* For a DICOM SEG, which lies on the images as they are, it "
            r"is not resampled; for a resampled scan, write the mask as \.nii\.gz\.$",
        ),
    ],
)
def test_images_that_a_result_cannot_refer_to(
    tmp_path: Path, change: Callable[[int, Dataset], None], message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        sources_of(tmp_path / "s", change)
    assert "Doe" not in str(caught.value)


def test_the_published_series_without_uids(tmp_path: Path) -> None:
    """A series as `totalseg/example_ct_dicom` has it."""
    tags = ("SOPInstanceUID", "SOPClassUID", "StudyInstanceUID", "SeriesInstanceUID")
    with pytest.raises(
        DataError, match=r"has no SOPClassUID and no SOPInstanceUID and no StudyIns"
    ):
        sources_of(tmp_path / "s", without(*tags))


def test_a_mask_beside_the_images(tmp_path: Path) -> None:
    sources = sources_of(tmp_path / "s")
    grid = sources.grid
    sources.check(grid.shape, grid.affine)
    moved = grid.affine + np.eye(4)[:, [3, 2, 1, 0]]
    for shape, affine in (((14, 12, 7), grid.affine), (grid.shape, moved)):
        with pytest.raises(DataError, match=r"s: the mask has \(.* a DICOM result lies on the im"):
            sources.check(shape, affine)


def test_what_highdicom_stumbles_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = sources_of(tmp_path / "s")
    monkeypatch.setattr("highdicom.seg.Segmentation", lambda **_: 1 / 0)
    with pytest.raises(
        DataError, match=r"s: highdicom cannot make a DICOM SEG of these images \(Zero"
    ):
        try_segmentation(tmp_path / "a.dcm", sources, SEEN, DRAWN_BY)


def test_without_highdicom_the_way_out_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = scan("straight", tmp_path)
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(
        DataError, match=r"an RTSTRUCT needs highdicom\. Install it: pip install 'med"
    ):
        read_sources(place, None, "an RTSTRUCT")
