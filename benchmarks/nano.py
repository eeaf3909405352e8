"""The embedded model on real images that it has never seen anything like, beside the ellipse.

    python benchmarks/nano.py DATA [--checkpoint WEIGHTS] [--image-size 256]

DATA holds the folders hippocampus (MSD Task04), totalseg, prostate_mr_slices, nuclei, dubai_aerial
and spacenet; what is not there is left out. Dice by a box with 5 % jitter on each slice, by one
point in each object, by the box moved, grown and shrunk by 10 %, and of the ellipse in the box. The
table goes to benchmarks/results/nano.md. Nothing is trained here.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import SimpleITK as sitk
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torch import Tensor
from training_step import machine

from medsam_tune.cases.datalist import Case
from medsam_tune.cases.folders import find_cases
from medsam_tune.cases.load import load_case
from medsam_tune.cases.splits import split_cases
from medsam_tune.evaluation.label_maps import overlap
from medsam_tune.evaluation.statistics import bootstrap_interval, footnote, mean_text
from medsam_tune.files import written_whole
from medsam_tune.inference.inferers import EllipseInferer, VolumeInferer
from medsam_tune.inference.planes import to_channels
from medsam_tune.inference.simulated import simulated_prompts
from medsam_tune.prompts import Prompts, SlicePrompts, points_in_masks
from medsam_tune.sam.build import build_sam
from medsam_tune.sam.model import PromptableSam
from medsam_tune.slices.cut import cut, cut_label
from medsam_tune.slices.frames import ModelFrame
from medsam_tune.slices.intensity import Percentiles, for_modality
from medsam_tune.slices.rules import ScanRules

RESULTS = Path(__file__).parent / "results" / "nano.md"
WAYS = ("ellipse", "box", "point", "moved", "grown", "shrunk")


@dataclass(frozen=True)
class Picture:
    """A case: its slices (Z, C, H, W) uint8, label slices (Z, H, W), and what the labels are."""

    id: str
    image: Tensor
    truth: Tensor
    names: dict[int, str]


def hippocampus(folder: Path) -> Iterator[Picture]:
    """The 27 test patients of the default split."""
    data = split_cases(find_cases(folder), (0.7, 0.15, 0.15), seed=0)
    for case in data.subset("test"):
        yield volume(case, data.modality, data.labels)


def volume(case: Case, modality: str, names: dict[int, str] | None = None) -> Picture:
    """A scan, windowed as training does it."""
    assert case.label is not None
    known = names or {i: str(i) for i in range(1, 256)}
    image, label = load_case(case, known)
    assert label is not None
    slices, grid = cut(image, ScanRules(for_modality(modality)))
    truth = cut_label(label, grid)[0].long()
    there = {i: known[i] for i in truth.unique().tolist() if i}
    return Picture(case.id, slices, truth, there)


def totalseg(folder: Path, image: str, label: str, modality: str) -> Iterator[Picture]:
    """One scan with many organs; label ids are TotalSegmentator's."""
    yield volume(Case(folder / image, folder / label, image), modality)


def picture(name: str, pixels: NDArray[np.generic], truth: NDArray[np.generic]) -> Picture:
    """A 2-D image (H, W) or (H, W, C) uint8 with objects (H, W) by number."""
    channels = torch.from_numpy(np.array(pixels))
    image = channels[None, None] if pixels.ndim == 2 else channels.permute(2, 0, 1)[None]
    numbers = [int(i) for i in np.unique(truth) if i]
    return Picture(
        name, image, torch.from_numpy(truth.astype(np.int64))[None], {i: "" for i in numbers}
    )


def prostate(folder: Path) -> Iterator[Picture]:
    """T2 slices of prostates."""
    for file in sorted(folder.glob("images/*/*/*/*.png")):
        mask = np.asarray(Image.open(folder / "masks" / file.name).convert("L")) > 0
        yield picture(file.stem, np.asarray(Image.open(file).convert("L")), mask.astype(np.uint8))


def nuclei(folder: Path) -> Iterator[Picture]:
    """Microscopy, every nucleus an object."""
    for file in sorted(folder.glob("images/*.png")):
        truth = np.asarray(Image.open(folder / "masks" / file.name)).astype(np.int64)
        yield picture(file.stem, np.asarray(Image.open(file).convert("RGB")), truth)


