"""Headers of DICOM files."""

from __future__ import annotations

import threading
import time
import warnings

import pytest
from pydicom.dataset import Dataset

from medsam_tune.errors import DataError
from medsam_tune.formats.dicom.headers import (
    without_warnings,
)
from medsam_tune.formats.dicom.series import find_series
from medsam_tune.formats.dicom.stack import read_series
from tests.dicom_series import COUNT, SIZE, refusal, write_series


def test_headers_are_read_no_further_than_needed(tmp_path):
    def scribble(_, image):
        block = image.private_block(0x0029, "SCANNER", create=True)
        block.add_new(1, "LO", "ends here")

    folder = write_series(tmp_path / "s", scribble)
    for path in folder.iterdir():
        content = path.read_bytes()
        path.write_bytes(content[: content.index(b"ends here")])
    (series,) = find_series(folder)
    assert series.shape == (*SIZE, COUNT)
    with pytest.raises(DataError, match="cannot be read"):
        read_series(series)


def test_warnings_come_back_after_two_threads():
    before = list(warnings.filters)
    inside = threading.Event()

    def first():
        with without_warnings():
            inside.set()
            time.sleep(0.2)

    def second():
        with without_warnings():
            time.sleep(0.2)

    threads = [threading.Thread(target=each) for each in (first, second)]
    threads[0].start()
    inside.wait()
    threads[1].start()
    for thread in threads:
        thread.join()
    assert warnings.filters == before


def test_geometry_that_is_no_geometry(tmp_path):
    def zero(_: int, image: Dataset) -> None:
        image.PixelSpacing = [0, 1]

    assert "PixelSpacing is not above 0" in refusal(write_series(tmp_path / "a", zero))

    def bent(_: int, image: Dataset) -> None:
        image.ImageOrientationPatient = [1, 0, 0, 1, 0, 0]

    assert "not two perpendicular unit vectors" in refusal(write_series(tmp_path / "b", bent))


def test_values_that_cannot_be_parsed(tmp_path):
    folder = write_series(tmp_path / "s")
    file = next(folder.glob("*-3.dcm"))
    content = file.read_bytes()
    file.write_bytes(content.replace(b"-1000.", b"-1@00."))
    assert f"{file}: its DICOM header holds a value that cannot be read" in refusal(folder)


def test_without_pydicom_the_way_out_is_named(tmp_path, monkeypatch):
    folder = write_series(tmp_path / "s")
    monkeypatch.setitem(__import__("sys").modules, "pydicom", None)
    assert "pip install 'medsam_tune[dicom]'" in refusal(folder)
