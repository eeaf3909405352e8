"""What a prompt is worth: Dice on held-out scans by every kind of prompts that `predict` takes.

    python benchmarks/prompts.py DATA --work WORK

DATA holds `hippocampus`, that task's folder of the Medical Segmentation Decathlon; `totalseg`, two
CTs with labels of TotalSegmentator (example_ct_dicom, example_seg_dicom.nii.gz,
example_ct_sm.nii.gz, example_seg.nii.gz); and `dcmqi_ct3slice`, three slices of a CT (ct-3slice,
liver_seg.nrrd). Each step is a `medsam-tune` command; what is finished in WORK is not run again. A
U-Net that was trained for as long (benchmarks/unet.py) is named, if it is there. Writes
benchmarks/results/prompts.md.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from commands import command
from pages import table
from training_step import machine

from medsam_tune.cases.datalist import Case, Datalist, write_datalist
from medsam_tune.cases.folders import find_cases
from medsam_tune.cases.splits import split_cases
from medsam_tune.evaluation.statistics import distribution_text, footnote

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
SIZE = ("--image-size", "128")
TRAINING = (
    *("epochs=7", "val_interval=7", "objects=6"),
    "rules::neighbours=true",
)
RUNS = {
    "mixture": (),
    "boxes": ("label_tokens=false", "mixture={'box': 1}", "empty_slices=0.0"),
}
CT = ("epochs=50", "val_interval=50")
ORGANS = {1: "spleen", 2: "right kidney", 3: "left kidney", 5: "liver", 52: "aorta"}
HEAD = """# What a prompt is worth

{machine}. `python benchmarks/prompts.py DATA`. Dice on held-out scans, by prompts that are taken
from the annotation as a user would give them, with 5 % jitter: the standard deviation of each side
of a box, as a share of the side. The range of slices is never taken from the annotation, except
where the row says that it is known. Mean over cases with its 95 % interval. {footnote}. *Behind*:
Dice points behind a box on every slice. No choice was made on these cases.

"""
ABOUT = """## Hippocampus

Brain MR, 40 training, 10 validation and 27 test patients. *nano* at 128 x 128 with neighbouring
slices as channels, all of it tuned (`full`) for 7 epochs. *mixture* is the usual recipe, one run
for every prompt: labels with tokens, prompts of all kinds. *boxes* is the same training on tight
boxes alone, without labels.

"""
OTHER = """## CT

One scan: what it says of other scans is open, so there is no interval. *nano* at 256 x 256, class-
agnostic (`--class-agnostic`), `full`, tuned on 20 slices of one CT with {labels} structures and
their deformed copies; the checkpoint is the last one, judged on three slices of another CT. Test: a
whole CT at 3 mm of another patient. Both kidneys were in no training slice. The labels are
TotalSegmentator's, not a person's. Columns are Dice, and *zero* is the untouched *nano*.

