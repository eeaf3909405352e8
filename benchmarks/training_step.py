"""One encoder pass and one training step of every method, beside a stock segment-anything loop.

    python benchmarks/training_step.py                       # vit_b at 256 and 1024
    python benchmarks/training_step.py --models vit_b vit_h --image-sizes 1024 --batches 1 4 16

Each row is measured in a process of its own, all in one run on one machine, from random weights
(stock and ours have the same in the encoder rows). The stock loop is what tutorials write: one
image at a time through `segment_anything`'s decoder, the losses summed. On a GPU both run under
the same bfloat16 autocast; `benchmarks/gpu.sh` measures more there.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import torch
from stock import BOXES, mask_loss, operations, stock_sam, stock_step
from torch import Tensor, nn

from medsam_tune.files import written_whole
from medsam_tune.methods import METHODS, apply_method
from medsam_tune.prompts import Prompts
from medsam_tune.sam.build import RANDOM, build_sam
from medsam_tune.sam.encoder import split_qkv
from medsam_tune.sam.model import PromptableSam

RESULTS = Path(__file__).parent / "results"
ENCODERS = ("stock encoder", "our encoder")
LOOPS = ("stock loop, full", "stock loop, decoder")
OURS = (*METHODS, "full, checkpointed")


@dataclass(frozen=True)
class Job:
    """What one process measures.

    Attributes:
        row: one of `ENCODERS` or `LOOPS`, or a method; with ", checkpointed", ", compiled" or
            ", from embeddings" (a method that leaves the encoder as it is) after it.
        model: architecture.
        image_size: S, pixels.
        batch: images.
        device: "cpu" or "cuda".
        repeats: timed runs.
        amp: bfloat16 autocast.
    """

    row: str
    model: str
    image_size: int
    batch: int
    device: str
    repeats: int
    amp: bool = False


@dataclass(frozen=True)
class Result:
    """What it found.

    Attributes:
        trained: numbers that the optimizer has.
        seconds: of each repeat.
        mebibytes: peak beyond what the model itself takes.
        weights: what that is, MiB.
        check: relative difference of our encoder's result from stock's, with the same weights.
    """

    trained: int
    seconds: list[float]
    mebibytes: float
    weights: float
    check: float


@cache
def random_sam(name: str, size: int, device: str) -> PromptableSam:
    """A SAM with random weights, made on the device: vit_h would take half a minute on a CPU."""
    with torch.device("meta"):
        sam = build_sam(name, RANDOM, image_size=size)
    sam.to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    for key, tensor in sam.state_dict().items():
        if tensor.ndim > 1:
            tensor.normal_(std=0.02, generator=generator)
        else:
            tensor.fill_(float(key.endswith("weight")))
    sam.pixel_mean.fill_(0.5)
    sam.pixel_std.fill_(0.25)
    return sam


def data(batch: int, objects: int, size: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Random images (B, 3, S, S) in [0, 1], boxes (B, P, 4) XYXY in pixels, and them as masks."""
    image = torch.rand(batch, 3, size, size, device=device)
    lower = torch.rand(batch, objects, 2, device=device) * size / 2
    boxes = torch.cat([lower, lower + size / 4], -1)
    axis = torch.arange(size, device=device) + 0.5
    inside = (axis > boxes[..., None][..., :2, :]) & (axis < boxes[..., None][..., 2:, :])
    return image, boxes, inside[..., 1, :, None] & inside[..., 0, None, :]  # (B, P, S, S)


