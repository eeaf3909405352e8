"""The predictions of a command: what is to do, and how it ends."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from medsam_tune.errors import DataError
from medsam_tune.files import file_hash, hold_folder
from medsam_tune.inference.output import Source
from medsam_tune.inference.predictions import Predictions
from medsam_tune.inference.records import begin_record, end_record
from medsam_tune.slices.intensity import Window
from medsam_tune.slices.rules import ScanRules
from tests.inference.made import LABELS
from tests.scans import small_scan, write_nifti


def predictions(folder: Path, output: str = "out", **options: Any) -> Predictions:
    """Of two scans, by no runs."""
    for name in "ab":
        write_nifti(folder / "scans" / f"{name}.nii.gz", small_scan()[0])
    runs: Any = SimpleNamespace(rules=ScanRules(Window(0, 1)), labels=LABELS, description=[])
    return Predictions(folder / "scans", folder / output, runs, **options)


def evaluator(made: Predictions, *refused: str) -> Any:
    """Does all jobs but those."""

    def run() -> None:
        for job in made.jobs:
            if job.case.id in refused:
                made.refuse(f"case {job.case.id}: bad")
            else:
                made.done += 1

    return SimpleNamespace(run=run)


@pytest.mark.parametrize(
    ("refused", "code", "said"),
    [
        ("", 0, "2 masks, 0 refused"),
        ("b", 3, "1 mask, 1 refused:\ncase b: bad"),
        ("ab", 1, "0 masks, 2 refused:\ncase a: bad\ncase b: bad"),
    ],
)
def test_the_end_says_what_was_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, refused: str, code: int, said: str
) -> None:
    caplog.set_level("INFO", "medsam_tune")
    made = predictions(tmp_path)
    made.open()
    if code:
        with pytest.raises(SystemExit) as ended:
            made.run(evaluator(made, *refused))
        assert ended.value.code == code
    else:
        made.run(evaluator(made))
    assert caplog.messages[-1] == said
    hold_folder(tmp_path / "out", "predicts").release()  # the folder is free again


def test_the_only_scan_was_done_before(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "medsam_tune")
    made = predictions(tmp_path, resume=True)
    made.before = 1
    made.run(evaluator(made))
    (said,) = caplog.messages
    assert said == f"{tmp_path / 'out'}: is done already, of this scan, prompts, run and settings."


def test_the_folder_is_free_after_a_refusal(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.nii.gz").touch()
    made = predictions(tmp_path)
    with pytest.raises(DataError, match=r"out: 1 of 2 scans have masks there already: a\.nii\.gz"):
        made.open()
    hold_folder(tmp_path / "out", "predicts").release()
    begin_record(tmp_path / "out" / "a.prediction.json", [tmp_path / "out" / "a.nii.gz"])
    made = predictions(tmp_path, resume=True)
    made.open()  # a mask whose record is not finished was not finished
    with pytest.raises(DataError, match="another process predicts into it"):
        predictions(tmp_path, resume=True).open()
    assert [job.case.id for job in made.jobs] == ["a", "b"]


def test_resume_refuses_masks_of_others(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    mine = tmp_path / "out" / "a.nii.gz"
    mine.write_text("by hand")
    made = predictions(tmp_path, resume=True)
    made.open()
    assert [job.case.id for job in made.jobs] == ["b"]
    (problem,) = made.refused
    assert problem.startswith(f"case a: {mine}: is there already, and no record says")
    with pytest.raises(SystemExit):
        made.run(evaluator(made))
    made = predictions(tmp_path, resume=True, overwrite=True)
    made.open()
    assert [job.case.id for job in made.jobs] == ["a", "b"]


def test_a_record_of_another_format_is_not_lost(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    mask = tmp_path / "out" / "a.nrrd"
    mask.touch()
    end_record(tmp_path / "out" / "a.prediction.json", {}, [mask])
    with pytest.raises(
        DataError, match=r"a\.prediction\.json: is the record of a\.nrrd, and would"
    ):
        predictions(tmp_path).open()
    predictions(tmp_path, overwrite=True).open()


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    made = predictions(tmp_path, probabilities=True)
    for name in (
        "a.nii.gz.x1",
        "b.prediction.json.x2",
        "b_probability_1_liver.nii.gz.x3",
        "mine.x",
    ):
        (tmp_path / "out" / f".{name}").mkdir(parents=True)
    made.open()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {".lock", ".mine.x"}


def test_outputs_that_are_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file: is a file; expected a folder for the masks"):
        predictions(tmp_path, "file").open()
    with pytest.raises(DataError, match="scans: is the folder of the scans; choose another"):
        predictions(tmp_path, "scans").open()
    with pytest.raises(DataError, match=r"mask\.mhd: ends in \.mhd, which is no ending of a"):
        predictions(tmp_path, "mask.mhd").open()
    predictions(tmp_path, "masks_v1.2").open()
    with pytest.raises(DataError, match=r"\.dcm\. For a folder of masks, choose a name without a"):
        predictions(tmp_path, "v1.final").open()
    (tmp_path / "v1.final").mkdir()
    predictions(tmp_path, "v1.final").open()


def test_codes_are_settings_by_their_content(tmp_path: Path) -> None:
    table, seen = tmp_path / "codes.csv", []
    for name in ("Leber", "Hepar"):
        table.write_text(f"label,name\n1,{name}\n")
        options = {"source": Source(codes=table), "format": "seg", "overwrite": True}
        made = predictions(tmp_path, **options)
        made.open()
        made._release()
        seen.append(made.about["settings"]["codes"])
        assert seen[-1] == file_hash(table)
    assert seen[0] != seen[1]
