"""Files of one object."""

from __future__ import annotations

import shutil

import pytest

from medsam_tune.errors import DataError
from medsam_tune.formats.dicom.series import choose_series, find_objects
from medsam_tune.formats.dicom.stack import read_series
from tests.bad_inputs.dicom_files import again, other_pixels
from tests.dicom_series import COUNT, write_series
from tests.segmentation import masks, write_seg


def test_copies_are_counted(tmp_path):
    folder = write_series(tmp_path / "s")
    shutil.copytree(folder, folder / "again")
    series = choose_series(folder)
    assert (len(series.instances), series.copies, series.fault) == (COUNT, COUNT, "")
    assert read_series(series).notes == (f"{COUNT} copies of images left out",)


def test_no_uid_is_no_copy(tmp_path):
    folder = write_series(tmp_path / "s", lambda _, image: setattr(image, "SOPInstanceUID", ""))
    assert choose_series(folder).copies == 0


def test_a_series_of_a_false_copy_is_refused_alone(tmp_path):
    write_series(tmp_path / "a", uid="1.2.3")
    again(other_pixels)(write_series(tmp_path / "b", uid="1.2.4"))
    sound, faulty = find_objects(tmp_path).series
    assert len(read_series(sound).array.T) == COUNT
    with pytest.raises(DataError, match=r"z\.dcm: has the SOPInstanceUID of "):
        read_series(faulty)


def test_copies_of_a_label(tmp_path):
    label = write_seg(tmp_path / "seg.dcm", write_series(tmp_path / "s"), masks())
    shutil.copy(label, tmp_path / "seg2.dcm")
    with pytest.warns(UserWarning, match=r"seg2\.dcm: a copy of seg\.dcm; taken once\."):
        assert find_objects(tmp_path, ("SEG",)).labels == {label: "SEG"}
    with (tmp_path / "seg2.dcm").open("ab") as file:
        file.write(bytes(2))
    assert list(find_objects(tmp_path, ("SEG",)).labels) == [label, tmp_path / "seg2.dcm"]
