"""Which series there are, and which is meant."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import generate_uid

from medsam_tune.errors import DataError
from medsam_tune.formats.dicom.series import choose_series, find_objects
from medsam_tune.formats.dicom.stack import read_series, read_series_grid
from medsam_tune.formats.open import load_image
from medsam_tune.formats.reader import SimpleITKReader
from tests.dicom_series import COUNT, SIZE, SPACING, read, refusal, stored, write_series


def test_series_say_nothing_of_the_patient(tmp_path):
    write_series(tmp_path / "a", uid="1.2.3.4")
    write_series(tmp_path / "b", modality="MR", uid="1.2.3.5")
    write_series(tmp_path / "c", lambda _, image: setattr(image, "PatientID", "X"), uid="1.2.3.6")
    a, c, b = find_objects(tmp_path).series
    assert str(a) == "number 4, CT, 14 x 12, 8 images, 1.2.3.4"
    assert (a.patient, b.modality) == (b.patient, "MR")
    assert a.patient != c.patient
    assert "MRN123" not in repr((a, b, c))


def test_choice_among_several_series(tmp_path):
    write_series(tmp_path / "a", uid="1.2.3.4")
    write_series(tmp_path / "b", uid="1.2.3.5", count=3)
    message = refusal(tmp_path)
    assert f"{tmp_path}: 2 series: number 4, CT, 14 x 12, 8 images, 1.2.3.4; number 4" in message
    assert "Choose by series_uid" in message
    assert load_image(tmp_path, series_uid="1.2.3.5").shape[-1] == 3
    assert SimpleITKReader("3.4").read(tmp_path).array.shape[-1] == COUNT
    with pytest.raises(DataError, match=r"0 series end in '9'; expected one of: number 4"):
        load_image(tmp_path, series_uid="9")


def test_dicomdir_is_never_opened(tmp_path, monkeypatch):
    folder = write_series(tmp_path / "s")
    (folder / "DICOMDIR").write_bytes(next(folder.glob("*.dcm")).read_bytes())
    seen = []
    module, whole = pydicom.filereader, pydicom.filereader.read_partial
    monkeypatch.setattr(
        module, "read_partial", lambda file, **o: seen.append(file.name) or whole(file, **o)
    )
    find_objects(folder)
    assert len(seen) == COUNT
    assert not [path for path in seen if Path(path).name == "DICOMDIR"]


def test_uid_of_nobody(tmp_path):
    """Files without a series' UID are one series, not none."""
    folder = write_series(tmp_path / "s", uid=generate_uid())
    for file in folder.iterdir():
        image = pydicom.dcmread(file)
        del image.SeriesInstanceUID
        image.save_as(file)
    assert read(folder).array.shape == (*SIZE, COUNT)


def test_a_whole_uid_is_no_end_of_another(tmp_path):
    write_series(tmp_path / "a", uid="1.2.3.4")
    write_series(tmp_path / "b", uid="9.1.2.3.4", count=3)
    assert len(choose_series(tmp_path, "1.2.3.4").files) == len(stored())


def test_what_is_no_scan_is_counted(tmp_path):
    write_series(tmp_path / "a", lambda _, image: setattr(image, "Modality", "RTDOSE"), count=2)
    write_series(tmp_path / "b", lambda _, image: setattr(image, "Modality", "SR"), count=1)
    (tmp_path / "b" / "notes.txt").write_text("hello")
    with pytest.raises(DataError, match=r": 4 files, 2 RTDOSE, 1 SR, 1 not DICOM; expected the"):
        find_objects(tmp_path)
    with pytest.raises(DataError, match=r"no image DICOM in 1 files \(.*notes\.txt, \.\.\.\): 1 f"):
        find_objects([tmp_path / "b" / "notes.txt"])
    with pytest.raises(DataError, match=r"gone: no such file or folder\. Correct the path\."):
        find_objects(tmp_path / "gone")
    write_series(tmp_path / "c", count=1)
    found = find_objects(tmp_path, ("SR",))
    series, others = found.series, list(found.labels)
    assert [str(one)[:40] for one in series] == [
        "number 4, CT, 14 x 12, 1 image, " + series[0].uid[:8]
    ]
    assert others == list((tmp_path / "b").glob("*.dcm"))


