"""The slice store: how fast it is filled, what it takes, and how fast training reads from it.

    python benchmarks/slice_store.py [--volumes 50] [--slices 200]

Writes synthetic CT volumes of 512 x 512 and their store into a temporary folder, which it deletes.
The table goes to benchmarks/results/slice_store.md.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import time
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
import torch
import zarr
from monai.transforms import Compose, DeleteItemsd
from torch.utils.data import DataLoader
from training_step import Memory, machine

from medsam_tune.cases.datalist import Case
from medsam_tune.files import written_whole
from medsam_tune.slices.estimate import estimate
from medsam_tune.slices.intensity import WINDOWS
from medsam_tune.slices.rules import ScanRules
from medsam_tune.slices.store import PreparedCase, SliceStore
from medsam_tune.training.samples import SeededSampler, SliceDataset
from medsam_tune.transforms import BoxPromptsd, LoadSliced, ModelFramed

OUTPUT = Path(__file__).parent / "results" / "slice_store.md"
LABELS = {1: "liver"}
SAMPLES = 2_000  # of the epoch whose memory is watched
TIMED = 400  # of each number of workers
DIFFERENT = 5  # volumes; the others are these under other names
BATCH = 8
IMAGE_SIZE = 256


def write_cases(folder: Path, volumes: int, slices: int) -> list[Case]:
    """Bodies with noise and an ellipsoid, int16 HU, and the ellipsoid as label; five in turn."""
    y, x = np.mgrid[-1:1:512j, -1:1:512j]
    body = np.where((x / 0.8) ** 2 + (y / 0.6) ** 2 < 1, 40, -1000).astype(np.int16)
    cases = []
    for number in range(volumes):
        paths = [folder / f"{kind}s" / f"case_{number:03d}.nii.gz" for kind in ("image", "label")]
        cases.append(Case(paths[0], paths[1], f"patient_{number}"))
        if number >= DIFFERENT:
            earlier = cases[number - DIFFERENT]
            paths[0].hardlink_to(earlier.image)
            paths[1].hardlink_to(folder / "labels" / earlier.image.name)
            continue
        rng = np.random.default_rng(number)
        noise = rng.normal(0, 15, body.shape).astype(np.int16)
        image = np.empty((512, 512, slices), np.int16)
        label = np.zeros((512, 512, slices), np.uint8)
        for k, z in enumerate(np.linspace(-1, 1, slices)):
            label[..., k] = ((x - 0.3) / 0.3) ** 2 + (y / 0.3) ** 2 + z**2 < 1
            shifted = np.roll(noise, (31 * k, 57 * k), axis=(0, 1))
            image[..., k] = body + shifted + 60 * label[..., k]
        for path, array in zip(paths, (image, label), strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = nib.Nifti1Image(array, np.diag([0.8, 0.8, 2.0, 1.0]))
            nib.save(file, path)
    return cases


def filled(store: SliceStore, cases: list[Case], slices: int) -> list[str]:
    """Lines on preparing all cases, by one job and by two, and on finding them again."""
    lines = []
    half = len(cases) // 2
    for jobs, part in ((1, cases[:half]), (2, cases[half:])):
        memory = Memory("cpu")
        start, busy = time.perf_counter(), time.process_time()
        with memory.watch():
            store.prepare(part, progress=False, jobs=jobs)
        seconds, busy = time.perf_counter() - start, time.process_time() - busy
        rate = len(part) * slices / seconds
        lines.append(
            f"| prepared by {jobs} job{'s' * (jobs > 1)}, slices/s | {rate:.0f} (of "
            f"{len(part) * slices / busy:.0f} for a whole core; {memory.peak:,.0f} MiB) |"
        )
        print(lines[-1], file=sys.stderr)
    start = time.perf_counter()
    store.prepare(cases, progress=False)
    lines.append(f"| found again, ms a case | {_ms(start) / len(cases):.1f} |")
    start = time.perf_counter()
    for file in store.root.rglob("*"):
        if file.is_file():
            zlib.crc32(file.read_bytes())
    lines.append(f"| reading and checking every byte, ms a case | {_ms(start) / len(cases):.1f} |")
    return lines


def stored(store: SliceStore, bound: int, count: int) -> list[str]:
    """Lines on what the store takes."""
    files = [f for f in store.root.rglob("*") if f.is_file() and f.suffix != ".lock"]
    size = sum(file.stat().st_size for file in files)
    return [
        f"| bytes a slice, image and label | {size / count:,.0f} (of {bound / count:,.0f}) |",
        f"| files | {len(files)} for {count:,} slices |",
    ]


def everyone() -> list[psutil.Process]:
    """This process and its workers."""
    process = psutil.Process()
    return [process, *process.children(recursive=True)]


def resident() -> float:
    """MiB that they hold and do not share."""
    return sum(each.memory_full_info().uss for each in everyone()) / 2**20


def processor() -> float:
    """Seconds that they have computed."""
    times = [each.cpu_times() for each in everyone()]
    return sum(each.user + each.system for each in times)


def read(
    prepared: list[PreparedCase], workers: int, samples: int
) -> tuple[float, float, list[float]]:
    """Slices/s after the first batches, the same for a whole core, and MiB at each tenth."""
    chain = [
        LoadSliced(),
        BoxPromptsd("label", LABELS, count=4),
        ModelFramed(["image", "masks"], IMAGE_SIZE, mode=["bilinear", "nearest"]),
        DeleteItemsd("label"),
    ]
    dataset = SliceDataset(prepared, LABELS, Compose(chain))
    sampler = SeededSampler(len(dataset), seed=0, num_samples=samples)
    loader = DataLoader(dataset, batch_size=BATCH, sampler=sampler, num_workers=workers)
    gc.collect()
    memory, start, busy, first = [], 0.0, 0.0, 4
    steps = max(1, len(loader) // 10)
    for number, _ in enumerate(loader, start=1):
        if number == first:
            start, busy = time.perf_counter(), processor()
        if number % steps == 0:
            memory.append(resident())
        if number == len(loader):
            start, busy = time.perf_counter() - start, processor() - busy
    slices = (len(loader) - first) * BATCH
    return slices / start, slices / busy, memory


def main() -> None:
    """Write, prepare, read and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--volumes", type=int, default=50)
    parser.add_argument("--slices", type=int, default=200)
    options = parser.parse_args()
    count = options.volumes * options.slices
    with tempfile.TemporaryDirectory() as scratch:
        cases = write_cases(Path(scratch), options.volumes, options.slices)
        store = SliceStore(Path(scratch) / "store", ScanRules(WINDOWS["abdomen"]), LABELS)
        start = time.perf_counter()
        expected = estimate(store, cases, progress=False)
        rows = [f"| estimated from headers, ms a case | {_ms(start) / len(cases):.1f} |"]
        rows += filled(store, cases, options.slices)
        rows += stored(store, expected.bytes, count)
        prepared = store.prepare(cases, progress=False)
        for workers in (0, 1, 2):
            rate, core, _ = read(prepared, workers, TIMED)
            both = f"{rate:.0f} (of {core:.0f} for a whole core)"
            rows.append(f"| random slices/s, {workers} workers | {both} |")
            print(rows[-1], file=sys.stderr)
        for workers in (0, 2):
            *_, memory = read(prepared, workers, SAMPLES)
            tenths = " ".join(f"{value:,.0f}" for value in memory)
            rows.append(
                f"| MiB at each tenth of {SAMPLES:,} slices, {workers} workers | {tenths} |"
            )
            print(rows[-1], file=sys.stderr)
    lines = [
        "# The slice store\n",
        f"`python benchmarks/slice_store.py --volumes {options.volumes} --slices {options.slices}` "
        f"on {machine('cpu')}, zarr {zarr.__version__}.\n",
        f"{options.volumes} volumes of {options.slices} slices of 512 x 512, int16 in .nii.gz, "
        f"with labels; samples of {IMAGE_SIZE} x {IMAGE_SIZE} with 4 boxes, not augmented, in "
        f"batches of {BATCH}. Memory is of the process and its workers, what they share left out. "
        "Slices/s of a whole core are by the processor time used.\n",
        "| | |",
        "|---|---|",
        *rows,
    ]
    with written_whole(OUTPUT) as beside:
        beside.write_text("\n".join([*lines, ""]))


def _ms(start: float) -> float:
    return 1e3 * (time.perf_counter() - start)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
