"""Tensors come back as they were, from memory and from the file."""

from __future__ import annotations

import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from medsam_tune.inference.spool import Spool


@pytest.mark.parametrize("memory", [0, 100, 10**6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.int64])
def test_tensors_come_back(memory: int, dtype: torch.dtype) -> None:
    spool = Spool(memory)
    made = {(name, n): torch.randn(n, 3).to(dtype) for name in "ab" for n in (1, 4)}
    for key, tensor in made.items():
        spool[key] = tensor
    for key, tensor in made.items():
        assert torch.equal(spool[key], tensor)
        assert spool[key].dtype == dtype
    assert len(spool) == 4
    assert ("a", 1) in spool
    assert ("c", 1) not in spool
    assert spool.in_memory + spool.in_file == sum(tensor.nbytes for tensor in made.values())
    assert spool.in_memory <= memory


def test_what_fits_is_in_memory_and_the_rest_in_the_file() -> None:
    spool = Spool(memory=2 * 40)
    for key in range(5):
        spool[key] = torch.full((10,), float(key))
    assert (spool.in_memory, spool.in_file) == (80, 120)
    spool.discard(0)
    spool[5] = torch.zeros(10)
    assert (spool.in_memory, spool.in_file) == (80, 120)
    assert [float(spool[key][0]) for key in range(1, 6)] == [1, 2, 3, 4, 0]


def test_a_part_of_a_batch_does_not_hold_the_batch() -> None:
    spool = Spool()
    batch = torch.zeros(100, 10)
    spool[0] = batch[3]
    batch[3] = 1
    assert not spool[0].any()
    assert spool[0].untyped_storage().nbytes() == spool.in_memory == 40


def test_places_in_the_file_are_used_again() -> None:
    spool = Spool(memory=0)
    for turn in range(50):
        for key in range(3):
            spool[key] = torch.full((256,), float(turn + key))
    assert spool.in_file == 3 * 1024
    assert spool._file is not None
    assert os.fstat(spool._file.fileno()).st_size <= 4 * 1024
    assert [float(spool[key][0]) for key in range(3)] == [49, 50, 51]
    for key in range(3):
        spool.discard(key)
    spool.discard("never there")
    assert (len(spool), spool.in_file) == (0, 0)
    with pytest.raises(KeyError):
        spool[0]


def test_the_file_has_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    spool = Spool(memory=0)
    spool[0] = torch.zeros(10)
    assert spool.in_file == 40
    assert list(tmp_path.iterdir()) == []


def test_threads_share_a_spool() -> None:
    spool = Spool(memory=50 * 40)

    def work(number: int) -> bool:
        for turn in range(100):
            spool[number] = torch.full((10,), float(number + turn))
            if not bool((spool[number] == number + turn).all()):
                return False
            spool[(number, turn)] = spool[number]
        return all(bool((spool[(number, turn)] == number + turn).all()) for turn in range(100))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))
