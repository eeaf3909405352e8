"""What a GPU makes of the package, beside stock segment_anything; `benchmarks/gpu.sh` runs it all.

    python benchmarks/gpu.py PART FOLDER [--small]   # adds lines of JSON to FOLDER/gpu.jsonl
    python benchmarks/gpu.py page FOLDER             # makes FOLDER/gpu.md of them

Each part is a process of its own, so that none spoils another. `--small` takes nano and small
images, on a CPU too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from stock import BOXES, stock_logits, stock_sam
from torch import Tensor
from training_step import (
    METHODS,
    Job,
    machine,
    matrix_peak,
    measured,
    random_sam,
)

from medsam_tune.prompts import Prompts
from medsam_tune.sam.encoder import fuse_qkv

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Notes:
    """Lines of JSON in a file, each there as soon as it is known."""

    def __init__(self, folder: Path, part: str, small: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "gpu.jsonl"
        self.part = part
        self.small = small

    def add(self, **values: Any) -> None:
        """A line of this part."""
        line = json.dumps({"part": self.part, **values})
        print(line, flush=True)
        with self.path.open("a") as file:
            file.write(line + "\n")

    def row(self, job: Job) -> bool:
        """Measure a job; whether it went well. A fault is noted, and the next row goes on."""
        try:
            found = measured(job)
        except Exception as error:
            traceback.print_exc()
            self.add(**asdict(job), failed=f"{type(error).__name__}: {error}"[:300])
            return False
        if found is None:
            self.add(**asdict(job), failed="out of memory")
            return False
        self.add(**asdict(job), **asdict(found))
        return True

    def rows(self, rows: tuple[str, ...], model: str, batch: int, amp: bool, repeats: int) -> None:
        """Measure several."""
        size = 128 if self.small else 1024
        model, batch = ("nano", min(batch, 2)) if self.small else (model, batch)
        repeats = 1 if self.small else repeats
        for row in rows:
            self.row(Job(row, model, size, batch, DEVICE, repeats, amp))


def exact(notes: Notes) -> None:
    """The machine, its matrix peak, and our numbers beside stock's, both against float64."""
    peak = matrix_peak() if DEVICE == "cuda" else None
    notes.add(machine=machine(DEVICE), peak=peak)
    torch.backends.cudnn.allow_tf32 = False
    model, size = ("nano", 128) if notes.small else ("vit_b", 1024)
    ours = random_sam(model, size, DEVICE)
    for key, parameter in ours.named_parameters():
        if "pos" in key:
            torch.nn.init.normal_(parameter, std=0.1)
    stock = stock_sam(model, size, DEVICE).eval()
    stock.load_state_dict(fuse_qkv(ours.state_dict()), strict=False)  # its pixel_mean is its own
    generator = torch.Generator(DEVICE).manual_seed(0)
    image = torch.randn(1, 3, size, size, device=DEVICE, generator=generator)
    lower = torch.rand(BOXES, 2, device=DEVICE, generator=generator) * size / 2
    boxes = torch.cat([lower, lower + size / 4], -1)
    towards = torch.randn(stock.image_encoder(image[..., :size, :size]).shape, device=DEVICE)

    def results(sam: Any, amp: bool, double: bool = False) -> list[Tensor]:
        """Embedding, logits from it, and a gradient that goes through the whole encoder."""
        given, direction = (image.double(), towards.double()) if double else (image, towards)
        with torch.autocast(DEVICE, torch.bfloat16, enabled=amp):
            embedding = sam.image_encoder(given)
            (embedding * direction).sum().backward()
            gradient = sam.image_encoder.pos_embed.grad
            sam.zero_grad()
            embedding = embedding.detach()
            with torch.no_grad():
                if sam is ours:
                    logits = ours.decode(embedding, Prompts(boxes=boxes[None])).logits[0]
                else:
                    logits = stock_logits(sam, embedding, boxes)
        return [embedding, logits, gradient]

    single = [results(sam, False) for sam in (stock, ours)]
    half = [results(sam, True) for sam in (stock, ours)]
    names = ("embedding", "logits", "gradient of the positions")
    for precision, pair in (("float32", single), ("bfloat16 autocast", half)):
        for name, theirs, mine in zip(names, *pair, strict=True):
            gap = (mine.double() - theirs.double()).abs().max()
            alike = ((mine > 0) == (theirs > 0)).double().mean()
            notes.add(
                precision=precision,
                what=name,
                largest=float(theirs.abs().max()),
                gap=float(gap),
                relative=relative(mine, theirs),
                **({"same_pixels": float(alike)} if name == "logits" else {}),
            )
    # Against float64, of stock's encoder: its decoder computes positions in float32 anyway.
    stock.image_encoder.double()
    reference = stock.image_encoder(image.double())
    for precision, pair in (("float32", single), ("bfloat16 autocast", half)):
        for whose, found in zip(("stock", "ours"), pair, strict=True):
            notes.add(
                precision=precision,
                what="embedding against float64",
                whose=whose,
                relative=relative(found[0], reference.detach()),
            )


