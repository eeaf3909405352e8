"""Objects followed from one slice: how far the masks drift, where they end, and what ends them.

    python benchmarks/following.py RUN [--picture following.png]

RUN is the folder of a finished run that knows its labels, such as WORK/mixture of
benchmarks/prompts.py. Drift and ends are of its held-out test cases; what each rule of the end is
worth is of its validation cases, by which the rules' defaults were chosen. The picture shows the
best, the median and the worst test case. Writes benchmarks/results/following.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pages import table
from torch import Tensor
from training_step import machine

from medsam_tune.cases.datalist import read_datalist
from medsam_tune.evaluation.cases import CaseDataset
from medsam_tune.files import written_whole
from medsam_tune.inference.inferers import VolumeInferer
from medsam_tune.inference.propagation import Propagation
from medsam_tune.methods.tuned import load_tuned
from medsam_tune.runs import read_record, tuned_file
from medsam_tune.slices.rules import rules_from
from medsam_tune.slices.store import SliceStore

RESULTS = Path(__file__).parent / "results" / "following.md"
JITTER = 0.05
DRIFT = {
    "slices": "a box on every slice",
    "middle-range": "a box on the middle slice, range known",
    "middle": "a box on the middle slice",
    "points": "a point on the middle slice",
}
RULES = {
    "all rules": Propagation(),
    "without `min_area`": Propagation(min_area=0.0),
    "without `min_quality`": Propagation(min_quality=0.0),
    "without `min_overlap`": Propagation(min_overlap=0.0),
    "without `stop_absent`": Propagation(stop_absent=False),
    "`stop_absent` alone": Propagation(min_area=0.0, min_quality=0.0, min_overlap=0.0),
    "`min_quality` alone": Propagation(min_area=0.0, min_overlap=0.0, stop_absent=False),
    "none of them": Propagation(min_area=0.0, min_quality=0.0, min_overlap=0.0, stop_absent=False),
    "all rules, without the last mask as a prompt": Propagation(use_mask=False),
    "all rules, margin 0": Propagation(margin=0.0),
    "all rules, margin 0.15": Propagation(margin=0.15),
}
PARTS = ("nearest fifth", "second", "third", "fourth", "farthest fifth")
HEAD = """# Objects that are followed from one slice

{machine}. `python benchmarks/following.py RUN`; RUN is *mixture* of
[prompts.md](prompts.md), *nano* on brain MR. Each object is given by one box (or point) on the
slice of its largest area, with 5 % jitter, and followed both ways.

## Drift

Dice of single slices that the object is really on, by their distance from the prompted slice:
fifths of the way from it to the object's end. {cases} held-out test patients, {objects} objects.
The mean over all their slices, so that it is not the Dice of a whole object.

{drift}

## Ends

Of the same objects, two ends each: how many slices the mask goes beyond the last slice of the
object. Negative: it ends too early. Slices are 1 mm apart.

{ends}

## What ends them

{judged} validation patients, {judged_objects} objects, a box on the middle slice. *Dice* is the
mean over objects, *gain* is against all rules, in points.

{rules}
"""


@dataclass
class Task:
    """A run's network and its cases."""

    network: Any
    inferer: VolumeInferer
    labels: Mapping[int, str]
    subsets: Mapping[str, CaseDataset]


def opened(run: Path) -> Task:
    """The run, ready to be asked."""
    record = read_record(run)
    rules = rules_from(record.rules)
    data = read_datalist(str(record.datalist))
    store = SliceStore(Path(str(record.slices_dir)), rules, data.labels)
    subsets = {
        name: CaseDataset(
            store.prepare(data.subset(name), progress=False), data.labels, JITTER, kinds=[*DRIFT]
        )
        for name in ("validation", "test")
    }
    network = load_tuned(tuned_file(run)).eval()
    return Task(network, VolumeInferer(data.labels, rules), data.labels, subsets)


@dataclass(frozen=True)
class Found:
    """One object, and the masks found of it.

    Attributes:
        case: id of the case.
        truth: (Z, H, W) bool.
        masks: kind of prompts -> (Z, H, W) bool.
        start: prompted slice.
        image: (Z, C, H, W) uint8.
    """

    case: str
    truth: Tensor
    masks: Mapping[str, Tensor]
    start: int
    image: Tensor

    def dice(self, kind: str) -> float:
        """Dice of the whole object."""
        return dice(self.masks[kind], self.truth)

    def beyond(self, kind: str) -> list[int]:
        """Slices by which the mask goes beyond the object, at its two ends."""
        true, found = (
            there.flatten(1).any(1).nonzero() for there in (self.truth, self.masks[kind])
        )
        if not len(found):
            return [self.start - int(true[-1]), int(true[0]) - self.start]
        return [int(found[-1]) - int(true[-1]), int(true[0]) - int(found[0])]

    def drift(self, kind: str) -> Iterator[tuple[int, float]]:
        """Fifth of the way to the end, and Dice, of each slice of the object."""
        there = self.truth.flatten(1).any(1).nonzero().flatten().tolist()
        for z in there:
            end = there[-1] if z > self.start else there[0]
            if z != self.start:
                part = (abs(z - self.start) - 1) * len(PARTS) // abs(end - self.start)
                yield part, dice(self.masks[kind][z], self.truth[z])


