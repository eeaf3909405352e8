"""Images in every way to store them: values are the plain way's, or as they are shown."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medsam_tune.errors import DataError
from medsam_tune.formats.open import load_image, load_label
from medsam_tune.formats.shades import WHITE_ZERO
from medsam_tune.slices.colours import Colours
from medsam_tune.slices.cut import cut
from medsam_tune.slices.rules import ScanRules
from medsam_tune.slices.streamed import streamed
from tests import geo
from tests.images import deep_colours, grey_png, png_chunk


def ramp(bits: int, bands: int, kind: type = np.uint16) -> np.ndarray:
    """(C, 8, 12) values from 0 to the highest of so many bits, in no order."""
    count = bands * 8 * 12
    values = np.arange(count) * (2**bits - 1) // (count - 1)
    values = np.random.default_rng(bits).permutation(values).reshape(bands, 8, 12)
    return values.astype(np.uint8 if bits <= 8 and kind is np.uint16 else kind)


@dataclass(frozen=True)
class Stored:
    """Values (C, H, W) in a file: as a PNG, or as a TIFF with or without a place."""

    values: np.ndarray
    expected: np.ndarray
    options: dict[str, Any] = field(default_factory=dict)
    significant: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()

    def write(self, folder: Path, place: bool | None) -> Path:
        if place is None:
            return self._png(folder / "a.png")
        where = {} if place else {"crs": None, "where": False}
        return geo.write(folder / "a.tif", self.values, **where, **self.options)

    def _png(self, path: Path) -> Path:
        array = self.values.transpose(1, 2, 0)
        if array.dtype == np.uint16 and len(self.values) > 1:
            deep_colours(path, array)
        else:
            Image.fromarray(array[..., 0] if len(self.values) == 1 else array).save(path)
        content = path.read_bytes()
        if self.significant:
            header = content.index(b"IHDR") + 21  # its data, and its checksum
            bits = png_chunk(b"sBIT", bytes(self.significant))
            path.write_bytes(content[:header] + bits + content[header:])
        return path


def as_png(bits: int, bands: int, *significant: int) -> Stored:
    values = ramp(bits, bands)
    values[3:] = np.iinfo(values.dtype).max  # transparency: none
    said = ("the alpha channel is left out",) if bands == 4 else ()
    return Stored(values, values[:3], significant=significant, notes=said)


def few_bits(bits: int, bands: int, **options: Any) -> Stored:
    values = ramp(bits, bands)
    options = {"nbits": bits, **options}
    return Stored(values, np.rint(values * (255 / (2**bits - 1))), options)


def white_zero(bits: int, kind: type = np.uint16, bands: int = 1, **options: Any) -> Stored:
    values = ramp(bits, bands, kind)
    options = {"photometric": "miniswhite", **options}
    if bits < 8 * values.dtype.itemsize and kind is np.uint16:
        options["nbits"] = bits
    if bands > 1:
        return Stored(values, values, options)
    dark = values if np.dtype(kind).kind == "f" else values - np.double(2**bits - 1)
    shown = np.negative(dark.astype(np.float64))
    return Stored(values, np.rint(shown * (255 / (2**bits - 1))) if bits < 8 else shown, options,
                  notes=(WHITE_ZERO,) if bits > 1 else ())  # fmt: skip


PNGS = {
    "8 bits of which 4 count": as_png(8, 3, 4, 4, 4),
    "grey of 8 bits of which 4 count": as_png(8, 1, 4),
    "grey of 16 bits of which 12 count": as_png(16, 1, 12),
    "colours of 16 bits": as_png(16, 3),
    "colours of 16 bits of which 12 count": as_png(16, 3, 12, 12, 12),
    "transparent colours of 16 bits of which 10 count": as_png(16, 4, 10, 10, 10, 10),
}
TIFFS = {
    **{f"{bits} bits, 1 band": few_bits(bits, 1) for bits in range(2, 8)},
    **{f"{bits} bits, 2 bands": few_bits(bits, 2) for bits in range(1, 8)},
    **{f"{bits} bits, RGB": few_bits(bits, 3, photometric="rgb") for bits in (1, 4, 7)},
    "4 bits, 5 bands apart": few_bits(4, 5, interleave="band"),
    "11 bits, 3 bands": Stored(v := ramp(11, 3), v, {"nbits": 11}),
    **{f"0 is white, {bits} bits": white_zero(bits) for bits in (2, 3, 4, 8, 12, 16)},
    "0 is white, 16 bits, big-endian": white_zero(16, endianness="big"),
    "0 is white, 32 bits": white_zero(20, np.float32),
    "0 is white, 2 bands": white_zero(16, bands=2),
}
ROWS = [
    *(pytest.param(stored, None, id=f"PNG, {name}") for name, stored in PNGS.items()),
    *(pytest.param(stored, False, id=f"TIFF, {name}") for name, stored in TIFFS.items()),
    *(pytest.param(stored, True, id=f"GeoTIFF, {name}") for name, stored in TIFFS.items()),
]


@pytest.mark.parametrize(("stored", "place"), ROWS)
def test_values_are_those_that_are_shown(tmp_path, stored, place):
    path = stored.write(tmp_path, place)
    found = load_image(path)
    np.testing.assert_array_equal(found.numpy()[..., 0].transpose(0, 2, 1), stored.expected)
    assert found.meta["stored"] == stored.values.dtype.name
    assert found.meta["notes"] == [*stored.notes]
    part = load_image(path, region=(2, 1, 9, 7))
    np.testing.assert_array_equal(part.numpy(), found.numpy()[:, 2:9, 1:7])
    if place:  # part by part, as scenes are predicted
        rules = ScanRules(Colours(len(found)), modality="RGB", window=32)
        whole = cut(found, rules)[0][0]
        with streamed(path, rules) as scene:
            assert (scene.part(1, 2, 6, 7)[0].int() - whole[:, 1:7, 2:9].int()).abs().max() <= 1


@pytest.mark.parametrize("place", [None, False, True])
@pytest.mark.parametrize("bits", [2, 4])
def test_ids_of_few_bits_are_those_that_are_stored(tmp_path, place, bits):
    """As an image they fill 8 bits."""
    stored = few_bits(bits, 1)
    if place is None:
        grey_png(path := tmp_path / "a.png", stored.values[0], bits)
    else:
        path = stored.write(tmp_path, place)
    np.testing.assert_array_equal(load_label(path).numpy()[0, ..., 0].T, stored.values[0])
    np.testing.assert_array_equal(load_image(path).numpy()[0, ..., 0].T, stored.expected[0])


@pytest.mark.parametrize("place", [False, True])
@pytest.mark.parametrize("bits", [4, 8, 16])
def test_a_mask_of_which_0_is_white_is_refused(tmp_path, place, bits):
    """Programs that write them differ in whether the numbers count, or what is shown."""
    path = white_zero(bits).write(tmp_path, place)
    said = r"its header says that 0 is white \(.*a\.tif\).*PHOTOMETRIC=MINISBLACK IN OUT keeps"
    with pytest.raises(DataError, match=said):
        load_label(path)


@pytest.mark.parametrize("place", [False, True])
def test_a_mask_of_1_bit_is_what_it_shows(tmp_path, place):
    """As fax programs write it, of which 0 is white."""
    stored = white_zero(1)
    path = stored.write(tmp_path, place)
    np.testing.assert_array_equal(load_label(path).numpy()[0, ..., 0].T, 1 - stored.values[0])
    np.testing.assert_array_equal(load_image(path).numpy()[0, ..., 0].T, stored.expected[0])
