"""Slices in memory: what is kept, what goes, and that a sample is the same from either."""

import pickle

import numpy as np
import pytest
import torch

from medsam_tune.slices.recent import Recent
from medsam_tune.slices.transforms import LoadSliced


@pytest.fixture
def reads():
    """Keys that were read, and a function that reads one: 8 bytes."""
    seen: list[int] = []

    def read(key: int) -> np.ndarray:
        seen.append(key)
        return np.full(8, key, np.uint8)

    return seen, read


def test_what_was_asked_for_last_is_kept(reads) -> None:
    seen, read = reads
    recent = Recent(16)
    for key in (1, 2, 1, 3, 1, 2):  # 3 sends 2 away, which was not asked for the longest
        assert recent(key, lambda key=key: read(key))[0] == key
    assert seen == [1, 2, 3, 2]


@pytest.mark.parametrize("limit", [0, 7])
def test_what_is_larger_than_the_limit_is_read_each_time(limit: int, reads) -> None:
    seen, read = reads
    recent = Recent(limit)
    for _ in range(2):
        recent(5, lambda: read(5))
    assert seen == [5, 5]


def test_another_process_starts_with_nothing(reads) -> None:
    seen, read = reads
    recent = Recent(100)
    recent(1, lambda: read(1))
    other = pickle.loads(pickle.dumps(recent))
    other(1, lambda: read(1))
    assert (other.limit, seen) == (100, [1, 1])


def test_a_slice_is_read_once_and_stays_as_it_was(store, make_case, monkeypatch) -> None:
    (case,) = store.prepare([make_case()], progress=False)
    k = next(k for k, labels in enumerate(case.labels_in_slice) if labels)
    load = LoadSliced()
    first = load.set_random_state(seed=0)({"case": case, "slice": k})
    kept = {key: first[key].clone() for key in ("image", "label", "before")}
    for key in kept:
        first[key].zero_()  # as a transform that writes into its input
    monkeypatch.setattr(type(case), "_read", lambda *_: pytest.fail("was read again"))
    again = load.set_random_state(seed=0)({"case": case, "slice": k})
    for key, value in kept.items():
        assert torch.equal(again[key], value)


def test_cases_with_and_without_neighbours_are_told_apart(store, make_case) -> None:
    """The same entry may be read as one channel or as three."""
    from dataclasses import replace

    (case,) = store.prepare([make_case()], progress=False)
    load = LoadSliced()
    shapes = [
        load({"case": one, "slice": 1})["image"].shape[0]
        for one in (case, replace(case, neighbours=True))
    ]
    assert shapes == [1, 3]
