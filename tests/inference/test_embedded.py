"""Slices are encoded once, and only when they are asked for."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

from medsam_tune.inference.embedded import Batch, EmbeddedVolume, KeptEmbeddings, plane_for
from medsam_tune.inference.spool import Spool
from medsam_tune.inference.windows import WindowedPlane
from medsam_tune.slices.intensity import Window
from medsam_tune.slices.rules import ScanRules
from tests.inference.made import BoxFiller, volume


def opened(
    network: BoxFiller, keep: bool = True, batch: int = 4, memory: int = 0
) -> EmbeddedVolume:
    image = volume()
    plane = plane_for(network, (24, 32))
    return EmbeddedVolume(image, plane, Batch(batch, "slice"), Spool(memory), keep)


@pytest.mark.parametrize("memory", [0, 2**20])
def test_a_slice_is_encoded_once(memory: int) -> None:
    network = BoxFiller()
    slices = opened(network, memory=memory)
    assert slices.shape == (6, 24, 32)
    assert slices.embed(torch.tensor([3, 1])).tolist() == [4, 2]
    slices.encode(torch.tensor([1, 2]))
    assert slices.embed(torch.tensor([0, 1, 2, 3])).tolist() == [1, 2, 3, 4]
    assert network.encoded == [4, 2, 3, 1]
    assert network.calls == 3


def test_embeddings_of_one_use_are_not_kept() -> None:
    network = BoxFiller()
    slices = opened(network, keep=False, batch=2)
    for _ in range(2):
        assert slices.embed(torch.tensor([0, 1, 2])).tolist() == [1, 2, 3]
    assert network.encoded == [1, 2, 3, 1, 2, 3]
    assert network.calls == 4
    assert len(slices.spool) == 0


def test_embeddings_are_found_again_in_the_next_pass() -> None:
    network = BoxFiller()
    plane, image, kept = plane_for(network, (24, 32)), volume(), KeptEmbeddings(4 * 5)
    for name, encoded in (("a", 4), ("a", 0), ("b", 4), ("b", 3), ("a", 0)):
        for keep in (True, False) if not encoded else (False,):
            before = network.encoded.copy()
            batch = Batch(3, "slice")
            slices = EmbeddedVolume(image, plane, batch, Spool(), keep, (kept, name))
            assert slices.embed(torch.tensor([3, 1, 0, 2])).tolist() == [4, 2, 1, 3]
            assert len(network.encoded) - len(before) == encoded, name
    assert kept.held == 20  # bytes: the four of "a", and the first of "b"
    assert kept.find("b", 3) == 4
    assert kept.find("b", 1) is None
    slices = EmbeddedVolume(image, plane, Batch(3, "slice"), Spool(), True, (kept, "a"))
    assert slices.embed(torch.tensor([4, 3, 5])).tolist() == [5, 4, 6]  # two are new


def test_threads_do_not_encode_a_slice_twice() -> None:
    network = BoxFiller()
    slices = opened(network, batch=2)
    wanted = [torch.tensor([(start + k) % 6 for k in range(4)]) for start in range(6)] * 8
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(slices.embed, wanted))
    assert all(torch.equal(one, which + 1.0) for one, which in zip(found, wanted, strict=True))
    assert sorted(network.encoded) == [1, 2, 3, 4, 5, 6]


def test_content_is_more_than_one_value_in_a_channel() -> None:
    image = torch.zeros(4, 2, 8, 8, dtype=torch.uint8)
    image[1, 1] = 9  # another value in each channel
    image[2, 1, 3, 3] = 9
    slices = EmbeddedVolume(image, plane_for(BoxFiller(), (8, 8)), Batch(1, "slice"), Spool())
    assert [slices.has_content(z) for z in range(4)] == [False, False, True, False]


def test_the_plane_is_that_of_the_rules() -> None:
    network = SimpleNamespace(image_size=128, pixel_mean=torch.zeros(1))
    squashed = plane_for(network, (24, 32), ScanRules(Window(0, 1), squash=True))
    assert squashed.frame.inner == (128, 128)
    for rules in (None, ScanRules(Window(0, 1)), ScanRules(Window(0, 1), window=32)):
        assert plane_for(network, (24, 32), rules).frame.inner == (96, 128)
    windows = plane_for(network, (24, 33), ScanRules(Window(0, 1), window=32))
    assert isinstance(windows, WindowedPlane)
    assert (windows.size, windows.window) == ((24, 33), (24, 32))
