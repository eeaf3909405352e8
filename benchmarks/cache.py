"""Training on cached embeddings: images per second beside the tutorials' loop, and Dice by time.

    python benchmarks/cache.py                             # nano at 256 and 128, vit_b at 1024
    python benchmarks/cache.py --models nano:128:4 --repeats 20
    python benchmarks/cache.py --dice ../shared/data/hippocampus  # whole trainings, too

The loop is that of the source note: stock segment_anything's three parts, one image at a time with
one box, BCE, its images ready in memory. Ours is a training of the shipped recipe, with its data
loader, augmentation, mixture of prompts, loss and optimizer. All are measured by turns in one
process, with random weights. On a CPU the seconds are the processor's, of all threads, so that what
else the machine does counts little.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from monai.bundle import ConfigParser
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
from medsam_tune.cases.splits import split_cases
from medsam_tune.files import written_whole
from medsam_tune.sam.build import architecture
from medsam_tune.slices.embeddings import Place
from medsam_tune.synthetic.phantom import write_phantoms
from medsam_tune.training.batches import prepare_batch

RESULTS = Path(__file__).parent / "results"
CONFIGS = Path(__file__).parents[1] / "bundles" / "sam_volume" / "configs"
METHODS = ("decoder", "prompt", "lora", "adapter")
LAST_BLOCKS = 2  # of the encoder, that lora and adapter tune; what is before them is cached
OBJECTS = (1, 4)  # objects of an image: as in the loop, and as the recipe draws
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


def dice(folder: Path, scratch: Path, epochs: int, device: str) -> list[str]:
    """Validation Dice of whole trainings: not cached, four views, and the slice itself alone."""
    now = time.process_time if device == "cpu" else time.perf_counter
    data = scratch / "dice.json"
    write_datalist(split_cases(find_cases(folder), (0.08, 0.05, 0.87), seed=0), data)
    options: dict[str, Any] = {"epochs": epochs, "warmup_steps": 20, "batch_size": 8}
    ways: dict[str, dict[str, Any]] = {
        "not cached": {"views": None},
        "cached, 4 views": {"cache": True},
        "cached, 1 view": {"cache": True, "views": 1},
    }
    lines = ["| | epoch: seconds of training so far, mean validation Dice |", "|---|---|"]
    for name, more in ways.items():
        run = scratch / name.replace(" ", "_").replace(",", "")
        options["output_dir"] = str(run)
        parser = recipe(data, "nano", 64, "decoder", device, **{**options, "objects": 4, **more})
        found: list[str] = []
        clock = {"spent": 0.0, "start": 0.0}
        torch.manual_seed(0)
        trainer = parser.get_parsed_content("train::trainer")
        parser.get_parsed_content("run_folder").open()
        if (store := parser.get_parsed_content("embeddings")) is not None:
            store.open()
        validator = parser.get_parsed_content("validate::evaluator")

        def started(_: Any, clock: dict[str, float] = clock) -> None:
            clock["start"] = now()

        def ended(engine: Any, clock: dict[str, float] = clock) -> None:
            clock["spent"] += now() - clock["start"]
            clock["start"] = now()

        def scored(engine: Any, clock: Any = clock, found: Any = found) -> None:
            found.append(f"{clock['spent']:.0f} s {engine.state.metrics['mean_dice']:.3f}")

        trainer.add_event_handler("epoch_started", started)
        trainer.add_event_handler("iteration_completed", ended)
        validator.add_event_handler("completed", scored)
        trainer.run()
        lines.append(f"| {name} | {', '.join(found)} |")
        print(lines[-1], file=sys.stderr, flush=True)
    return lines


def main() -> None:
    """Measure and write the page; each table when it is done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--models",
        nargs="*",
        default=["nano:256:4", "nano:128:4", "vit_b:1024:1"],
        help="name, side of the input, images in a step",
    )
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dice", type=Path, help="folder of scans for whole trainings")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--output", type=Path, default=RESULTS / "cache.md")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*random weights.*")
    command = " ".join(["python benchmarks/cache.py", *sys.argv[1:]])
    lines = [
        f"# Training on cached embeddings\n\n`{command}` on {machine(options.device)}.\n",
        "The loop is the source note's: stock segment_anything, one image with one box at a time, "
        "from memory. Ours are steps of the shipped recipe with one object of each image, or 4, "
        "from the slices on disk to the optimizer: reading, augmentation, prompts, loss. A view's "
        "first epoch encodes and stores; K views have K such epochs. "
        f"`lora` and `adapter` tune the last {LAST_BLOCKS} blocks, and the tokens before those are "
        "stored. Seconds (on a CPU, the "
        f"processor's) are the median of {options.repeats} steps by turns, with their range.\n",
    ]

    def write() -> None:
        with written_whole(options.output) as file:
            file.write_text("\n".join([*lines, ""]))

    with tempfile.TemporaryDirectory() as scratch:
        data = datalist(Path(scratch) / "phantoms")
        for one in options.models:
            model, size, batch = one.split(":")
            sizes = (model, int(size), int(batch))
            rows = speed(data, *sizes, options.device, options.repeats, options.methods)
            lines += [f"\n## {model} at {size}, {batch} images in a step\n", *table(rows)]
            write()
        if options.dice is not None:
            lines += [f"\n## Dice, nano at 64, decoder, {options.dice.name}\n"]
            lines += dice(options.dice, Path(scratch), options.epochs, options.device)
            write()


if __name__ == "__main__":
    main()
