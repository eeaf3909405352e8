"""Time and memory of `medsam-tune evaluate --masks` as the number and the size of cases grow.

python benchmarks/evaluate_scale.py

Each row is a process of its own on files made before: label maps of blobs, masks that are the same
a voxel aside, and noise for scans. Everything is counted: reading and checking both files, every
metric, the pictures, the tables and the report. It writes results/evaluate_scale.md.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
from numpy.typing import NDArray
from training_step import machine

from medsam_tune.cases.datalist import Case, Datalist, write_datalist
from medsam_tune.evaluation.masks import evaluate_masks
from medsam_tune.files import written_whole

RESULTS = Path(__file__).parent / "results" / "evaluate_scale.md"
ROWS = (  # cases, shape, labels
    (100, (64, 64, 32), 10),
    (1000, (64, 64, 32), 10),
    (1, (512, 512, 600), 40),
)


@cache
def blobs(shape: tuple[int, int, int], count: int, seed: int) -> NDArray[np.uint8]:
    """A label map of as many ellipsoids, each in a cell of its own."""
    rng = np.random.default_rng(seed)
    found = np.zeros(shape, np.uint8)
    across = int(np.ceil(np.sqrt(count / 2)))
    cells = [(x, y, z) for x in range(across) for y in range(across) for z in range(2)][:count]
    cell = np.array([shape[0] // across, shape[1] // across, shape[2] // 2])
    for label, place in enumerate(cells, 1):
        start = np.multiply(place, cell)
        radius = cell * rng.uniform(0.25, 0.42, 3)
        inside = sum(
            ((grid - size / 2) / r) ** 2
            for grid, size, r in zip(np.ogrid[tuple(map(slice, cell))], cell, radius, strict=True)
        )
        part = found[tuple(slice(a, a + n) for a, n in zip(start, cell, strict=True))]
        part[inside < 1] = label
    return found


def made(folder: Path, count: int, shape: tuple[int, int, int], labels: int) -> None:
    """A datalist, and a folder of masks."""
    rng = np.random.default_rng(0)
    noise = rng.integers(-1000, 1000, shape, dtype=np.int16)
    affine = np.diag([0.8, 0.8, 1.0, 1.0])
    cases = []
    for name in ("images", "labels", "masks"):
        (folder / name).mkdir()
    for number in range(count):
        truth = blobs(shape, labels, number % 10)
        noise[0, 0, :2] = number % 1000, number // 1000  # else they are the same
        files = {"images": noise, "labels": truth, "masks": np.roll(truth, 1, number % 3)}
        for name, array in files.items():
            nib.save(nib.Nifti1Image(array, affine), folder / name / f"c{number}.nii")
        paths = (folder / name / f"c{number}.nii" for name in ("images", "labels"))
        cases.append(Case(*paths, f"c{number}"))
    names = {label: f"organ {label}" for label in range(1, labels + 1)}
    write_datalist(Datalist("Scale", "CT", names, test=tuple(cases)), folder / "datalist.json")


def measure(folder: Path) -> dict[str, float]:
    """Seconds of an evaluation, by the clock and of the processor, and MB before it and at most."""
    before = psutil.Process().memory_info().rss / 1e6
    clock, processor = time.perf_counter(), time.process_time()
    evaluate_masks(folder / "masks", folder / "datalist.json", folder / "out")
    clock, processor = time.perf_counter() - clock, time.process_time() - processor
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return {"clock": clock, "processor": processor, "before": before, "peak": max(peak, before)}


def main() -> None:
    """All rows, then the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", type=Path, help="folder from before: measure it and print JSON")
    parser.add_argument(
        "--only", type=int, nargs="*", help="numbers of rows, from 0; no page is written"
    )
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one)))
        return
    lines = []
    for number, (count, shape, labels) in enumerate(ROWS):
        if options.only is not None and number not in options.only:
            continue
        with tempfile.TemporaryDirectory() as folder:
            made(Path(folder), count, shape, labels)
            command = [sys.executable, __file__, "--one", folder]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        lines.append(
            f"| {count:,} | {' x '.join(map(str, shape))} | {labels} | {found['clock']:.1f} | "
            f"{found['processor']:.1f} | {count / found['processor']:.3g} | "
            f"{found['before']:.0f} | {found['peak']:.0f} |"
        )
        print(lines[-1], file=sys.stderr, flush=True)
        if options.only is None:  # after each row, so that what is done is kept
            with written_whole(RESULTS) as beside:
                beside.write_text(HEAD.format(machine=machine("cpu"), rows="\n".join(lines)))


HEAD = """# `medsam-tune evaluate --masks` as cases grow

`python benchmarks/evaluate_scale.py` on {machine}.
Memory is that of the process after its imports (PyTorch, MONAI), and the highest of all.

| cases | voxels | labels | seconds | CPU seconds | cases per CPU second | MB before | MB at most |
|---|---|---|---|---|---|---|---|
{rows}

Seconds by the clock are those of a machine that others used too. CPU seconds for each case are the
same for ten times as many cases. Memory grows by 78 MB over 900 more of them, about 9 KB for each
row of metrics.csv (a case and a label); a scan and its mask are freed before the next, and what the
pictures need lies in a temporary folder. A large scan takes 21 bytes for each of its voxels. Rows
may come from runs of their own (`--only`).
"""

if __name__ == "__main__":
    main()
