"""What a prompt is worth: Dice on held-out scans by every kind of prompts that `predict` takes.

    python benchmarks/prompts.py HIPPOCAMPUS --ct TOTALSEG --work WORK

HIPPOCAMPUS is that task's folder of the Medical Segmentation Decathlon; TOTALSEG holds two CTs with
labels of TotalSegmentator (example_ct_dicom, example_seg_dicom.nii.gz, example_ct_sm.nii.gz,
example_seg.nii.gz). Each step is a `medsam-tune` command; what is finished in WORK is not run
again. Writes benchmarks/results/prompts.md.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from training_step import machine

from medsam_tune.cases.datalist import Case, Datalist, write_datalist
from medsam_tune.cases.folders import find_cases
from medsam_tune.cases.splits import split_cases
from medsam_tune.evaluation.statistics import FOOTNOTE, mean_text

RESULTS = Path(__file__).parent / "results" / "prompts.md"
KINDS = {
    "slices": "a box on every slice",
    "interpolated:10": "10 boxes, linear between them",
    "interpolated:5": "5 boxes",
    "interpolated:3": "3 boxes",
    "box3d": "one 3-D box",
    "middle-range": "a box on the middle slice, z-range known",
    "middle": "a box on the middle slice",
    "points": "a point on the middle slice",
    "none": "no prompt",
}
HIPPOCAMPUS = ("--image-size", "128")
TRAINING = ("epochs=7", "warmup_steps=50", "lr=1e-3", "val_interval=7", "objects=6")
RUNS = {
    "mixture": ("full", ()),
    "boxes": (
        "full",
        (
            "label_tokens=false",
            "mixture={'box': 1}",
            "empty_slices=0.0",
            "validation_prompts=['slices']",
        ),
    ),
    "no_prompt": ("full", ("mixture={'none': 1}", "validation_prompts=['none']")),
}
ORGANS = {1: "spleen", 2: "kidney_right", 3: "kidney_left", 5: "liver", 52: "aorta"}


def command(*words: object) -> float:
    """Run a `medsam-tune` command; the minutes that it took."""
    argv = [str(word) for word in words]
    print("$ medsam-tune", shlex.join(argv), flush=True)
    start = time.monotonic()
    code = "from medsam_tune.cli import app; app()"
    subprocess.run([sys.executable, "-c", code, *argv], check=True)
    return (time.monotonic() - start) / 60


def trained(work: Path, datalist: Path, name: str, size: tuple[str, ...]) -> Path:
    """A finished run; how many minutes it took is kept beside it."""
    run, minutes = work / name, work / f"{name}.minutes"
    method, settings = RUNS[name.split("-")[-1]]
    if not minutes.exists():
        words = [w for pair in (*TRAINING, *settings) for w in ("--set", pair)]
        resume = ["--resume"] if (run / "run.json").exists() else []
        options = ("--datalist", datalist, "--output", run, *size, *words, *resume)
        minutes.write_text(f"{command('train', method, *options):.1f}")
    return run


def evaluated(run: Path, kinds: list[str]) -> dict[str, Any]:
    """Kind -> its part of summary.json, on the test cases."""
    summary = run / "evaluation" / "summary.json"
    if not summary.exists():
        command("evaluate", "--run", run, "--prompts", ",".join(kinds))
    return dict(json.loads(summary.read_text())["by_prompts"])


def table(summaries: dict[str, dict[str, Any]], kinds: list[str]) -> str:
    """Rows of kinds; for each run the mean Dice of each label, and the points behind `slices`."""
    first = next(iter(summaries.values()))
    names = [entry["name"] for entry in first["slices"]["labels"].values()]
    head = [
        "prompts",
        *(f"{run}: {one}" for run in summaries for one in [*names, "mean", "behind"]),
    ]
    rows = [head, ["---"] * len(head)]
    for kind in kinds:
        cells = [KINDS[kind]]
        for parts in summaries.values():
            if kind not in parts:
                cells += ["-"] * (len(names) + 2)
                continue
            for entry in parts[kind]["labels"].values():
                cells.append(mean_text(entry["dice"], entry["dice_interval"], entry["cases"]))
            mean = parts[kind]["mean_dice"]
            behind = 100 * (parts["slices"]["mean_dice"] - mean)
            cells += [f"{mean:.3f}", f"{behind:.1f}"]
        rows.append(cells)
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def hippocampus(scans: Path, work: Path) -> Path:
    """40 training, 10 validation and 27 test patients."""
    datalist = work / "hippocampus.json"
    if not datalist.exists():
        data = split_cases(find_cases(scans), (0.7, 0.15, 0.15), seed=0)
        few = replace(data, training=data.training[:40], validation=data.validation[:10])
        write_datalist(few, datalist)
    return datalist


def organs(totalseg: Path, work: Path) -> Path:
    """One CT for training and validation in two halves, one CT for the test; five organs."""
    datalist = work / "ct.json"
    if not datalist.exists():
        for name in ("example_seg", "example_seg_dicom"):
            label: Any = nib.load(totalseg / f"{name}.nii.gz")
            array = np.asarray(label.dataobj)
            kept = np.where(np.isin(array, list(ORGANS)), array, 0).astype(np.uint8)
            nib.save(nib.Nifti1Image(kept, label.affine), work / f"{name}.nii.gz")
        train = Case(totalseg / "example_ct_dicom", work / "example_seg_dicom.nii.gz", "a")
        test = Case(totalseg / "example_ct_sm.nii.gz", work / "example_seg.nii.gz", "b")
        write_datalist(Datalist("CT", ORGANS, [train], [], [test]), datalist)
    return datalist


def main() -> None:
    """Train what is missing, evaluate, write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scans", type=Path)
    parser.add_argument("--ct", type=Path)
    parser.add_argument("--work", type=Path, default=Path("prompts-work"))
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    datalist = hippocampus(arguments.scans, work)
    kinds = list(KINDS)
    runs = {name: trained(work, datalist, name, HIPPOCAMPUS) for name in RUNS}
    summaries = {
        "mixture": evaluated(runs["mixture"], kinds),
        "boxes": evaluated(runs["boxes"], kinds[:-1]),
    }
    print(table(summaries, kinds), machine("cpu"), FOOTNOTE)


if __name__ == "__main__":
    main()
