"""NIfTI files with any bytes in their header, or cut anywhere: read with a place, or refused."""

from __future__ import annotations

import gzip
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medsam_tune.errors import DataError
from medsam_tune.formats.mending import Mending
from medsam_tune.formats.open import load_image, load_label, read_grid

HEADER = 348
SHAPE = (5, 4, 3)
LIMIT = 100_000_000  # bytes that a file of 500 may take
common = settings(
    max_examples=150,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module")
def content() -> bytes:
    image = nib.Nifti1Image(np.arange(60, dtype=np.int16).reshape(SHAPE), np.diag([2.0, 3, 4, 1]))
    image.set_qform(image.affine, 1)
    image.header.set_xyzt_units("mm")
    return image.to_bytes()


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Memory is scarce, so that a large allocation is refused by the header alone."""
    scarce = SimpleNamespace(available=LIMIT)
    monkeypatch.setattr("psutil.virtual_memory", lambda: scarce)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def is_read_or_refused(folder: Path, content: bytes, ending: str) -> None:
    path = folder / f"a{ending}"
    path.write_bytes(gzip.compress(content, 1) if ending == ".nii.gz" else content)
    for read in (load_image, load_label):
        try:
            image = read(path, Mending())
        except (DataError, FileNotFoundError):
            continue
        assert np.isfinite(np.asarray(image.affine)).all()
        assert min(image.shape) > 0
        assert image.numel() <= len(content) * 1100
    try:
        grid = read_grid(path)
    except (DataError, FileNotFoundError):
        return
    assert np.isfinite(grid.affine).all()


# Fields that decide most: sizes, type, offset, scaling, units, codes and forms.
FIELDS = [(40, 56), (70, 76), (76, 108), (108, 120), (123, 124), (252, 256), (256, 328), (344, 348)]
SPECIAL = [
    *(np.float32(value).tobytes() for value in (np.nan, np.inf, -np.inf, -1, 0, 1e38, 1e-38, 1e9)),
    *(np.int16(value).tobytes() * 2 for value in (-1, 0, 32767, -32768, 1, 1024)),
]


@common
@given(
    places=st.lists(
        st.tuples(st.sampled_from(FIELDS), st.integers(0, 71), st.sampled_from(SPECIAL)),
        min_size=1,
        max_size=3,
    ),
    ending=st.sampled_from([".nii", ".nii.gz"]),
)
def test_special_numbers_in_the_header(tmp_path, content, places, ending):
    damaged = bytearray(content)
    for (start, stop), step, value in places:
        at = start + step * 4 % (stop - start)
        damaged[at : at + len(value)] = value
    is_read_or_refused(tmp_path, bytes(damaged), ending)


@common
@given(
    changes=st.lists(st.tuples(st.integers(0, HEADER + 3), st.binary(min_size=1, max_size=4))),
    ending=st.sampled_from([".nii", ".nii.gz"]),
)
def test_any_bytes_in_the_header(tmp_path, content, changes, ending):
    damaged = bytearray(content)
    for at, value in changes:
        damaged[at : at + len(value)] = value
    is_read_or_refused(tmp_path, bytes(damaged), ending)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_cut_files(tmp_path, content, ending):
    whole = gzip.compress(content) if ending == ".nii.gz" else content
    path = tmp_path / f"a{ending}"
    for size in [*range(0, len(whole), 7), len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(DataError):
            load_image(path)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("size", [32767, 3000])
def test_sizes_that_the_file_cannot_hold(tmp_path, content, ending, size, monkeypatch):
    """Plenty of memory is no reason to take it."""
    plenty = SimpleNamespace(available=1e18)
    monkeypatch.setattr("psutil.virtual_memory", lambda: plenty)
    header = nib.Nifti1Header(content[:HEADER])
    header["dim"][1:4] = size
    header["pixdim"][1:4] = 0.1
    header["sform_code"] = 0
    path = tmp_path / f"a{ending}"
    damaged = header.binaryblock + content[HEADER:]
    path.write_bytes(gzip.compress(damaged) if ending == ".nii.gz" else damaged)
    expected = rf"a{ending}: Expected {size**3 * 2 + 352} bytes, got {path.stat().st_size} bytes"
    with pytest.raises(DataError, match=expected):
        load_image(path)


@pytest.mark.parametrize(
    ("at", "value", "unset"),
    # Offset and step of the sform, offset of the qform, and a size.
    [
        (292, np.float32(np.nan), 252),
        (280, np.float32(np.inf), 252),
        (268, np.float32(np.nan), 254),
        (42, np.int16(-5), 252),
    ],
)
def test_places_and_sizes_that_are_none(tmp_path, content, at, value, unset):
    damaged = bytearray(content)
    damaged[at : at + value.itemsize] = value.tobytes()
    damaged[unset : unset + 2] = bytes(2)  # the code of the other form
    path = tmp_path / "a.nii"
    path.write_bytes(damaged)
    with pytest.raises(DataError, match="empty dim" if at == 42 else "is singular or not finite"):
        load_image(path)
