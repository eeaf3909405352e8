"""The page of other programs' loops, from lines made up here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their folder among those that Python imports from, as when one of them is run."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def line(peer: str, seconds: list[float], mebibytes: float, precision: str) -> dict[str, Any]:
    return {
        **{"peer": peer, "loop": peer, "method": "full", "precision": precision, "batch": 4},
        **{"model": "vit_b", "image_size": 1024, "device": "cuda", "repeats": 3, "weights": 300.0},
        **{"seconds": seconds, "mebibytes": mebibytes, "changed": 93_729_252},
    }


def write(folder: Path, *lines: dict[str, Any]) -> None:
    (folder / "peers.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))


@pytest.mark.usefixtures("benchmarks")
def test_page_has_rates_and_ratios_to_ours(tmp_path: Path) -> None:
    from peers import page

    theirs = line("MedSAM", [0.5, 0.4, 0.6], 8000.0, "fp32")
    write(tmp_path, theirs, line("ours", [0.1, 0.1, 0.2], 2000.0, "bf16"))
    text = page(tmp_path)
    cells = "0.5 (0.4 to 0.6) | 8 | 8,000 |  | 5.00 x | 0.25 x |"
    assert f"| MedSAM | full | 93,729,252 | fp32 | {cells}" in text
    cells = "0.1 (0.1 to 0.2) | 40 | 2,000 |  |  |  |"
    assert f"| ours | full | 93,729,252 | bf16 | {cells}" in text
    assert "vit_b at 1024, one box for each image" in text
    assert "What failed" not in text
    assert (tmp_path / "peers.md").read_text() == text


@pytest.mark.usefixtures("benchmarks")
def test_page_names_a_peer_that_cannot_be_imported(tmp_path: Path) -> None:
    from peers import Row, batches, page

    row = Row("micro-sam", "micro-sam", "full", "fp16", "nano", 128, 1, "cpu", 1)
    write(tmp_path, *batches([row], tmp_path))
    reason = "failed: ImportError: micro-sam is not in PEERS"
    assert f"- micro-sam, full, fp16, batch 1: {reason}" in page(tmp_path)


@pytest.mark.usefixtures("benchmarks")
def test_stock_sam_is_as_a_whole_on_its_device() -> None:
    """Trainers send images to `sam.device`, which is that of its mean."""
    from stock import stock_sam

    sam = stock_sam("nano", 64, "meta")
    assert {one.device.type for one in (*sam.parameters(), *sam.buffers())} == {"meta"}