def dice(mask: Tensor, truth: Tensor) -> float:
    """Dice of two masks, one of which has a pixel."""
    return float(2 * (mask & truth).sum() / (mask.sum() + truth.sum()))


@torch.inference_mode()
def objects(task: Task, subset: str, kinds: Sequence[str]) -> list[Found]:
    """All objects of a subset, found by some kinds of prompts."""
    found = []
    dataset = task.subsets[subset]
    for item in (dataset[index] for index in range(len(dataset))):
        prompts = {kind: item["prompts"][kind] for kind in kinds}
        answers: Any = task.inferer(item["image"], task.network, prompts)
        for label in task.labels:
            truth = item["label"] == label
            if truth.any():
                masks = {kind: answers[kind] == label for kind in kinds}
                start = int(truth.flatten(1).sum(1).argmax())
                found.append(Found(item["case"], truth, masks, start, item["image"]))
    return found


def grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown."""
    return "\n".join(table(head, rows))


def drift_table(found: Sequence[Found]) -> str:
    """Dice of slices by kind and distance."""
    rows = []
    for kind, words in DRIFT.items():
        each: list[list[float]] = [[] for _ in PARTS]
        for one in found:
            for part, value in one.drift(kind):
                each[part].append(value)
        rows.append([words, *(f"{np.mean(values):.3f}" for values in each)])
    return grid(["prompts", *PARTS], rows)


def ends_row(found: Sequence[Found], kind: str) -> list[str]:
    """Distances at the ends, in numbers."""
    beyond: NDArray[np.int64] = np.array([value for one in found for value in one.beyond(kind)])
    low, high = np.percentile(beyond, [5, 95])
    return [
        f"{(np.abs(beyond) <= 1).mean():.0%}",
        f"{beyond.mean():+.2f}",
        f"{low:+.0f} to {high:+.0f}",
        f"{beyond.min():+d} to {beyond.max():+d}",
    ]


ENDS = ("within one slice", "mean", "nine of ten", "all")


def mean_dice(found: Sequence[Found], kind: str) -> float:
    """Mean Dice of objects."""
    return float(np.mean([one.dice(kind) for one in found]))


def rules_table(task: Task) -> tuple[str, list[Found]]:
    """Each set of rules on the validation cases."""
    rows, first, before = [], [], 0.0
    for words, rules in RULES.items():
        task.inferer.propagation = rules
        found = objects(task, "validation", ["middle"])
        mean = mean_dice(found, "middle")
        first, before = first or found, before or mean
        rows.append(
            [words, f"{mean:.3f}", f"{100 * (mean - before):+.1f}", *ends_row(found, "middle")]
        )
    task.inferer.propagation = Propagation()
    return grid(["rules", "Dice", "gain", *ENDS], rows), first


def picture(found: Sequence[Found], path: Path) -> None:
    """Best, median and worst object: slices from end to end, the truth and two masks."""
    order = sorted(found, key=lambda one: one.dice("middle"))
    chosen = {"worst": order[0], "median": order[len(order) // 2], "best": order[-1]}
    columns = 9
    figure = Figure(figsize=(2.0 * columns, 2.3 * len(chosen)), layout="constrained")
    axes = figure.subplots(len(chosen), columns)
    for row, (name, one) in zip(axes, chosen.items(), strict=True):
        there = (one.truth | one.masks["middle"]).flatten(1).any(1).nonzero().flatten().tolist()
        places = np.linspace(there[0], there[-1], columns).round().astype(int)
        places[np.abs(places - one.start).argmin()] = one.start
        for axis, z in zip(row, places, strict=True):
            axis.imshow(one.image[z, 0], cmap="gray")
            for mask, colour in (
                (one.truth, "lime"),
                (one.masks["slices"], "gold"),
                (one.masks["middle"], "red"),
            ):
                if mask[z].any():
                    axis.contour(mask[z].float(), [0.5], colors=colour, linewidths=1)
            axis.set_title(f"{z}{' (prompt)' if z == one.start else ''}", fontsize=9)
            axis.axis("off")
        row[0].text(
            -0.1,
            0.5,
            f"{name} {one.dice('middle'):.2f}",
            rotation=90,
            va="center",
            ha="right",
            transform=row[0].transAxes,
        )
    figure.suptitle(
        "green: truth; yellow: a box on every slice; red: followed from the middle slice"
    )
    with written_whole(path) as scratch:
        figure.savefig(scratch, dpi=80, format="png")


def main() -> None:
    """Ask, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    task = opened(arguments.run)
    found = objects(task, "test", [*DRIFT])
    if arguments.picture:
        picture(found, arguments.picture)
    rules, judged = rules_table(task)
    ends = [
        [DRIFT[kind], f"{mean_dice(found, kind):.3f}", *ends_row(found, kind)] for kind in DRIFT
    ]
    text = HEAD.format(
        machine=machine("cpu"),
        cases=len({one.case for one in found}),
        objects=len(found),
        drift=drift_table(found),
        ends=grid(["prompts", "Dice", *ENDS], ends),
        judged=len({one.case for one in judged}),
        judged_objects=len(judged),
        rules=rules,
    )
    RESULTS.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
