"""The variants of the encoder's attention on one layer of vit_b, and which one is faster where.

    python benchmarks/attention.py

Seconds (median of 5) and peak memory of one layer at 1024 x 1024, with and without gradients, each
in a process of its own; "stock" is segment_anything's layer with the same weights.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import patch

import torch
from segment_anything.modeling.image_encoder import Attention as StockAttention
from torch import nn
from training_step import Memory, machine

from medsam_tune.files import written_whole
from medsam_tune.sam import encoder

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OUTPUT = Path(__file__).parent / "results" / f"attention_{DEVICE}.md"
LAYERS = {"global": (1, 64), "windows": (25, 14)}  # images or windows, side of the grid
VARIANTS = ("stock", "_attend_biased", "_attend_folded")


def measure(layer: str, variant: str, train: bool) -> tuple[list[float], float]:
    """Seconds of each repeat, and MiB."""
    torch.manual_seed(0)
    batch, grid = LAYERS[layer]
    if variant == "stock":
        attention: nn.Module = StockAttention(
            768, 12, qkv_bias=True, use_rel_pos=True, input_size=(grid, grid)
        )
    else:
        attention = encoder.Attention(768, 12, grid)
    for name in ("rel_pos_h", "rel_pos_w"):
        nn.init.normal_(getattr(attention, name), std=0.1)
    attention.to(DEVICE)
    x = torch.randn(batch, grid, grid, 768, device=DEVICE, requires_grad=train)

    def once() -> None:
        amp = torch.autocast("cuda", torch.bfloat16, enabled=DEVICE == "cuda")
        chosen = encoder._attend if variant == "stock" else getattr(encoder, variant)
        with torch.set_grad_enabled(train), amp, patch.object(encoder, "_attend", chosen):
            y = attention(x)
        if train:
            y.sum().backward()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    memory = Memory(DEVICE)
    with memory.watch():
        once()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        once()
        seconds.append(time.perf_counter() - start)
    return seconds, memory.peak


def main() -> None:
    """Measure all and write the table."""
    if len(sys.argv) > 1:
        layer, variant, train = sys.argv[1:]
        print(json.dumps(measure(layer, variant, train == "training")))
        return
    lines = [f"# Attention\n\n`python benchmarks/attention.py` on {machine(DEVICE)}.\n"]
    lines.append("| layer | | variant | seconds (range) | MiB | faster | memory |")
    lines.append("|---|---|---|---|---|---|---|")
    for layer in LAYERS:
        for mode in ("inference", "training"):
            stock = (0.0, 0.0)
            for variant in VARIANTS:
                command = [sys.executable, __file__, layer, variant, mode]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                seconds, memory = json.loads(done.stdout.splitlines()[-1])
                middle = statistics.median(seconds)
                stock = stock if any(stock) else (middle, memory)
                lines.append(
                    f"| {layer} | {mode} | {variant.removeprefix('_attend_')} | "
                    f"{middle:.3g} ({min(seconds):.3g} to {max(seconds):.3g}) | {memory:,.0f} | "
                    f"{stock[0] / middle:.2f} x | {memory / stock[1]:.2f} x |"
                )
                print(lines[-1], file=sys.stderr)
    with written_whole(OUTPUT) as beside:
        beside.write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
