"""Names of patients stay where they are: nothing that a command writes or prints has them."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import torch

from tests.phi import KINDS, Swept, sweep, try_all


@pytest.mark.faults
@pytest.mark.parametrize("kind", KINDS)
def test_no_name_from_a_header_is_written(tmp_path: Path, kind: str) -> None:
    swept = try_all(kind, tmp_path / "x")
    assert swept.files > 40
    assert swept.hits == []


def test_the_search_finds_what_is_packed(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(b"..Doe^Jane.."))
    torch.save({"mrn-123456": torch.zeros(2)}, tmp_path / "last.pt")
    (tmp_path / "b").write_bytes("19700101".encode("utf-16-le"))
    (tmp_path / "d.json").write_text("Roe_Mary")
    assert sweep(tmp_path, {"log": "jane doe"}) == Swept(
        4, ["a.nii.gz: Doe^Jane", "b: 19700101", "last.pt: mrn-123456", "log: jane doe"]
    )
    assert sweep(tmp_path, {"log": "roe mary"}, anonymous=True).hits[-1] == "log: roe mary"
