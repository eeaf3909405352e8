"""What is wrong with a scan refuses it alone; what is wrong with the program does not."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from medsam_tune.cases.datalist import Case
from medsam_tune.errors import DataError
from medsam_tune.inference.jobs import Job
from medsam_tune.inference.steps import PredictOrRefuse, ReadOrRefuse, ReadScan
from tests.scans import small_scan, write_nifti


class Noted:
    """Stands for `Predictions`."""

    def __init__(self, goes_on: bool = True) -> None:
        self.goes_on = goes_on
        self.refused: list[str] = []

    def check(self, job: Job) -> None:
        """Every mask can be written."""

    def streams(self, job: Job) -> bool:
        """No scene."""
        return False

    def refuse(self, problem: str) -> None:
        self.refused.append(problem)


def failing(error: Exception) -> Any:
    def fail(*_: object) -> None:
        raise error

    return fail


def a_job(folder: Path) -> Job:
    scan = write_nifti(folder / "a.nii.gz", small_scan()[0])
    return Job(Case(scan, None, "", name="c1"), None, folder / "c1.nii.gz")


READING = [
    (DataError("no voxel"), "case c1: no voxel"),
    (MemoryError(), "case c1: out of memory ("),
    (PermissionError(13, "Permission denied", "a.nii"), "case c1: a.nii: permission denied. Cho"),
    (KeyError("Doe^Jane"), "case c1: KeyError at inference/steps.py, line "),
    (ValueError("Doe^Jane is no number"), "case c1: ValueError at inference/steps.py, line "),
]


@pytest.mark.parametrize(("error", "message"), READING)
def test_whatever_keeps_a_scan_from_being_read(
    tmp_path: Path, error: Exception, message: str
) -> None:
    read = ReadOrRefuse(failing(error), Noted())  # type: ignore[arg-type]
    found = read(a_job(tmp_path))
    assert found.scan is None
    assert found.problem.startswith(message)
    assert "Doe" not in found.problem
    alone = ReadOrRefuse(failing(error), Noted(goes_on=False))  # type: ignore[arg-type]
    with pytest.raises(type(error)):
        alone(a_job(tmp_path))


def iteration(error: Exception) -> Any:
    return SimpleNamespace(_iteration=failing(error), state=SimpleNamespace(output=1))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (DataError("another label"), "case c1: another label"),
        (RuntimeError("CUDA out of memory. Tried"), "case c1: out of memory of the GPU. Lower"),
    ],
)
def test_a_scans_own_data_and_memory_refuse_it(
    tmp_path: Path, error: Exception, message: str
) -> None:
    noted, item = Noted(), ReadScan(a_job(tmp_path), SimpleNamespace())  # type: ignore[arg-type]
    engine = iteration(error)
    assert PredictOrRefuse(noted)(engine, item) == {}  # type: ignore[arg-type]
    assert engine.state.output is None
    assert len(noted.refused) == 1
    assert noted.refused[0].startswith(message)
    with pytest.raises(type(error)):
        PredictOrRefuse(Noted(goes_on=False))(iteration(error), item)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), ValueError("x"), RuntimeError("x")]
)
def test_other_errors_end_the_prediction(tmp_path: Path, error: Exception) -> None:
    noted, item = Noted(), ReadScan(a_job(tmp_path), SimpleNamespace())  # type: ignore[arg-type]
    with pytest.raises(type(error)):
        PredictOrRefuse(noted)(iteration(error), item)  # type: ignore[arg-type]
    assert not noted.refused


def test_what_was_not_read_is_not_segmented(tmp_path: Path) -> None:
    noted, item = Noted(), ReadScan(a_job(tmp_path), None, "case c1: gone")
    engine = iteration(AssertionError())
    assert PredictOrRefuse(noted)(engine, item) == {}  # type: ignore[arg-type]
    assert noted.refused == ["case c1: gone"]
