"""Epochs of nano beside those of an earlier checkout: processor seconds and Dice.

    git worktree add EARLIER COMMIT
    python benchmarks/epochs.py HIPPOCAMPUS --earlier EARLIER --work WORK

LoRA and the decoder at 128 x 128 on a few training patients, by this checkout and by the other;
`decoder` by this one also from kept embeddings (`cache=true`). The seconds of an epoch, with its
validation, are those that three epochs more take: what starting takes, and keeping embeddings, is
in the first. They are the processor's, so other work on the machine counts little. What is finished
in WORK is not run again. Writes benchmarks/results/epochs.md.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch
from training_step import machine

from medsam_tune.cases.datalist import write_datalist
from medsam_tune.cases.folders import find_cases
from medsam_tune.cases.splits import split_cases
from medsam_tune.files import written_whole

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "epochs.md"
PATIENTS, VALIDATION = 20, 8
FEW, MORE = 1, 4  # epochs of the trainings whose difference is taken
CACHE = ("--set", "cache=true", "--set", "views=1")
ARMS = {  # name -> method, whether by the other checkout, words
    "lora, earlier": ("lora", True, ()),
    "lora": ("lora", False, ()),
    "decoder, earlier": ("decoder", True, ()),
    "decoder": ("decoder", False, ()),
    "decoder, kept embeddings": ("decoder", False, CACHE),
}


def seconds(checkout: Path, words: list[object]) -> float:
    """Processor seconds of a command of a checkout, of all its threads and processes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code = "from medsam_tune.cli import app; app()"
    environment = os.environ | {"PYTHONPATH": str(checkout.resolve())}
    argv = [sys.executable, "-c", code, *map(str, words)]
    subprocess.run(argv, check=True, env=environment, cwd=checkout)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measured(work: Path, name: str, earlier: Path, turn: int) -> tuple[float, float]:
    """Processor seconds of an epoch, and the best Dice on validation patients."""
    method, by_other, words = ARMS[name]
    checkout = earlier if by_other else ROOT
    spent = []
    for epochs in (FEW, MORE):
        run = work / f"{name.replace(', ', '-').replace(' ', '-')}-{epochs}-{turn}"
        known = run / "spent.json"
        if not known.exists():
            store = work / ("slices-earlier" if by_other else "slices")
            sets = [f"epochs={epochs}", f"slices_dir={store}", "num_workers=0", "warmup_steps=10"]
            # As the earlier trainings had it: the mixture of prompts has changed since.
            sets += ["mixture={'box': 1}", "validation_prompts=['slices']"]
            line = ["train", method, "--datalist", work / "d.json", "--output", run, *words]
            line += ["--image-size", 128, *(word for one in sets for word in ("--set", one))]
            known.write_text(json.dumps(seconds(checkout, line)))
        spent.append(float(json.loads(known.read_text())))
    dice = float(torch.load(run / "last.pt", weights_only=True)["best"]["best"])
    return (spent[1] - spent[0]) / (MORE - FEW), dice


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("scans", type=Path)
    parser.add_argument("--earlier", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--turns", type=int, default=1)
    given = parser.parse_args()
    work = given.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    data = split_cases(find_cases(given.scans), (0.7, 0.15, 0.15), seed=0)
    few = {"training": data.training[:PATIENTS], "validation": data.validation[:VALIDATION]}
    if not (work / "d.json").exists():
        write_datalist(replace(data, test=(), **few), work / "d.json")

    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ARMS}
    for turn in range(given.turns):
        for name in ARMS:
            found[name].append(measured(work, name, given.earlier.resolve(), turn))
            print(name, found[name][-1], flush=True)

    commit = subprocess.run(
        ["git", "log", "-1", "--format=%h of %as"],
        cwd=given.earlier,
        check=True,
        text=True,
        capture_output=True,
    ).stdout.strip()
    lines = [
        "# Epochs of nano, now and earlier",
        "",
        "`python benchmarks/epochs.py HIPPOCAMPUS --earlier EARLIER --work WORK`, EARLIER at",
        f"{commit}. {machine('cpu')}.",
        "",
        f"nano at 128 x 128, {PATIENTS} patients, a box on every slice; an epoch with the",
        f"validation of {VALIDATION} patients, mean of epochs {FEW + 1} to {MORE}. Kept",
        "embeddings: one view, kept in the first epoch. Dice is the best of a validation; turns:",
        f"{given.turns}, with their range.",
        "",
        "| | processor seconds of an epoch | epochs per minute of a core | of earlier | Dice |",
        "|---|---|---|---|---|",
    ]
    for name, values in found.items():
        of_epoch, dice = ([one[at] for one in values] for at in (0, 1))
        middle = statistics.median(of_epoch)
        base = statistics.median(one[0] for one in found[f"{ARMS[name][0]}, earlier"])
        ends = f" ({min(of_epoch):.1f} to {max(of_epoch):.1f})" if len(values) > 1 else ""
        lines.append(
            f"| {name} | {middle:.1f}{ends} | {60 / middle:.2f} | {base / middle:.2f} x | "
            f"{statistics.median(dice):.3f} |"
        )
    with written_whole(RESULTS) as beside:
        beside.write_text("\n".join([*lines, ""]))
    print(RESULTS.read_text())


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
