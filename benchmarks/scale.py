"""Time and memory of every command as cases grow: split, check, prepare, train, evaluate.

    python benchmarks/scale.py --work WORK [--cases 200 2000]

Made-up scans of five slices, so that 2,000 of them are 10,000 slices. Each step is a `medsam-tune`
command in a process of its own, of which the operating system says the processor's time and the
memory at most; what is measured in WORK is not run again. Writes benchmarks/results/scale.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
from pages import table
from training_step import machine

from medsam_tune.files import written_whole

RESULTS = Path(__file__).parent / "results" / "scale.md"
SIDE, SLICES = 96, 5
STEPS = ("split", "check", "prepare", "train", "evaluate")


def made(folder: Path, count: int) -> Path:
    """A folder of scans of noise with two tubes each, and their label maps."""
    rng = np.random.default_rng(0)
    x, y = np.ogrid[:SIDE, :SIDE]
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    affine = np.diag([1.0, 1.0, 3.0, 1.0])
    for number in range(count):
        centres = rng.uniform(25, 45, 2), rng.uniform(55, 75, 2)
        label = np.zeros((SIDE, SIDE, SLICES), np.uint8)
        for value, (a, b) in enumerate(centres, 1):
            for z in range(SLICES):
                label[(x - a - z) ** 2 + (y - b + z) ** 2 < rng.uniform(7, 13) ** 2, z] = value
        image = (300.0 * label + rng.normal(0, 80, label.shape)).astype(np.int16)
        nib.save(nib.Nifti1Image(image, affine), folder / "images" / f"p{number:05}.nii.gz")
        nib.save(nib.Nifti1Image(label, affine), folder / "labels" / f"p{number:05}.nii.gz")
    return folder


def measured(*words: object) -> dict[str, float]:
    """Run a command; its seconds of the processor and the clock, and its memory at most in MB."""
    argv = [str(word) for word in words]
    print("$ medsam-tune", shlex.join(argv), flush=True)
    code = "from medsam_tune.cli import app; app()"
    start = time.monotonic()
    process = subprocess.Popen([sys.executable, "-c", code, *argv])
    _, status, usage = os.wait4(process.pid, 0)
    clock = time.monotonic() - start
    if status:
        raise SystemExit(f"{argv[0]} ended with {os.waitstatus_to_exitcode(status)}.")
    processor = usage.ru_utime + usage.ru_stime
    return {"processor": processor, "clock": clock, "memory": usage.ru_maxrss / 1e3}


def steps(work: Path, count: int) -> dict[str, dict[str, float]]:
    """Each command's figures on so many cases."""
    folder = work / str(count)
    data, datalist, run = folder / "data", folder / "d.json", folder / "run"
    if not (folder / "made").exists():
        made(data, count)
        (folder / "made").touch()
    store = ("--set", f"slices_dir={folder / 'slices'}")
    sets = (*store, "--image-size", 128, "--set", "epochs=1")
    commands = {
        "split": (data, "--modality", "MR", "--out", datalist),
        "check": (datalist,),
        "prepare": (datalist, *store),
        "train": ("lora", "--datalist", datalist, "--output", run, *sets),
        "evaluate": ("--run", run),
    }
    file = folder / "measured.json"
    found = json.loads(file.read_text()) if file.exists() else {}
    for step in STEPS:
        if step not in found:
            found[step] = measured(step, *commands[step])
            file.write_text(json.dumps(found))
    split = json.loads(datalist.read_text())
    found["cases"] = {key: len(split.get(key, [])) for key in ("training", "validation", "test")}
    return found


def main() -> None:
    """All sizes, then the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--cases", type=int, nargs="+", default=[200, 2000])
    given = parser.parse_args()
    rows = {count: steps(given.work, count) for count in given.cases}
    lines = []
    for step in STEPS:
        for count, found in rows.items():
            one = found[step]
            cells = (f"{one['processor']:.0f}", f"{one['clock']:.0f}", f"{one['memory']:,.0f}")
            lines.append([f"`{step}`", f"{count:,}", *cells])
    head = ("command", "cases", "CPU seconds", "seconds", "MB at most")
    page = "\n".join(table(head, lines))
    subsets = ", ".join(" / ".join(map(str, one["cases"].values())) for one in rows.values())
    text = HEAD.format(machine=machine("cpu"), subsets=subsets, slices=SLICES, side=SIDE)
    with written_whole(RESULTS) as beside:
        beside.write_text(f"{text}\n{page}\n")
    print(text, page, sep="\n")


HEAD = """# Commands as cases grow

`python benchmarks/scale.py --work WORK` on {machine}. Scans of {side} x {side} x {slices} voxels
with two labels, split into {subsets} of training, validation and test; an epoch of nano by LoRA at
128 x 128 over every slice, and boxes on every slice of the test cases. Each command is a process of
its own; its imports (PyTorch, MONAI) are counted, about 8 CPU seconds and 1,080 MB.
"""

if __name__ == "__main__":
    main()