"""


def trained(work: Path, name: str, *words: object) -> Path:
    """A finished run; how many minutes it took is kept beside it."""
    run, minutes = work / name, work / f"{name}.minutes"
    if not minutes.exists():
        resume = ["--resume"] if (run / "run.json").exists() else []
        minutes.write_text(f"{command('train', 'full', '--output', run, *words, *resume):.1f}")
    return run


def settings(*pairs: str) -> list[str]:
    """Options of a command."""
    return [word for pair in pairs for word in ("--set", pair)]


def evaluated(run: Path, kinds: list[str], *words: object) -> dict[str, Any]:
    """Kind -> its part of summary.json, on the test cases."""
    summary = run / "evaluation" / "summary.json"
    if not summary.exists():
        command("evaluate", *(words or ("--run", run)), "--prompts", ",".join(kinds))
    return dict(json.loads(summary.read_text())["by_prompts"])


def kinds_table(summaries: dict[str, dict[str, Any]], kinds: list[str]) -> str:
    """Rows of kinds; for each run the mean Dice of each label, and the points behind `slices`."""
    first = next(iter(summaries.values()))
    names = [entry["name"] for entry in first["slices"]["labels"].values()]
    head = [
        "prompts",
        *(f"{run}: {one}" for run in summaries for one in [*names, "mean", "behind"]),
    ]
    rows = []
    for kind in kinds:
        cells = [KINDS[kind]]
        for parts in summaries.values():
            if kind not in parts:
                cells += ["-"] * (len(names) + 2)
                continue
            for entry in parts[kind]["labels"].values():
                cells.append(distribution_text(entry["dice"]))
            mean = parts[kind]["mean_dice"]
            behind = 100 * (parts["slices"]["mean_dice"] - mean)
            cells += [f"{mean:.3f}", f"{behind:.1f}"]
        rows.append(cells)
    return "\n".join(table(head, rows))


def hippocampus(scans: Path, work: Path) -> Path:
    """40 training, 10 validation and 27 test patients."""
    datalist = work / "hippocampus.json"
    if not datalist.exists():
        data = split_cases(find_cases(scans), (0.7, 0.15, 0.15), seed=0)
        few = replace(data, training=data.training[:40], validation=data.validation[:10])
        write_datalist(few, datalist)
    return datalist


def organs(data: Path, work: Path) -> Path:
    """One CT for training, three slices of another for validation, a whole CT for the test."""
    work.mkdir(exist_ok=True)
    datalist, totalseg, other = work / "ct.json", data / "totalseg", data / "dcmqi_ct3slice"
    if not datalist.exists():
        liver = sitk.ReadImage(str(other / "liver_seg.nrrd"))
        sitk.WriteImage(sitk.Cast(liver * 5, sitk.sitkUInt8), str(work / "liver.nii.gz"))
        ids: set[int] = set()
        for name in ("example_seg_dicom", "example_seg"):
            label: Any = nib.load(totalseg / f"{name}.nii.gz")
            ids |= set(np.unique(np.asarray(label.dataobj)).tolist()) - {0}
        names = {i: ORGANS.get(i, f"structure {i}") for i in sorted(ids)}
        train = Case(totalseg / "example_ct_dicom", totalseg / "example_seg_dicom.nii.gz", "a")
        judge = Case(other / "ct-3slice", work / "liver.nii.gz", "b")
        test = Case(totalseg / "example_ct_sm.nii.gz", totalseg / "example_seg.nii.gz", "c")
        write_datalist(Datalist("CT", "CT", names, (train,), (judge,), (test,)), datalist)
    return datalist


def organ_table(parts: dict[str, dict[str, Any]], zero: dict[str, dict[str, Any]]) -> str:
    """Dice of each organ by kind of prompts."""
    rows = []
    means = {
        name: {
            kind: float(np.mean([found[kind]["labels"][str(i)]["dice"]["mean"] for i in ORGANS]))
            for kind in found
        }
        for name, found in (("tuned", parts), ("zero", zero))
    }
    for kind, mean in means["tuned"].items():
        dice = [f"{parts[kind]['labels'][str(i)]['dice']['mean']:.3f}" for i in ORGANS]
        behind = f"{100 * (means['tuned']['slices'] - mean):.1f}"
        rows.append([KINDS[kind], *dice, f"{mean:.3f}", behind, f"{means['zero'][kind]:.3f}"])
    return "\n".join(table(["prompts", *ORGANS.values(), "mean", "behind", "zero"], rows))


def main() -> None:
    """Train what is missing, evaluate, write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, default=Path("prompts-work"))
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    kinds = list(KINDS)
    datalist = ("--datalist", hippocampus(arguments.data / "hippocampus", work), *SIZE)
    summaries = {}
    for name, own in RUNS.items():
        run = trained(work, name, *datalist, *settings(*TRAINING, *own))
        summaries[name] = evaluated(run, kinds if name == "mixture" else kinds[:-1])
    text = (
        HEAD.format(machine=machine("cpu"), footnote=footnote())
        + ABOUT
        + kinds_table(summaries, kinds)
    )
    network = work / "mixture.unet" / "summary.json"
    if network.exists():
        found = json.loads(network.read_text())
        dice = [distribution_text(each["dice"]) for each in found["labels"].values()]
        text += (
            f"\n\nMONAI's `BasicUNet` in 2-D ({found['parameters']:,} parameters, from nothing) on "
            "the same slices, with the same augmentation, for "
            f"{found['minutes']:.0f} minutes of one "
            "core, "
            f"as *mixture* took: {', '.join(dice)}, mean {found['mean_dice']:.3f} "
            f"(`python benchmarks/unet.py`). *mixture* without prompts: "
            f"{summaries['mixture']['none']['mean_dice']:.3f}."
        )
    place = organs(arguments.data, work / "ct")
    run = trained(work / "ct", "run", "--datalist", place, "--class-agnostic", *settings(*CT))
    by_hand = kinds[:-1]
    zero = ("--zero-shot", "--datalist", place, "--output", work / "ct" / "zero")
    tuned, before = evaluated(run, by_hand), evaluated(work / "ct" / "zero", by_hand, *zero)
    count = len(json.loads(place.read_text())["labels"]) - 1
    text += "\n\n" + OTHER.format(labels=count) + organ_table(tuned, before) + "\n"
    RESULTS.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
