"""What augmentation costs beside the training that it feeds.

    OMP_NUM_THREADS=1 python benchmarks/augmentation.py

Slices of 512 x 512, as a CT's; the transforms are those of `train.yaml`. The table goes to
benchmarks/results/augmentation.md.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.data import set_track_meta
from monai.transforms import Compose, Randomizable
from torch.utils.data import DataLoader
from training_step import machine

from medsam_tune.cases.datalist import write_datalist
from medsam_tune.cases.folders import find_cases
from medsam_tune.cases.splits import split_cases
from medsam_tune.files import written_whole
from medsam_tune.synthetic.phantom import write_phantoms
from medsam_tune.training.batches import collate, prepare_batch
from medsam_tune.training.samples import SliceDataset
from medsam_tune.transforms import KeepObjectsd, LoadSliced, ShrinkLongestd

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "bundles" / "sam_volume" / "configs"
OUTPUT = Path(__file__).parent / "results" / "augmentation.md"
SIDE, SIZE, BATCH = 512, 256, 8
SHRUNK = round(1.25 * SIZE)  # as train.yaml


def seconds(run: Callable[[int], object], repeats: int) -> float:
    """Median of the processor's seconds of a function of a seed, after two calls to warm up."""
    found = []
    for seed in range(repeats + 2):
        start = time.process_time()
        run(seed)
        found.append(time.process_time() - start)
    return statistics.median(found[2:])


def parsed(folder: Path, side: int = SIDE, size: int = SIZE) -> ConfigParser:
    """`train.yaml` with the LoRA overlay on phantoms with slices of a side, in pixels."""
    spacing = (360 / side, 360 / side, 5.0)
    write_phantoms(folder, count=3, shape=(side, side, 6), spacing=spacing)
    write_datalist(split_cases(find_cases(folder), (1 / 3,) * 3), folder / "datalist.json")
    files = [CONFIGS / "train.yaml", CONFIGS / "method_lora.yaml"]
    parser = ConfigParser(ConfigParser.load_config_files([str(file) for file in files]))
    parser.update({"datalist": str(folder / "datalist.json"), "output_dir": str(folder / "run")})
    parser.update({"image_size": size, "batch_size": BATCH, "bias_prob": 0.3})
    return parser


def each_transform(augment: Compose) -> list[str]:
    """A row for each transform, done always, at both sizes."""
    rows = []
    random = [one for one in augment.transforms if isinstance(one, Randomizable)]
    for transform in random:
        transform.prob = 1.0  # type: ignore[attr-defined]
        cells = []
        for side in (SIDE, SHRUNK):
            item = {"image": torch.rand(1, side, side), "label": torch.ones(1, side, side)}
            item["before"] = item["label"]

            def run(seed: int, item: dict[str, Any] = item, transform: Any = transform) -> None:
                transform.set_random_state(seed=seed)
                set_track_meta(False)
                transform(dict(item))
                set_track_meta(True)

            cells.append(f"{1000 * seconds(run, 15):.1f}")
        rows.append(f"| {type(transform).__name__} | {' | '.join(cells)} |")
        print(rows[-1], file=sys.stderr)
    return rows


def rates(dataset: SliceDataset, parser: ConfigParser) -> list[str]:
    """Samples a second: made, made without shrinking or augmenting, and trained on."""

    def made(repeats: int) -> float:
        return 1 / seconds(lambda seed: dataset[(seed % len(dataset), seed)], repeats)

    chain = list(dataset.transform.transforms)  # type: ignore[attr-defined]
    shrink, keep = (
        next(one for one in chain if isinstance(one, kind))
        for kind in (ShrinkLongestd, KeepObjectsd)
    )
    found = {"as configured": made(60)}
    dataset.transform = Compose([LoadSliced(kept=0), *chain[1:]])
    found["slices read anew each time"] = made(60)
    dataset.transform = Compose([one for one in chain if one is not shrink])
    found["augmented at 512 x 512"] = made(40)
    dataset.transform = Compose([one for one in chain if one is not keep])
    found["without augmentation"] = made(60)
    dataset.transform = Compose(chain)
    batch = next(iter(DataLoader(dataset, BATCH, collate_fn=collate)))
    network, loss = parser.get_parsed_content("network"), parser.get_parsed_content("loss")
    network.train()
    image, masks, _, asked = prepare_batch(batch, torch.device("cpu"))

    def step(_seed: int) -> None:
        loss(network(image, **asked), masks).backward()
        network.zero_grad()

    trained = BATCH / seconds(step, 5)
    rows = [
        f"| {name} | {rate:.1f} | {rate / trained:.1f} | {trained / (rate + trained):.0%} |"
        for name, rate in found.items()
    ]
    return [*rows, f"\nTrained, samples/s: {trained:.2f}."]


def main() -> None:
    """Measure and write the page."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        parser = parsed(Path(folder))
        dataset = parser.get_parsed_content("train::dataset")
        made = rates(dataset, parser)
        costs = each_transform(parser.get_parsed_content("augment"))
    lines = [
        f"# Augmentation\n\n`python benchmarks/augmentation.py` on {machine('cpu')}.\n",
        f"Slices of {SIDE} x {SIDE} into nano at {SIZE}, LoRA, batches of {BATCH}, 4 prompts each, "
        "of the recipe's mixture; samples are made in one process, in turns with training, as on a "
        "CPU by default. Seconds are the processor's.\n",
        "| samples | made/s | times as fast as trained | share of the time of both |",
        "|---|---|---|---|",
        *made,
        f"\nEach transform when it is done (most are done to some slices only), ms at {SIDE} x "
        f"{SIDE} and at {SHRUNK} x {SHRUNK}, to which such slices are shrunk first:\n",
        f"| transform | {SIDE} | {SHRUNK} |",
        "|---|---|---|",
        *costs,
    ]
    with written_whole(OUTPUT) as beside:
        beside.write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
