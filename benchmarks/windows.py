"""Windows of slices that are larger than the model's input: what they gain, and whether they show.

    python benchmarks/windows.py --work WORK [--epochs 20] [--picture windows.png]

Trains two runs on synthetic CT of 320 x 320 pixels, nano at 128 pixels with LoRA: one that sees
windows of 128 pixels, one that sees whole slices, shrunk. Held-out slices are then asked by boxes,
by a point in the middle, and by the label alone. Each step is a `medsam-tune` command; what is in
WORK is not made again. Writes benchmarks/results/windows.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from commands import command
from matplotlib.figure import Figure
from scipy import ndimage
from torch import Tensor
from torch.nn import functional
from training_step import machine

from medsam_tune.cases.datalist import read_datalist
from medsam_tune.cases.load import load_case
from medsam_tune.files import written_whole
from medsam_tune.inference.embedded import plane_for
from medsam_tune.inference.planes import Asked, Plane
from medsam_tune.inference.windows import WindowedPlane
from medsam_tune.methods.tuned import load_tuned
from medsam_tune.prompts import boxes_from_masks
from medsam_tune.runs import read_record
from medsam_tune.sam.prompting import BOTTOM_RIGHT, INSIDE, PADDING, TOP_LEFT
from medsam_tune.slices.cut import cut, cut_label
from medsam_tune.slices.rules import rules_from
from medsam_tune.synthetic.phantom import LABELS, write_phantoms

RESULTS = Path(__file__).parent / "results" / "windows.md"
SIDE, WINDOW = 320, 128  # two and a half windows a side
STARTS = [0, 64, 128, 192]  # of windows that overlap by half
SHIFT = 32  # half of the 64 pixels from one window to the next
KINDS = ("box", "point", "label alone")
WAYS = ("whole slices", "windows", "shifted", "tiles")


def trained(work: Path, name: str, epochs: int) -> Path:
    """A finished run on whole slices or on windows."""
    if not (work / "data").exists():
        write_phantoms(work / "data", 14, shape=(SIDE, SIDE, 10), spacing=(1.08, 0.8, 12.0))
    datalist, run = work / "datalist.json", work / name
    if not datalist.exists():
        command("split", work / "data", "--out", datalist, "--fractions", 0.72, 0.07, 0.21)
    settings = [f"epochs={epochs}", f"val_interval={epochs}"]
    settings += [f"rules::window={WINDOW}"] if name == "windows" else []
    if not (run / "tuned.safetensors").exists():
        words = [word for one in settings for word in ("--set", one)]
        resume = ["--resume"] if (run / "run.json").exists() else []
        options = ("--datalist", datalist, "--output", run, "--image-size", WINDOW, *words)
        command("train", "lora", *options, *resume)
    return run


class Questions:
    """The same questions for each way of seeing a slice: by each kind, for each label on it."""

    def __init__(self, label: Tensor) -> None:
        ids = [int(i) for i in label.unique() if i]
        self.masks = torch.stack([label == i for i in ids])  # (L, H, W)
        self.boxes = boxes_from_masks(self.masks)
        deepest = [ndimage.distance_transform_edt(mask).argmax() for mask in self.masks.numpy()]
        middle = torch.tensor([[at % SIDE + 0.5, at // SIDE + 0.5] for at in deepest])
        corners = self.boxes.view(-1, 2, 2)
        twice = middle[:, None].expand(-1, 2, -1).float()
        count = len(ids)
        self.points = torch.cat([corners, twice, torch.zeros(count, 2, 2)])
        kinds = [[TOP_LEFT, BOTTOM_RIGHT], [INSIDE, PADDING], [PADDING, PADDING]]
        self.kinds = torch.tensor(kinds).repeat_interleave(count, 0)
        self.classes = torch.tensor(ids * 3) - 1

    def answers(self, plane: Plane, image: Tensor, shift: int = 0) -> Tensor:
        """(3 L, H, W) bool masks; the slice lies `shift` pixels further right and down."""
        moved = functional.pad(image[None], (shift, 0, shift, 0))
        asked = Asked(self.points + shift, self.kinds, self.classes)
        where = torch.zeros(len(self.points), dtype=torch.int64)
        found = plane.decode(plane.encode(moved), where, asked)
        masks = found.logits[:, shift:, shift:] > 0
        absent = (found.presence <= 0) & (self.kinds == PADDING).all(1)
        return masks & ~absent[:, None, None]


def dice(found: Tensor, truth: Tensor) -> Tensor:
    """(L, H, W) bool twice -> (L,)."""
    both, sizes = (found & truth).sum((1, 2)), found.sum((1, 2)) + truth.sum((1, 2))
    return 2 * both / sizes


def held(boxes: Tensor, places: Sequence[int]) -> Tensor:
    """(L,) bool: one window holds the whole box."""
    first = torch.tensor(places)
    fits = [(boxes[:, [a]] >= first) & (boxes[:, [a + 2]] <= first + WINDOW) for a in (0, 1)]
    return fits[0].any(1) & fits[1].any(1)


def outline(masks: Tensor, lines: Iterable[int]) -> int:
    """Number of places where a mask begins or ends on one of some rows or columns."""
    at = torch.tensor(sorted(lines))
    across = (masks[:, at] != masks[:, at - 1]).sum() + (masks[..., at] != masks[..., at - 1]).sum()
    return int(across)


def borders(places: Iterable[int]) -> set[int]:
    """Rows, and columns, where windows begin or end within the slice."""
    return {edge for at in places for edge in (at, at + WINDOW) if 0 < edge < SIDE}


@torch.inference_mode()
def measured(work: Path, runs: dict[str, Path], picture: Path | None) -> str:
    """Ask all test slices in every way; the tables."""
    networks = {name: load_tuned(run / "tuned.safetensors").eval() for name, run in runs.items()}
    rules = {name: rules_from(read_record(run).rules) for name, run in runs.items()}
    size, large = (SIDE, SIDE), (SIDE + SHIFT, SIDE + SHIFT)
    planes = {
        "whole slices": plane_for(networks["whole"], size, rules["whole"]),
        "windows": plane_for(networks["windows"], size, rules["windows"]),
        "shifted": plane_for(networks["windows"], large, rules["windows"]),
        "tiles": WindowedPlane(networks["windows"], size, rules["windows"], overlap=0),
    }
    tiles = [0, 128, 192]
    lines = {way: borders(tiles if way == "tiles" else STARTS) for way in WAYS}
    scores: list[tuple[str, int, bool, dict[str, float]]] = []
    edges = {way: np.zeros(4, dtype=np.int64) for way in WAYS}  # on borders, elsewhere; of truth
    cases = read_datalist(work / "datalist.json").test
    for case in cases:
        image, label = load_case(case, LABELS, None, rules["windows"].expected)
        slices, grid = cut(image, rules["windows"])
        labels, _ = cut_label(label, grid)
        for z, ids in enumerate(labels):
            if not ids.any():
                continue
            asked = Questions(ids)
            truth = asked.masks.repeat(3, 1, 1)
            found = {
                way: asked.answers(plane, slices[z], SHIFT if way == "shifted" else 0)
                for way, plane in planes.items()
            }
            each = {way: dice(masks, truth) for way, masks in found.items()}
            inside = held(asked.boxes, STARTS)
            for row, number in enumerate(asked.classes.tolist()):
                kind = KINDS[row // len(inside)]
                one = {way: float(values[row]) for way, values in each.items()}
                scores.append((kind, number + 1, bool(inside[row % len(inside)]), one))
            boxed = len(inside)
            for way, masks in found.items():
                other = set(range(1, SIDE)) - lines[way]
                edges[way] += [
                    outline(some[:boxed], where)
                    for some in (masks, truth)
                    for where in (lines[way], other)
                ]
            if picture and z == len(labels) // 2 and case is cases[0]:
                draw(picture, slices[z, 0], asked, found)
    return page(scores, edges, len(cases))


def mean(values: Sequence[float]) -> str:
    """A mean of Dice values, or a dash."""
    return f"{np.mean(values):.3f}" if values else "-"


def page(
    scores: list[tuple[str, int, bool, dict[str, float]]],
    edges: dict[str, np.ndarray],
    cases: int,
) -> str:
    """The tables of the page."""
    groups = [("all", lambda number, inside: True)]
    groups += [("fits into one window", lambda _, inside: inside)]
    groups += [("is cut by every window", lambda _, inside: not inside)]
    groups += [(name, lambda number, _, i=i: number == i) for i, name in LABELS.items()]
    text = ["| asked by | object | masks | whole slices | windows |", "|---|---|---|---|---|"]
    for kind in KINDS:
        for name, belongs in groups:
            some = [one for k, i, inside, one in scores if k == kind and belongs(i, inside)]
            cells = [mean([one[way] for one in some]) for way in WAYS[:2]]
            text.append(f"| {kind} | {name} | {len(some)} | {' | '.join(cells)} |")
    text += ["", f"The same windows, moved by half a stride ({SHIFT} pixels):", ""]
    text += ["| asked by | Dice | moved | change, points | of 95 in 100 masks below |"]
    text += ["|---|---|---|---|---|"]
    for kind in KINDS:
        some = [one for k, _, _, one in scores if k == kind]
        change = 100 * np.array([one["shifted"] - one["windows"] for one in some])
        text.append(
            f"| {kind} | {mean([one['windows'] for one in some])} | "
            f"{mean([one['shifted'] for one in some])} | {change.mean():+.2f} | "
            f"{np.percentile(np.abs(change), 95):.1f} |"
        )
    text += ["", "Outlines of masks (by boxes) on rows and columns where windows begin or end,", ""]
    text[-2] += " for each 100"
    text[-1] = "pixels of the true outlines there; 100 elsewhere would be the same:"
    text += ["", "| | on borders of windows | elsewhere |", "|---|---|---|"]
    for way in ("whole slices", "windows", "tiles"):
        on, off, true_on, true_off = edges[way]
        text.append(f"| {way} | {100 * on / true_on:.0f} | {100 * off / true_off:.0f} |")
    text += ["", f"Tiles are windows without overlap. {cases} test cases."]
    return "\n".join(text)


def draw(path: Path, image: Tensor, asked: Questions, found: dict[str, Tensor]) -> None:
    """Contours of truth (white) and masks, with the borders of windows."""
    figure = Figure(figsize=(5 * len(WAYS), 15), dpi=80)
    axes = figure.subplots(len(KINDS), len(WAYS))
    count = len(asked.boxes)
    for row, kind in enumerate(KINDS):
        for column, way in enumerate(WAYS):
            axis = axes[row, column]
            axis.imshow(image, cmap="gray")
            for n in range(count):
                axis.contour(asked.masks[n], [0.5], colors="white", linewidths=0.6)
                mask = found[way][row * count + n]
                if mask.any():
                    axis.contour(mask, [0.5], colors=f"C{n}", linewidths=1.2)
            for edge in borders([0, 128, 192] if way == "tiles" else STARTS):
                axis.axhline(edge - 0.5, color="yellow", linewidth=0.3)
                axis.axvline(edge - 0.5, color="yellow", linewidth=0.3)
            axis.set_title(f"{way}, {kind}")
            axis.axis("off")
    figure.savefig(path, bbox_inches="tight")


def main() -> None:
    """Train what is missing, measure, write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    runs = {name: trained(options.work, name, options.epochs) for name in ("whole", "windows")}
    text = (
        f"# Windows of large slices\n\n`python benchmarks/windows.py --work WORK --epochs "
        f"{options.epochs}` on {machine('cpu')}.\n\n"
        f"Synthetic CT of {SIDE} x {SIDE} pixels; nano with an input of {WINDOW} pixels, LoRA, "
        f"{options.epochs} epochs of 10 cases, seed 0. Dice of each object on each slice, mean. "
        f"`whole slices` shrinks them to {WINDOW} pixels; `windows` cuts them into 4 x 4 windows "
        f"of {WINDOW} pixels that overlap by half (`rules::window={WINDOW}`).\n\n"
        f"{measured(options.work, runs, options.picture)}\n"
    )
    with written_whole(RESULTS) as beside:
        beside.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
