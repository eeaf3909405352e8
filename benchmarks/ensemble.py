"""Five folds as an ensemble, beside each of them alone, on patients that none of them has seen.

    python benchmarks/ensemble.py HIPPOCAMPUS --work WORK [--patients 50] [--epochs 10]

HIPPOCAMPUS is that task's folder of the Medical Segmentation Decathlon. The 27 test patients of the
other pages are held out of all folds; each fold chooses its checkpoint by a fifth of the others.
Each step is a `medsam-tune` command; what is finished in WORK is not run again. With `--fold K`
only that fold is trained, so that folds can run side by side. The table goes to
benchmarks/results/ensemble.md.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from commands import command
from pages import table
from training_step import machine

from medsam_tune.cases.datalist import Datalist, write_datalist
from medsam_tune.cases.folders import find_cases
from medsam_tune.cases.splits import split_cases
from medsam_tune.evaluation.label_maps import overlap
from medsam_tune.evaluation.statistics import bootstrap_interval

RESULTS = Path(__file__).parent / "results" / "ensemble.md"
FOLDS = 5
KINDS = {"no prompt": None, "one 3-D box": "box3d"}


def datalists(scans: Path, work: Path, patients: int) -> tuple[Datalist, list[Path]]:
    """The datalist of all, and one file for each fold."""
    data = split_cases(find_cases(scans), (0.7, 0.15, 0.15), seed=0)
    known = (data.training + data.validation)[:patients]
    files = [work / f"fold_{k}.json" for k in range(FOLDS)]
    for k, path in enumerate(files):
        validation = known[k::FOLDS]
        training = tuple(case for case in known if case not in validation)
        if not path.exists():
            write_datalist(replace(data, training=training, validation=validation), path)
    return data, files


def trained(datalist: Path, work: Path, epochs: int) -> Path:
    """The run of a fold, trained once."""
    run = work / datalist.stem
    done = run.with_suffix(".machine")
    if not done.exists():
        settings = (f"epochs={epochs}", "val_interval=2", "objects=6", f"slices_dir={work}/slices")
        words = [word for one in settings for word in ("--set", one)]
        resume = ["--resume"] if (run / "run.json").exists() else []
        options = ("--image-size", 128, "--datalist", datalist, "--output", run)
        command("train", "lora", *options, *words, *resume)
        done.write_text(machine())
    return run


def dice(masks: Path, data: Datalist) -> np.ndarray:
    """Dice of each test case (rows) and label (columns)."""
    found = []
    for case in data.test:
        mask, truth = (
            torch.from_numpy(np.asarray(nib.load(path).dataobj).astype("int16"))
            for path in (masks / f"{case.id}.nii.gz", case.label)
        )
        found.append([overlap(mask == label, truth == label)[0] for label in sorted(data.labels)])
    return np.array(found, dtype=float)


def masks(runs: list[Path], datalist: Path, output: Path, kind: str | None, scans: Path) -> Path:
    """The masks of the test cases by a run, or by the mean of several."""
    if not (output / "done").exists():
        words = [word for run in runs for word in ("--run", run)]
        if kind:
            words += ["--prompts", scans / "labelsTr", "--prompts-as", kind]
        command("predict", datalist, "--subset", "test", "--output", output, *words, "--resume")
        (output / "done").touch()
    return output


def main() -> None:
    """All folds, their masks, the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scans", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--patients", type=int, default=50)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--fold", type=int, choices=range(FOLDS))
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    data, files = datalists(given.scans, given.work, given.patients)
    if given.fold is not None:
        trained(files[given.fold], given.work, given.epochs)
        return
    runs = [trained(path, given.work, given.epochs) for path in files]
    names = [data.labels[label] for label in sorted(data.labels)]
    rows = []
    for title, kind in KINDS.items():
        sets = {f"fold {k + 1}": [run] for k, run in enumerate(runs)} | {"the five together": runs}
        scores = {}
        for name, members in sets.items():
            output = given.work / f"{name.replace(' ', '_')}-{kind}"
            scores[name] = dice(masks(members, files[0], output, kind, given.scans), data)
        best = max(list(scores)[:FOLDS], key=lambda name: float(scores[name].mean()))
        for name, found in scores.items():
            cells = [f"{one:.3f}" for one in found.mean(0)]
            interval = bootstrap_interval(list(found.mean(1)))
            shown = "({:.3f} to {:.3f})".format(*interval) if interval else ""
            rows.append([title, name, *cells, f"{found.mean():.3f} {shown}"])
        gain = (scores["the five together"] - scores[best]).mean(1)
        low, high = bootstrap_interval(list(gain)) or (np.nan, np.nan)
        rows.append([title, f"gain over {best}, the best", *[""] * len(names)])
        rows[-1].append(f"{gain.mean():+.4f} ({low:+.4f} to {high:+.4f})")
    head = ["prompts", "masks of", *names, "mean (95 % interval)"]
    text = HEAD.format(
        cases=len(data.test),
        known=given.patients,
        epochs=given.epochs,
        machine=files[0].with_suffix(".machine").read_text(),
    )
    RESULTS.write_text(text + "\n".join(table(head, rows)) + "\n")
    print(RESULTS.read_text())


HEAD = """# Five folds as an ensemble

Dice of {cases} held-out patients of the hippocampus task, by nano at 128 x 128, `train lora` for
{epochs} epochs on four fifths of {known} patients, the fifth fifth chooses the checkpoint.
{machine}.

The masks are those of `medsam-tune predict`, with one `--run` or with five, whose logits are
averaged. The best fold is the best *by these held-out patients*, so it is flattered.

Made by `python benchmarks/ensemble.py HIPPOCAMPUS --work W --patients {known} --epochs {epochs}`.

"""

if __name__ == "__main__":
    main()
