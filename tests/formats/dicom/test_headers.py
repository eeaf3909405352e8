"""Headers of DICOM files."""

from __future__ import annotations

import sys
import threading
import time
import warnings
from dataclasses import replace

import pytest
from pydicom.dataset import Dataset

from medsam_tune.errors import DataError
from medsam_tune.formats.dicom.headers import (
    DamagedFileError,
    has_dicom_prefix,
    instance_of,
    is_of_images,
    object_kind,
    read_header,
    without_warnings,
)
from medsam_tune.formats.dicom.series import find_objects
from medsam_tune.formats.dicom.stack import read_series
from tests.dicom_series import COUNT, SIZE, SPACING, refusal, write_series
from tests.segmentation import masks, write_seg


def test_headers_are_read_no_further_than_needed(tmp_path):
    def scribble(_, image):
        block = image.private_block(0x0029, "SCANNER", create=True)
        block.add_new(1, "LO", "ends here")

    folder = write_series(tmp_path / "s", scribble)
    for path in folder.iterdir():
        content = path.read_bytes()
        path.write_bytes(content[: content.index(b"ends here")])
    (series,) = find_objects(folder).series
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


@pytest.mark.parametrize(
    ("tag", "value"),
    [("ImagePositionPatient", [1, 2]), ("PixelSpacing", [1]), ("ImageOrientationPatient", [1, 0])],
)
def test_too_few_numbers(tmp_path, tag, value):
    folder = write_series(tmp_path / "s", lambda _, image: setattr(image, tag, value), count=1)
    assert f"{tag} is not " in refusal(folder)


def test_what_a_header_says(tmp_path):
    def change(_, image):
        image.add_new("PixelPaddingValue", "SS", -2000)
        image.add_new("PixelPaddingRangeLimit", "SS", -1990)

    file = next(write_series(tmp_path / "s", change, count=1).iterdir())
    one = instance_of(file, read_header(file))
    assert (one.path, one.size, one.frames, one.samples) == (file, SIZE, 1, 1)
    assert (one.spacing, one.photometric) == (SPACING, "MONOCHROME2")
    assert (one.rescale, one.padding) == ((1.0, -1000.0), (-2000.0, -1990.0))
    assert one.position.tolist() == [-3, 4, -50]
    assert one.orientation.tolist() == [[1, 0, 0], [0, 1, 0]]


def test_what_is_no_dicom(tmp_path):
    for name, content in (("a", b""), ("b", b"hello" * 100)):
        (tmp_path / name).write_bytes(content)
        assert object_kind(tmp_path / name) == ""
    assert read_header(tmp_path / "b") is None
    assert not has_dicom_prefix(tmp_path / "b")


def test_a_damaged_header(tmp_path):
    file = next(write_series(tmp_path / "s", count=1).iterdir())
    file.write_bytes(file.read_bytes()[:153])
    assert f"{file}: cannot read its DICOM header (" in refusal(file)
    assert object_kind(file) == ""


def test_without_highdicom_the_way_out_is_named(tmp_path, monkeypatch):
    series = write_series(tmp_path / "s")
    label = write_seg(tmp_path / "seg.dcm", series, masks())
    monkeypatch.setitem(sys.modules, "highdicom", None)
    message = refusal(series, label)
    assert f"{label}: a DICOM SEG needs highdicom. Install it: pip install" in message


def test_images_that_say_little_of_themselves(tmp_path):
    """No Modality; no SOPClassUID in the data set; neither."""
    for tags in (("Modality",), ("SOPClassUID",), ("Modality", "SOPClassUID")):

        def without(_: int, image: Dataset, tags: tuple[str, ...] = tags) -> None:
            for tag in tags:
                delattr(image, tag)
            image.PixelData = bytes(len(image.PixelData))

        (series,) = find_objects(write_series(tmp_path / "-".join(tags), without)).series
        assert (series.shape, series.fault) == ((*SIZE, COUNT), "")


def test_what_is_of_images(tmp_path):
    file = next(write_series(tmp_path / "s", count=1).iterdir())
    assert is_of_images(read_header(file))
    label = write_seg(tmp_path / "seg.dcm", tmp_path / "s", masks()[:1])
    assert not is_of_images(read_header(label))


def test_a_file_that_is_cut_off_still_says_its_series(tmp_path):
    file = next(write_series(tmp_path / "s", count=1, uid="1.2.3").iterdir())
    content = file.read_bytes()
    file.write_bytes(content[: content.index(b"\x20\0\x32\0")])  # before its position
    with pytest.raises(DamagedFileError, match=r"cut off or damaged \(\d+ bytes") as caught:
        read_header(file)
    assert caught.value.series == "1.2.3"


def test_the_name_of_a_frame(tmp_path):
    file = next(write_series(tmp_path / "s", count=1).iterdir())
    one = instance_of(file, read_header(file))
    assert (str(one), one.name) == (str(file), file.name)
    assert str(replace(one, frame=3)) == f"{file} (frame 3)"
