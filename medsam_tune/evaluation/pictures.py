"""Pictures of a model's masks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import matplotlib as mpl
import numpy as np
from ignite.engine import Engine, Events
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from torch import Tensor

from medsam_tune.evaluation.metrics import annotated, overlap
from medsam_tune.inference.canvas import labels_of
from medsam_tune.inference.simulated import parse_kind
from medsam_tune.prompts import SlicePrompts

_LEGEND_COLUMNS = 5


def draw_overlays(
    path: str | Path,
    image: Tensor,
    columns: Mapping[str, Tensor],
    labels: Mapping[int, str],
    prompts: Mapping[str, SlicePrompts | None] | None = None,
    rows: int = 3,
) -> Path:
    """Draw contours on slices of one case, one column per label map.

    Args:
        path: PNG to write.
        image: (Z, C, H, W) uint8 slices; three channels are shown as colours, else the first.
        columns: title -> (Z, H, W) integer label slices. The first is the truth; evenly spaced
            slices with its labels are shown. The other titles carry the Dice over the whole volume,
            the mean of the labels.
        labels: label id -> name.
        prompts: title of a column -> prompts to draw in it: points, and boxes, dashed where a user
            drew them and dotted on other slices.
        rows: number of slices.

    Returns:
        path of the PNG.
    """
    truth = next(iter(columns.values()))
    picked = _slices_worth_showing(truth, rows)
    height, width = image.shape[-2:]
    unit = 2.6 if len(image) > 1 else 5.0  # inches of a column; a 2-D image has one row
    seen = [k for k in labels if any((maps[picked] == k).any() for maps in columns.values())]
    legend = 0.1 + 0.2 * -(-len(seen) // _LEGEND_COLUMNS)  # inches
    figure = Figure(
        figsize=(unit * len(columns), unit * len(picked) * height / width + 0.6 + legend), dpi=130
    )
    axes = figure.subplots(len(picked), len(columns), squeeze=False)
    palette = mpl.colormaps["tab10" if len(labels) <= 10 else "tab20"]
    colours = {label: palette(i % palette.N) for i, label in enumerate(labels)}
    for row, z in enumerate(picked):
        for column, (title, maps) in enumerate(columns.items()):
            axis = axes[row, column]
            shown = image[z].permute(1, 2, 0) if image.shape[1] == 3 else image[z, 0]
            axis.imshow(shown.numpy(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            for label, colour in colours.items():
                _outline(axis, (maps[z] == label).cpu().numpy(), colour)
            if (given := (prompts or {}).get(title)) is not None:
                _draw_prompts(axis, given, z, colours)
            axis.set(xticks=[], yticks=[], xlim=(-1, width), ylim=(height, -1))
            if row == 0:
                dice = None if maps is truth else _mean_dice(maps, truth, labels)
                score = "" if dice is None else f"\nDice {dice:.2f}"
                axis.set_title(f"{_plain(title)}{score}", fontsize=9)
            if column == 0 and len(image) > 1:
                axis.set_ylabel(f"slice {z}", fontsize=8)
    handles = [Line2D([], [], color=colours[k], label=_plain(labels[k])) for k in seen]
    if handles:
        columns_of_legend = min(_LEGEND_COLUMNS, len(handles))
        figure.legend(handles=handles, loc="lower center", ncols=columns_of_legend, fontsize=8)
    figure.tight_layout(rect=(0, legend / figure.get_figheight(), 1, 1))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def _plain(text: str) -> str:
    """A text that matplotlib draws as it is: a dollar sign would begin a formula."""
    return text.replace("$", r"\$")


class Overlays:
    """Handler of an evaluator over `CaseDataset`: pictures of the first cases.

    The annotator has the first column, and each kind of prompts one of its own, with its prompts.

    Args:
        output_dir: folder for `<case>.png`.
        labels: label id -> name.
        count: number of cases.
        ignore: id of voxels that nobody annotated; nothing is drawn there.
    """

    def __init__(
        self,
        output_dir: str | Path,
        labels: Mapping[int, str],
        count: int = 4,
        ignore: int | None = None,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.labels = labels
        self.count = count
        self.ignore = ignore

    def attach(self, engine: Engine) -> None:
        """Attach to an engine; MONAI calls it."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Draw a case after it was segmented."""
        state: Any = engine.state
        batch = state.batch
        label = batch["label"]
        if state.iteration > self.count or not any((label == k).any() for k in self.labels):
            return
        names = {kind: f"by {parse_kind(kind).words}" for kind in state.output["pred"]}
        found = (cast(Tensor, labels_of(one)) for one in state.output["pred"].values())
        maps = annotated(label, *found, truth=label, ignore=self.ignore)
        draw_overlays(
            self.output_dir / f"{batch['case']}.png",
            batch["image"],
            dict(zip(["annotator", *names.values()], maps, strict=True)),
            self.labels,
            {names[kind]: batch["prompts"][kind] for kind in names},
        )


def _slices_worth_showing(truth: Tensor, count: int) -> list[int]:
    """Up to `count` labelled slices, evenly spaced: the middles of equal stretches."""
    there = (truth > 0).flatten(1).any(1).nonzero().flatten()
    if not len(there):
        return [truth.shape[0] // 2]
    count = min(count, len(there))
    return [int(there[(2 * i + 1) * len(there) // (2 * count)]) for i in range(count)]


def _outline(axis: mpl.axes.Axes, mask: NDArray[np.bool_], colour: tuple[float, ...]) -> None:
    if mask.any():
        padded = np.pad(mask.astype(float), 1)  # closes outlines at the picture's border
        grid = (np.arange(-1, mask.shape[1] + 1), np.arange(-1, mask.shape[0] + 1))
        axis.contour(*grid, padded, levels=[0.5], colors=[colour], linewidths=1.2)


def _draw_prompts(
    axis: mpl.axes.Axes, prompts: SlicePrompts, z: int, colours: Mapping[int, tuple[float, ...]]
) -> None:
    here = prompts.rows(prompts.slices == z)
    for index, label in enumerate(here.labels.tolist()):
        colour, style = colours[label], "--" if here.drawn[index] else ":"
        if here.boxed[index]:
            x0, y0, x1, y1 = (here.boxes[index] - 0.5).tolist()  # pixel i is drawn around i
            sides = [x0, x1, x1, x0, x0], [y0, y0, y1, y1, y0]
            axis.plot(*sides, style, color=colour, linewidth=0.8)
        for (x, y), inside in zip(here.points[index] - 0.5, here.point_labels[index], strict=True):
            if inside >= 0:
                mark = "o" if inside else "X"
                axis.plot(x, y, mark, color=colour, markersize=5, markeredgecolor="white")


def _mean_dice(maps: Tensor, truth: Tensor, labels: Mapping[int, str]) -> float | None:
    values = [overlap(maps.cpu() == label, truth.cpu() == label)[0] for label in labels]
    counted = [value for value in values if value is not None]
    return float(np.mean(counted)) if counted else None
