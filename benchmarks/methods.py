"""Every method from the embedded weights and from random ones, on real MR and on synthetic CT.

    python benchmarks/methods.py HIPPOCAMPUS --work WORK

HIPPOCAMPUS is that task's folder of the Medical Segmentation Decathlon (dataset.json, imagesTr,
labelsTr). Each step is a `medsam-tune` command; what is finished in WORK is not run again, so a
benchmark that was stopped goes on. The tables go to benchmarks/results/methods.md.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from commands import command
from training_step import machine

from medsam_tune.cases.datalist import write_datalist
from medsam_tune.cases.folders import find_cases
from medsam_tune.cases.splits import split_cases
from medsam_tune.demo import SUBJECTS, prepare_demo
from medsam_tune.evaluation.statistics import distribution_text, footnote
from medsam_tune.methods import METHODS, apply_method
from medsam_tune.methods.tuned import read_header, tuned_tensors
from medsam_tune.sam.build import RANDOM, build_sam
from medsam_tune.training.rates import NANO, learning_rate

RESULTS = Path(__file__).parent / "results" / "methods.md"
SIZE = ("--image-size", "128")
STARTS = {"embedded weights": (), "random weights": ("--checkpoint", RANDOM)}


@dataclass(frozen=True)
class Task:
    """A data set: its datalist, the title of its table, and how long each method trains."""

    name: str
    title: str
    datalist: Path
    settings: tuple[str, ...]


def hippocampus(scans: Path, work: Path) -> Task:
    """The 27 test patients that nano.md has, and few training patients."""
    datalist = work / "hippocampus.json"
    if not datalist.exists():
        data = split_cases(find_cases(scans), (0.7, 0.15, 0.15), seed=0)
        few = replace(data, training=data.training[:16], validation=data.validation[:4])
        write_datalist(few, datalist)
    title = "Hippocampus: brain MR, 16 training, 4 validation and 27 test patients, three epochs"
    return Task("hippocampus", title, datalist, ("epochs=3", "val_interval=3"))


def phantoms(work: Path) -> Task:
    """The demo's phantoms."""
    title = "Synthetic CT: 10 training, 2 validation and 4 test phantoms, three epochs"
    settings = ("epochs=3", "val_interval=3")
    return Task("phantoms", title, prepare_demo(work / "phantoms", SUBJECTS["volume"]), settings)


class Bench:
    """The steps, each done once."""

    def __init__(self, work: Path) -> None:
        self.work = work

    def zero_shot(self, task: Task, start: str) -> dict[str, Any]:
        """The summary of the untouched model on the test cases."""
        folder = self.work / f"{task.name}-{start.split()[0]}"
        if not _summary(folder).exists():
            words = ("--zero-shot", "--datalist", task.datalist, "--output", folder)
            command("evaluate", *words, *SIZE, *STARTS[start])
        return dict(json.loads(_summary(folder).read_text()), minutes=0.0, trains=0)

    def tuned(self, task: Task, start: str, method: str) -> dict[str, Any]:
        """The summary of a method on the test cases."""
        folder = self.work / f"{task.name}-{start.split()[0]}-{method}"
        if not _summary(folder).exists():
            settings = [word for one in task.settings for word in ("--set", one)]
            words = ("--datalist", task.datalist, "--output", folder, *SIZE, *STARTS[start])
            words += ("--class-agnostic", "--set", "mixture={'box': 1}")
            resume = ["--resume"] if (folder / "run.json").exists() else []
            minutes = command("train", method, *words, *settings, *resume)
            (folder / "minutes").write_text(f"{minutes:.2f}")
            command("evaluate", "--run", folder)
        minutes = float((folder / "minutes").read_text())
        summary = json.loads(_summary(folder).read_text())
        return dict(summary, minutes=minutes, trains=trained_parameters(folder))


def _summary(folder: Path) -> Path:
    return folder / "evaluation" / "summary.json"


def trained_parameters(folder: Path) -> int:
    """How many numbers a run tuned."""
    header = read_header(folder / "tuned.safetensors")
    base = build_sam(header.base.name, RANDOM, header.base.image_size)
    model = apply_method(base, header.tuning.method, **header.tuning.options)
    return sum(tensor.numel() for tensor in tuned_tensors(model).values())


def row(name: str, summary: dict[str, Any]) -> list[str]:
    """The cells of a summary."""
    cells = [name, f"{summary['trains']:,}", f"{summary['minutes']:.1f}"]
    for entry in summary["labels"].values():
        cells.append(distribution_text(entry["dice"]))
    return [*cells, f"{summary['mean_dice']:.3f}"]


def table(bench: Bench, task: Task) -> str:
    """Every method from both starts, under the ellipse."""
    first = bench.zero_shot(task, next(iter(STARTS)))
    names = [entry["name"] for entry in first["labels"].values()]
    ellipse = [f"{entry['ellipse_dice']['mean']:.3f}" for entry in first["labels"].values()]
    lines = [["", "trains", "minutes", *names, "mean"], ["---"] * (len(names) + 4)]
    lines.append(["ellipse in the box", "", "", *ellipse, f"{first['mean_ellipse_dice']:.3f}"])
    for start in STARTS:
        lines.append(row(f"{start}, untouched", bench.zero_shot(task, start)))
    for method in METHODS:
        for start in STARTS:
            lines.append(row(f"`{method}` from {start}", bench.tuned(task, start, method)))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    """Both tasks, then the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scans", type=Path)
    parser.add_argument("--work", type=Path, default=Path("methods-work"))
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    bench = Bench(arguments.work)
    parts = [HEAD.format(machine=machine("cpu"), footnote=footnote())]
    for task in (hippocampus(arguments.scans, arguments.work), phantoms(arguments.work)):
        parts += [f"## {task.title}", table(bench, task)]
        rates = ", ".join(f"{method} {learning_rate(method, NANO):g}" for method in METHODS)
        parts.append(f"Settings: `{' '.join(task.settings)}`; learning rates {rates}.")
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text("\n\n".join(parts) + "\n")
    print(RESULTS.read_text())


HEAD = """# Every method, from the embedded weights and from random ones

nano at 128 x 128, boxes with 5 % jitter; Dice on whole test volumes, mean over the cases with its
95 % bootstrap interval ({footnote}).
Both starts of a method take the same steps of the same model, so the same time but for the noise of
the machine ({machine}).

Made by `python benchmarks/methods.py HIPPOCAMPUS`; each row is `medsam-tune train METHOD --datalist
... --output RUN --image-size 128 [--checkpoint random] --set ...` and `medsam-tune evaluate --run
RUN`. adapter, lora and prompt leave the mask decoder as it is: from random weights they have
nothing that makes masks, which `--set network_def::mask_decoder=true` would mend."""

if __name__ == "__main__":
    main()
