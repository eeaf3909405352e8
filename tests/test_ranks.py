"""One process alone waits for nobody; several share out what one would do."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from torch import nn

from medsam_tune import ranks
from medsam_tune.bundle import bundle_folder
from medsam_tune.cli import tuning
from medsam_tune.errors import DataError
from medsam_tune.runs import RunFolder, RunRecord
from medsam_tune.training.samples import SeededSampler


def as_rank(monkeypatch: pytest.MonkeyPatch, rank: int, count: int) -> None:
    """Be one of several, as far as the environment says it."""
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", str(count))


def test_one_process_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")  # of a scheduler that means something else by it
    assert (ranks.rank(), ranks.count(), ranks.is_main()) == (0, 1, True)
    ranks.join()
    ranks.wait()
    assert ranks.gathered("a") == ["a"]
    assert ranks.largest(15) == 15
    assert ranks.mean(0.1) == 0.1
    network = nn.Linear(2, 2)
    assert ranks.parallel(network, torch.device("cpu")) is network
    assert [*ranks.Share(3)] == [0, 1, 2]
    assert ranks.my_part("abc") == ("a", "b", "c")
    ranks.leave()


@pytest.mark.parametrize(("length", "count"), [(7, 3), (2, 4), (6, 2)])
def test_shares_are_equally_long_and_hold_all(
    monkeypatch: pytest.MonkeyPatch, length: int, count: int
) -> None:
    shares = []
    for rank in range(count):
        as_rank(monkeypatch, rank, count)
        share = ranks.Share(length)
        shares.append([*share])
        assert len(share) == len(shares[-1])
    assert len({len(each) for each in shares}) == 1
    assert {index for each in shares for index in each} == {*range(length)}
    in_turn = [index for row in zip(*shares, strict=True) for index in row]
    assert in_turn[:length] == [*range(length)]


def test_parts_hold_each_item_once(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = []
    for rank in range(3):
        as_rank(monkeypatch, rank, 3)
        parts.append(ranks.my_part("abcd"))
    assert parts == [("a", "d"), ("b",), ("c",)]


def test_batches_together_are_those_of_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    one = SeededSampler(10, seed=3, num_samples=24)
    one.set_epoch(2)
    whole = [*one]
    parts = []
    for rank in range(2):
        as_rank(monkeypatch, rank, 2)
        sampler = SeededSampler(10, seed=3, num_samples=24, batch_size=4)
        sampler.set_epoch(2)
        parts.append([*sampler])
        assert len(sampler) == len(parts[-1]) == 12
        sampler.set_epoch(2, done=4)
        assert [*sampler] == parts[-1][4:]
    in_turn = [one for start in (0, 4, 8) for part in parts for one in part[start : start + 4]]
    assert in_turn == whole


def test_an_epoch_is_lengthened_until_all_have_as_many(monkeypatch: pytest.MonkeyPatch) -> None:
    as_rank(monkeypatch, 1, 2)
    sampler = SeededSampler(10, num_samples=9, batch_size=4)
    assert len(sampler) == len([*sampler]) == 8


def test_the_first_rank_alone_writes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    record = RunRecord(None, None, None, {}, {}, 0.05, 0)
    folder = RunFolder(tmp_path / "run", record)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tuned.safetensors").touch()  # of a run that is there
    as_rank(monkeypatch, 1, 2)
    folder.refuse()
    folder.set_state("finished", 1, 1)
    assert [path.name for path in folder.path.iterdir()] == ["tuned.safetensors"]
    as_rank(monkeypatch, 0, 2)
    with pytest.raises(DataError, match="holds a run already"):
        folder.refuse()
    folder.set_state("finished", 1, 1)
    assert folder.state == "finished"


def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert ranks.device() == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(ValueError, match="process 2 of this machine has no GPU: torch sees 1"):
        ranks.device()


@pytest.mark.parametrize(
    ("given", "by_launch", "threads"),
    [
        (None, False, 8),
        ("1", False, 8),  # as torchrun sets it
        ("1", True, None),  # as the user has set it, whose number `launch` leaves as it is
        ("3", False, None),
    ],
)
def test_processes_share_out_the_cores_of_their_machine(
    monkeypatch: pytest.MonkeyPatch, given: str | None, by_launch: bool, threads: int | None
) -> None:
    found: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", found.append)
    monkeypatch.setattr(ranks, "_cores", lambda: 33)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    if by_launch:
        monkeypatch.setenv("MEDSAM_TUNE_SAID", "folder")
    ranks.share_cores()
    assert found == ([] if threads is None else [threads])


def test_a_process_alone_has_the_threads_that_the_user_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """1 as well, which torchrun would set by itself."""
    monkeypatch.setattr(torch, "set_num_threads", lambda count: pytest.fail(f"{count} threads"))
    for name in ("LOCAL_WORLD_SIZE", "MEDSAM_TUNE_SAID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    ranks.share_cores()


@pytest.mark.parametrize("bundle", ["volume", "image"])
@pytest.mark.parametrize(("threads", "workers"), [(1, 0), (8, 7), (48, 12)])
def test_a_process_has_as_many_workers_as_cores_but_one(
    monkeypatch: pytest.MonkeyPatch, bundle: str, threads: int, workers: int
) -> None:
    parser = ConfigParser(
        ConfigParser.load_config_file(bundle_folder(bundle) / "configs" / "train.yaml")
    )
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    for device, expected in (("cuda", workers), ("cpu", 0)):
        parser["device"] = device
        parser.parse(reset=True)
        assert parser.get_parsed_content("num_workers") == expected


@pytest.mark.skipif(sys.platform != "linux", reason="no system call tells it elsewhere")
def test_cores_are_those_that_a_scheduler_gave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {4, 5, 6})
    assert ranks._cores() == 3


def test_trainings_on_several_gpus(
    tune: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(tuning, "run_bundle", lambda *words: seen.append(words))
    monkeypatch.setattr(tuning, "bundle_of_data", lambda *_: "volume")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    words = ("train", "full", "--datalist", tmp_path / "d.json", "--output", tmp_path / "run")
    for option in ([], ["--shard"]):
        code, _, err = tune(*words, "--gpus", "2", *option)
        assert code == 0, err
    assert [(each[1][-1], each[3]) for each in seen] == [("multi_gpu.yaml", 2), ("fsdp.yaml", 2)]
    code, _, err = tune(*words, "--shard")
    assert (code, "--shard needs several GPUs" in err) == (1, True)
