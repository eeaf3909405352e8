"""What the settings for few cases gain, each by itself: deformation with copies, and MixUp.

    OMP_NUM_THREADS=1 python benchmarks/few_shot.py HIPPOCAMPUS --work WORK [--draws 2]

nano by LoRA at 128 x 128 on 5 patients, as many steps in each way:

- `recipe`: the recipe as it is;
- `deformed`: few_shot.yaml without its MixUp: deformed copies of the scans, stronger deformation;
- `few_shot`: few_shot.yaml;
- `mixup`: the recipe with the MixUp of few_shot.yaml alone.

Each draw has other 5 of the training patients. All are judged on the same validation patients; two
more of those follow the training. Test patients are not read. What is finished in WORK is not run
again. Writes benchmarks/results/few_shot.md.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from commands import command
from context import KINDS, change, dice
from pages import table
from training_step import machine

from medsam_tune.cases.datalist import write_datalist
from medsam_tune.cases.folders import find_cases
from medsam_tune.cases.splits import few_shots, split_cases
from medsam_tune.files import written_whole

RESULTS = Path(__file__).parent / "results"
SHOTS, FOLLOWED, BATCH = 5, 2, 8
MIXUP = """train::trainer::prepare_batch:
  {_target_: medsam_tune.training.batches.MixUp, alpha: 0.4, prob: 0.5}
"""
WAYS = {
    "recipe": (),
    "deformed": ("--overlay", "few_shot.yaml", "--set", "train::trainer::prepare_batch::prob=0"),
    "few_shot": ("--overlay", "few_shot.yaml"),
    "mixup": ("--overlay", "mixup.yaml"),
}
LESS = (("deformed", "recipe"), ("mixup", "recipe"), ("few_shot", "recipe"))
LESS += (("few_shot", "deformed"),)


def datalists(scans: Path, work: Path, draws: int, held_out: int) -> list[Path]:
    """A datalist for each draw; its "test" patients are some of the validation's."""
    found = [work / f"draw{seed}.json" for seed in range(draws)]
    if not all(path.exists() for path in found):
        data = split_cases(find_cases(scans), (0.7, 0.15, 0.15), seed=0)
        followed, held = data.validation[:FOLLOWED], data.validation[FOLLOWED:][:held_out]
        for seed, path in enumerate(found):
            few = few_shots(data, SHOTS, seed)
            write_datalist(replace(few, validation=followed, test=held), path)
    return found


def done(work: Path, datalist: Path, way: str, steps: int) -> Path:
    """A training and its evaluation, made once."""
    run = work / f"{way}-{datalist.stem}"
    if not (run / "evaluation" / "summary.json").exists():
        (work / "mixup.yaml").write_text(MIXUP)
        words = [str(work / word) if word == "mixup.yaml" else word for word in WAYS[way]]
        for one in ("epochs=1", f"epoch_slices={steps * BATCH}", f"batch_size={BATCH}"):
            words += ["--set", one]
        words += ["--set", f"slices_dir={work / 'slices'}"]
        if not (run / "machine").exists():
            where = ("--datalist", datalist, "--output", run, "--image-size", 128)
            command("train", "lora", *where, *words)
            (run / "machine").write_text(machine("cpu"))
        kinds = ("--prompts", ",".join(KINDS))
        command("evaluate", "--run", run, *kinds, "--set", "pictures=0")
    return run


def main() -> None:
    """All draws and ways, then the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scans", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--draws", type=int, default=2)
    parser.add_argument(
        "--steps", type=int, default=200, help="of a training; over 70, for the deformed copies too"
    )
    parser.add_argument("--patients", type=int, default=20, help="that judge, at most")
    parser.add_argument("--output", type=Path, default=RESULTS / "few_shot.md")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    lists = datalists(given.scans, given.work, given.draws, given.patients)
    runs = {way: [] for way in WAYS}
    for datalist in lists:
        for way in WAYS:
            runs[way].append(done(given.work, datalist, way, given.steps))
    # Way -> kind -> draw -> patient -> Dice.
    scores = {w: {k: [dice(run, k) for run in each] for k in KINDS} for w, each in runs.items()}
    lines = []
    machines = {(run / "machine").read_text().strip() for each in runs.values() for run in each}
    for way in runs:
        means = [[float(np.mean([*one.values()])) for one in scores[way][kind]] for kind in KINDS]
        cells = [f"{np.mean(m):.3f} ({', '.join(f'{one:.3f}' for one in m)})" for m in means]
        lines.append([f"`{way}`", *cells])
    for way, other in LESS:
        cells = []
        for kind in KINDS:
            mine, its = scores[way][kind], scores[other][kind]
            steps = [
                float(np.mean([a[case] - b[case] for a, b in zip(mine, its, strict=True)]))
                for case in mine[0]
            ]
            cells.append(change(steps))
        lines.append([f"`{way}` less `{other}`", *cells])
    page = "\n".join(table(["", *KINDS], lines))
    judges = len(scores["recipe"]["none"][0])
    settings = {"draws": given.draws, "patients": judges, "steps": given.steps, "shots": SHOTS}
    with written_whole(given.output) as file:
        file.write_text(HEAD.format(machine="; ".join(sorted(machines)), **settings) + page + "\n")
    print(given.output.read_text())


HEAD = """# Settings for few cases, each by itself

`python benchmarks/few_shot.py HIPPOCAMPUS --work WORK`: nano by LoRA at 128 x 128 on {shots}
patients, {steps} steps, draws of patients: {draws}; Dice, mean of both labels, of {patients}
validation patients that no training has seen, with that of each draw; paired differences, of each
patient the mean over the draws, with their 95 % interval over patients. The interval does not hold
what other draws of training patients would change. No test patient was read. {machine}.

`deformed` is few_shot.yaml without MixUp, `mixup` the recipe with its MixUp alone.

"""

if __name__ == "__main__":
    main()
