"""The scans of an exported bundle's run."""

from __future__ import annotations

from pathlib import Path

import pytest

from medsam_tune.errors import DataError
from medsam_tune.inference.bundled import scans_in


def test_scans_and_their_label_maps(tmp_path: Path) -> None:
    scans, maps = tmp_path / "scans", tmp_path / "maps"
    for file in ("scans/a.nii.gz", "scans/b/1.dcm", "scans/.DS_Store", "maps/a.nrrd", "maps/c.nii"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    assert scans_in(scans) == [{"image": str(scans / "a.nii.gz")}, {"image": str(scans / "b")}]
    with pytest.raises(DataError, match=r"scans/b: no label map b in .*maps; expected one for"):
        scans_in(scans, maps)
    (maps / "b.nii.gz").touch()
    pairs = [("a.nii.gz", "a.nrrd"), ("b", "b.nii.gz")]
    found = [{"image": str(scans / one), "prompts": str(maps / two)} for one, two in pairs]
    assert scans_in(scans, maps) == found
    for nothing in (tmp_path / "none", maps / "c.nii"):
        with pytest.raises(DataError, match="no folder with files in it; correct the path"):
            scans_in(nothing)
