"""A member of each kind of fault: it is said in one line, nothing is lost, and it goes on."""

from __future__ import annotations

import signal

import pytest

from tests.faults import trials
from tests.faults.mishaps import may_mount
from tests.faults.runs import Yard, leftovers

pytestmark = pytest.mark.faults

KILLS = [(place, number) for number in range(7) for place in trials.PLACES]


@pytest.mark.parametrize(("place", "number"), KILLS, ids=lambda each: str(each).split(",")[0])
def test_a_kill_loses_nothing(yard: Yard, place: str, number: int) -> None:
    assert not trials.killed(yard, place, number)


@pytest.mark.parametrize(
    ("method", "boundary", "workers"),
    [("decoder", True, 0), ("lora", False, 2), ("adapter", True, 2), ("prompt", False, 0)],
)
def test_a_resumed_run_is_bit_equal(yard: Yard, method: str, boundary: bool, workers: int) -> None:
    assert not trials.resumed(yard, method, boundary, workers)


def test_a_kill_right_before_the_end_leaves_a_finished_run(yard: Yard) -> None:
    """Between the last checkpoint and the state that says so."""
    assert not trials.killed_at_the_end(yard)


@pytest.mark.parametrize(
    ("number", "where"),
    [(signal.SIGTERM, "a step"), (signal.SIGINT, "the validation"), (signal.SIGTERM, "saving")],
)
def test_a_signal_stops_and_says_how_to_go_on(
    yard: Yard, number: signal.Signals, where: str
) -> None:
    assert not trials.signalled(yard, int(number), where)


@pytest.mark.skipif(not may_mount(), reason="no file system may be mounted here")
@pytest.mark.parametrize(
    ("command", "share"), [("prepare", 0.65), ("train", 0.2), ("train", 0.65), ("predict", 0.6)]
)
def test_a_full_disk(yard: Yard, command: str, share: float) -> None:
    assert not trials.full_disk(yard, command, share)


@pytest.mark.slow  # how memory runs out depends on the machine
@pytest.mark.parametrize(("command", "mebibytes"), [("prepare", 24), ("train", 24)])
def test_little_memory(yard: Yard, command: str, mebibytes: int) -> None:
    assert not trials.little_memory(yard, command, mebibytes << 20)


def test_a_dead_worker(yard: Yard) -> None:
    assert not trials.dead_worker(yard, 0.1)


def test_a_loss_that_is_no_number(yard: Yard) -> None:
    assert not trials.not_a_number(yard, 1)


def test_two_trainings_in_one_folder(yard: Yard) -> None:
    assert not trials.two_trainings(yard, 1.0)


def test_two_predictions_into_one_folder(yard: Yard) -> None:
    assert not trials.two_predictions(yard)


def test_a_preparation_and_a_training_in_one_store(yard: Yard) -> None:
    assert not trials.two_in_a_store(yard, training=True)


def test_what_differs_is_found(yard: Yard) -> None:
    """The comparison itself: another run, a temporary file."""
    assert yard.wrong("decoder", "whole_decoder") == ""
    yard.whole("lora")
    assert yard.wrong("decoder", "whole_lora") == "other tensors"
    (yard.whole("decoder") / ".last.pt.x").mkdir()
    assert leftovers(yard.whole("decoder")) == "left: .last.pt.x"
    (yard.whole("decoder") / ".last.pt.x").rmdir()
