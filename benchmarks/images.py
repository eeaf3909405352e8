"""Document pages, nuclei and prostates by boxes, points and without prompts, cross-validated.

    python benchmarks/images.py DATA --work WORK [--only publaynet nuclei] [--epochs 20]

DATA holds `publaynet` (pages with COCO's JSON), `nuclei` (`images`, and `masks` of numbers of
objects) and `prostate_mr_slices` (`images` in folders of patients, and `masks`, whose two zones
count as one here). Each of four folds is held out once: a document, an image, or a patient is in
one fold. Each step is a `medsam-tune` command; what is finished in WORK is not run again, so that
`--folds` can share out the work. The tables go to benchmarks/results/images.md.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from commands import command
from pages import table
from PIL import Image
from training_step import machine

RESULTS = Path(__file__).parent / "results" / "images.md"
FOLDS = 4


@dataclass(frozen=True)
class Subject:
    """A data set: its folder, options of `split`, overlays, and size of the smallest object."""

    folder: str
    split: tuple[str, ...]
    overlays: tuple[str, ...]
    components: int


SUBJECTS = (
    Subject("publaynet", ("--patient-regex", r"PMC\d+"), ("documents.yaml",), 64),
    Subject("nuclei", (), ("microscopy.yaml",), 16),
    Subject("prostate_mr_slices", ("--modality", "MR", "--labels", "1=prostate"), (), 64),
)


def datalists(subject: Subject, data: Path, work: Path) -> list[Path]:
    """A datalist for each fold."""
    found = [work / f"{subject.folder}_{k}.json" for k in range(FOLDS)]
    if not found[0].exists():
        words = [*subject.split]
        if subject.folder == "nuclei":
            classes = {"classes": [{"id": 1, "name": "nucleus"}], "instances": True}
            (work / "nuclei_classes.json").write_text(json.dumps(classes))
            words += ["--classes", str(work / "nuclei_classes.json")]
        folder = data / subject.folder
        if subject.folder == "prostate_mr_slices":
            folder = united(folder, work / subject.folder)
        out = work / f"{subject.folder}.json"
        command("split", folder, "--folds", FOLDS, "--out", out, *words)
    return found


def united(folder: Path, work: Path) -> Path:
    """The images, and masks of 0 and 1."""
    (work / "masks").mkdir(parents=True, exist_ok=True)
    if not (work / "images").exists():
        (work / "images").symlink_to((folder / "images").resolve())
    for file in (folder / "masks").glob("*.png"):
        mask = np.asarray(Image.open(file)) > 0
        Image.fromarray(mask.astype(np.uint8)).save(work / "masks" / file.name)
    return work


def runs(subject: Subject, datalist: Path, work: Path, method: str, sets: Sequence[str]) -> dict:
    """Way -> folder with its evaluation, each made once."""
    zero, tuned = (work / f"{name}-{datalist.stem}" for name in ("zero", method))
    store = f"slices_dir={work / subject.folder}.slices"
    image = ("--bundle", "image")
    if not (zero / "evaluation").exists():
        options = ("--datalist", datalist, "--output", zero, "--set", store)
        components = ("--set", f"rules::components={subject.components}")
        command("evaluate", "--zero-shot", *image, *options, *components)
    if not (tuned / "evaluation").exists():
        words = [word for pair in (*sets, store) for word in ("--set", pair)]
        resume = ["--resume"] if (tuned / "run.json").exists() else []
        overlays = [word for one in subject.overlays for word in ("--overlay", one)]
        options = (*overlays, "--datalist", datalist, "--output", tuned)
        command("train", method, *image, *options, *words, *resume)
        (tuned / "machine").write_text(machine())
        command("evaluate", *image, "--run", tuned, "--prompts", "slices,points,none")
    ways = {"zero-shot, boxes": zero / "evaluation", f"{method}, boxes": tuned / "evaluation"}
    ways |= {f"{method}, {kind}": tuned / "evaluation" / kind for kind in ("points", "none")}
    return ways


def rows_of(folders: Iterable[Path]) -> dict[str, list[dict[str, str]]]:
    """Label -> the rows of metrics.csv of all folds."""
    found = defaultdict(list)
    for folder in folders:
        with (folder / "metrics.csv").open() as file:
            for row in csv.DictReader(file):
                found[row["name"]].append(row)
    return found


def cells(rows: Sequence[dict[str, str]]) -> list[str]:
    """Images, objects, means over images, and precision, recall and PQ of all objects together."""

    def numbers(key: str) -> list[float]:
        return [float(row[key]) for row in rows if row.get(key)]

    def share(part: float, whole: float) -> str:
        return f"{part / whole:.3f}" if whole else "-"

    keys = ("ellipse_dice", "dice", "iou", "boundary_iou")
    means = [f"{np.mean(numbers(key)):.3f}" if numbers(key) else "-" for key in keys]
    names = ("true_objects", "found_objects", "paired_objects", "paired_iou")
    true, found, pairs, iou = (sum(numbers(key)) for key in names)
    quality = [share(pairs, found), share(pairs, true), share(2 * iou, true + found)]
    return [str(len(numbers("dice"))), f"{true:.0f}", *means, *quality]


def main() -> None:
    """All folds, then the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", nargs="+", default=[one.folder for one in SUBJECTS])
    parser.add_argument("--method", default="lora")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--folds", type=int, nargs="*", default=[*range(FOLDS)])
    parser.add_argument("--settings", nargs="*", default=[], help="more settings, key=value")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    sets = [f"epochs={given.epochs}", *given.settings]
    parts, machines = [], set()
    head = "label images objects ellipse Dice IoU border precision recall PQ".split()
    for subject in SUBJECTS:
        if subject.folder not in given.only:
            continue
        folders = defaultdict(list)
        lists = datalists(subject, given.data, given.work)
        for datalist in (lists[k] for k in given.folds):
            for way, folder in runs(subject, datalist, given.work, given.method, sets).items():
                folders[way].append(folder)
            machines.add((given.work / f"{given.method}-{datalist.stem}" / "machine").read_text())
        for way, each in folders.items():
            lines = table(head, ([name, *cells(rows)] for name, rows in rows_of(each).items()))
            parts.append("\n".join([f"\n## {subject.folder}: {way}\n", *lines]))
    where = "; ".join(sorted(machines))
    start = "# Documents, microscopy and MR slices\n\n"
    start += f"`nano`, {given.method}, {', '.join(sets)}; {where}."
    RESULTS.write_text("\n".join([start, *parts]) + "\n")
    print(RESULTS.read_text())


if __name__ == "__main__":
    main()
