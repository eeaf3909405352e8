"""Aerial images in four folds of one tile each: IoU of every class on every tile.

    python benchmarks/aerial.py DUBAI --work WORK [--methods adapter lora] [--epochs 20] [--unet]

DUBAI is the "Semantic segmentation of aerial imagery" data set of Humans in the Loop, unpacked:
folders `Tile N` with `images` and `masks`. Each tile is held out once, the next one chooses the
checkpoint, and the other two are trained on. Each step is a `medsam-tune` command; what is finished
in WORK is not run again, so that `--tiles` and `--methods` can share out the work. With `--unet`,
MONAI's BasicUNet is trained beside each run of the first method, by the same slices and time: a
processor's, or of the clock with a GPU. The tables go to benchmarks/results/aerial.md.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from commands import command
from pages import table
from training_step import machine

from medsam_tune.cases.datalist import write_datalist
from medsam_tune.cases.folders import find_cases
from medsam_tune.methods import METHODS

RESULTS = Path(__file__).parent / "results" / "aerial.md"
# The colours of the masks; the data set's own classes.json has others.
CLASSES = {
    "Building": "#3C1098",
    "Land": "#8429F6",
    "Road": "#6EC1E4",
    "Vegetation": "#FEDD3A",
    "Water": "#E2A929",
}
IGNORED = {"name": "Unlabeled", "color": "#9B9B9B", "ignore": True}
TILES = ("Tile 1", "Tile 2", "Tile 3", "Tile 4")


def folds(images: Path, work: Path) -> dict[str, Path]:
    """Held-out tile -> datalist."""
    named = [{"name": name, "color": colour} for name, colour in CLASSES.items()]
    classes = work / "classes.json"
    if not classes.exists():
        classes.write_text(json.dumps({"classes": [*named, IGNORED]}))
    data = find_cases(images, classes=classes)
    found = {}
    for k, tile in enumerate(TILES):
        following = TILES[(k + 1) % len(TILES)]
        subsets = {"test": [tile], "validation": [following]}
        subsets["training"] = [one for one in TILES if one not in (tile, following)]
        cases = {
            name: tuple(case for case in data.training if case.patient in tiles)
            for name, tiles in subsets.items()
        }
        found[tile] = work / f"without_{k + 1}.json"
        # All folds share the slices of one store.
        if not found[tile].exists():
            write_datalist(replace(data, present={}, **cases), found[tile])
    return found


def scores(folder: Path, kind: str = "") -> dict[str, tuple[float, float]]:
    """Class -> mean over the images of its IoU, and of the ellipses' IoU."""
    with (folder / "evaluation" / kind / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = {}
    for name in CLASSES:
        own = [row for row in rows if row["name"] == name and row["iou"]]
        iou = [float(row["iou"]) for row in own]
        dice = [float(row["ellipse_dice"]) for row in own if row["ellipse_dice"]]
        ellipse = [one / (2 - one) for one in dice]  # IoU of the same two masks
        found[name] = (mean(iou), mean(ellipse))
    return found


def mean(values: Sequence[float]) -> float:
    """The mean, NaN of nothing."""
    return float(np.mean(values)) if len(values) else float("nan")


class Bench:
    """The runs, each done once."""

    def __init__(self, work: Path, settings: Sequence[str], store: Path) -> None:
        self.work = work
        self.settings = settings
        self.store = store

    def zero_shot(self, tile: str, datalist: Path) -> Path:
        """The folder of the untouched model."""
        folder = self.work / f"zero-{tile[-1]}"
        if not (folder / "evaluation").exists():
            words = ("--zero-shot", "--bundle", "image", "--datalist", datalist)
            command("evaluate", *words, "--output", folder, "--set", f"slices_dir={self.store}")
        return folder

    def unet(self, run: Path, minutes: float) -> dict[str, tuple[float, float]]:
        """The scores of a U-Net of a run's slices and minutes."""
        file = run.with_name(f"{run.name}.unet") / "summary.json"
        if not file.exists():
            script = Path(__file__).parent / "unet.py"
            words = [sys.executable, str(script), str(run), "--minutes", str(minutes)]
            subprocess.run(words, check=True)
        labels = json.loads(file.read_text())["labels"].values()
        means = {one["name"]: one["iou"]["mean"] for one in labels}
        nothing = float("nan")
        return {name: (nothing if iou is None else iou, nothing) for name, iou in means.items()}

    def has(self, tile: str, method: str) -> bool:
        """Whether a method is evaluated on a tile."""
        return (self.work / f"{method}-{tile[-1]}" / "evaluation").exists()

    def tuned(self, tile: str, datalist: Path, method: str) -> Path:
        """The folder of a method."""
        folder = self.work / f"{method}-{tile[-1]}"
        if not (folder / "evaluation").exists():
            sets = (*self.settings, f"slices_dir={self.store}")
            words = [word for pair in sets for word in ("--set", pair)]
            resume = ["--resume"] if (folder / "run.json").exists() else []
            options = ["--bundle", "image", "--datalist", datalist, "--output", folder]
            options += ["--overlay", "satellite"] if method == "adapter" else []
            before = os.times().children_user
            minutes = command("train", method, *options, *words, *resume)
            if not torch.cuda.is_available():  # other work does not count
                minutes = (os.times().children_user - before) / 60
            (folder / "minutes").write_text(f"{minutes:.1f}")
            (folder / "machine").write_text(machine())
            command("evaluate", "--bundle", "image", "--run", folder)
        return folder


def tables(rows: dict[str, dict[str, dict[str, float]]]) -> str:
    """A table for each class and the mean of all: ways down, tiles across."""
    parts = []
    for name in (*CLASSES, "mean"):
        lines = []
        for way, by_tile in rows.items():
            values = {
                tile: mean(list(found.values())) if name == "mean" else found[name]
                for tile, found in by_tile.items()
            }
            shown = [f"{values[tile]:.3f}" if tile in values else "-" for tile in TILES]
            whole = f"{mean([*values.values()]):.3f}" if len(values) == len(TILES) else "-"
            lines.append([way, *shown, whole])
        parts.append("\n".join(table([name, *TILES, "mean"], lines)))
    return "\n\n".join(parts)


def main() -> None:
    """All folds, then the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path)
    parser.add_argument("--work", type=Path, default=Path("aerial-work"))
    parser.add_argument("--methods", nargs="*", default=["adapter", "lora"], choices=[*METHODS])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--epoch-slices", type=int, default=400)
    parser.add_argument("--lr", type=float, help="by default the recipe's")
    parser.add_argument("--unet", action="store_true")
    parser.add_argument("--tiles", nargs="*", default=list(TILES), choices=TILES)
    parser.add_argument("--finished", action="store_true", help="tables of what is there")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    settings = (f"epochs={arguments.epochs}", f"epoch_slices={arguments.epoch_slices}")
    settings += ("turn_prob=0.75", f"val_interval={max(1, arguments.epochs // 5)}")
    settings += () if arguments.lr is None else (f"lr={arguments.lr}",)
    bench = Bench(arguments.work, settings, arguments.work / "slices")
    rows: dict[str, dict[str, dict[str, float]]] = {}
    minutes, machines = [], set()
    for tile, datalist in folds(arguments.images, arguments.work).items():
        if tile not in arguments.tiles:
            continue
        found = scores(bench.zero_shot(tile, datalist))
        rows.setdefault("ellipse in the box", {})[tile] = {k: v[1] for k, v in found.items()}
        rows.setdefault("nano, untouched", {})[tile] = {k: v[0] for k, v in found.items()}
        for method in arguments.methods:
            if arguments.finished and not bench.has(tile, method):
                continue
            folder = bench.tuned(tile, datalist, method)
            minutes.append(float((folder / "minutes").read_text()))
            machines.add((folder / "machine").read_text())
            for kind, way in (("", f"`{method}`"), ("none", f"`{method}`, no prompt")):
                found = scores(folder, kind)
                rows.setdefault(way, {})[tile] = {k: v[0] for k, v in found.items()}
            if arguments.unet and method == arguments.methods[0]:
                found = bench.unet(folder, float((folder / "minutes").read_text()))
                rows.setdefault("U-Net", {})[tile] = {k: v[0] for k, v in found.items()}
    text = HEAD.format(
        machine="; ".join(sorted(machines)) or machine(),
        settings=" ".join(settings),
        minutes=f"{mean(minutes):.0f}",
    )
    RESULTS.parent.mkdir(exist_ok=True)
    parts = [text, *([UNET] if arguments.unet else []), tables(rows)]
    RESULTS.write_text("\n\n".join(parts) + "\n")
    print(RESULTS.read_text())


HEAD = """# Aerial images, one tile of four held out at a time

IoU, mean over the nine images of the held-out tile, of masks by a box with 5 % jitter around each
piece of a class of 64 pixels or more; the masks of a class are united. The next tile chooses the
checkpoint, two are trained on. Four tiles carry no interval, so each is listed. nano at 256 x 256,
`{settings}`; {minutes} minutes a training on {machine}.

Made by `python benchmarks/aerial.py DUBAI`; each row is `medsam-tune train METHOD` (adapters with
`--overlay satellite`) and `medsam-tune evaluate`. Pixels that nobody annotated count nowhere."""

UNET = """The U-Net is MONAI's BasicUNet from random weights, on the same slices and augmentation
for the same time. Pixels that nobody annotated are background in its training."""

if __name__ == "__main__":
    main()
