"""Time and memory of `medsam-tune check` as the number of cases grows.

python benchmarks/check_scale.py

Each row is a process of its own on scans made for it: whole ones of noise with a label, and files
that are no scan. It writes results/check_scale.md.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
from training_step import machine

from medsam_tune.cases.audit import check_place
from medsam_tune.errors import DataError
from medsam_tune.files import written_whole

RESULTS = Path(__file__).parent / "results" / "check_scale.md"
ROWS = (  # kind, cases, side of a scan in voxels
    ("scans", 500, 16),
    ("scans", 5000, 16),
    ("scans", 300, 64),
    ("scans", 600, 64),
    ("files that are no scan", 100_000, 0),
    ("missing files", 100_000, 0),
)


def made(folder: Path, kind: str, count: int, side: int) -> Path:
    """A datalist of `count` cases; scans have a label map each."""
    image = np.random.default_rng(0).normal(0, 100, (side,) * 3).astype(np.int16)
    label = np.zeros((side,) * 3, np.uint8)
    label[:3, :3, :3] = 1
    entries = []
    for number in range(count):
        entry = {"image": f"c{number}.nii"}
        if kind == "scans":
            image[0, 0, :2] = number % 30_000, number // 30_000  # else they are the same
            nib.save(nib.Nifti1Image(image, np.eye(4)), folder / entry["image"])
            entry["label"] = f"l{number}.nii"
            nib.save(nib.Nifti1Image(label, np.eye(4)), folder / entry["label"])
        elif kind != "missing files":
            (folder / entry["image"]).write_text(f"no scan {number}")
        entries.append(entry)
    content = {"name": "scale", "modality": {"0": "CT"}, "labels": {"1": "organ"}}
    place = folder / "datalist.json"
    place.write_text(json.dumps({**content, "training": entries}))
    return place


def measure(kind: str, count: int, side: int) -> dict[str, float]:
    """Seconds of processor time of a check with its report, and MB before it and at its peak."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        place = made(folder, kind, count, side)
        before = psutil.Process().memory_info().rss / 1e6
        start = time.process_time()  # others may use the machine
        try:
            check_place(place, progress=False).write(folder / "check.json")
        except DataError as error:  # all missing files at once
            print(error, file=sys.stderr)
        seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return {"seconds": seconds, "before": before, "peak": max(peak, before)}


def main() -> None:
    """All rows, then the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", help="kind,cases,side: measure this and print JSON")
    one = parser.parse_args().one
    if one:
        kind, count, side = one.split(",")
        print(json.dumps(measure(kind, int(count), int(side))))
        return
    lines = []
    for kind, count, side in ROWS:
        command = [sys.executable, __file__, "--one", f"{kind},{count},{side}"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        size = f"{side} x {side} x {side}" if side else ""
        lines.append(
            f"| {kind} | {count:,} | {size} | {found['seconds']:.1f} | "
            f"{found['seconds'] / count * 1e3:.2f} | {found['before']:.0f} | {found['peak']:.0f} |"
        )
        print(lines[-1], file=sys.stderr, flush=True)
    with written_whole(RESULTS) as beside:
        beside.write_text(HEAD.format(machine=machine("cpu"), rows="\n".join(lines)))


HEAD = """# `medsam-tune check` as the number of cases grows

`python benchmarks/check_scale.py` on {machine}.
Time is that of the processor. Memory is that of the process after its imports (PyTorch, MONAI),
and the highest of all.

| | cases | voxels | CPU seconds | ms per case | MB before | MB at most |
|---|---|---|---|---|---|---|
{rows}

Time is linear in the cases. No voxel of a case is kept, only its finding and its message: 2 to 4 KB
with the report's text.
"""

if __name__ == "__main__":
    main()