def dubai(folder: Path) -> Iterator[Picture]:
    """Aerial images cut into 256 x 256, every building of at least 64 pixels an object.

    The masks' colours are not those that classes.json names.
    """
    colour = np.array([0x3C, 0x10, 0x98])
    for file in sorted(folder.glob("*/images/*.jpg")):
        pixels = np.asarray(Image.open(file).convert("RGB"))
        mask = file.parents[1] / "masks" / file.with_suffix(".png").name
        building = (np.asarray(Image.open(mask).convert("RGB")) == colour).all(-1)
        for top in range(0, pixels.shape[0] - 255, 256):
            for left in range(0, pixels.shape[1] - 255, 256):
                part = np.s_[top : top + 256, left : left + 256]
                truth = large_pieces(building[part], 64)
                if truth.any():
                    name = f"{file.parents[1].name}-{file.stem}-{top}-{left}"
                    yield picture(name, pixels[part], truth)


def spacenet(folder: Path) -> Iterator[Picture]:
    """Satellite chips of 90 x 90 at 0.5 m, one band, every building an object."""
    for file in sorted(folder.glob("tiles/images/*.tif")):
        stored = sitk.GetArrayFromImage(sitk.ReadImage(str(file)))  # PIL reads no such 16 bits
        band = torch.from_numpy(stored.astype(np.float32))
        pixels = Percentiles()(band[None, ..., None])[0, ..., 0].numpy()
        mask = sorted(folder.glob(f"tiles/masks/*{file.stem}*"))
        truth = large_pieces(np.asarray(Image.open(mask[0])) > 0, 16)
        if truth.any():
            yield picture(file.stem, pixels, truth)


def large_pieces(mask: NDArray[np.bool_], smallest: int) -> NDArray[np.int64]:
    """Connected pieces by number, without those of fewer pixels."""
    pieces, _ = ndimage.label(mask)
    sizes = np.bincount(pieces.ravel())
    pieces[sizes[pieces] < smallest] = 0
    return np.asarray(pieces, dtype=np.int64)


SETS: dict[str, tuple[str, Callable[[Path], Iterator[Picture]]]] = {
    "hippocampus, MR": ("hippocampus", hippocampus),
    "41 organs, CT": (
        "totalseg",
        lambda f: totalseg(f, "example_ct_sm.nii.gz", "example_seg.nii.gz", "CT"),
    ),
    "organs, MR": (
        "totalseg",
        lambda f: totalseg(f, "example_mr_sm.nii.gz", "example_seg_mr.nii.gz", "MR"),
    ),
    "prostate, MR": ("prostate_mr_slices", prostate),
    "nuclei": ("nuclei", nuclei),
    "buildings, aerial": ("dubai_aerial", dubai),
    "buildings, satellite": ("spacenet", spacenet),
}


