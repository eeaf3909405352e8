"""Claims about tuning SAM that are often repeated, beside what this package measures.

    OMP_NUM_THREADS=1 python benchmarks/claims.py HIPPOCAMPUS --work WORK [--seeds 3]

Trainings are `medsam-tune train` of nano at 128 x 128 with boxes, judged on 8 validation patients
after each epoch; no test case is read. Sizes and shares are those of vit_h, counted. Other rows are
of other benchmarks' pages, so that this one is the last to be run. What is finished in WORK is not
run again. Writes benchmarks/results/claims.md.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from commands import command
from pages import table
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
PATIENTS, FEWER, ALL, VALIDATION = 10, 1, 126, 8
SHORT = {10: 16, 50: 3, 126: 1}  # patients: epochs from scratch, 405 to 483 steps each
SLICES = 160  # of an epoch, at least
STEPS = 100  # of a tuning that is said to converge by then
LONG = 16  # epochs of prompt tuning, to know what it comes to
SAME = 0.005  # of Dice
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
    work: Path,
    data: Path,
    name: str,
    method: str,
    seed: int,
    epochs: int,
    *words: object,
    **settings: object,
) -> dict[str, Any]:
    """The state of a training, which is done once, with its `steps` and seconds of `processor`."""
    run = work / f"{name}-{epochs}-seed{seed}"
    spent = run.with_suffix(".processor")
    if read_state(run).get("state") != "finished":
        said = {
            **{"seed": seed, "epochs": epochs, "epoch_slices": SLICES},
            "mixture": "{'box': 1}",
            "validation_prompts": "['slices']",
            "slices_dir": work / "slices",
            **settings,
        }
        sets = [word for key, value in said.items() for word in ("--set", f"{key}={value}")]
        resume = ["--resume"] if (run / "run.json").exists() else []
        options = ("--datalist", data, "--output", run, "--image-size", SIZE, "--class-agnostic")
        start = processor_seconds()
        before = float(spent.read_text()) if resume and spent.exists() else 0.0
        try:
            command("train", method, *options, *words, *sets, *resume)
        finally:
            spent.write_text(str(before + processor_seconds() - start))
    found = {"steps": steps_of(run), "processor": float(spent.read_text())}
    return {**read_state(run), **found}


def processor_seconds() -> float:
    """Of all commands so far."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


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


def reached(state: dict[str, Any], dice: float) -> float | None:
    """The part of a training after which it first had a Dice; None if it never had."""
    epochs = state["validations"][-1]["epoch"]
    found = (one["epoch"] / epochs for one in state["validations"] if one["dice"] >= dice)
    return next(found, None)


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
        "lora": ("LoRA r=8: 2 MB a domain, not 2.4 GB", 2e6, {"rank": 8}),
        "adapter": ("adapters, 64 channels: 5 MB a domain", 5e6, {"bottleneck": 64}),
        "prompt": ("10 tokens: 10 KB a domain", 10e3, {"tokens": 10}),
    }
    with torch.device("meta"):
        bare = build_sam("vit_h", RANDOM)
    whole = sum(p.numel() for p in bare.parameters())
    for method, (claim, claimed, options) in said.items():
        with torch.device("meta"):
            model = apply_method(build_sam("vit_h", RANDOM), method, **options)
        count = sum(tensor.numel() for tensor in tuned_tensors(model).values())
        size = f"{2 * count / 1e6:.3g} MB" if count > 1e5 else f"{2 * count / 1e3:.1f} kB"
        found.append(
            (
                claim,
                f"{count:,} numbers, {count / whole:.2%} of {whole / 1e6:.0f} M; {size} in float16 "
                f"beside {4 * whole / 1e9:.2f} GB",
                "true" if 2 * count <= claimed else f"{2 * count / claimed:.1f} x as large",
            )
        )
    return found


def switching() -> tuple[str, str, str]:
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
    return (
        "switching a domain is instant",
        f"{switch:.3f} ms, beside {encode:.0f} ms of an encoding by nano",
        "true" if switch < encode / 100 else "not here",
    )


def rows_of(page: str, *first: str, section: str = "") -> list[list[str]]:
    """The rows of a page of results, or of one of its sections, that begin with these cells."""
    text = (RESULTS.parent / page).read_text()
    if section:
        text = next((t for t in text.split("\n## ")[1:] if t.startswith(section)), "")
    lines = text.splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    found = [row for row in rows if row[: len(first)] == [*first]]
    if not found:
        raise ValueError(f"{page} has no row {' | '.join(first)}.")
    return found


