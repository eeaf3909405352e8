"""A folder of several series: the one that is asked for is segmented."""

from __future__ import annotations

from pathlib import Path

import pytest

from medsam_tune.errors import DataError
from medsam_tune.inference.scans import LoadPromptedScan
from medsam_tune.slices.intensity import Window
from medsam_tune.slices.rules import ScanRules
from tests.dicom_series import COUNT, SIZE, write_series
from tests.scans import LABELS


def test_the_series_that_is_asked_for_is_loaded(tmp_path: Path) -> None:
    write_series(tmp_path / "a", uid="1.2.3.4")
    write_series(tmp_path / "b", uid="1.2.3.5", count=3)
    load = LoadPromptedScan(ScanRules(Window(100, 200)), LABELS)
    for uid, count in (("1.2.3.4", COUNT), ("3.5", 3)):
        item = load({"scan": tmp_path, "series": uid, "prompts": None})
        assert tuple(item.image.shape) == (count, 1, *SIZE[::-1])
    with pytest.raises(DataError, match=r"2 series: .*Choose by series_uid \(predict: --series\)"):
        load({"scan": tmp_path, "prompts": None})
