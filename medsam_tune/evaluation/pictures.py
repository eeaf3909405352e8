"""Pictures of a model's masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from torch import Tensor

from medsam_tune.evaluation.label_maps import overlaps
from medsam_tune.prompts import SlicePrompts

_GREYS = (3, 8)  # among them: hard to tell from a scan, and from the annotator's white dashes
_ORDER = (*(n for n in range(10) if n not in _GREYS), *_GREYS)
COLOURS = [to_rgb(mpl.color_sequences["petroff10"][n]) for n in _ORDER]
"""Colours of up to 10 labels, which colour-blind people tell apart; the greys come last.

References:
    Petroff, "Accessible color sequences for data visualization", 2021.
"""

_LEGEND_COLUMNS = 5
_OPPOSITE = dict(zip("LRAPSI", "RLPAIS", strict=True))  # directions
_BARS = (100, 50, 20, 10, 5, 2, 1)  # millimetres


@dataclass(frozen=True)
class Place:
    """Where the slices of a picture lie.

    Attributes:
        pixel: millimetres of a pixel along columns and rows; None where they are unknown.
        axes: directions in which columns, rows and slices run, such as "LPS"; "" of a 2-D image.
    """

    pixel: tuple[float, float] | None = None
    axes: str = ""


@dataclass(frozen=True)
class Panel:
    """Some slices of a case, with what is drawn on them.

    Attributes:
        slices: numbers of the slices, N.
        image: (N, C, H, W) uint8.
        columns: title -> (N, H, W) integer label slices; the first is the truth.
        prompts: title of a column -> prompts to draw in it.
        scores: title of a column -> Dice over the whole volume, the mean of the labels.
        flat: whether the case is a 2-D image.
        place: see `Place`.
    """

    slices: list[int]
    image: Tensor
    columns: Mapping[str, Tensor]
    prompts: Mapping[str, SlicePrompts | None]
    scores: Mapping[str, float | None]
    flat: bool
    place: Place = Place()


def panel_of(
    image: Tensor,
    columns: Mapping[str, Tensor],
    labels: Mapping[int, str],
    prompts: Mapping[str, SlicePrompts | None] | None = None,
    rows: int = 3,
    place: Place | None = None,
) -> Panel:
    """The slices of a case that are worth a look: evenly spaced ones with labels.

    Args:
        image: (Z, C, H, W) uint8 slices.
        columns: title -> (Z, H, W) integer label slices. The first is the truth.
        labels: label id -> name.
        prompts: title of a column -> prompts to draw in it.
        rows: number of slices.
        place: where the slices lie.
    """
    truth, *others = columns.values()
    picked = _slices_worth_showing([truth, *others], rows)
    return Panel(
        slices=picked,
        image=image[picked],
        columns={title: maps[picked].cpu() for title, maps in columns.items()},
        prompts=prompts or {},
        scores={title: _mean_dice(maps, truth, labels) for title, maps in [*columns.items()][1:]},
        flat=len(image) == 1,
        place=place or Place(),
    )


def draw_overlays(
    path: str | Path,
    image: Tensor,
    columns: Mapping[str, Tensor],
    labels: Mapping[int, str],
    prompts: Mapping[str, SlicePrompts | None] | None = None,
    rows: int = 3,
) -> Path:
    """Draw contours on slices of one case, one column per label map; see `panel_of` and `draw`."""
    return draw(path, panel_of(image, columns, labels, prompts, rows), labels)


def draw(path: str | Path, panel: Panel, labels: Mapping[int, str]) -> Path:
    """Draw contours on slices, one column per label map.

    Args:
        path: PNG to write.
        panel: slices; three channels of a 2-D image are shown as colours, else the middle one is.
            The truth has the first column, and white dashes in the others. Prompts are points, and
            boxes, dashed where a user drew them and dotted on other slices.
        labels: label id -> name.

    Returns:
        path of the PNG.
    """
    truth = next(iter(panel.columns.values()))
    height, width = panel.image.shape[-2:]
    dx, dy = panel.place.pixel or (1.0, 1.0)
    unit = 5.0 if panel.flat else 2.6  # inches of a column; a 2-D image has one row
    seen = [k for k in labels if any((maps == k).any() for maps in panel.columns.values())]
    legend = 0.1 + 0.2 * -(-len(seen) // _LEGEND_COLUMNS)  # inches
    count = len(panel.columns)
    size = (unit * count, unit * len(truth) * height * dy / (width * dx) + 0.6 + legend)
    figure = Figure(figsize=size, dpi=130)
    axes = figure.subplots(len(truth), count, squeeze=False)
    colours = colours_of([*labels])
    for row, z in enumerate(panel.slices):
        for column, (title, maps) in enumerate(panel.columns.items()):
            axis = axes[row, column]
            image = panel.image[row]
            colours_of_photo = panel.flat and image.shape[0] == 3
            # Of a scan, several channels are windows or neighbours: the middle one is the slice.
            shown = image.permute(1, 2, 0) if colours_of_photo else image[len(image) // 2]
            axis.imshow(
                *(shown.numpy(), "gray"),
                vmin=0,
                vmax=255,
                interpolation="nearest",
                aspect=dy / dx,
            )
            for label, colour in colours.items():
                if column:
                    _outline(axis, (truth[row] == label).numpy(), (1.0, 1.0, 1.0), "--", 0.8)
                _outline(axis, (maps[row] == label).numpy(), colour)
            if (given := panel.prompts.get(title)) is not None:
                _draw_prompts(axis, given, z, colours)
            axis.set(xticks=[], yticks=[], xlim=(-1, width), ylim=(height, -1))
            if column == 0:
                _mark(axis, panel.place, width, height)
            if row == 0:
                dice = panel.scores.get(title)
                score = "" if dice is None else f"\nDice {dice:.2f}"
                axis.set_title(f"{_plain(title)}{score}", fontsize=9)
            if column == 0 and not panel.flat:
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


def colours_of(labels: Sequence[int]) -> dict[int, tuple[float, float, float]]:
    """Colour of each label, red, green and blue from 0 to 1; of many labels some share one."""
    palette = COLOURS
    if len(labels) > len(COLOURS):
        palette = [to_rgb(colour) for colour in mpl.color_sequences["tab20"]]
    return {label: palette[i % len(palette)] for i, label in enumerate(labels)}


def _mark(axis: mpl.axes.Axes, place: Place, width: int, height: int) -> None:
    """Letters of the directions at the edges, and a bar of so many millimetres."""
    style: dict[str, Any] = {"color": "white", "fontsize": 7, "ha": "center", "va": "center"}
    style |= {"path_effects": [withStroke(linewidth=1.5, foreground="black")]}
    if place.axes:
        x, y = place.axes[0], place.axes[1]
        left, top = _OPPOSITE[x], _OPPOSITE[y]
        inset = 0.04
        for text, at in (
            *((left, (inset, 0.5)), (x, (1 - inset, 0.5))),
            *((top, (0.5, 1 - inset)), (y, (0.5, inset))),
        ):
            axis.text(*at, text, transform=axis.transAxes, **style)
    if place.pixel:
        across = width * place.pixel[0]
        bar = next((mm for mm in _BARS if mm <= across / 4), 1)
        start, end = 0.05 * width, 0.05 * width + bar / place.pixel[0]
        y_bar = height * 0.94
        axis.plot([start, end], [y_bar, y_bar], "-", color="white", linewidth=2)
        axis.text(end + 0.02 * width, y_bar, f"{bar} mm", **{**style, "ha": "left"})


def _plain(text: str) -> str:
    """A text that matplotlib draws as it is: a dollar sign would begin a formula."""
    return text.replace("$", r"\$")


def _slices_worth_showing(columns: Sequence[Tensor], count: int) -> list[int]:
    """Up to `count` slices of the first map that has some, evenly spaced: middles of stretches."""
    there = [(maps > 0).flatten(1).any(1).nonzero().flatten().tolist() for maps in columns]
    first = next((slices for slices in there if slices), [columns[0].shape[0] // 2])
    count = min(count, len(first))
    return [first[(2 * i + 1) * len(first) // (2 * count)] for i in range(count)]


def _outline(
    axis: mpl.axes.Axes,
    mask: NDArray[np.bool_],
    colour: tuple[float, ...],
    style: str = "-",
    width: float = 1.2,
) -> None:
    if mask.any():
        padded = np.pad(mask.astype(float), 1)  # closes outlines at the picture's border
        grid = (np.arange(-1, mask.shape[1] + 1), np.arange(-1, mask.shape[0] + 1))
        axis.contour(
            *grid, padded, levels=[0.5], colors=[colour], linewidths=width, linestyles=style
        )


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
    values = overlaps(maps, truth, [*labels]).values()
    counted = [value for value in values if value is not None]
    return float(np.mean(counted)) if counted else None