def number(cell: str) -> float:
    """The first number of a cell, such as "0.852 (0.842 to 0.861)"."""
    return float(cell.split()[0].replace(",", ""))


def adapters_beside_full() -> tuple[str, str, str]:
    """How many times as fast adapters are, and their share of the memory, of steps."""
    found = {}
    page = "training_step_cpu_256.md"
    full, adapter = (rows_of(page, name)[0] for name in ("full", "adapter"))
    found["steps of vit_b at 256 on a CPU"] = (
        number(full[2]) / number(adapter[2]),
        number(adapter[4]) / number(full[4]),
    )
    for model, batch in (("vit_b", "8"), ("vit_h", "4")):
        full, adapter = (
            rows_of("gpu.md", name, model, batch, "bf16")[0] for name in ("full", "adapter")
        )
        found[f"steps of {model} at 1024 on an H200, batch {batch}"] = (
            number(full[4]) / number(adapter[4]),
            number(adapter[6]) / number(full[6]),
        )
    paces, memories = zip(*found.values(), strict=True)
    return (
        "adapters are 10 x faster and need 5 x less memory than full tuning",
        "; ".join(f"{name}: {one:.2f} x, {two:.2f} x" for name, (one, two) in found.items())
        + " (speed, memory beyond the weights)",
        f"at most {max(paces):.1f} x as fast, {1 / max(memories):.1f} to {1 / min(memories):.1f} x "
        "less memory",
    )


def blocks_and_embeddings() -> tuple[str, str, str]:
    """What tuning the last blocks alone, on kept tokens, changes."""
    parts = []
    for method in ("lora", "adapter"):
        for model in ("nano at 256", "vit_b at 1024"):
            (row,) = rows_of("cache.md", f"{method}, cached: later epochs", section=model)
            parts.append(f"{method} of {model} {number(row[4]):.1f} x")
    return (
        "the same, with adapters in the last two blocks and what is before them kept",
        f"steps on a CPU, of those without: {', '.join(parts)} (cache.md)",
        "faster, by no factor of 10",
    )


def few_shots() -> tuple[str, str, str]:
    """Dice by the number of training patients, on held-out ones."""
    dice = {
        n: number(rows_of("hippocampus.md", f"lora-{n}", "slices")[0][2]) for n in (10, 50, 100)
    }
    base = number(rows_of("hippocampus.md", "zero\\_shot", "slices")[0][2])
    shown = ", ".join(f"{n}: {one:.3f} ({100 * (one - base):+.1f})" for n, one in dice.items())
    return (
        "few-shot 0.652; 10 images: 0.721 (+6.9 points), 50: 0.788 (+13.6), 100: 0.823 (+17.1)",
        f"LoRA by patients, 27 held out: zero-shot {base:.3f}; {shown} (hippocampus.md)",
        "more is better, by less" if [*dice.values()] == sorted(dice.values()) else "not here",
    )


def buildings() -> tuple[str, str, str]:
    """IoU of buildings from above, before and after."""
    base, adapter, lora = (
        number(rows_of("aerial.md", name)[0][-1])
        for name in ("nano, untouched", "`adapter`", "`lora`")
    )
    return (
        "adapters on buildings from above: IoU 0.689 -> 0.783",
        f"by boxes, four tiles each held out once: {base:.3f} -> {adapter:.3f}, LoRA {lora:.3f} "
        "(aerial.md; 100 steps)",
        "true" if adapter > base else "not here",
    )


def combined() -> tuple[str, str, str]:
    """The mean of all domains' LoRAs beside each domain's own."""
    _, _, _, *columns, _ = rows_of("domains.md", "test cases of")[0]
    shown, gains, behind = [], [], []
    for at, column in enumerate(columns):
        name = column.removeprefix("by ")
        row = rows_of("domains.md", name)[0]
        base, own, mean = number(row[2]), number(row[3 + at]), number(row[-1])
        gains.append(mean - base)
        behind.append(100 * (mean - own))
        shown.append(f"{name} {base:.3f}, own {own:.3f}, mean {mean:.3f}")
    better = sum(gain > 0 for gain in gains)
    return (
        "LoRAs of domains can be combined",
        f"untouched, its own, mean of all {len(columns)}: {'; '.join(shown)} (domains.md)",
        f"better than untouched in {better} of {len(gains)}; beside each domain's own "
        f"{min(behind):+.1f} to {max(behind):+.1f} points",
    )


