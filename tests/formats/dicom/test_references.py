"""References of a DICOM SEG or RTSTRUCT."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor
from pydicom.dataset import Dataset

from medsam_tune.errors import DataError
from medsam_tune.formats.dicom.references import References, check_references, references
from medsam_tune.formats.dicom.series import choose_series
from tests.dicom_series import write_series
from tests.segmentation import masks, write_seg
from tests.structure_set import box, placed, write_structure_set


def image(series: str = "", frame: str = "") -> MetaTensor:
    return MetaTensor(torch.zeros(1, 2, 2, 2), meta={"series_uid": series, "frame_uid": frame})


def drawn(folder, series, **options):
    regions = {"liver": [placed(box(1, 1, 4, 4), 2)]}
    return write_structure_set(folder / "r.dcm", series, regions, **options)


def test_what_label_objects_refer_to(tmp_path):
    folder = write_series(tmp_path / "s")
    series = choose_series(folder)
    expected = References((series.uid,), series.frame)
    assert references(write_seg(tmp_path / "seg.dcm", folder, masks())) == expected
    assert references(drawn(tmp_path, folder)) == expected
    (tmp_path / "a.txt").write_text("hello")
    assert references(tmp_path / "a.txt") == References((), "")

    def second_frame(content):
        other = Dataset()
        other.FrameOfReferenceUID = "9.9"
        content.ReferencedFrameOfReferenceSequence.append(other)

    assert references(drawn(tmp_path, folder, change=second_frame)) == References((series.uid,), "")


def test_frames_count_before_series(tmp_path):
    folder = write_series(tmp_path / "s")
    series, label = choose_series(folder), drawn(tmp_path, folder)
    check_references(image("other", series.frame), label)
    check_references(image(series.uid), label)
    check_references(image(), label)
    with pytest.raises(DataError, match=r"frame of reference is .*, the image's 9\.9 \(.*r\.dcm\)"):
        check_references(image(series.uid, "9.9"), label)
    with pytest.raises(DataError, match=rf"drawn on series {series.uid}, the image is 9\.9 \("):
        check_references(image("9.9"), label)


def test_row_78_nothing_is_laid_on_a_guessed_place(tmp_path):
    label = drawn(tmp_path, write_series(tmp_path / "s"))
    guessed = MetaTensor(torch.zeros(1, 2, 2, 2), meta={"guess": "neither qform nor sform is set"})
    with pytest.raises(DataError, match=r"^the image's place is a guess: neither .*r\.dcm\); "):
        check_references(guessed, label)
