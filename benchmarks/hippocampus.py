"""Every method on one real task, how many patients it needs, and whether a model knows its errors.

    python benchmarks/hippocampus.py HIPPOCAMPUS --work WORK [--epochs 2] [--seeds 3]
        [--long 6] [--large 3] [--few-shot 5,10,50,100]

HIPPOCAMPUS is that task's folder of the Medical Segmentation Decathlon (dataset.json, imagesTr,
labelsTr), 180 patients: 126 for training, 27 for validation, 27 for the test. Each step is a
`medsam-tune` command, and what is finished in WORK is not run again. `--long` trains the methods
that change the encoder once more, for so many epochs and by one seed; `--large` trains `full` at
twice the size, with neighbouring slices as channels. The tables, which are those of `compare`, go
to benchmarks/results/hippocampus.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from commands import command

from medsam_tune.evaluation.markdown import table

RESULTS = Path(__file__).parent / "results" / "hippocampus.md"
KINDS = "slices,box3d,none"
LONG = ("lora", "adapter", "full")
CURVE = ("lora", "full")
CURVE_SLICES = 3200
"""Of the one epoch of the learning curve, at least."""


def compared(place: Path, datalist: Path, size: int, *words: object, **settings: object) -> str:
    """The page of a comparison, as Markdown without its title."""
    if not (place / "compare.md").exists():
        said = {"tolerance": 1, "slices_dir": place.parent / "slices", **settings}
        sets = [word for key, value in said.items() for word in ("--set", f"{key}={value}")]
        options = ("--datalist", datalist, "--output", place, "--image-size", size)
        command("compare", *options, "--prompts", KINDS, *words, *sets)
    text = (place / "compare.md").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("# ")]
    return "\n".join(lines).replace("\n## ", "\n### ").strip()


def confidence(run: Path) -> str:
    """What the expected Dice of each mask was worth, as a table."""
    file = run / "evaluation" / "confidence.json"
    if not file.exists():
        options = ("--prompts", KINDS, "--confidence", "--set", "tolerance=1")
        command("evaluate", "--run", run, *options)
    head = (
        "prompts",
        "masks",
        "mean error of the expected Dice",
        "bias",
        "flagged",
        "of the worst",
    )
    rows = [
        (
            kind,
            one["n"],
            f"{one['error']:.3f}",
            f"{one['bias']:+.3f}",
            one["flagged"],
            f"{one['caught']} of {one['worst']}",
        )
        for kind, one in json.loads(file.read_text()).items()
    ]
    return table(head, rows)


def main() -> None:
    """Compare, judge the confidence, draw the learning curve, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scans", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--long", type=int, help="epochs of the longer trainings")
    parser.add_argument("--large", type=int, help="epochs of `full` at twice the size")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--few-shot", help="numbers of training patients, with commas between")
    parser.add_argument("--note", default="", help="what else is to be known of the figures")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    datalist = given.work / "hippocampus.json"
    if not datalist.exists():
        command("split", given.scans, "--out", datalist)
    length = ("--epochs", given.epochs, "--seeds", given.seeds)
    parts = [
        "## Methods",
        compared(given.work / "methods", datalist, given.size, *length, val_interval=given.epochs),
        "## Confidence of `lora`",
        confidence(given.work / "methods" / "lora"),
    ]
    if given.long:
        longer = ("--methods", ",".join(LONG), "--epochs", given.long)
        place = given.work / "long"
        parts += [f"## {given.long} epochs, one seed"]
        parts += [compared(place, datalist, given.size, *longer, val_interval=given.long)]
    if given.large:
        size, words = 2 * given.size, ("--methods", "full", "--epochs", given.large)
        parts += [f"## {size} x {size}, neighbouring slices, {given.large} epochs, one seed"]
        sets = {"val_interval": given.large, "rules::neighbours": "true"}
        parts += [compared(given.work / "large", datalist, size, *words, **sets)]
    if given.few_shot:
        few = ("--methods", ",".join(CURVE), "--few-shot", given.few_shot)
        few += ("--epochs", 1, "--seeds", given.seeds)
        place = given.work / "few_shot"
        about = f"few_shot.yaml, one epoch of {CURVE_SLICES} slices or more."
        table_of_all = compared(place, datalist, given.size, *few, epoch_slices=CURVE_SLICES)
        parts += ["## Few-shot", about, table_of_all]
    head = HEAD.format(size=given.size, epochs=given.epochs, seeds=given.seeds)
    RESULTS.write_text("\n\n".join(filter(None, [head, given.note, *parts])) + "\n")
    print(RESULTS.read_text())


HEAD = """# Hippocampus in brain MR: methods, confidence, few-shot

nano at {size} x {size}; each recipe on 126 patients, 27 for validation, {epochs} epochs, seeds:
{seeds}. All scores are of the 27 held-out patients, by three kinds of prompts: a box with 5 %
jitter on every slice, one 3-D box, and none. NSD at 1 mm.

Made by `python benchmarks/hippocampus.py HIPPOCAMPUS`, which runs `medsam-tune split`, `compare`
and `evaluate --confidence`."""

if __name__ == "__main__":
    main()