def beside_scratch(own: dict[str, Any], scratch: dict[str, Any]) -> tuple[str, str, str]:
    """Steps and time of a decoder to its best Dice, and of a whole model from random weights."""
    target = best(own)
    part, other = reached(own, target), reached(scratch, target)
    assert part is not None
    ratios = [
        (1.0 if other is None else other) * scratch[kind] / (part * own[kind])
        for kind in ("steps", "processor")
    ]
    more = "" if other else "more than "
    shown = f"reached {target:.3f}" if other else f"best {best(scratch):.3f} of {target:.3f}"
    return (
        "tuning the decoder is 100 to 1000 x faster than training from scratch",
        f"to the decoder's best Dice with {PATIENTS} patients, a whole model from random weights "
        f"with {ALL}: {more}{ratios[0]:.0f} x the steps, {more}{ratios[1]:.0f} x the processor's "
        f"time ({shown}; {scratch['steps']:,} steps, {scratch['processor'] / 60:.0f} minutes)",
        f"{more}{ratios[1]:.0f} x, beside which stand the 195 minutes of the base's own training "
        "(medsam_tune/sam/weights/README.md)",
    )


def less_data(
    fewer: Sequence[dict[str, Any]], scratch: Mapping[tuple[int, int], dict[str, Any]]
) -> tuple[str, str, str]:
    """A decoder of one patient beside whole models from random weights of many."""
    own = statistics.mean(map(best, fewer))
    shown = ", ".join(
        f"{patients}: {best(state):.3f} ({state['steps']:,} steps)"
        for (patients, _), state in scratch.items()
    )
    short = [
        patients for patients, epochs in SHORT.items() if best(scratch[patients, epochs]) < own
    ]
    ahead = [patients for (patients, _), state in scratch.items() if best(state) >= own]
    said = f"true for {max(short) // FEWER} x in so few steps" if short else "not here"
    return (
        "and needs 10 to 100 x less data",
        f"decoder, {FEWER} patient: {spread(map(best, fewer))} ({fewer[0]['steps']:,} steps); from "
        f"scratch, by patients: {shown}",
        f"{said}; longer, scratch with {max(ahead)} is level or ahead" if ahead else said,
    )


def soon(
    base: float, states: Sequence[dict[str, Any]], long: dict[str, Any]
) -> tuple[str, str, str]:
    """Prompt tuning within few steps, by all seeds, and what a longer training comes to, by one."""
    early = []
    for state in states:
        per_epoch = state["steps"] / state["validations"][-1]["epoch"]
        by_then = [one for one in state["validations"] if one["epoch"] * per_epoch <= STEPS]
        early.append(max(one["dice"] for one in by_then))
    left = best(long) - early[0]
    gained = min(early) > base + 2 * SAME
    return (
        f"prompt tuning converges in fewer than {STEPS} steps",
        f"untouched {base:.3f}, within {STEPS} steps {spread(early)}, best of {long['steps']} "
        f"steps {best(long):.3f} (one seed)",
        "not here"
        if not gained
        else "true"
        if left <= SAME
        else f"in part: {100 * left:.1f} points are still to come",
    )


def as_written(
    own: Mapping[str, dict[str, Any]], theirs: Mapping[str, dict[str, Any]]
) -> tuple[str, str, str]:
    """The recipes of the notes, which are overlays, beside ours in as many steps."""
    shown = [f"{name} {best(theirs[name]):.3f}, ours {best(own[name]):.3f}" for name in theirs]
    level = [name for name in theirs if best(theirs[name]) >= best(own[name]) - SAME]
    return (
        "recipes: decoder by BCE at 1e-4, full at 1e-5, adapters of 64 channels at 5e-5, LoRA of "
        "r=8 with alpha 32 and dropout",
        f"as written, by one seed: {'; '.join(shown)}",
        f"level: {', '.join(level)}" if level else "ours are ahead; nano learns by higher rates",
    )


def halved(work: Path, run: Path) -> tuple[str, str, str]:
    """Dice of a run by its tuned file in float32 and in half precision."""
    dice, sizes = {}, {}
    for dtype in ("float32", "float16", "bfloat16"):
        file = work / f"half-{run.name}-{dtype}.safetensors"
        if not file.exists():
            half = () if dtype == "float32" else ("--dtype", dtype)
            command("export", "--run", run, "--format", "tuned", *half, "--output", file)
        folder = file.with_suffix("")
        if not folder.exists():
            settings = {"tuned": file, "subset": "validation", "output_dir": folder}
            sets = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
            command("evaluate", "--run", run, "--prompts", "slices", *sets)
        dice[dtype] = json.loads((folder / "summary.json").read_text())["mean_dice"]
        sizes[dtype] = file.stat().st_size
    shown = (f"{dtype} {dice[dtype]:.4f} ({sizes[dtype] / 1e3:.0f} kB)" for dtype in dice)
    off = max(abs(one - dice["float32"]) for one in dice.values())
    return (
        "the same, in half precision",
        f"Dice of a LoRA of nano by its file in {', '.join(shown)}",
        f"Dice within {off:.0e}",
    )