def relative(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference over that of what is expected."""
    difference = (found.double() - expected.double()).norm()
    return float(difference / expected.double().norm())


def encoder(notes: Notes) -> None:
    """Encoders at batch 8, or less where the memory does not hold that."""
    for model in ("nano",) if notes.small else ("vit_b", "vit_h", "vit_l"):
        for row, amp in (("our encoder", True), ("stock encoder", True), ("stock encoder", False)):
            for batch in (2,) if notes.small else (8, 4, 1):
                size, repeats = (128, 1) if notes.small else (1024, 5)
                if notes.row(Job(row, model, size, batch, DEVICE, repeats, amp)):
                    break
    notes.rows(("our encoder",), "vit_b", 8, amp=False, repeats=3)


STOCK_LOOPS = ("stock loop, full", "stock loop, decoder")


def steps(notes: Notes) -> None:
    """Training steps of vit_b, the most important batch first."""
    for batch in (8,) if notes.small else (4, 8, 1, 16):
        notes.rows((*METHODS, "full, checkpointed"), "vit_b", batch, amp=True, repeats=5)
        if batch < 16:
            notes.rows(STOCK_LOOPS, "vit_b", batch, amp=True, repeats=3)
    for batch in (8,) if notes.small else (4, 8, 1):
        notes.rows(STOCK_LOOPS, "vit_b", batch, amp=False, repeats=2)


def large(notes: Notes) -> None:
    """Training steps of vit_h at batch 4."""
    rows = ("full", "lora", "adapter", "full, checkpointed")
    notes.rows(rows, "vit_h", 4, amp=True, repeats=4)
    notes.rows(("stock loop, full",), "vit_h", 4, amp=True, repeats=2)
    notes.rows(("stock loop, full",), "vit_h", 1, amp=True, repeats=2)
    notes.rows(("full",), "vit_h", 1, amp=True, repeats=4)


def compiled(notes: Notes) -> None:
    """The same with compiled blocks; the seconds of compiling are in the log."""
    start = time.perf_counter()
    rows = (
        ("our encoder, compiled", "vit_b", 8),
        ("full, compiled", "vit_h", 4),
        ("our encoder, compiled", "vit_h", 8),
        ("lora, compiled", "vit_h", 4),
        ("full, compiled", "vit_b", 4),
    )
    for row, model, batch in rows[:2] if notes.small else rows:
        notes.rows((row,), model, batch, amp=True, repeats=5)
        notes.add(after=row, model=model, seconds_so_far=time.perf_counter() - start)


def compiled_large(notes: Notes) -> None:
    """Steps of vit_h with compiled blocks, at a batch that fills a card of 141 GB."""
    for row in ("full, compiled", "lora, compiled"):
        notes.rows((row,), "vit_h", 12, amp=True, repeats=5)


def small(notes: Notes) -> None:
    """Steps of nano in float32 and in bfloat16: so small a model waits for its kernels to start."""
    for batch in (8, 32):
        for amp in (False, True):
            for row in ("full", "lora", "decoder"):
                size = 128 if notes.small else 256
                notes.row(Job(row, "nano", size, batch, DEVICE, 1 if notes.small else 20, amp))


def cached(notes: Notes) -> None:
    """Steps from embeddings in memory, and the loop of the note that encodes each image again."""
    for batch in (8,) if notes.small else (8, 1, 32):
        rows = ("decoder, from embeddings", "prompt, from embeddings")
        notes.rows(rows, "vit_b", batch, amp=True, repeats=10)
    notes.rows(("decoder",), "vit_b", 8, amp=True, repeats=5)
    for amp in (True, False):
        notes.rows(("stock loop, decoder",), "vit_b", 8, amp=amp, repeats=3)


def loader(notes: Notes) -> None:
    """Rates of nano from its own loader: training alone, loading alone, and both together."""
    from augmentation import parsed

    side, size, batch = (96, 64, 2) if notes.small else (512, 256, 32)
    epochs = {0: 2} if notes.small else {12: 24, 4: 10, 0: 4}  # workers -> batches
    methods = ("lora", "cached decoder") if notes.small else ("lora", "cached decoder", "full")
    with tempfile.TemporaryDirectory() as folder:
        parser = parsed(Path(folder), side, size)
        for method in methods:
            for count, batches in epochs.items():
                if count == 0 and method != "lora" and not notes.small:
                    continue
                try:
                    found = loaded(parser, Path(folder), method, count, batch, batches)
                except Exception as error:
                    traceback.print_exc()
                    found = {"failed": f"{type(error).__name__}: {error}"[:300]}
                notes.add(row=method, workers=count, batch=batch, size=size, **found)
    notes.rows(("our encoder",), "nano", 32, amp=True, repeats=10)


def loaded(
    parser: Any, folder: Path, method: str, workers: int, batch: int, batches: int
) -> dict[str, Any]:
    """Images/s of a method by the recipe's own parts."""
    from medsam_tune.training.batches import prepare_batch

    from_cache = method.startswith("cached")
    if from_cache and "cache" not in parser.config:
        raise ValueError("the recipe has no setting named cache")
    recipe = type(parser)(deepcopy(parser.config))
    if method != "lora":
        del recipe.config["network_def"]["rank"]
    recipe.update({"method": method.split()[-1], "batch_size": batch, "num_workers": workers})
    recipe.update({"epoch_slices": batch * batches, "slices_dir": str(folder / "slices")})
    recipe.update({"device": torch.device(DEVICE), "cache": True} if from_cache else {})
    content = recipe.get_parsed_content
    if from_cache:
        from medsam_tune.training.embedded import open_cache

        open_cache(content("embeddings"), content("train::dataset"), content("views"))
    network, loss, optimizer = (content(name) for name in ("network", "loss", "optimizer"))
    infer, samples = content("train::inferer"), content("train::dataloader")
    amp = torch.autocast(DEVICE, torch.bfloat16, enabled=DEVICE == "cuda")
    network.train()

    def step(item: Any) -> None:
        image, masks, given, options = prepare_batch(item, torch.device(DEVICE), True)
        with amp:
            value = loss(infer(image, network, *given, **options), masks)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    def epoch(work: Callable[[Any], None]) -> tuple[float, float]:
        """Images/s of an epoch after its first batches, and the share of waiting for batches."""
        waited, start, first = 0.0, 0.0, 2 if batches > 2 else 0
        before = time.perf_counter()
        for number, item in enumerate(samples):
            if number == first:
                synchronise()
                start, waited = time.perf_counter(), 0.0
            else:
                waited += time.perf_counter() - before
            work(item)
            before = time.perf_counter()
        synchronise()
        spent = time.perf_counter() - start
        return (batches - first) * batch / spent, waited / spent

    for _ in range(2 if from_cache else 1):  # warm up; of a cache, encode the views
        epoch(step)
    both, waiting = epoch(step)
    kept = next(iter(samples))
    alone = statistics.median(timed(lambda: step(kept)) for _ in range(5))
    made, _ = epoch(lambda item: None)
    return {
        "images_per_second": both,
        "waiting": waiting,
        "training_alone": batch / alone,
        "loading_alone": made,
    }


def synchronise() -> None:
    """Wait for a GPU."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def timed(run: Callable[[], object]) -> float:
    """Seconds of one run."""
    synchronise()
    start = time.perf_counter()
    run()
    synchronise()
    return time.perf_counter() - start


def attention(notes: Notes) -> None:
    """One layer: stock's attention, ours, and ours by each of torch's kernels."""
    import attention as layers
    from torch.nn.attention import SDPBackend, sdpa_kernel

    kernels = {"": None}
    if DEVICE == "cuda":
        kernels |= {
            name: getattr(SDPBackend, name)
            for name in ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION")
        }
    shapes = {"windows": (1, 8)} if notes.small else {"global": (8, 64), "windows": (200, 14)}
    for layer, shape in shapes.items():
        layers.LAYERS[layer] = shape
        for mode in ("inference", "training"):
            for variant in layers.VARIANTS:
                for kernel, backend in kernels.items():
                    if kernel and not variant.endswith("folded"):
                        continue
                    with sdpa_kernel(backend) if backend else none():
                        try:
                            seconds, peak = layers.measure(layer, variant, mode == "training")
                            found: dict[str, Any] = {"seconds": seconds, "mebibytes": peak}
                        except Exception as error:
                            found = {"failed": f"{type(error).__name__}: {error}"[:200]}
                    if DEVICE == "cuda":
                        torch.cuda.empty_cache()
                    notes.add(
                        row=variant.removeprefix("_attend_"),
                        kernel=kernel.lower(),
                        layer=layer,
                        mode=mode,
                        **found,
                    )


@contextmanager
def none() -> Iterator[None]:
    """Nothing around a block."""
    yield


PARTS = {
    part.__name__: part
    for part in (
        *(exact, encoder, steps, large, small, cached),
        *(compiled, compiled_large, loader, attention),
    )
}


def main() -> None:
    """Run a part, or make the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=[*PARTS, "page"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    if options.part == "page":
        from gpu_page import page

        print(page(options.folder))
        return
    notes = Notes(options.folder, options.part, options.small)
    start = time.perf_counter()
    PARTS[options.part](notes)
    notes.add(finished=time.perf_counter() - start)


if __name__ == "__main__":
    sys.exit(main())
