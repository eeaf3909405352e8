"""Claims about tuning SAM that are often repeated, beside what this package measures.

    python benchmarks/claims.py HIPPOCAMPUS --work WORK [--seeds 3]

Trainings are `medsam-tune train` of nano at 128 x 128 with boxes, judged on 8 validation patients
after each epoch; no test case is read. Sizes and shares are those of vit_h, counted. What full
tuning forgets is that of benchmarks/domains.py, from its page. What is finished in WORK is not run
again. Writes benchmarks/results/claims.md.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from commands import command
from training_step import machine

from medsam_tune import apply_method, build_sam
from medsam_tune.cases.datalist import write_datalist
from medsam_tune.cases.folders import find_cases
from medsam_tune.cases.splits import split_cases
from medsam_tune.methods.domains import Domains
from medsam_tune.methods.tuned import tuned_tensors
from medsam_tune.runs import read_state
from medsam_tune.sam.build import RANDOM

RESULTS = Path(__file__).parent / "results" / "claims.md"
SIZE = 128
PATIENTS, FEWER, VALIDATION = 10, 1, 8
MORE = (50, 126)  # patients of longer trainings from scratch, in as many steps
SLICES = 160  # of an epoch, at least
STEPS = 100  # of a tuning that is said to converge by then
ORDER = ("prompt", "lora", "adapter", "full")  # ascending, as the claim has it


def datalist(scans: Path, work: Path, patients: int) -> Path:
    """So many training patients, and always the same for validation."""
    path = work / f"hippocampus_{patients}.json"
    if not path.exists():
        data = split_cases(find_cases(scans), (0.7, 0.15, 0.15), seed=0)
        few = {"training": data.training[:patients], "validation": data.validation[:VALIDATION]}
        write_datalist(replace(data, test=(), **few), path)
    return path


def trained(
    work: Path, data: Path, name: str, method: str, seed: int, *words: object, **settings: object
) -> dict[str, Any]:
    """The state of a training, which is done once: its validations, seconds and memory."""
    run = work / f"{name}-seed{seed}"
    if read_state(run).get("state") != "finished":
        said = {
            "seed": seed,
            "mixture": "{'box': 1}",
            "validation_prompts": "['slices']",
            "slices_dir": work / "slices",
            **settings,
        }
        sets = [word for key, value in said.items() for word in ("--set", f"{key}={value}")]
        resume = ["--resume"] if (run / "run.json").exists() else []
        options = ("--datalist", data, "--output", run, "--image-size", SIZE, "--class-agnostic")
        command("train", method, *options, *words, *sets, *resume)
    return read_state(run)


def untouched(work: Path, data: Path) -> float:
    """Dice of the base on the validation patients by the same boxes."""
    folder = work / "untouched"
    if not (folder / "evaluation_validation").exists():
        sets = ("--set", f"slices_dir={work / 'slices'}", "--set", "subset=validation")
        words = ("--zero-shot", "--datalist", data, "--output", folder, "--image-size", SIZE)
        command("evaluate", *words, "--prompts", "slices", *sets)
    summary = json.loads((folder / "evaluation_validation" / "summary.json").read_text())
    return float(summary["mean_dice"])


def best(state: dict[str, Any]) -> float:
    """The best Dice of a training."""
    return max(one["dice"] for one in state["validations"])


def reached(state: dict[str, Any], dice: float) -> tuple[int, float] | None:
    """Epoch and seconds at which a training first had a Dice."""
    return next(
        ((one["epoch"], one["seconds"]) for one in state["validations"] if one["dice"] >= dice),
        None,
    )


def steps_of(run: Path) -> int:
    """Number of steps of a finished training."""
    last = torch.load(run / "last.pt", weights_only=True)
    return int(last["lr_scheduler"]["steps"])


def spread(values: Iterable[float]) -> str:
    """The mean of the seeds, with their range."""
    found = [*values]
    ends = f" ({min(found):.3f} to {max(found):.3f})" if len(found) > 1 else ""
    return f"{statistics.mean(found):.3f}{ends}"


def sizes() -> list[tuple[str, str, str]]:
    """Claims on shares and bytes, counted on vit_h."""
    found = []
    said = {
        "lora": ("LoRA r=8: 2 MB a domain, not 2.4 GB", {"rank": 8}),
        "adapter": ("adapters, 64 channels: 5 MB a domain", {"bottleneck": 64}),
        "prompt": ("10 tokens: 10 KB a domain", {"tokens": 10}),
    }
    with torch.device("meta"):
        bare = build_sam("vit_h", RANDOM)
    whole = sum(p.numel() for p in bare.parameters())
    for method, (claim, options) in said.items():
        with torch.device("meta"):
            model = apply_method(build_sam("vit_h", RANDOM), method, **options)
        count = sum(tensor.numel() for tensor in tuned_tensors(model).values())
        size = f"{2 * count / 1e6:.3g} MB" if count > 1e5 else f"{2 * count / 1e3:.1f} kB"
        found.append(
            (
                claim,
                f"{count:,} numbers, {count / whole:.2%} of {whole / 1e6:.0f} M; {size} in float16 "
                f"beside {4 * whole / 1e9:.2f} GB",
                {"prompt": "true", "lora": "1.4 x as large", "adapter": "twice as large"}[method],
            )
        )
    return found


def switching() -> str:
    """Milliseconds from one domain to another, and of an encoding."""
    domains = Domains(build_sam("nano", image_size=SIZE))
    for name in ("ct", "mr"):
        domains.create(name, "lora")
    image = torch.rand(1, 3, SIZE, SIZE)
    times: dict[str, list[float]] = {"switch": [], "encode": []}
    for turn in range(40):
        start = time.process_time()
        model = domains["ct" if turn % 2 else "mr"]
        middle = time.process_time()
        with torch.inference_mode():
            model.encode(image)
        times["switch"].append(middle - start)
        times["encode"].append(time.process_time() - middle)
    switch, encode = (1e3 * statistics.median(one) for one in times.values())
    return f"{switch:.3f} ms, beside {encode:.0f} ms of an encoding by nano"


def main() -> None:
    """All arms, then the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scans", type=Path)
    parser.add_argument("--work", type=Path, default=Path("claims-work"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--scratch-epochs", type=int, default=40)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    write(options, range(options.seeds))


def write(options: Any, seeds: Sequence[int]) -> None:
    """Train what is missing, and write the page."""
    work = options.work
    data = datalist(options.scans, work, PATIENTS)
    base = untouched(work, data)
    length = {"epochs": options.epochs, "epoch_slices": SLICES}
    states = {
        method: [trained(work, data, method, method, seed, **length) for seed in seeds]
        for method in ("decoder", *ORDER)
    }
    rows: list[tuple[str, str, str]] = []

    # From scratch: everything from random weights, for longer, with few and with many patients.
    longer = {"epochs": options.scratch_epochs, "epoch_slices": SLICES}
    weights = ("--checkpoint", RANDOM)
    scratch = [
        trained(work, data, "scratch", "full", seed, *weights, val_interval=4, **longer)
        for seed in seeds
    ]
    ways = []
    for tuned, whole in zip(states["decoder"], scratch, strict=True):
        target = best(tuned)
        own = reached(tuned, target)
        other = reached(whole, target)
        assert own is not None
        if other is None:
            spent = whole["validations"][-1]["seconds"]
            ways.append(f"> {spent / own[1]:.0f} x (best {best(whole):.3f} of {target:.3f})")
        else:
            ways.append(f"{other[1] / own[1]:.1f} x (to {target:.3f})")
    rows.append(
        (
            "tuning the decoder is 100 to 1000 x faster than training from scratch",
            f"time to the decoder's best Dice: {'; '.join(ways)}",
            "the base's own training comes on top, see nano.md",
        )
    )
    few = datalist(options.scans, work, FEWER)
    less = [trained(work, few, "fewer", "decoder", seed, **length) for seed in seeds]
    alone = {PATIENTS: [*map(best, scratch)]}
    for patients in MORE:
        more = datalist(options.scans, work, patients)
        epochs = max(1, round(options.scratch_epochs * PATIENTS / patients))
        settings = {"epochs": epochs, "epoch_slices": SLICES}
        name = f"scratch-{patients}"
        state = trained(work, more, name, "full", seeds[0], *weights, **settings)
        alone[patients] = [best(state)]
    worse = [patients for patients, dice in alone.items() if max(dice) < min(map(best, less))]
    shown = ", ".join(f"{patients}: {spread(dice)}" for patients, dice in alone.items())
    rows.append(
        (
            "and needs 10 to 100 x less data",
            f"decoder, {FEWER} patient: {spread(map(best, less))}; from scratch in about as many "
            f"steps each, {shown} (one seed where there is no range)",
            f"true for {max(worse) // FEWER} x" if worse else "not here",
        )
    )

    # The speed of the methods: seconds of an epoch and the most memory, validations included.
    full, adapter = (states[name][0] for name in ("full", "adapter"))
    pace = full["seconds"] / adapter["seconds"]
    memory = full["peak_bytes"] / adapter["peak_bytes"]
    rows.append(
        (
            "adapters are 10 x faster and need 5 x less memory than full tuning",
            f"whole trainings of nano: {pace:.2f} x the speed, {1 / memory:.2f} x the memory of "
            "the process; steps of vit_b at 256: 1.6 x, 0.21 x beyond the weights "
            "(training_step_cpu_256.md)",
            "memory: true where the weights are small beside activations; speed: not",
        )
    )

    per_epoch = steps_of(work / f"prompt-seed{seeds[0]}") // options.epochs
    early = [
        max(one["dice"] for one in state["validations"] if one["epoch"] * per_epoch <= STEPS)
        for state in states["prompt"]
    ]
    rows.append(
        (
            "prompt tuning converges in fewer than 100 steps",
            f"untouched {base:.3f}, within {STEPS} steps {spread(early)}, best of "
            f"{options.epochs * per_epoch} steps {spread(map(best, states['prompt']))}",
            "true" if min(early) > base + 0.01 else "not here",
        )
    )
    means = {name: statistics.mean(map(best, states[name])) for name in ORDER}
    sorted_as_said = [*means] == sorted(means, key=lambda name: means[name])
    shown = ", ".join(f"{name} {spread(map(best, states[name]))}" for name in ORDER)
    rows.append(
        (
            "zero-shot 0.603, prompt 0.721, LoRA 0.837, adapter 0.852, full 0.901",
            f"zero-shot {base:.3f}, {shown}",
            "the same order" if sorted_as_said else "another order",
        )
    )
    rows += sizes()
    rows.append(("switching a domain is instant", switching(), "true"))
    text = (RESULTS.parent / "domains.md").read_text()
    change = re.search(r"a change of (\S+)", text)
    assert change is not None
    rows.append(
        (
            "full tuning forgets, adapters do not",
            f"hippocampus, after tuning on nuclei: {change[1]} (domains.md); adapters 0 by "
            "construction",
            "true" if float(change[1]) < 0 else "not here",
        )
    )
    rows.append(
        (
            "an image of another pixel size gets 1024 * (0.3 / resolution) pixels",
            "upside down: coarser pixels need enlarging; side * resolution / 0.3 is done and "
            "tested (tests/slices/test_ground.py)",
            "wrong",
        )
    )
    lines = ["| claim | here | verdict |", "| --- | --- | --- |"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    text = HEAD.format(
        patients=PATIENTS,
        validation=VALIDATION,
        epochs=options.epochs,
        scratch=options.scratch_epochs,
        seeds=len(seeds),
        machine=machine(),
    )
    RESULTS.write_text(f"{text}\n\n" + "\n".join(lines) + "\n")
    print(RESULTS.read_text())


HEAD = """# Claims, and what is measured here

nano at 128 x 128, hippocampus, {patients} training patients, mean Dice of {validation} validation
patients by a box with 5 % jitter on each slice; {epochs} epochs, from scratch {scratch}; number of
seeds: {seeds}, with their range; {machine}. A validation chooses the epoch and is also the score,
so these numbers compare ways with each other, and are not held-out ones. Times are of the clock,
and what else the machine does counts.

Made by `python benchmarks/claims.py HIPPOCAMPUS`."""

if __name__ == "__main__":
    main()