def test_size_and_place_by_the_headers(tmp_path):
    (series,) = find_objects(write_series(tmp_path / "s")).series
    volume = read_series(series)
    assert series.shape == volume.array.shape
    np.testing.assert_allclose(read_series_grid(series).affine, volume.affine)
    assert (volume.series, volume.frame) == (series.uid, series.frame)
    assert "" not in (series.uid, series.frame, series.patient, series.study)

    def nowhere(_, image):
        del image.ImagePositionPatient, image.SeriesNumber

    (single,) = find_objects(write_series(tmp_path / "n", nowhere, count=1)).series
    np.testing.assert_allclose(
        read_series_grid(single).affine, np.diag([-SPACING[0], -SPACING[1], 1, 1])
    )
    assert str(single).startswith("CT, 14 x 12, 1 image, ")


def test_row_85_a_series_behind_links(tmp_path):
    folder = write_series(tmp_path / "disk" / "s")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "s").symlink_to(folder)
    (tmp_path / "data" / "._000.dcm").write_bytes(bytes(200))
    (tmp_path / "data" / "again").symlink_to(tmp_path / "data")
    assert len(choose_series(tmp_path / "data").files) == COUNT


def test_row_93_names_that_are_not_utf_8(tmp_path):
    folder = write_series(tmp_path / os.fsdecode(b"s\xff"))
    with pytest.raises(DataError, match=r"the name is not UTF-8, and ITK cannot open it\. Rename"):
        load_image(folder)


def test_a_damaged_file_is_a_fault_of_its_series_alone(tmp_path):
    """Of those in its folder, where it does not say of which."""

    def flat(*cut):
        folder = tmp_path / "-".join(map(str, cut))
        folder.mkdir()
        for uid in ("1.2.31", "1.2.32"):
            for path in write_series(tmp_path / f"{folder.name}-{uid}", uid=uid, count=3).iterdir():
                path.rename(folder / f"{uid}-{path.name}")
        write_series(folder / "below", uid="1.2.4", count=3)
        for name, length in zip(("1.2.31-000-0.dcm",), cut, strict=True):
            (folder / name).write_bytes((folder / name).read_bytes()[:length])
        return {one.uid: bool(one.fault) for one in find_objects(folder).series}

    content = next(write_series(tmp_path / "a", uid="1.2.31").iterdir()).read_bytes()
    series = content.index(b"\x20\0\x0e\0UI") + 8  # where the UID begins
    assert flat(series + 60) == {"1.2.31": True, "1.2.32": False, "1.2.4": False}
    assert flat(series + 3) == {"1.2.31": True, "1.2.32": True, "1.2.4": False}
    assert flat(200) == {"1.2.31": True, "1.2.32": True, "1.2.4": False}
    assert flat(0) == {"1.2.31": True, "1.2.32": True, "1.2.4": False}


def test_damaged_files_alone_in_their_folder(tmp_path):
    write_series(tmp_path / "a", uid="1.2.3")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.dcm").write_bytes(b"")
    found = find_objects(tmp_path)
    assert [one.fault for one in found.series] == [""]
    assert list(found.problems) == [tmp_path / "b" / "x.dcm"]
    with pytest.raises(DataError, match=r"x\.dcm: is named as DICOM images are, but is none \(0 b"):
        choose_series(tmp_path)
    assert choose_series(tmp_path, "1.2.3").uid == "1.2.3"
    with pytest.raises(DataError, match=r"x\.dcm: is named as DICOM images are"):
        choose_series(tmp_path / "b", "1.2.3")
