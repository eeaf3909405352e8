"""A small search of each method's learning rate, by Dice of validation cases.

    python benchmarks/rates.py HIPPOCAMPUS --work WORK [--methods lora prompt] [--factors 0.3 1 3]

The trainings are the bundle's own recipes, with their mixture of prompts, on 16 patients; 12
validation patients judge by boxes and without prompts. Test patients are not read. The rates are
those of `medsam_tune.training.rates` times each factor. What is finished in WORK is not run again.
The table goes to benchmarks/results/rates.md.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from commands import command
from pages import table
from training_step import machine

from medsam_tune.cases.datalist import write_datalist
from medsam_tune.cases.folders import find_cases
from medsam_tune.cases.splits import split_cases
from medsam_tune.training.rates import NANO, RATES

RESULTS = Path(__file__).parent / "results" / "rates.md"
SETTINGS = ("epochs=5", "val_interval=5")


def datalist(scans: Path, work: Path) -> Path:
    """16 training and 12 validation patients."""
    path = work / "hippocampus.json"
    if not path.exists():
        data = split_cases(find_cases(scans), (0.7, 0.15, 0.15), seed=0)
        few = replace(data, training=data.training[:16], validation=data.validation[:12], test=())
        write_datalist(few, path)
    return path


def validation_dice(path: Path, work: Path, method: str, rate: float) -> float:
    """Dice of the validation cases after a training, which is done once."""
    folder = work / f"{method}-{rate:g}"
    if not (folder / "dice").exists():
        sets = [word for one in (*SETTINGS, f"lr={rate}") for word in ("--set", one)]
        words = ["train", method, "--datalist", str(path), "--output", str(folder)]
        words += ["--image-size", "128", *sets, "--set", f"slices_dir={work / 'slices'}"]
        command(*words)
        last = torch.load(folder / "last.pt", weights_only=True)
        (folder / "machine").write_text(machine())
        (folder / "dice").write_text(f"{last['best']['best']:.4f}")
    return float((folder / "dice").read_text())


def main() -> None:
    """Search, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scans", type=Path)
    parser.add_argument("--work", type=Path, default=Path("rates-work"))
    parser.add_argument("--methods", nargs="*", default=[*RATES], choices=[*RATES])
    parser.add_argument("--factors", nargs="*", type=float, default=[0.3, 1.0, 3.0])
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    path = datalist(arguments.scans, arguments.work)
    for method in arguments.methods:
        for factor in arguments.factors:
            validation_dice(
                path, arguments.work, method, float(f"{RATES[method][NANO] * factor:g}")
            )
    rows = []
    machines = set()
    for method in RATES:
        found = {
            float(folder.name.removeprefix(f"{method}-")): float((folder / "dice").read_text())
            for folder in arguments.work.glob(f"{method}-*")
            if (folder / "dice").exists()
        }
        for rate, dice in sorted(found.items()):
            chosen = " (default)" if rate == RATES[method][NANO] else ""
            rows.append([f"`{method}`", f"{rate:g}{chosen}", f"{dice:.3f}"])
            machines.add((arguments.work / f"{method}-{rate:g}" / "machine").read_text().strip())
    where = "; ".join(sorted(machines))
    lines = table(("method", "rate", "validation Dice"), rows)
    RESULTS.write_text(HEAD.format(machine=where) + "\n\n" + "\n".join(lines) + "\n")
    print(RESULTS.read_text())


HEAD = """# Learning rates, by validation cases

nano at 128 x 128, hippocampus, 16 training and 12 validation patients, five epochs of the recipe,
one seed; Dice of whole validation volumes, the mean of that by boxes with 5 % jitter on every slice
and that without prompts. Differences below 0.005 say little. The warm-up is a tenth of the steps
({machine}).

Made by `python benchmarks/rates.py HIPPOCAMPUS`."""

if __name__ == "__main__":
    main()