class Remembering:
    """A model that encodes the same images only once."""

    def __init__(self, model: PromptableSam) -> None:
        self.model = model
        self.embeddings: dict[bytes, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def encode(self, image: Tensor) -> Any:
        """As the model's."""
        key = hashlib.sha256(image.contiguous().numpy()).digest()
        if key not in self.embeddings:
            self.embeddings[key] = self.model.encode(image)
        return self.embeddings[key]


class PointInferer:
    """One point in each object on each slice; of the three masks the one the model trusts most."""

    def __call__(self, model: PromptableSam, case: Picture) -> tuple[Tensor, list[bool]]:
        """Label slices, and for each point whether its mask holds it."""
        labels = torch.zeros_like(case.truth)
        highest = torch.zeros(case.truth.shape)
        size = (case.image.shape[-2], case.image.shape[-1])
        frame = ModelFrame(size, model.image_size)
        generator = torch.Generator().manual_seed(0)
        held = []
        for z, truth in enumerate(case.truth):
            ids = [i for i in case.names if bool((truth == i).any())]
            if not ids:
                continue
            image = frame.image(case.image[z : z + 1].float() / 255)
            embedding = model.encode(to_channels(image, model.base.in_channels))
            masks = torch.stack([truth == i for i in ids])
            points = points_in_masks(masks, generator=generator)  # (P, 1, 2)
            placed = frame.boxes(points.repeat(1, 1, 2))[..., :2][None]
            asked = Prompts(points=placed, point_labels=torch.ones(1, len(ids), 1).long())
            logits, quality, _ = model.decode_masks(embedding, asked)
            best = quality.argmax(2)[0]
            chosen = frame.logits(logits[0, torch.arange(len(ids)), best][None].float())[0]
            for i, mask, point in zip(ids, chosen, points[:, 0], strict=True):
                x, y = point.long().tolist()
                held.append(bool(mask[y, x] > 0))
                wins = mask > highest[z]
                labels[z][wins], highest[z][wins] = i, mask[wins]
        return labels, held


def changed(prompts: SlicePrompts, way: str) -> SlicePrompts:
    """Boxes moved, grown or shrunk by 10 % of their sides."""
    lower, upper = prompts.boxes[:, :2], prompts.boxes[:, 2:]
    side = upper - lower
    if way == "moved":
        return replace(prompts, boxes=torch.cat([lower + 0.1 * side, upper + 0.1 * side], 1))
    by = 0.05 * side if way == "grown" else -0.05 * side
    return replace(prompts, boxes=torch.cat([lower - by, upper + by], 1))


@torch.inference_mode()
def measure(model: PromptableSam, case: Picture) -> tuple[dict[str, dict[int, float]], list[bool]]:
    """Way -> label -> Dice; and whether masks by points hold their points."""
    tight = cast(SlicePrompts, simulated_prompts(case.truth, case.names, "slices"))
    boxes = simulated_prompts(case.truth, case.names, "slices", jitter=0.05, case=case.id)
    infer = VolumeInferer()
    model = cast(PromptableSam, Remembering(model))
    found = {
        "ellipse": EllipseInferer()(case.image, None, boxes),
        "box": infer(case.image, model, boxes),
    }
    found |= {way: infer(case.image, model, changed(tight, way)) for way in WAYS[3:]}
    found["tight"] = infer(case.image, model, tight)
    found["point"], held = PointInferer()(model, case)
    dice = {
        way: {i: overlap(labels == i, case.truth == i)[0] or 0.0 for i in case.names}
        for way, labels in found.items()
    }
    return dice, held


def summary(results: list[dict[str, dict[int, float]]], way: str, label: int | None) -> list[float]:
    """One number for each case, or for each object where there is one case only."""
    if label is not None:
        return [r[way][label] for r in results if label in r[way]]
    if len(results) == 1:
        return list(results[0][way].values())
    return [float(np.mean(list(r[way].values()))) for r in results]


def main() -> None:
    """Measure every set that is there, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--checkpoint")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--only", nargs="*", help="names of sets")
    parser.add_argument("--every", type=int, default=1, help="only every so many-th image")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    model = build_sam("nano", options.checkpoint, options.image_size)
    rows, worst, gains = [], "", []
    for title, (folder, cases) in SETS.items():
        if not (options.data / folder).is_dir() or (options.only and title not in options.only):
            print(f"{title}: left out", file=sys.stderr)
            continue
        start = time.monotonic()
        results, held, names = [], [], {}
        for number, case in enumerate(cases(options.data / folder)):
            if number % options.every:
                continue
            dice, inside = measure(model, case)
            results.append(dice)
            held += inside
            names |= case.names
        labels = list(names) if title.startswith("hippocampus") else [None]
        for label in labels:
            values = {way: summary(results, way, label) for way in (*WAYS, "tight")}
            mean = {way: float(np.mean(v)) for way, v in values.items()}
            box = mean_text(mean["box"], bootstrap_interval(values["box"]), len(values["box"]))
            loss = mean["tight"] - min(mean[way] for way in WAYS[3:])
            gains.append(mean["box"] - mean["ellipse"])
            count = f"{len(values['box'])} {'organs' if len(results) == 1 else 'images'}"
            rows.append(
                f"| {title}{'' if label is None else f', {names[label]}'} | {count} | "
                f"{mean['ellipse']:.3f} | {box} | "
                f"{mean['point']:.3f} | {np.mean(held):.1%} | {mean['moved']:.3f} | "
                f"{mean['grown']:.3f} | {mean['shrunk']:.3f} | {loss:+.3f} |"
            )
            print(rows[-1], f"{time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
        if title.endswith("CT"):
            lowest = sorted(results[0]["box"].items(), key=lambda item: item[1])[:5]
            worst = ", ".join(
                f"{i} {value:.3f} (ellipse {results[0]['ellipse'][i]:.3f})" for i, value in lowest
            )
    base = json.dumps(model.base.as_dict())
    text = f"""# The embedded model on real images

`python benchmarks/nano.py {" ".join(sys.argv[2:]) or "DATA"}` on {machine("cpu")}.
Model: `{base}`.

Zero-shot: the weights saw synthetic scenes only (whose range of sizes was widened once after a
look at these sets, see the model card). Dice, mean over images (over objects where there is one
scan), with its 95 % bootstrap interval
({footnote()}); boxes on each slice with 5 % jitter, the same for the ellipse;
one point, drawn evenly from the object's pixels on each slice, of three masks the one
the model trusts most; boxes moved, grown and shrunk by 10 % of their sides, and the loss of the
worst of these against the exact box.

| | | ellipse | box | point | holds its point | moved | grown | shrunk | loss |
|---|---|---|---|---|---|---|---|---|---|
{chr(10).join(rows)}

Box against ellipse, mean of the rows: {np.mean(gains):+.3f}. The five worst CT organs by box
(TotalSegmentator's ids): {worst}.
"""
    with written_whole(options.output) as beside:
        beside.write_text(text)


if __name__ == "__main__":
    main()
