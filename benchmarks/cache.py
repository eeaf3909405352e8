"""Training on cached embeddings: images per second beside the tutorials' loop, and Dice by time.

    python benchmarks/cache.py                             # nano at 256 and 128, vit_b at 1024
    python benchmarks/cache.py --models nano:128:4 --repeats 20
    OMP_NUM_THREADS=1 python benchmarks/cache.py --models --dice HIPPOCAMPUS --work WORK

The loop is that of the source note: stock segment_anything's three parts, one image at a time with
one box, BCE, its images ready in memory. Ours is a training of the shipped recipe, with its data
loader, augmentation, mixture of prompts, loss and optimizer. All are measured by turns in one
process, with random weights. On a CPU the seconds are the processor's, of all threads, so that what
else the machine does counts little.

With `--dice`, whole trainings with and without a cache: Dice of validation patients after as many
epochs, and after as long a time. What is finished in WORK is not run again; no test case is read.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from ignite.engine import Events
from monai.bundle import ConfigParser
from monai.utils import set_determinism
from pages import put
from segment_anything.modeling import (
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)
from torch import nn
from training_step import machine

from medsam_tune.cases.datalist import write_datalist
from medsam_tune.cases.folders import find_cases
from medsam_tune.cases.splits import few_shots, split_cases
from medsam_tune.evaluation.statistics import bootstrap_interval
from medsam_tune.files import written_whole
from medsam_tune.sam.build import architecture
from medsam_tune.slices.embeddings import FOLDER, Place
from medsam_tune.synthetic.phantom import write_phantoms
from medsam_tune.training.batches import prepare_batch

RESULTS = Path(__file__).parent / "results"
CONFIGS = Path(__file__).parents[1] / "bundles" / "sam_volume" / "configs"
METHODS = ("decoder", "prompt", "lora", "adapter")
LAST_BLOCKS = 2  # of the encoder, that lora and adapter tune; what is before them is cached
OBJECTS = (1, 4)  # objects of an image: as in the loop, and as the recipe draws
DICE_SIZE = 128  # side of nano's input in whole trainings
DICE_CASES = 10  # validation patients of those
SLOW = 5.0  # seconds of a step that needs no warming up


@dataclass
class Row:
    """Seconds of each measured step, and the images in a step."""

    name: str
    images: int
    seconds: list[float]

    @property
    def rate(self) -> float:
        """Images per second, by the median step."""
        return self.images / statistics.median(self.seconds)


def datalist(folder: Path) -> Path:
    """Phantoms of 128 x 128 pixels; half of them to train on."""
    write_phantoms(folder, count=4, shape=(128, 128, 8), spacing=(2.7, 2.0, 15.0))
    split = split_cases(find_cases(folder), (0.5, 0.25, 0.25))
    write_datalist(split, folder / "d.json")
    return folder / "d.json"


def recipe(data: Path, model: str, size: int, method: str, device: str, **more: Any) -> Any:
    """A training by the shipped recipe, not started."""
    parser = ConfigParser()
    overlay = [] if method == "decoder" else [CONFIGS / f"method_{method}.yaml"]
    parser.read_config([CONFIGS / "train.yaml", *overlay])
    if method in ("lora", "adapter"):
        more = {"network_def::last_blocks": LAST_BLOCKS, **more}
    values = {
        **{"datalist": str(data), "model": model, "image_size": size, "device": device},
        **{"batch_size": 4, "objects": 1, "num_workers": 0, "views": 4},
        **({} if model == "nano" else {"checkpoint": "random"}),
        **more,
    }
    for key, value in values.items():
        parser[key] = value
    return parser


class Steps:
    """Training steps of a recipe, batch by batch."""

    def __init__(self, parser: Any) -> None:
        self.device = torch.device(parser.get_parsed_content("device"))
        self.network = parser.get_parsed_content("network").train()
        self.loss = parser.get_parsed_content("loss")
        self.optimizer = parser.get_parsed_content("optimizer")
        self.inferer = parser.get_parsed_content("train::inferer")
        self.loader = parser.get_parsed_content("train::dataloader")
        self.dataset = self.loader.dataset
        self.amp = bool(parser.get_parsed_content("amp"))
        self.sampler = self.loader.sampler
        self.size = int(self.loader.batch_size)
        self.epoch = 0
        self.batches = self._endless()
        if self.dataset.embeddings is not None:
            self.dataset.embeddings.open()

    def _endless(self) -> Iterator[Any]:
        while True:
            self.sampler.set_epoch(self.epoch)
            yield from (one for one in self.loader if len(one["masks"]) == self.size)
            self.epoch += 1

    def once(self) -> None:
        """One step, from reading the slices to the optimizer."""
        batch = next(self.batches)
        image, masks, _, asked = prepare_batch(batch, self.device, non_blocking=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.amp):
            loss = self.loss(self.inferer(image, self.network, **asked), masks)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def fill(self) -> None:
        """Put embeddings of noise for all views; the speed is the same as with real ones."""
        store = self.dataset.embeddings
        noise = torch.randn(1, *store.shape)
        for number, k in self.dataset.index:
            for view in range(4):
                place = Place(self.dataset.cases[number], k, view)
                store.put(place, store.rounded(noise, [place])[0])

    def empty(self) -> None:
        """Forget all embeddings."""
        for file in self.dataset.embeddings.folder.rglob("*.0.0.0"):
            file.unlink()


def stock(name: str, size: int) -> Sam:
    """Stock SAM of any architecture and input size."""
    arch = architecture(name)
    grid, width = size // arch.stride, arch.decoder_width
    encoder = ImageEncoderViT(
        img_size=size,
        patch_size=arch.stride,
        embed_dim=arch.width,
        depth=arch.depth,
        num_heads=arch.heads,
        out_chans=width,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=arch.window,
        global_attn_indexes=arch.global_blocks,
    )
    transformer = TwoWayTransformer(2, width, arch.decoder_heads, arch.decoder_mlp)
    return Sam(
        encoder,
        PromptEncoder(width, (grid, grid), (size, size), 16),
        MaskDecoder(transformer_dim=width, transformer=transformer),
    )


def loop_of_the_note(name: str, size: int, device: str) -> Callable[[], None]:
    """A step of the note's loop: one image, one box, the encoder without gradients."""
    sam = stock(name, size).to(device)
    sam.image_encoder.requires_grad_(False)
    sam.prompt_encoder.requires_grad_(False)
    sam.train()
    trained = [p for p in sam.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.01)
    image = torch.rand(1, 3, size, size, device=device)
    box = torch.tensor([[0.2, 0.2, 0.7, 0.7]], device=device) * size
    side = 4 * size // architecture(name).stride
    masks = torch.zeros(1, 1, side, side, device=device)
    masks[..., side // 5 : side // 2, side // 5 : side // 2] = 1
    loss_function = nn.BCEWithLogitsLoss()

    def step() -> None:
        with torch.no_grad():
            embedding = sam.image_encoder(image)
        sparse, dense = sam.prompt_encoder(points=None, boxes=box, masks=None)
        logits, _ = sam.mask_decoder(
            image_embeddings=embedding,
            image_pe=sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )
        found = F.interpolate(logits, (side, side), mode="bilinear", align_corners=False)
        loss = loss_function(found, masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()  # printed there

    return step


def seconds(step: Callable[[], None], device: str) -> float:
    """Seconds of one call; on a CPU those of the processor."""
    now = time.process_time if device == "cpu" else time.perf_counter
    start = now()
    step()
    return now() - start


def speed(
    data: Path,
    model: str,
    size: int,
    batch: int,
    device: str,
    repeats: int,
    methods: Sequence[str] = METHODS,
) -> list[Row]:
    """All rows of a model; the steps by turns, so that a busy machine slows all alike."""
    steps: dict[str, tuple[int, Callable[[], None]]] = {
        "loop of the note": (1, loop_of_the_note(model, size, device))
    }
    made = partial(recipe, data, model, size, device=device, batch_size=batch)
    for method in methods:
        steps[f"{method}, not cached"] = batch, Steps(made(method=method)).once
        first = Steps(made(method=method, cache=True))
        steps[f"{method}, cached: a view's first epoch"] = batch, _emptied(first)
        for objects in OBJECTS:
            # A type of its own, and so a store of its own.
            where = {"cache": True, "cache_dtype": "bfloat16"}
            later = Steps(made(method=method, objects=objects, **where))
            later.fill()
            name = f"{method}, cached: later epochs" + f", {objects} objects" * (objects > 1)
            steps[name] = batch, later.once
    rows = [Row(name, images, []) for name, (images, _) in steps.items()]
    for turn in range(repeats + 1):
        for row in rows:
            if turn == repeats and row.seconds[0] > SLOW:
                continue
            spent = seconds(steps[row.name][1], device)
            print(f"{model} {size} {turn} {row.name}: {spent:.3g} s", file=sys.stderr, flush=True)
            row.seconds += [spent] if turn or spent > SLOW else []  # the first warms up
    return rows


def _emptied(steps: Steps) -> Callable[[], None]:
    def once() -> None:
        steps.once()
        steps.empty()

    return once


def table(rows: list[Row]) -> list[str]:
    """Lines of a table; ratios are to the loop, and to the same method without a cache."""
    lines = [
        "| | seconds of a step | images/s | of the loop | of not cached |",
        "|---|---|---|---|---|",
    ]
    loop, plain = rows[0].rate, 0.0
    for row in rows:
        plain = row.rate if "not cached" in row.name else plain
        low, high = min(row.seconds), max(row.seconds)
        middle = statistics.median(row.seconds)
        beside = f"{row.rate / plain:.2f} x" if plain else ""
        lines.append(
            f"| {row.name} | {middle:.3g} ({low:.3g} to {high:.3g}) | {row.rate:.3g} | "
            f"{row.rate / loop:.1f} x | {beside} |"
        )
    return lines


def way(views: int | None) -> str:
    """Words for a training on so many kept views of each slice; None: not cached."""
    return "not cached" if views is None else f"cached, {views} view" + "s" * (views > 1)


def trained(data: Path, work: Path, method: str, views: int | None, epochs: int) -> dict[str, Any]:
    """Seconds of each epoch of a training, and Dice of its validation cases by kind; made once.

    No embedding is there at the start. Validation follows the last epoch and is not timed.
    """
    run = work / f"{method}-{way(views).replace(', ', '-').replace(' ', '-')}-{epochs}"
    if not (run / "measured.json").exists():
        print(run.name, file=sys.stderr, flush=True)
        shutil.rmtree(run, ignore_errors=True)
        shutil.rmtree(data.with_suffix(".slices") / FOLDER, ignore_errors=True)
        more = {"output_dir": str(run), "epochs": epochs, "val_interval": epochs}
        more |= {"batch_size": 8, "objects": 4, "views": views, "cache": views is not None}
        parser = recipe(data, "nano", DICE_SIZE, method, "cpu", **more)
        set_determinism(seed=0)
        trainer = parser.get_parsed_content("train::trainer")
        parser.get_parsed_content("run_folder").open()
        if (store := parser.get_parsed_content("embeddings")) is not None:
            store.open()
        scores = parser.get_parsed_content("validate::handlers::0")
        spent: list[float] = []
        since = 0.0

        def started(_: Any) -> None:
            nonlocal since
            spent.append(0.0)
            since = time.process_time()

        def ended(_: Any) -> None:
            spent[-1] = time.process_time() - since

        trainer.add_event_handler(Events.EPOCH_STARTED, started)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, ended)
        trainer.run()
        cases = sorted({score.case for each in scores.scores.values() for score in each})
        measured = {
            "seconds": spent,
            "dice": {case: scores.mean_dice(case) for case in cases},
            "machine": machine("cpu"),
        }
        with written_whole(run / "measured.json") as file:
            file.write_text(json.dumps(measured))
    return dict(json.loads((run / "measured.json").read_text()))


def dice(scans: Path, work: Path, methods: Sequence[str], epochs: int, patients: int) -> str:
    """Dice after as many epochs, and after as long a time, cached and not."""
    work.mkdir(parents=True, exist_ok=True)
    data = work / "hippocampus.json"
    if not data.exists():
        split = split_cases(find_cases(scans), (0.7, 0.15, 0.15), seed=0)
        few = few_shots(split, patients, 0)
        write_datalist(replace(few, validation=few.validation[:DICE_CASES], test=()), data)
    lines = ["| | epochs | seconds | of the first epoch | of the last |", "|---|---|---|---|---|"]
    machines = set()
    for method in methods:
        plain = trained(data, work, method, None, epochs)
        arms = [(None, epochs, plain)]
        for views in (4, 1):
            same = trained(data, work, method, views, epochs)
            left = sum(plain["seconds"]) - sum(same["seconds"])
            longer = epochs + max(0, round(left / same["seconds"][-1]))
            arms += [(views, epochs, same)]
            if longer > epochs:
                arms += [(views, longer, trained(data, work, method, views, longer))]
        kinds = [*next(iter(plain["dice"].values()))]
        if method == methods[0]:
            lines[0] += "".join(f" {kind} |" for kind in kinds) + " less not cached |"
            lines[1] += "---|" * (len(kinds) + 1)
        for views, count, found in arms:
            seconds, scores = found["seconds"], found["dice"]
            machines.add(found["machine"])
            means = [f"{np.mean([one[kind] for one in scores.values()]):.3f}" for kind in kinds]
            cells = [f"`{method}`, {way(views)}", str(count)]
            cells += [f"{one:.0f}" for one in (sum(seconds), seconds[0], seconds[-1])] + means
            steps = [
                float(np.mean([one[kind] - plain["dice"][case][kind] for kind in kinds]))
                for case, one in scores.items()
            ]
            low, high = bootstrap_interval(steps) or (math.nan, math.nan)
            beside = f"{np.mean(steps):+.3f} ({low:+.3f} to {high:+.3f})"
            cells.append(beside if views else "")
            lines.append("| " + " | ".join(cells) + " |")
    cases = len(plain["dice"])
    said = (
        f"on {'; '.join(sorted(machines))}. Trainings of the shipped recipe on {patients} "
        f"patients, 8 slices in a step with 4 objects each, one seed. Dice of {cases} validation "
        "patients after the last epoch, by the prompts of the recipe's validation, and the paired "
        "difference of their mean with its 95 % interval over patients. Each cached training is "
        "there for as many epochs, and for as many as take about as long; no embedding is there at "
        "its start. "
        "Seconds are the processor's, of training alone; the learning rate falls to nothing over "
        "each training's own length."
    )
    return "\n".join([said, "", *lines])


HEAD = f"""# Training on cached embeddings

The loop is the source note's: stock segment_anything, one image with one box at a time, from
memory. Ours are steps of the shipped recipe with one object of each image, or 4, from the slices on
disk to the optimizer: reading, augmentation, prompts, loss. A view's first epoch encodes and
stores; K views have K such epochs. `lora` and `adapter` tune the last {LAST_BLOCKS} blocks, and the
tokens before those are stored. Seconds (on a CPU, the processor's) are the median of steps by
turns, with their range.
"""


def main() -> None:
    """Measure, and write each section when it is done; those of other calls stay."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--models",
        nargs="*",
        default=["nano:256:4", "nano:128:4", "vit_b:1024:1"],
        help="name, side of the input, images in a step; none: only --dice",
    )
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dice", type=Path, help="folder of scans for whole trainings")
    parser.add_argument("--work", type=Path, default=Path("cache-work"), help="of --dice")
    parser.add_argument("--dice-methods", nargs="+", default=METHODS[:2], choices=METHODS)
    parser.add_argument("--epochs", type=int, default=8, help="of --dice; over 4")
    parser.add_argument("--patients", type=int, default=5, help="training patients of --dice")
    parser.add_argument("--output", type=Path, default=RESULTS / "cache.md")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*random weights.*")
    command = " ".join(["python benchmarks/cache.py", *sys.argv[1:]])
    with tempfile.TemporaryDirectory() as scratch:
        data = datalist(Path(scratch) / "phantoms")
        for one in options.models:
            model, size, batch = one.split(":")
            sizes = (model, int(size), int(batch))
            rows = speed(data, *sizes, options.device, options.repeats, options.methods)
            body = "\n".join([f"`{command}` on {machine(options.device)}.", "", *table(rows)])
            put(options.output, HEAD, f"{model} at {size}, {batch} images in a step", body)
    if options.dice is not None:
        body = dice(
            options.dice, options.work, options.dice_methods, options.epochs, options.patients
        )
        command = "python benchmarks/cache.py --models --dice HIPPOCAMPUS --work WORK"
        put(options.output, HEAD, f"whole trainings of nano at {DICE_SIZE}", f"`{command}` {body}")


if __name__ == "__main__":
    main()
