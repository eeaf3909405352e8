"""How fast synthetic scenes are drawn beside the training that eats them, and what they look like.

    python benchmarks/scenes.py [--sheet scenes.png]

The table goes to benchmarks/results/scenes_<device>.md; the sheet shows 100 scenes, each beside
itself with the outlines of the objects that are asked for.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from training_step import machine

from medsam_tune.files import written_whole
from medsam_tune.methods import apply_method
from medsam_tune.sam.build import build_sam
from medsam_tune.synthetic.pretraining import (
    InteractiveLoss,
    MuonAdamW,
    Scenes,
    SimulatedUser,
    prepare_scenes,
)
from medsam_tune.synthetic.scenes import draw_scenes

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OUTPUT = Path(__file__).parent / "results" / f"scenes_{DEVICE}.md"
SIZES = {"cpu": ((128, 16), (256, 8)), "cuda": ((256, 64), (256, 256))}  # S and batch
OBJECTS = 6
COLOURS = ((255, 0, 0), (0, 255, 0), (0, 128, 255), (255, 255, 0), (255, 0, 255), (0, 255, 255))


def median_seconds(run: Callable[[int], None], repeats: int = 7) -> float:
    """Of a function of a seed, after two calls to warm up."""
    seconds = []
    for seed in range(repeats + 2):
        start = time.perf_counter()
        run(seed)
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[2:])


def training(size: int, batch: int) -> Callable[[int], None]:
    """A step of pre-training on scenes that are drawn beforehand."""
    sam = build_sam("nano", "random", image_size=size)
    network = apply_method(sam, "full", prompt_encoder=True).to(DEVICE).train()
    optimizer = MuonAdamW(network, lr=1e-4)
    image, truth, args, _ = prepare_scenes(
        Scenes(1, batch, size, OBJECTS, DEVICE)[(0, 0)], torch.device(DEVICE)
    )
    user, loss = SimulatedUser(), InteractiveLoss()

    def step(seed: int) -> None:
        args[1].manual_seed(seed)  # one round or two
        with torch.autocast("cuda", torch.bfloat16, enabled=DEVICE == "cuda"):
            value = loss(user(image, network, *args), truth)
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return step


def costs(size: int, batch: int) -> str:
    """The operations that take longest, one line each."""
    kinds = {ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if DEVICE == "cuda" else [])}
    with profile(activities=kinds) as found:
        for seed in range(5):
            draw_scenes(seed, batch, size, OBJECTS, DEVICE)
    times = {e.key: getattr(e, f"self_{DEVICE}_time_total", 0) for e in found.key_averages()}
    if DEVICE == "cuda":
        times = {e.key: e.self_device_time_total for e in found.key_averages()}
    whole = sum(times.values())
    largest = sorted(times.items(), key=lambda item: -item[1])[:8]
    return ", ".join(f"{name.removeprefix('aten::')} {t / whole:.0%}" for name, t in largest)


def outlined(image: Tensor, masks: Tensor) -> np.ndarray:
    """(S, 2 S, 3) uint8: a scene, and again with outlines."""
    plain = (image.permute(1, 2, 0).cpu().numpy() * 255).astype(np.uint8)
    drawn = plain.copy()
    for mask, colour in zip(masks.cpu().numpy(), COLOURS, strict=False):
        inner = np.roll(mask, 1, 0) & np.roll(mask, -1, 0) & np.roll(mask, 1, 1)
        drawn[mask & ~(inner & np.roll(mask, -1, 1))] = colour
    return np.concatenate([plain, drawn], 1)


def sheet(path: Path, size: int = 128) -> None:
    """100 scenes, five in a row."""
    tiles: list[np.ndarray] = []
    for seed in range(13):
        scenes = draw_scenes(seed, 8, size, OBJECTS)
        tiles += [outlined(*pair) for pair in zip(scenes["image"], scenes["masks"], strict=True)]
    rows = [np.concatenate(tiles[i : i + 5], 1) for i in range(0, 100, 5)]
    with written_whole(path) as beside:
        Image.fromarray(np.concatenate(rows, 0)).save(beside, format="PNG")


def main() -> None:
    """Measure, and draw the sheet if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sheet", type=Path)
    options = parser.parse_args()
    if options.sheet:
        sheet(options.sheet)
    lines = [
        f"# Synthetic scenes\n\n`python benchmarks/scenes.py` on {machine(DEVICE)}.\n",
        f"Median of 7; a step is nano's, {OBJECTS} objects of each scene, one or two rounds.\n",
        "| S | batch | scenes/s drawn | scenes/s trained | share of drawing in both |",
        "|---|---|---|---|---|",
    ]
    for size, batch in SIZES[DEVICE]:
        drawn = median_seconds(lambda seed: _draw(seed, size, batch))  # noqa: B023
        trained = median_seconds(training(size, batch))
        share = drawn / (drawn + trained)
        lines.append(
            f"| {size} | {batch} | {batch / drawn:.0f} | {batch / trained:.0f} | {share:.0%} |"
        )
        print(lines[-1], file=sys.stderr)
    size, batch = SIZES[DEVICE][0]
    lines.append(f"\nWhere drawing at {size} spends its time: {costs(size, batch)}.")
    with written_whole(OUTPUT) as beside:
        beside.write_text("\n".join([*lines, ""]))


def _draw(seed: int, size: int, batch: int) -> None:
    draw_scenes(seed, batch, size, OBJECTS, DEVICE)


if __name__ == "__main__":
    main()
