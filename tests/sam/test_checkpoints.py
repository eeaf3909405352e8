"""State dicts inside of whatever training programs write around them."""

from __future__ import annotations

import logging
import re
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from medsam_tune.errors import DataError
from medsam_tune.sam.checkpoints import read_state

STATE = {
    "image_encoder.pos_embed": torch.arange(4.0),
    "prompt_encoder.no_mask_embed.weight": torch.ones(2),
    "mask_decoder.iou_token.weight": torch.zeros(3),
}


def _named(before: str) -> dict[str, torch.Tensor]:
    return {before + key: value for key, value in STATE.items()}


def _saved(folder: Path, content: object, name: str = "x.pth") -> Path:
    torch.save(content, folder / name)
    return folder / name


WRAPPED: dict[str, tuple[Any, str]] = {
    "lightning": ({"state_dict": _named("model."), "epoch": 3}, "found in 'state_dict', without"),
    "medsam": ({"model": STATE, "optimizer": {"state": {0: 1}}, "epoch": 2}, "found in 'model'$"),
    "micro-sam": ({"model_state": _named("sam."), "epoch": 9}, r"without 'sam\.' in its names$"),
    "compiled": (_named("_orig_mod."), r"is without '_orig_mod\.' in its names$"),
    "parallel": (_named("module."), r"is without 'module\.' in its names$"),
    "combined": (
        {"state": {"network": _named("module._orig_mod.model.sam.")}},
        r"found in 'state\.network', without 'module\.', '_orig_mod\.', 'model\.sam\.' in its",
    ),
    "compiled-part": (
        {k.replace("encoder.", "encoder._orig_mod."): v for k, v in STATE.items()},
        r"without '_orig_mod\.'",
    ),
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_row_92_what_is_around_is_removed_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    content, said = WRAPPED[kind]
    with caplog.at_level(logging.INFO):
        found = read_state(_saved(tmp_path, content))
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[key], value) for key, value in STATE.items())
    (record,) = caplog.records
    assert re.search(said, record.getMessage()), record.getMessage()


def test_a_plain_state_dict_needs_no_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert read_state(_saved(tmp_path, STATE)).keys() == STATE.keys()
    assert not caplog.records


@pytest.mark.parametrize("name", ["x.SAFETENSORS", "x", "x.pth", "x.safetensors"])
@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_row_92_the_content_tells_the_format(tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / name
    if kind == "safetensors":
        save_file(STATE, path)
    else:
        torch.save(STATE, path, _use_new_zipfile_serialization=kind == "zip")
    assert read_state(path).keys() == STATE.keys()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"model": STATE, "ema": STATE.copy()}, "2 state dicts of a SAM, in 'model', 'ema'. Save"),
        ({**_named("student."), **_named("teacher.")}, "begin in 2 ways, 'student.', 'teacher.'"),
        ({**STATE, **_named("model.")}, "begin in 2 ways, '', 'model.'; which SAM is meant"),
        ({**STATE, **_named("module.")}, "without 'module.', several tensors have one name"),
        ({**STATE, "epoch": 3}, "no state dict (name -> tensor) in it: no tensors are epoch."),
        ({"a": {"b": {"c": {"d": STATE}}}}, "no state dict (name -> tensor) in it"),
        ({}, "no state dict (name -> tensor) in it"),
        (
            {**STATE, "mask_decoder.x": torch.ones(1).expand(10**6, 10**6)},
            "mask_decoder.x stands for 4000000000000 bytes, the file has 4 of it",
        ),
        (
            {**STATE, "mask_decoder.x": torch.ones(2).to_sparse()},
            "mask_decoder.x is a torch.sparse_coo tensor",
        ),
        ({**STATE, "mask_decoder.x": torch.ones(2, dtype=torch.complex64)}, "tensor of torch.com"),
        ({**STATE, "mask_decoder.x": torch.ones(2, device="meta")}, "of torch.float32 on meta"),
    ],
)
@pytest.mark.filterwarnings("ignore:Validating sparse")
def test_row_92_what_may_mean_several_things_is_refused(
    tmp_path: Path, content: object, said: str
) -> None:
    with pytest.raises(DataError) as refused:
        read_state(_saved(tmp_path, content))
    assert str(refused.value).startswith(f"{tmp_path / 'x.pth'}: ")
    assert said in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"\xff" * 20, b"{" * 20])
def test_row_55_what_is_no_checkpoint_is_named_with_its_size(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "x.pth"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"x\.pth: {len(content)} bytes, truncated or damaged"):
        read_state(path)


def test_a_compressed_archive_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**6))
    with pytest.raises(DataError, match=r"x\.pth: is compressed, and no checkpoint of PyTorch"):
        read_state(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_row_55_damaged_bytes_never_end_in_a_traceback(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    if kind == "safetensors":
        save_file(STATE, path)
    else:
        torch.save(STATE, path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    for position in range(0, len(whole), max(1, len(whole) // 60)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :])
        with suppress(DataError):  # some bytes change a value only
            read_state(path)
