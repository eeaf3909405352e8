"""Prediction of scenes: memory and time, whatever their size.

    python benchmarks/scene.py --work WORK [--sides 2000 6000] [--run RUN]

Makes synthetic 4-band scenes of so many pixels a side, writes a label map and polygons of each by
`medsam-tune predict` with nano, and measures its peak of memory and its seconds of a core, which
other work on the machine hardly changes. Without --run, the run is nano without training on two
classes, in windows of its own side: the work is the same, the masks are not looked at. What is in
WORK is not made again. Writes benchmarks/results/scene.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import rasterio
import torch
from training_step import machine

from medsam_tune.files import written_whole
from medsam_tune.methods import apply_method
from medsam_tune.methods.tuned import save_tuned
from medsam_tune.runs import RunRecord, write_record, write_state
from medsam_tune.sam.build import build_sam
from medsam_tune.slices.colours import Colours
from medsam_tune.slices.rules import ScanRules

RESULTS = Path(__file__).parent / "results" / "scene.md"
LABELS = {1: "building", 2: "road"}
PIXEL, TILE = 0.3, 512
PERIOD = 1024  # of the pattern, so that a scene of any size is quick to make


def untrained(folder: Path) -> Path:
    """A run of nano that nobody trained, whose classes are everywhere present."""
    torch.manual_seed(0)
    sam = apply_method(build_sam("nano", in_channels=4), "decoder", num_classes=len(LABELS))
    sam.learned.present.data[:, -1] = 1.0
    folder.mkdir(parents=True, exist_ok=True)
    save_tuned(sam, folder / "tuned.safetensors", LABELS)
    limits = [(0, 2000)] * 4
    rules = ScanRules(Colours(4, limits=limits), modality="RGB", window=256, gsd=PIXEL)
    mixture = {"box": 1, "none": 1}
    write_record(
        folder, RunRecord("d.json", "d.slices", None, rules.describe(), {}, 0.0, 0, mixture=mixture)
    )
    write_state(folder, "finished")
    return folder


def scene(path: Path, side: int) -> Path:
    """A scene of houses in rows, 11 bits, tiled; written tile by tile."""
    if path.exists():
        return path
    rng = np.random.default_rng(0)
    row, column = np.indices((PERIOD, PERIOD))
    ids = ((row % 64 < 20) & (column % 80 < 26)).astype(int) + 2 * (row % 256 > 240)
    shades = np.array([[300, 400, 350, 1500], [1200, 900, 800, 500], [700, 700, 700, 400]])
    pattern = shades[ids.clip(0, 2)].transpose(2, 0, 1) + rng.normal(0, 40, (4, PERIOD, PERIOD))
    pattern = pattern.clip(1, 2047).astype(np.uint16)
    with written_whole(path) as beside:
        with rasterio.open(
            beside,
            "w",
            driver="GTiff",
            count=4,
            height=side,
            width=side,
            dtype="uint16",
            crs="EPSG:32616",
            transform=rasterio.Affine(PIXEL, 0, 730000, 0, -PIXEL, 3730000),
            photometric="minisblack",
            tiled=True,
            blockxsize=TILE,
            blockysize=TILE,
            compress="deflate",
            zlevel=1,
            bigtiff="if_safer",
        ) as file:
            for top in range(0, side, TILE):
                for left in range(0, side, TILE):
                    down, right = min(top + TILE, side), min(left + TILE, side)
                    y, x = top % PERIOD, left % PERIOD
                    part = pattern[:, y : y + down - top, x : x + right - left]
                    file.write(part, window=((top, down), (left, right)))
    return path


def measured(run: Path, image: Path, output: Path) -> tuple[float, float]:
    """Seconds of a core, and the peak of memory in MB, of one prediction."""
    words = ["predict", image, "--run", run, "--output", output, "--bundle", "image", "--overwrite"]
    code = "from medsam_tune.cli import app; app()"
    process = psutil.Popen(
        [sys.executable, "-c", code, *map(str, words)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    seconds, peak = 0.0, 0
    while process.poll() is None:
        try:
            peak = max(peak, process.memory_info().rss)
            times = process.cpu_times()
            seconds = times.user + times.system
        except psutil.Error:
            break
        time.sleep(0.2)
    if process.wait():
        raise RuntimeError(f"prediction of {image} failed")
    return seconds, peak / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--sides", type=int, nargs="+", default=[2000, 6000])
    parser.add_argument("--run", type=Path, default=None)
    parser.add_argument("--endings", nargs="+", default=[".tif", ".gpkg"])
    arguments = parser.parse_args()
    work = arguments.work
    run = arguments.run or untrained(work / "untrained")
    known = work / "measured.json"
    found = json.loads(known.read_text()) if known.exists() else {}
    for side in arguments.sides:
        image = scene(work / f"scene_{side}.tif", side)
        for ending in arguments.endings:
            key = f"{side}{ending}"
            if key not in found:
                seconds, peak = measured(run, image, work / f"mask{ending[1:]}_{side}{ending}")
                found[key] = [seconds, peak]
                known.write_text(json.dumps(found))
                print(key, f"{seconds:.0f} s, {peak:.0f} MB", flush=True)
    lines = ["# Prediction of scenes", "", "`python benchmarks/scene.py --work WORK`", ""]
    lines += [f"{machine('cpu')}. 4 bands of 11 bits, nano, windows"]
    lines += ["of 256 pixels that overlap by half, two classes without prompts.", ""]
    lines += ["| pixels | output | seconds of a core | per megapixel | peak of memory, MB |"]
    lines += ["|---|---|---|---|---|"]
    for key, (seconds, peak) in sorted(found.items(), key=lambda one: int(one[0].split(".")[0])):
        side, _, ending = key.partition(".")
        megapixels = int(side) ** 2 / 1e6
        lines.append(
            f"| {int(side):,} x {int(side):,} | .{ending} | {seconds:.0f} | "
            f"{seconds / megapixels:.2f} | {peak:.0f} |"
        )
    with written_whole(RESULTS) as beside:
        beside.write_text("\n".join([*lines, ""]))
    print(RESULTS.read_text())


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