def prepared(job: Job) -> tuple[nn.Module, Callable[[], Tensor], Callable[[], Tensor] | None]:
    """The model, what makes its loss (or embedding), and what stock makes of the same, if asked."""
    torch.manual_seed(0)
    what, *how = job.row.split(", ")
    image, boxes, masks = data(job.batch, BOXES, job.image_size, job.device)
    if what.startswith("stock"):
        stock = stock_sam(job.model, job.image_size, job.device)
        if what == "stock encoder":
            return stock, lambda: stock.image_encoder(image), None
        stock.prompt_encoder.requires_grad_(False)
        stock.image_encoder.requires_grad_("full" in how)
        return stock, lambda: stock_step(stock, image, boxes, masks), None
    sam = deepcopy(random_sam(job.model, job.image_size, job.device))
    sam.image_encoder.gradient_checkpointing = "checkpointed" in how
    if what != "our encoder":
        sam = apply_method(sam.train(), what).to(job.device)
    if "compiled" in how:
        sam.image_encoder.compile()
    if what == "our encoder":
        stock = stock_sam(job.model, job.image_size, job.device)
        state = {f"image_encoder.{k}": v for k, v in stock.image_encoder.state_dict().items()}
        sam.load_state_dict(split_qkv(state), strict=False)
        return sam, lambda: sam.image_encoder(image), lambda: stock.image_encoder(image)
    if "from embeddings" not in how:
        return sam, lambda: mask_loss(sam(image, boxes), masks), None
    grid = sam.prompt_encoder.image_embedding_size
    kept = torch.rand(job.batch, sam.mask_decoder.transformer_dim, *grid).half()
    kept = kept.pin_memory() if job.device == "cuda" else kept

    def step() -> Tensor:
        embedding = kept.to(job.device, non_blocking=True).float()
        return mask_loss(sam.decode(embedding, Prompts(boxes=boxes)).logits, masks)

    return sam, step, None


class Memory:
    """Peak beyond the start, MiB: of the process on a CPU, of the allocator on a GPU."""

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"
        self.peak = 0.0

    def _resident(self) -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Note the peak while something runs."""
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            start = torch.cuda.memory_allocated()
            yield
            torch.cuda.synchronize()
            self.peak = max(self.peak, (torch.cuda.max_memory_allocated() - start) / 2**20)
            return
        start, done = self._resident(), threading.Event()

        def sample() -> None:
            while not done.wait(0.005):
                self.peak = max(self.peak, self._resident() - start)

        thread = threading.Thread(target=sample)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def repeated(once: Callable[[], object], device: str, repeats: int) -> tuple[list[float], float]:
    """Seconds of each repeat, and the peak of memory in the runs before them, to warm up."""

    def whole() -> None:
        once()
        if device == "cuda":
            torch.cuda.synchronize()

    memory = Memory(device)
    with memory.watch():
        for _ in range(2 if device == "cuda" else 1):  # a GPU's libraries choose kernels first
            whole()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        whole()
        seconds.append(time.perf_counter() - start)
    return seconds, memory.peak


def measure(job: Job) -> Result:
    """Warm up (with memory watched, as caches are empty), then time the repeats."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the weights are random
        model, run, reference = prepared(job)
    trained = [p for p in model.parameters() if p.requires_grad]
    encoder_only = job.row.split(", ")[0] in ENCODERS
    fused = True if job.device == "cuda" and not job.row.startswith("stock") else None
    optimizer = None if encoder_only else torch.optim.AdamW(trained, lr=1e-5, fused=fused)

    def once() -> None:
        amp = torch.autocast(job.device, torch.bfloat16, enabled=job.amp)
        with torch.set_grad_enabled(not encoder_only), amp:
            loss = run()
        if optimizer is not None:
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    seconds, peak = repeated(once, job.device, job.repeats)
    check = 0.0
    if reference is not None:  # at the end: memory that stock took would not be counted as ours
        amp = torch.autocast(job.device, torch.bfloat16, enabled=job.amp)
        with torch.no_grad(), amp:
            expected = reference().float()
            check = float((run().float() - expected).norm() / expected.norm())
    count = 0 if encoder_only else sum(p.numel() for p in trained)
    weights = sum(p.nbytes for p in model.parameters()) / 2**20
    return Result(count, seconds, peak, weights, check)


def measured(job: Job) -> Result | None:
    """Result of this process; None if a GPU's memory runs out, which is then free again."""
    try:
        return measure(job)
    except torch.cuda.OutOfMemoryError:
        return None
    finally:
        gc.collect()
        if job.device == "cuda":
            torch.cuda.empty_cache()


def in_own_process(job: Job) -> Result | None:
    """None if the process ended otherwise, as it does when memory runs out."""
    print(f"{job.model} {job.image_size} batch {job.batch}: {job.row}", file=sys.stderr, flush=True)
    command = [sys.executable, __file__, "--job", json.dumps(asdict(job))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stderr[-500:], file=sys.stderr)
        return None
    return Result(**json.loads(done.stdout.splitlines()[-1]))


