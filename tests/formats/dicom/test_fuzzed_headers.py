"""Bytes of a header that are flipped or cut off: the right volume, or a refusal that says why.

Numbers that are sound whatever they are, such as RescaleSlope, are left alone: no reader can tell.
"""

from __future__ import annotations

import tempfile
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import pydicom
from hypothesis import given, settings
from hypothesis import strategies as st

from medsam_tune.errors import DataError
from medsam_tune.formats.open import load_image
from tests.dicom_series import SIZE, stored, write_series

COUNT = 4
FREE = ("RescaleSlope", "RescaleIntercept", "BitsStored", "HighBit", "PixelRepresentation")


@cache
def files() -> dict[str, bytes]:
    """A series of four MR slices, as names and contents."""
    with tempfile.TemporaryDirectory() as folder:
        place = write_series(Path(folder), place_of, "MR", COUNT, "1.2.3")
        return {path.name: path.read_bytes() for path in sorted(place.iterdir())}


def place_of(k: int, image: pydicom.Dataset) -> None:
    # No digit of these makes another even stack.
    image.ImagePositionPatient = [-3.25, 4.25, -71.7 + 2.3 * k]
    image.FrameOfReferenceUID = "1.2.4"


def header_of(content: bytes) -> list[int]:
    """Offsets of the bytes before the pixels, but for those of the values in `FREE`."""
    free: set[int] = set()
    for name in FREE:
        tag = pydicom.tag.Tag(name)
        at = content.find(np.array([tag.group, tag.element], "<u2").tobytes())
        if at >= 0:
            free.update(range(at, at + 8 + int.from_bytes(content[at + 6 : at + 8], "little")))
    end = len(content) - SIZE[0] * SIZE[1] * 2
    return [at for at in range(128, end) if at not in free]


def assert_right_or_refused(name: str, content: bytes) -> str:
    """Read the series with one file changed; gives the refusal, or an empty text."""
    with tempfile.TemporaryDirectory() as folder:
        for each, whole in files().items():
            (Path(folder) / each).write_bytes(content if each == name else whole)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                image = load_image(Path(folder))
        except DataError as error:
            return str(error)
    np.testing.assert_array_equal(image[0].numpy(), stored(COUNT).transpose(2, 1, 0))
    expected = np.diag([-0.7, -0.9, 2.3, 1.0])
    expected[:3, 3] = [3.25, -4.25, -71.7]
    np.testing.assert_allclose(image.affine.numpy(), expected, atol=0.11)
    return ""


@settings(max_examples=100, derandomize=True, deadline=None, database=None)
@given(st.data())
def test_flipped_bytes(data):
    name = data.draw(st.sampled_from(sorted(files())))
    content = bytearray(files()[name])
    for at in data.draw(st.lists(st.sampled_from(header_of(content)), min_size=1, max_size=2)):
        content[at] ^= data.draw(st.integers(1, 255))
    assert "Doe" not in assert_right_or_refused(name, bytes(content))


@settings(max_examples=60, derandomize=True, deadline=None, database=None)
@given(st.data())
def test_cut_off_anywhere(data):
    name = data.draw(st.sampled_from(sorted(files())))
    content = files()[name]
    length = data.draw(st.integers(0, len(content) - 1))
    assert name in assert_right_or_refused(name, content[:length])
