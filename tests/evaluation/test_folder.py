"""The results of an evaluation replace those of an earlier one as a whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from medsam_tune.errors import DataError
from medsam_tune.evaluation.folder import ResultFolder


def evaluate(path: Path, *cases: str) -> ResultFolder:
    folder = ResultFolder(path)
    folder.open()
    (folder.scratch / "metrics.csv").write_text("\n".join(cases))
    (folder.scratch / "overlays").mkdir()
    for case in cases:
        (folder.scratch / "overlays" / f"{case}.png").write_bytes(b"")
    return folder


def test_results_are_replaced_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "run" / "evaluation"
    evaluate(path, "a", "b").finish()
    evaluate(path, "c")  # and dies
    assert (path / "metrics.csv").read_text() == "a\nb"
    evaluate(path, "b").finish()
    assert (path / "metrics.csv").read_text() == "b"
    assert [one.name for one in (path / "overlays").iterdir()] == ["b.png"]
    assert [one.name for one in path.parent.iterdir()] == ["evaluation"]


def test_other_files_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "scan.nii.gz").write_bytes(b"mine")
    with pytest.raises(DataError, match=r"holds other files \(scan.nii.gz\), and would"):
        ResultFolder(tmp_path).open()
    with pytest.raises(DataError, match=r"scan.nii.gz: is a file; expected a folder"):
        ResultFolder(tmp_path / "scan.nii.gz").open()
    assert [one.name for one in tmp_path.iterdir()] == ["scan.nii.gz"]
    results = evaluate(tmp_path / "run" / "evaluation", "a")
    for kind in ("box3d", "interpolated-12"):
        (results.scratch / kind).mkdir()
        (results.scratch / kind / "metrics.csv").touch()
    results.finish()
    (results.path / "overlays" / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match=r"holds other files \(notes.txt\)"):
        ResultFolder(results.path).open()
    (results.path / "overlays" / "notes.txt").unlink()
    results.refuse_others()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("box3d/notes.txt", "box3d/notes.txt"),
        ("interpolated-1/metrics.csv", "interpolated-1"),
        ("interpolated:5/metrics.csv", "interpolated:5"),
        ("none", "none"),  # a file
        ("other/metrics.csv", "other"),
    ],
)
def test_folders_of_kinds_hold_scores_alone(tmp_path: Path, name: str, said: str) -> None:
    results = evaluate(tmp_path / "evaluation", "a")
    results.finish()
    mine = results.path / name
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine")
    with pytest.raises(DataError, match=rf"holds other files \({said}\)"):
        results.refuse_others()
