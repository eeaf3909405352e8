"""Adapters that see the neighbouring slices inside the encoder, beside adapters that do not.

    python benchmarks/context.py HIPPOCAMPUS --work WORK [--folds 5] [--slices 2700]

Three ways for nano by adapters at 128 x 128, on the same folds by as many steps:

- `slice`: the recipe as it is, a slice at a time;
- `channels`: the slices before and after as channels (`rules::neighbours`), which costs nothing;
- `volume`: in each block's bottleneck, a convolution over a window of three slices (MA-SAM's way).
  It starts as the identity between the slices of a window, and a batch holds whole windows with the
  same augmentation, of which every slice is learned. Inference encodes whole windows.

The last way is no part of the package: its numbers decide whether it becomes one. Each fold has
patients of its own, of the training and validation patients alone; test patients are not read. What
is finished in WORK is not run again. Writes benchmarks/results/context.md.

References:
    Chen et al., "MA-SAM: Modality-agnostic SAM Adaptation for 3D Medical Image Segmentation",
    Medical Image Analysis 2024.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from pages import table
from scipy.stats import wilcoxon
from torch import Tensor, nn
from training_step import machine

from medsam_tune.cases.datalist import write_datalist
from medsam_tune.cases.folders import find_cases
from medsam_tune.cases.splits import split_cases
from medsam_tune.evaluation.statistics import bootstrap_interval
from medsam_tune.inference.embedded import EmbeddedVolume
from medsam_tune.methods import METHODS
from medsam_tune.methods.adapter import Adapted, Bottleneck
from medsam_tune.methods.blocks import encoder_blocks
from medsam_tune.sam.model import PromptableSam
from medsam_tune.training.samples import SeededSampler, SliceDataset

RESULTS = Path(__file__).parent / "results" / "context.md"
SLICES = 3  # of a window
BATCH = 9
TRAINING, HELD_OUT = 40, 12  # patients of a fold
KINDS = {"slices": "", "box3d": "box3d", "none": "none"}  # prompts -> folder of an evaluation
WAYS = {
    "slice": (),
    "channels": ("rules::neighbours=true",),
    "volume": (f"slice_batch={2 * SLICES}",),
}
OVERLAY = """train::sampler:
  _target_: context.Windows
  dataset: '@train::dataset'
  seed: '@seed'
  num_samples: '@epoch_slices'
  batch_size: '@batch_size'
