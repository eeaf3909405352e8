"""float32 and bfloat16 on a CPU, beside stock segment-anything; and what compiling gains there.

    OMP_NUM_THREADS=1 python benchmarks/half_cpu.py                # nano at 256, vit_b at 1024
    OMP_NUM_THREADS=1 python benchmarks/half_cpu.py --encoders vit_b:512 --steps --repeats 5

All variants of a part are in one process, with the same random weights, and take turns. The seconds
are the processor's, so that what else the machine does counts little.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pages import put
from stock import BOXES
from torch import Tensor, nn
from training_step import Job, Memory, data, machine, prepared, random_sam

from medsam_tune.engines import autocast, has_bfloat16

OUTPUT = Path(__file__).parent / "results" / "half_cpu.md"
HEAD = """# Half precision and compiling on a CPU

One image, in training with four boxes, random weights. Processor seconds are the median by turns,
with their range; memory is the peak of a first call beyond the model, in a process of its own. The
first call of a compiled model compiles it. Embeddings differ from those of the first row: relative,
and the largest single number.
"""
COMMAND = " ".join(["OMP_NUM_THREADS=1 python benchmarks/half_cpu.py", *sys.argv[1:]])


@dataclass
class Variant:
    """One way to do the same, and what it took."""

    name: str
    once: Callable[[], Tensor | None]
    seconds: list[float] = field(default_factory=list)
    first: float = 0.0  # seconds of the first call, which compiles
    mebibytes: float = 0.0
    made: Tensor | None = None


def spent() -> float:
    """Processor seconds of this process and of those it has waited for, such as compilers."""
    return sum(os.times()[:4])


def peak(once: Callable[[], object]) -> float:
    """MiB at the peak of a call beyond what was there, in a process forked for it."""

    def measure(pipe: Any) -> None:
        memory = Memory("cpu")
        with memory.watch():
            once()
        pipe.send(memory.peak)

    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=measure, args=(there,))
    process.start()
    found = here.recv()
    process.join()
    return float(found)


def run(variants: list[Variant], repeats: int) -> None:
    """Measure all variants by turns."""
    for one in variants:
        print(one.name, file=sys.stderr, flush=True)
        if "compiled" in one.name:
            start = spent()
            one.once()
            one.first = spent() - start
        else:
            one.mebibytes = peak(one.once)
    for _ in range(repeats):
        for one in variants:
            start = time.process_time()
            one.made = one.once()
            one.seconds.append(time.process_time() - start)


def encoders(model: str, size: int, compiled: bool) -> list[Variant]:
    """Encoder passes, all with the same weights and image."""
    sam, ours, stock = prepared(Job("our encoder", model, size, 1, "cpu", 1))
    torch.manual_seed(0)
    image = data(1, BOXES, size, "cpu")[0]
    other = deepcopy(sam)

    def variant(name: str, encode: Callable[[], Tensor]) -> Variant:
        def once() -> Tensor:
            with torch.no_grad(), autocast("cpu", name.startswith("bfloat16")):
                return encode().float()

        return Variant(name, once)

    if compiled:
        other.image_encoder.compile()
        words = ("float32, compiled", "bfloat16, compiled")
        return [
            variant("float32", ours),
            *(variant(x, lambda: other.image_encoder(image)) for x in words),
        ]
    other.to(memory_format=torch.channels_last)
    found = [variant("float32", ours), variant("bfloat16", ours)]
    found.append(variant("float32, channels-last", lambda: other.image_encoder(image)))
    # nano is an architecture that stock does not have.
    return found if model == "nano" or stock is None else [variant("stock, float32", stock), *found]


def steps(model: str, size: int, compiled: bool, method: str) -> list[Variant]:
    """Training steps of a method, all on one model."""
    network, loss_of, _ = prepared(Job(method, model, size, 1, "cpu", 1))
    trained = [p for p in network.parameters() if p.requires_grad]

    def variant(name: str, loss_of: Callable[[], Tensor] = loss_of) -> Variant:
        optimizer = torch.optim.AdamW(trained, lr=1e-5, fused="fused" in name or None)

        def once() -> None:
            with autocast("cpu", name.startswith("bfloat16")):
                loss = loss_of()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return Variant(name, once)

    if not compiled:
        return [variant(name) for name in ("float32", "bfloat16", "float32, fused AdamW")]
    other, loss_of_other, _ = prepared(Job(f"{method}, compiled", model, size, 1, "cpu", 1))
    trained += [p for p in other.parameters() if p.requires_grad]  # those without a gradient rest
    return [variant("float32"), variant("float32, compiled", loss_of_other)]


def optimizers(model: str, size: int, _: bool) -> list[Variant]:
    """Steps of AdamW alone, with all weights of a model."""
    found = []
    for name, fused in (("float32", None), ("float32, fused AdamW", True)):
        weights = [
            nn.Parameter(p.detach().clone()) for p in random_sam(model, size, "cpu").parameters()
        ]
        for one in weights:
            one.grad = torch.ones_like(one)
        found.append(Variant(name, torch.optim.AdamW(weights, lr=1e-5, fused=fused).step))
    return found


def table(variants: list[Variant]) -> list[str]:
    """A table, with ratios to the first row and differences from it."""
    lines = [
        "| | seconds (range) | of the first | of float32 | peak MiB | first call, s | differs by |",
        "|---|---|---|---|---|---|---|",
    ]
    base = variants[0]
    plain = next(one for one in variants if one.name == "float32")
    for one in variants:
        middle = statistics.median(one.seconds)
        ratios = [f"{statistics.median(x.seconds) / middle:.2f} x" for x in (base, plain)]
        differs = ""
        if one is not base and one.made is not None and base.made is not None:
            gap = (one.made - base.made).abs()
            share = float((one.made - base.made).norm() / base.made.norm())
            differs = f"{share:.1e}, at most {float(gap.max()):.1e}"
        memory = f"{one.mebibytes:,.0f}" if one.mebibytes else ""
        first = f"{one.first:.3g}" if one.first else ""
        lines.append(
            f"| {one.name} | {middle:.3g} ({min(one.seconds):.3g} to {max(one.seconds):.3g}) | "
            f"{ratios[0]} | {ratios[1]} | {memory} | {first} | {differs} |"
        )
    return lines


def main() -> None:
    """Measure, and write the page after each part; parts of other calls stay in it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoders", nargs="*", default=["nano:256", "vit_b:1024"])
    parser.add_argument("--steps", nargs="*", default=["nano:256:lora", "vit_b:256:lora"])
    parser.add_argument("--optimizers", nargs="*", default=["nano:256", "vit_b:256"])
    parser.add_argument("--compiled", action="store_true", help="with torch.compile, on its own")
    parser.add_argument("--without", nargs="*", default=[], help="variants to leave out")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # that the weights are random
    has = "has" if has_bfloat16() else "does not have"
    parts: list[tuple[str, Callable[[], list[Variant]]]] = []
    for what, make in (("encoder", encoders), ("step", steps), ("AdamW alone", optimizers)):
        for text in {"e": options.encoders, "s": options.steps, "A": options.optimizers}[what[0]]:
            name, size, *method = text.split(":")
            title = f"{name} at {size}, {' '.join([what, *method])}"
            title += ", compiled" if options.compiled else ""
            parts.append(
                (title, lambda m=make, n=name, s=size, x=method: m(n, int(s), options.compiled, *x))
            )  # type: ignore[misc]
    for title, make_all in parts:
        print(title, file=sys.stderr, flush=True)
        variants = [
            one for one in make_all() if not any(word in one.name for word in options.without)
        ]
        run(variants, options.repeats)
        said = f"`{COMMAND}` on {machine('cpu').replace('float32, ', '')}, which {has} bfloat16."
        put(options.output, HEAD, title, "\n".join([said, "", *table(variants)]))


if __name__ == "__main__":
    main()
