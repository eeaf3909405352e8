"""What prediction costs: ten objects beside one, a loop in MedSAM's way, and a long scan's memory.

    python benchmarks/inference.py

Scans are synthetic uint8 slices; vit_b has random weights, which cost the same as trained ones. All
times of a row are from one process, taken in turns, so that ratios can be compared. Memory is the
peak of a process of its own, above what it held before the first slice was encoded. Writes
benchmarks/results/inference.md.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from training_step import machine

from medsam_tune.inference.inferers import VolumeInferer
from medsam_tune.prompts import Prompts, SlicePrompts
from medsam_tune.sam.build import build_sam
from medsam_tune.sam.model import PromptableSam
from medsam_tune.slices.frames import ModelFrame

RESULTS = Path(__file__).parent / "results" / "inference.md"
MODELS = {"nano at 256": ("nano", None, 256, 8, 5), "vit_b at 512": ("vit_b", "random", 512, 2, 3)}
HEAD = """# Prediction

{machine}. `python benchmarks/inference.py`. Every object has a box on every slice.

"""


def slices(depth: int, side: int = 512, seed: int = 0) -> Tensor:
    """(Z, 1, side, side) uint8 noise in soft blobs."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(1, 1, 32, 32, generator=generator)
    smooth = torch.nn.functional.interpolate(small, (side, side), mode="bicubic")[0]
    base = (smooth.clamp(0, 1) * 200).to(torch.uint8)
    made = base[None].repeat(depth, 1, 1, 1)
    made += torch.arange(depth, dtype=torch.uint8)[:, None, None, None] % 50
    return made


def prompts(depth: int, objects: int, side: int = 512) -> SlicePrompts:
    """Boxes of several objects, each a label of its own, on every slice."""
    row = torch.arange(objects)
    low = torch.stack([20 + 40 * row, 30 + 35 * row], 1).float()
    boxes = torch.cat([low, (low + 90).clamp(max=side)], 1)
    every = torch.arange(depth).repeat_interleave(objects)
    return SlicePrompts.of_boxes(every, boxes.repeat(depth, 1), row.repeat(depth) + 1)


@torch.inference_mode()
def loop(volume: Tensor, network: PromptableSam, asked: SlicePrompts) -> Tensor:
    """Encode again for each object and slice, one box at a time."""
    frame = ModelFrame((volume.shape[-2], volume.shape[-1]), network.image_size)
    found = torch.zeros(len(volume), *volume.shape[-2:], dtype=torch.uint8)
    for z, box, label in zip(asked.slices.tolist(), asked.boxes, asked.labels, strict=True):
        image = frame.image(volume[z][None].float() / 255).expand(-1, 3, -1, -1)
        answer = network.decode(network.encode(image), Prompts(frame.boxes(box)[None, None]))
        found[z][frame.logits(answer.logits)[0, 0] > 0] = int(label)
    return found


def seconds(work: Callable[[], object]) -> float:
    """How long it takes once."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def objects_row(name: str) -> str:
    """Times of one and ten objects and of the loop, as the median of several turns."""
    model, checkpoint, size, depth, turns = MODELS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = build_sam(model, checkpoint, size).eval()
    volume, inferer = slices(depth), VolumeInferer()

    def predict(count: int) -> Callable[[], object]:
        asked = prompts(depth, count)

        def work() -> object:
            with torch.inference_mode():
                return inferer(volume, network, asked)

        return work

    one, ten = predict(1), predict(10)
    one()
    pairs = [(seconds(one), seconds(ten)) for _ in range(turns)]
    ratios = [b / a for a, b in pairs]
    looped = seconds(lambda: loop(volume, network, prompts(depth, 10)))
    first, tenth = (statistics.median(each) / depth for each in zip(*pairs, strict=True))
    return (
        f"| {name} | {first:.2f} s | {tenth:.2f} s | {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f}) | {looped / depth:.2f} s "
        f"| {looped / depth / tenth:.1f} |"
    )


def peak(depth: int) -> tuple[float, float]:
    """Seconds, and MiB above the state before, of nano on a scan of 512 x 512 x depth."""
    network, volume = build_sam("nano", image_size=256).eval(), slices(depth)
    asked = prompts(depth, 3)
    found = torch.zeros(volume.shape[0], *volume.shape[-2:], dtype=torch.uint8)  # the mask itself
    found += 1
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    del found
    with torch.inference_mode():
        spent = seconds(lambda: VolumeInferer()(volume, network, asked))
    return spent, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peak", type=int, help="measure one scan of so many slices only")
    arguments = parser.parse_args()
    if arguments.peak:
        print(*peak(arguments.peak))
        return
    text = HEAD.format(machine=machine("cpu"))
    text += "| seconds a slice | 1 object | 10 objects | ratio | loop, 10 objects | loop / ours |\n"
    text += "|---|---|---|---|---|---|\n"
    text += "".join(objects_row(name) + "\n" for name in MODELS)
    text += (
        "\nThe ratio is the median of several turns, and its range. The loop encodes each slice "
        "again for each object, as MedSAM's script for volumes does.\n\n"
        "Memory: 0 says that the peak stayed below what the process held while it started.\n\n"
        "| 512 x 512, nano at 256, 3 objects | seconds | MiB beyond the scan and the mask |\n"
        "|---|---|---|\n"
    )
    for depth in (100, 600):
        command = [sys.executable, __file__, "--peak", str(depth)]
        spent, extra = subprocess.check_output(command, text=True).split()
        text += f"| {depth} slices | {float(spent):.0f} | {float(extra):.0f} |\n"
    RESULTS.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