def matrix_peak() -> float:
    """FLOP/s of a large bfloat16 product on this GPU."""
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    for _ in range(3):
        a @ a
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(20):
        a @ a
    torch.cuda.synchronize()
    return 20 * 2 * 8192**3 / (time.perf_counter() - start)


def machine(device: str | None = None) -> str:
    """Where this was measured; None is where a training runs by itself: a GPU, if there is one."""
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((x.partition(": ")[2] for x in lines if x.startswith("model name")), "")
    return f"{torch.get_num_threads()} threads of {model or platform.machine()}, float32, " + (
        f"torch {torch.__version__}"
    )


def as_row(job: Job, result: Result | None, base: Result | None, peak: float | None) -> str:
    """A line of the table; ratios are to the stock row of the same kind."""
    if result is None:
        return f"| {job.row} | | out of memory | | | | |" + (" |" if peak else "")
    middle = statistics.median(result.seconds)
    spread = f"{min(result.seconds):.3g} to {max(result.seconds):.3g}"
    ratios = " | "
    if base is not None:
        faster = statistics.median(base.seconds) / middle
        ratios = f"{faster:.2f} x | {result.mebibytes / base.mebibytes:.2f} x"
    trained = f"{result.trained:,}" if result.trained else ""
    line = (
        f"| {job.row} | {trained} | {middle:.3g} ({spread}) | {job.batch / middle:.3g} | "
        f"{result.mebibytes:,.0f} | {ratios} |"
    )
    return line + (f" {share_of_peak(job, middle, peak):.0%} |" if peak else "")


def share_of_peak(job: Job, seconds: float, peak: float) -> float:
    """Stock SAM's operations for a row's work, over what the matrix units could do in that time."""
    what, *how = job.row.split(", ")
    method = next((x for x in (what, *how) if x in METHODS), "encoder")
    if "from embeddings" in how:
        return 0.0
    return job.batch * operations(job.model, job.image_size, method) / seconds / peak


def main() -> None:
    """Measure, and write the table after each row, so that what is done is kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["vit_b"])
    parser.add_argument("--image-sizes", nargs="+", type=int, default=[256, 1024])
    parser.add_argument("--batches", nargs="+", type=int, default=[1])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rows", nargs="+", default=[*ENCODERS, *LOOPS, *OURS])
    parser.add_argument("--output", type=Path)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        print(json.dumps(asdict(measure(Job(**json.loads(options.job))))))
        return
    output = options.output or RESULTS / f"training_step_{options.device}.md"
    peak = matrix_peak() if options.device == "cuda" else None
    command = " ".join(["python benchmarks/training_step.py", *sys.argv[1:]])
    lines = [f"# One training step\n\n`{command}` on {machine(options.device)}.\n"]
    lines.append(
        f"{BOXES} boxes for each image. Seconds are the median of {options.repeats} after one to "
        "warm up, with their range; memory is the peak of the first beyond model and data, "
        "gradients and AdamW's state included. Ratios are to stock segment-anything: encoder to "
        "encoder, `decoder` to the loop that trains the decoder, the others to the full loop.\n"
    )
    if peak:
        lines.append(f"Measured matrix peak: {peak / 1e12:.0f} TFLOP/s.\n")
    for model in options.models:
        for size in options.image_sizes:
            for batch in options.batches:
                lines.append(f"\n## {model} at {size}, batch {batch}\n")
                lines.append(
                    "| | trained | seconds | images/s | MiB | faster | memory |"
                    + (" of peak |" if peak else "")
                )
                lines.append("|---|---|---|---|---|---|---|" + ("---|" if peak else ""))
                found: dict[str, Result | None] = {}
                for row in options.rows:
                    amp = options.device == "cuda"
                    job = Job(row, model, size, batch, options.device, options.repeats, amp)
                    found[row] = in_own_process(job)
                    base = "stock loop, decoder" if row == "decoder" else "stock loop, full"
                    base = "stock encoder" if row in ENCODERS else base
                    stock = None if row.startswith("stock") else found.get(base)
                    lines.append(as_row(job, found[row], stock, peak))
                    with written_whole(output) as beside:
                        beside.write_text("\n".join([*lines, ""]))
                ours = found.get("our encoder")
                if ours is not None:
                    lines.append(f"\nEmbeddings differ by {ours.check:.1e} (relative).")
                    with written_whole(output) as beside:
                        beside.write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