"""


class AcrossSlices(Bottleneck):
    """Bottleneck whose hidden channels are mixed over the slices of a window.

    Args:
        width: C, number of channels of the tokens.
        hidden: number of channels in between.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__(width, hidden)
        self.mix = nn.Conv1d(hidden, hidden, 3, padding=1, bias=False)
        nn.init.dirac_(self.mix.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, G, G, C) -> (B, G, G, C); B is a number of whole windows."""
        hidden = self.down(x)
        along = hidden.view(len(x) // SLICES, SLICES, -1, hidden.shape[-1]).permute(0, 2, 3, 1)
        mixed = self.mix(along.flatten(0, 1)).view(along.shape).permute(0, 3, 1, 2)
        return self.up(F.gelu(mixed.reshape(hidden.shape)))  # type: ignore[no-any-return]


def volume_adapter(sam: PromptableSam, bottleneck: int = 64) -> None:
    """The method `adapter` with bottlenecks that see a window of slices."""
    for name, block in encoder_blocks(sam).items():
        added = AcrossSlices(block.attn.proj.weight.shape[0], bottleneck)
        sam.set_submodule(name, Adapted(block, added, parallel=False))


class Windows(SeededSampler):
    """Whole windows of neighbouring slices of a case; the slices of one share a seed."""

    def __init__(
        self, dataset: SliceDataset, seed: int, num_samples: int | None, batch_size: int
    ) -> None:
        super().__init__(len(dataset), seed, num_samples or len(dataset), batch_size)
        self.num_samples = -(-self.num_samples // batch_size) * batch_size
        ends = zip(dataset.index, dataset.index[SLICES - 1 :], strict=False)
        self.starts = [
            place
            for place, ((case, k), (other, last)) in enumerate(ends)
            if case == other and last - k == SLICES - 1
        ]

    def _all(self) -> Iterator[tuple[int, ...]]:
        windows = self.num_samples // SLICES
        first = self.epoch * windows
        for place in range(first, first + windows):
            turn, number = divmod(place, len(self.starts))
            order = np.random.default_rng([self.seed, 0, turn]).permutation(len(self.starts))
            seed = int(np.random.default_rng([self.seed, 1, place]).integers(2**31))
            yield from ((self.starts[order[number]] + step, seed) for step in range(SLICES))


def _encode_windows(self: EmbeddedVolume, part: Tensor) -> Tensor:
    """`EmbeddedVolume._encode` by whole windows; the last slice fills up the last of them."""
    firsts = sorted({z // SLICES * SLICES for z in part.tolist()})
    which = [min(first + step, len(self) - 1) for first in firsts for step in range(SLICES)]
    made = self.plane.encode(self.slices[which])
    return torch.stack([made[firsts.index(z - z % SLICES) * SLICES + z % SLICES] for z in part])


def as_command(words: Sequence[str]) -> None:
    """`medsam-tune` with the adapters of this file in place of its own."""
    from medsam_tune.cli import app

    METHODS["adapter"] = volume_adapter
    EmbeddedVolume._encode = _encode_windows  # type: ignore[method-assign]
    app([*words])


def datalists(scans: Path, work: Path, folds: int) -> list[Path]:
    """A datalist for each fold; its "test" patients are some of the training's and validation's."""
    found = [work / f"fold{k}.json" for k in range(folds)]
    if not found[0].exists():
        data = split_cases(find_cases(scans), (0.7, 0.15, 0.15), seed=0)
        cases = [*data.training, *data.validation]
        order = np.random.default_rng(0).permutation(len(cases))
        for k, place in enumerate(found):
            turned = [cases[n] for n in np.roll(order, -k * HELD_OUT)]
            held, rest = turned[:HELD_OUT], turned[folds * HELD_OUT :]
            training, validation = rest[:TRAINING], rest[TRAINING : TRAINING + 2]
            subsets = {"training": training, "validation": validation, "test": held}
            write_datalist(replace(data, **{k: tuple(v) for k, v in subsets.items()}), place)
    return found


def done(work: Path, datalist: Path, way: str, slices: int) -> Path:
    """A training and its evaluation, made once."""
    run = work / f"{way}-{datalist.stem}"
    if not (run / "evaluation" / "summary.json").exists():
        sets = ("epochs=1", f"epoch_slices={slices}", f"batch_size={BATCH}", *WAYS[way])
        sets += (f"slices_dir={work / 'slices'}", "num_workers=0")
        words = ["train", "adapter", "--datalist", str(datalist), "--output", str(run)]
        words += ["--image-size", "128", *(word for one in sets for word in ("--set", one))]
        if way == "volume":
            overlay = work / "windows.yaml"
            overlay.write_text(OVERLAY)
            words += ["--overlay", str(overlay)]
        before = os.times()
        ours(way, *words)
        after = os.times()
        seconds = after.children_user - before.children_user
        (run / "measured.json").write_text(json.dumps([seconds, machine()]))
        batch = [word for one in WAYS[way] if "batch" in one for word in ("--set", one)]
        kinds = ",".join(KINDS)
        ours(way, "evaluate", "--run", str(run), "--prompts", kinds, *batch)
    return run


def ours(way: str, *words: str) -> None:
    """Run a command of this file, or of the package."""
    code = "from medsam_tune.cli import app; app()"
    own = [__file__, "--command"] if way == "volume" else ["-c", code]
    print("$", way, *words, flush=True)
    subprocess.run([sys.executable, *own, *words], check=True)


def dice(run: Path, kind: str) -> dict[str, float]:
    """Patient -> mean Dice of the labels."""
    with (run / "evaluation" / KINDS[kind] / "metrics.csv").open() as file:
        rows = [(row["case"], float(row["dice"])) for row in csv.DictReader(file) if row["dice"]]
    cases = dict.fromkeys(case for case, _ in rows)
    return {case: float(np.mean([v for other, v in rows if other == case])) for case in cases}


def change(steps: list[float]) -> str:
    """The mean of paired differences, of each patient one, with its interval and p."""
    low, high = bootstrap_interval(steps) or (float("nan"),) * 2
    p = wilcoxon(steps).pvalue
    return f"{np.mean(steps):+.3f} ({low:+.3f} to {high:+.3f}), p {p:.2g}"


def main() -> None:
    """All folds and ways, then the page."""
    if sys.argv[1:2] == ["--command"]:
        as_command(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scans", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--slices", type=int, default=2700, help="slices of a training")
    parser.add_argument("--only", nargs="*", default=[*WAYS], choices=[*WAYS])
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    runs: dict[str, list[Path]] = {way: [] for way in given.only}
    for datalist in datalists(given.scans, given.work, given.folds):
        for way in given.only:
            runs[way].append(done(given.work, datalist, way, given.slices))
    lines = []
    scores = {
        way: {kind: {c: v for run in each for c, v in dice(run, kind).items()} for kind in KINDS}
        for way, each in runs.items()
    }
    machines = set()
    for way, found in scores.items():
        measured = [json.loads((run / "measured.json").read_text()) for run in runs[way]]
        machines |= {name for _, name in measured}
        seconds = np.mean([each for each, _ in measured])
        means = [f"{np.mean([*one.values()]):.3f}" for one in found.values()]
        lines.append([f"`{way}`", *means, f"{seconds:.0f}"])
    for way in ("channels", "volume"):
        for other in ("slice", "channels"):
            if way == other or not {way, other} <= {*scores}:
                continue
            cells = []
            for kind in KINDS:
                mine, its = scores[way][kind], scores[other][kind]
                steps = [mine[case] - its[case] for case in mine]
                cells.append(change(steps))
            lines.append([f"`{way}` less `{other}`", *cells, ""])
    page = "\n".join(table(["", *KINDS, "seconds of a training"], lines))
    patients = sum(len(found) for found in [next(iter(scores.values()))["none"]])
    settings = {"folds": given.folds, "patients": patients, "slices": given.slices}
    RESULTS.write_text(HEAD.format(machine="; ".join(machines), **settings) + page + "\n")
    print(RESULTS.read_text())


HEAD = """# Neighbouring slices inside the encoder

`python benchmarks/context.py HIPPOCAMPUS --work WORK`: nano by adapters at 128 x 128, {slices}
slices of 40 patients, {folds} folds; Dice, mean of both labels, of {patients} patients that are in
no fold's training, paired differences with their 95 % interval. Patients are of the training's and
validation's; none is of the test. {machine}; seconds of the processor.

"""

if __name__ == "__main__":
    main()