def unmeasured() -> list[tuple[str, str, str]]:
    """Claims that need weights or data that are not at hand, and what comes near them."""
    row = rows_of("nano.md", "41 organs, CT")[0]
    ellipse, base = number(row[2]), number(row[3])
    full = number(rows_of("hippocampus.md", "full", "slices")[0][2])
    return [
        (
            "SAM loses 14.6 points of mIoU on medical images, 22.2 on thermal ones, 11.4 under "
            "water",
            f"not measured: SAM's own weights are not at hand. nano, by boxes on 41 organs in CT: "
            f"{base:.3f}, the ellipse in the box {ellipse:.3f} (nano.md)",
            "-",
        ),
        (
            "Dice of 85 to 90 % with 5,000 medical images, IoU of 80 to 85 % with 10,000 satellite "
            "images, 75 to 80 % with 1,000 natural ones",
            "not measured: no such data sets are at hand. `full` with the slices of 126 patients "
            f"of the hippocampus: {full:.3f} by boxes (hippocampus.md)",
            "-",
        ),
    ]


def main() -> None:
    """All arms, then the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scans", type=Path)
    parser.add_argument("--work", type=Path, default=Path("claims-work"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--scratch-epochs", type=int, default=8, help="of 126 patients")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    write(options, range(options.seeds))


def write(options: Any, seeds: Sequence[int]) -> None:
    """Train what is missing, and write the page."""
    work = options.work
    data = datalist(options.scans, work, PATIENTS)
    base = untouched(work, data)
    states = {
        method: [trained(work, data, method, method, seed, options.epochs) for seed in seeds]
        for method in ("decoder", *ORDER)
    }
    scratch = {
        (patients, epochs): trained(
            *(work, datalist(options.scans, work, patients), f"scratch-{patients}", "full"),
            *(seeds[0], epochs, "--checkpoint", RANDOM),
        )
        for patients, epochs in [*SHORT.items(), (ALL, options.scratch_epochs)]
    }  # by one seed, as it takes most of the time
    few = datalist(options.scans, work, FEWER)
    fewer = [trained(work, few, "fewer", "decoder", seed, options.epochs) for seed in seeds]
    rows = [
        beside_scratch(states["decoder"][0], scratch[ALL, options.scratch_epochs]),
        less_data(fewer, scratch),
    ]
    rows.append(adapters_beside_full())
    rows.append(blocks_and_embeddings())

    rows.append(
        soon(base, states["prompt"], trained(work, data, "prompt", "prompt", seeds[0], LONG))
    )
    means = {name: statistics.mean(map(best, states[name])) for name in ORDER}
    sorted_as_said = [*means] == sorted(means, key=lambda name: means[name])
    shown = ", ".join(
        f"{name} {spread(map(best, states[name]))}, {100 * (means[name] - base):+.1f}"
        for name in ORDER
    )
    rows.append(
        (
            "zero-shot 0.603, prompt 0.721 (+11.8 points), LoRA 0.837 (+23.4), adapter 0.852 "
            "(+24.9), full 0.901 (+29.8)",
            f"zero-shot {base:.3f}; {shown}",
            "the same order" if sorted_as_said else "another order",
        )
    )
    theirs = {
        name: trained(
            *(work, data, f"notes-{name}", name, seeds[0], options.epochs),
            *("--overlay", f"notes_{name}"),
        )
        for name in ("decoder", "full", "adapter", "lora")
    }
    rows.append(as_written({name: states[name][0] for name in theirs}, theirs))
    rows.append(few_shots())
    rows.append(buildings())
    rows += sizes()
    rows.append(halved(work, work / f"lora-{options.epochs}-seed{seeds[0]}"))
    rows.append(switching())
    rows.append(combined())
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
    lines = table(("claim", "here", "verdict"), [*rows, *unmeasured()])
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
patients by a box with 5 % jitter on each slice; {epochs} epochs; number of seeds: {seeds}, with
their range, from scratch one, at the rate of `full`; {machine}. A validation chooses the epoch and
is also the score, so these numbers compare ways with each other, and are not held-out ones.

Made by `python benchmarks/claims.py HIPPOCAMPUS --seeds {seeds} --epochs {epochs}
--scratch-epochs {scratch}`."""

if __name__ == "__main__":
    main()
