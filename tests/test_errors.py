"""Errors and warnings name what is worked on, once."""

from __future__ import annotations

import threading

import pytest

from medsam_tune.errors import DataError, about, listed, warn


def test_the_inner_subject_is_named_once() -> None:
    with pytest.raises(DataError, match=r"^case a: no voxel$"), about("folder"), about("case a"):
        raise DataError("no voxel")


def test_other_errors_stay_as_they_are() -> None:
    with pytest.raises(ValueError, match=r"^boom$"), about("case a"):
        raise ValueError("boom")


def test_warnings_name_it_too_and_nothing_afterwards() -> None:
    with pytest.warns(UserWarning, match="^case a: odd$"), about("case a"):
        warn("odd")
    with pytest.warns(UserWarning, match="^odd$"):
        warn("odd")


def test_threads_have_their_own_subject() -> None:
    found: list[str] = []

    def work() -> None:
        with pytest.raises(DataError) as caught, about("case b"):
            raise DataError("no voxel")
        found.append(str(caught.value))

    with about("case a"):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert found == ["case b: no voxel"]


def test_long_lists_are_cut() -> None:
    assert listed("abc") == "a, b, c"
    assert listed(map(str, range(12)), shown=2, separator="; ") == "0; 1; ... (12 in all)"
