"""Lengths of elements against that of their file."""

from __future__ import annotations

import pydicom
import pytest
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from medsam_tune.formats.dicom.structure import is_longer_than_its_file
from tests.dicom_series import refusal, write_series
from tests.segmentation import masks, write_seg


def one_file(folder):
    return next(write_series(folder / "s", count=1).iterdir())


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless])
def test_sound_and_cut_off_in_every_syntax(tmp_path, syntax):
    file = one_file(tmp_path)
    image = pydicom.dcmread(file)
    group = image.private_block(0x0029, "SCANNER", create=True)
    item = pydicom.Dataset()
    item.PatientID = "p"
    group.add_new(1, "SQ", [item, item])
    image[0x0029, 0x1001].is_undefined_length = True
    if syntax == RLELossless:
        image.compress(syntax)
    image.file_meta.TransferSyntaxUID = syntax
    anew = pydicom.Dataset({element.tag: element for element in image})
    anew.file_meta, anew.preamble = image.file_meta, image.preamble
    pydicom.dcmwrite(file, anew, enforce_file_format=True)
    assert not is_longer_than_its_file(file)
    file.write_bytes(file.read_bytes()[:-30])
    assert is_longer_than_its_file(file)


def test_nested_and_other_objects(tmp_path):
    label = write_seg(tmp_path / "seg.dcm", one_file(tmp_path).parent, masks()[:1])
    assert not is_longer_than_its_file(label)
    label.write_bytes(label.read_bytes()[:-30])
    assert is_longer_than_its_file(label)


def test_what_is_not_looked_at(tmp_path):
    file = one_file(tmp_path)
    content = file.read_bytes()
    file.write_bytes(content[132:])  # without a preamble
    assert not is_longer_than_its_file(file)
    file.write_bytes(b"DICM")
    assert is_longer_than_its_file(file)
    file.write_bytes(content)
    image = pydicom.dcmread(file)
    image.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    image.save_as(file)
    assert not is_longer_than_its_file(file)


def pixels_of_4_gb(content: bytearray) -> None:
    content[-340:-336] = b"\xf0\xff\xff\xff"  # the length of PixelData


def unknown_kind(content: bytearray) -> None:
    at = content.index(b"\2\0\x12\0")  # ImplementationClassUID
    content[at + 5] = 0


def pixels_of_no_kind(content: bytearray) -> None:
    content[-344] ^= 31  # OW becomes PW, and two bytes of its length the first pixel


def half_a_pixel_less(content: bytearray) -> None:
    content[-340] -= 1  # one byte, which GDCM makes up


@pytest.mark.parametrize(
    "spoil", [pixels_of_4_gb, unknown_kind, pixels_of_no_kind, half_a_pixel_less]
)
def test_a_wild_length_is_refused_before_it_is_decoded(tmp_path, monkeypatch, spoil):
    """GDCM would ask for gigabytes, and keep them."""
    folder = write_series(tmp_path / "s", uid="1.2.3")
    file = next(folder.glob("*-3.dcm"))
    content = bytearray(file.read_bytes())
    spoil(content)
    file.write_bytes(content)
    monkeypatch.setattr("SimpleITK.ImageSeriesReader.Execute", None)
    assert f"{file}: its pixels cannot be read (" in refusal(folder)
    assert "it is shorter than its elements say" in refusal(folder)
