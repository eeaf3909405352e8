"""The script for a GPU runs at small sizes without one."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their folder among those that Python imports from, as when one of them is run."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


@pytest.mark.usefixtures("benchmarks")
def test_parts_note_what_they_find_and_the_page_has_it(tmp_path: Path) -> None:
    import gpu
    from gpu_page import page

    for part in (gpu.exact, gpu.attention):
        part(gpu.Notes(tmp_path, part.__name__, small=True))
    lines = [json.loads(line) for line in (tmp_path / "gpu.jsonl").read_text().splitlines()]
    gaps = {x["what"]: x["relative"] for x in lines if x.get("precision") == "float32"}
    assert max(gaps.values()) < 1e-5
    text = page(tmp_path)
    assert "## Exactness" in text
    assert "| windows | training | folded |" in text
    assert (tmp_path / "gpu.md").read_text() == text


@pytest.mark.usefixtures("benchmarks")
def test_a_row_that_fails_is_noted_and_the_next_one_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gpu
    from gpu_page import page

    run = gpu.measured

    def measured(job: gpu.Job) -> object:
        if job.row == "lora":
            raise RuntimeError("no such kernel")
        return None if job.row == "full" else run(job)

    monkeypatch.setattr(gpu, "measured", measured)
    notes = gpu.Notes(tmp_path, "steps", small=True)
    notes.rows(("lora", "full", "stock loop, decoder", "decoder"), "vit_b", 4, False, 1)
    text = page(tmp_path)
    assert "- steps nano lora: RuntimeError: no such kernel" in text
    assert "| full | nano | 2 | fp32 | out of memory |" in text
    assert re.search(r"\| decoder \| nano \| 2 \| fp32 \| \d", text)


@pytest.mark.usefixtures("benchmarks")
def test_operations_of_training_are_those_that_the_method_needs() -> None:
    from stock import operations

    forward, decoder, lora, full = (
        operations("nano", 64, method) for method in ("encoder", "decoder", "lora", "full")
    )
    assert forward < decoder < lora < full
    assert full - decoder == pytest.approx(2 * forward, rel=0.1)


@pytest.mark.slow
def test_the_script_runs_every_part(tmp_path: Path) -> None:
    """But for exact and attention, see above; steps and compiled_large have the rows of others."""
    parts = ["encoder", "large", "small", "cached", "loader"]
    parts += ["compiled"] if shutil.which("g++") else []
    done = subprocess.run(
        ["bash", "benchmarks/gpu.sh", "--small", str(tmp_path)],
        cwd=ROOT,
        env={
            "PATH": "/usr/bin:/bin",
            "PYTHON": sys.executable,
            "PARTS": " ".join(parts),
            "BUDGET": "3000",
            "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "code"),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert [line.partition(" after")[0] for line in done.stdout.splitlines()] == [
        f"{part}: exit 0" for part in parts
    ]
    lines = [json.loads(line) for line in (tmp_path / "gpu.jsonl").read_text().splitlines()]
    assert {line["part"] for line in lines if "seconds" in line or "loading_alone" in line} == {
        *parts
    }
    assert [line for line in lines if "failed" in line] == []
    assert "## nano with its loader" in (tmp_path / "gpu.md").read_text()
