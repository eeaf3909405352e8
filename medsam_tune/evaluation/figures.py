"""Figures of a report as SVG: plain shapes, coloured by the page, without scripts.

Classes of the shapes are those of `page.html.j2`. Every text is escaped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import Any

import numpy as np

_WIDTH, _LEFT, _RIGHT = 640, 150, 20
_ROW = 34
_LINES = 8  # classes of lines in `page.html.j2`, of another dash each
_LONGEST = 22  # characters of a name beside a figure; under one, twice as many
_LETTER = 9.5  # pixels of a letter, at most: small screens have larger ones


def box_plot(title: str, groups: Mapping[str, Sequence[float]], axis: str) -> str:
    """Horizontal box plots: the box from quartile to quartile, the median, a dot for each case.

    The axis ends at 1, and begins at 0, or nearer where all values are high.

    Args:
        title: what is shown, for screen readers.
        groups: name -> values, 0..1, one at least.
        axis: name of the axis.
    """
    height = _ROW * len(groups) + 58
    lowest = min(min(values) for values in groups.values() if len(values))
    low = max(0.0, float(np.floor(10 * lowest - 0.5)) / 10) if lowest > 0.3 else 0.0
    scale = _Scale(low, 1.0)
    parts = _axis(low, 1.0, 12, height - 42, axis, height - 6)
    said, short = [], _shortened(groups, _LONGEST)
    for row, (name, values) in enumerate(groups.items()):
        y = 12 + _ROW * row + _ROW / 2
        parts.append(_text(_LEFT - 10, y + 4, short[row], "end"))
        if not len(values):
            continue
        q0, q1, q2, q3, q4 = (float(q) for q in np.percentile(values, [0, 25, 50, 75, 100]))
        said.append(f"{name}: median {q2:.3g}, quartiles {q1:.3g} to {q3:.3g}")
        x = [scale(q) for q in (q0, q1, q2, q3, q4)]
        parts.append(f'<path class="whisker" d="M{x[0]:.1f} {y}H{x[4]:.1f}"/>')
        parts.append(
            f'<rect class="box" x="{x[1]:.1f}" y="{y - 9}" width="{max(x[3] - x[1], 1):.1f}" '
            'height="18"/>'
        )
        # Dots keep apart by a fixed pattern: the same report twice is the same file.
        for index, value in enumerate(sorted(values)):
            offset = (index * 7 % 13 - 6) * 0.9
            parts.append(
                f'<circle class="dot" cx="{scale(value):.1f}" cy="{y + offset:.1f}" r="2"/>'
            )
        parts.append(f'<path class="median" d="M{x[2]:.1f} {y - 10}v20"/>')
    return _svg(title, ". ".join(said), height, parts)


def bland_altman(title: str, pairs: Sequence[tuple[float, float]], unit: str) -> str:
    """Difference of two volumes over their mean, with the mean difference and 1.96 deviations.

    Args:
        title: what is shown.
        pairs: true and predicted volume of each case.
        unit: unit of the volumes.
    """
    truth, predicted = np.array(pairs).T
    mean, difference = (truth + predicted) / 2, predicted - truth
    bias = float(difference.mean())
    spread = 1.96 * float(difference.std(ddof=1)) if len(pairs) > 1 else 0.0
    height, top, bottom = 300, 16, 252
    scale = _Scale(0.0, float(mean.max()) * 1.05 or 1.0)
    reach = max(float(np.abs(difference).max()), abs(bias) + spread) * 1.15 or 1.0

    def down(value: float) -> float:
        return top + (reach - value) / (2 * reach) * (bottom - top)

    parts = _axis(0.0, float(mean.max()) * 1.05 or 1.0, top, bottom, f"mean of both, {unit}", 292)
    lines = [(0.0, "grid", ""), (bias, "median", f"mean {_number(bias, '+')}")]
    if spread:
        lines += [
            (bias + side * spread, "limit", _number(bias + side * spread, "+")) for side in (1, -1)
        ]
    for value, kind, name in lines:
        y = down(value)
        parts.append(f'<path class="{kind}" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(_text(_LEFT - 10, y + 4, name, "end"))
    parts += [
        f'<circle class="dot" cx="{scale(float(x)):.1f}" cy="{down(float(y)):.1f}" r="3"/>'
        for x, y in zip(mean, difference, strict=True)
    ]
    said = (
        f"mean difference {_number(bias, '+')} {unit}, 95 % of cases within {_number(spread)} of it"
    )
    return _svg(title, said, height, parts)


def scatter(title: str, pairs: Sequence[tuple[float, float, bool]], axes: tuple[str, str]) -> str:
    """Values from 0 to 1 over values from 0 to 1, with the line where both are equal.

    Args:
        title: what is shown.
        pairs: x, y, and whether the dot is filled; the others are rings.
        axes: names of x and y.
    """
    height, top, bottom = 330, 16, 282
    low = max(0.0, float(np.floor(10 * min(min(x, y) for x, y, _ in pairs))) / 10)
    low = min(low, 0.9)
    scale = _Scale(low, 1.0)

    def down(value: float) -> float:
        return bottom - (value - low) / (1 - low) * (bottom - top)

    parts = _axis(low, 1.0, top, bottom, axes[0], height - 6)
    parts += _levels(ticks(low, 1.0), down)
    parts.append(_text(_LEFT - 50, top + 4, axes[1], "end"))
    parts.append(f'<path class="limit" d="M{scale(low):.1f} {bottom}L{scale(1.0):.1f} {top}"/>')
    for x, y, filled in pairs:
        kind = "dot" if filled else "ring"
        parts.append(f'<circle class="{kind}" cx="{scale(x):.1f}" cy="{down(y):.1f}" r="3"/>')
    said = f"{len(pairs)} dots, {sum(one[2] for one in pairs)} of them filled"
    return _svg(title, said, height, parts)


def curves(title: str, lines: Mapping[str, Sequence[tuple[float, float]]], axis: str) -> str:
    """Values from 0 to 1 over a number, a line with marks for each name.

    Args:
        title: what is shown.
        lines: name -> pairs of x and y, ascending in x.
        axis: name of the x axis.
    """
    ends = [x for points in lines.values() for x, _ in points]
    low, high = min(ends), max(ends)
    high = high if high > low else low + 1
    top, bottom = 16, 232
    scale = _Scale(low, high)

    def down(value: float) -> float:
        return bottom - value * (bottom - top)

    parts = _axis(low, high, top, bottom, axis, 272)
    parts += _levels((0.0, 0.25, 0.5, 0.75, 1.0), down)
    said = []
    for number, (name, points) in enumerate(lines.items()):
        places = [(scale(x), down(y)) for x, y in points]
        way = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        parts.append(f'<path class="line line{number % _LINES}" d="M{way}"/>')
        parts += [_mark(number, x, y) for x, y in places]
        said.append(f"{name}: " + ", ".join(f"{y:.3f} at {x:g}" for x, y in points))
    legend, height = _legend(lines, 296)
    return _svg(title, ". ".join(said), height, [*parts, *legend])


def learning_curve(title: str, lines: Mapping[str, Sequence[Mapping[str, Any]]], axis: str) -> str:
    """Scores over the number of patients, which doubles at even steps: means and intervals.

    Args:
        title: what is shown.
        lines: name -> points with `patients`, `mean` 0..1, `interval` or None, and `foretold`
            where nobody measured it: that part is pale.
        axis: name of the x axis.
    """
    sizes = sorted({point["patients"] for points in lines.values() for point in points})
    values = [v for points in lines.values() for p in points for v in (p["mean"], *_ends(p))]
    lowest = max(0.0, float(np.floor(10 * min(values))) / 10)
    top, bottom = 16, 232
    scale = _Scale(float(np.log2(sizes[0])), float(np.log2(sizes[-1])))

    def across(patients: int) -> float:
        return scale(float(np.log2(patients)))

    def down(value: float) -> float:
        return bottom - (value - lowest) / (1 - lowest) * (bottom - top)

    parts = [f'<path class="axis" d="M{_LEFT} {bottom}H{_WIDTH - _RIGHT}"/>']
    for size in sizes:
        parts.append(f'<path class="grid" d="M{across(size):.1f} {top}V{bottom}"/>')
        parts.append(_text(across(size), bottom + 16, str(size), "middle"))
    parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, bottom + 36, axis, "middle"))
    parts += _levels(ticks(lowest, 1.0), down)
    said = []
    for number, (name, points) in enumerate(lines.items()):
        kind = f"line line{number % _LINES}"
        aside = (number - (len(lines) - 1) / 2) * min(4, 24 / len(lines))  # whiskers stand apart
        for before, after in pairwise(points):
            parts.append(
                f'<path class="{kind}"{_pale(after)} d="M{across(before["patients"]):.1f} '
                f"{down(before['mean']):.1f}L{across(after['patients']):.1f} "
                f'{down(after["mean"]):.1f}"/>'
            )
        for point in points:
            x, ends = across(point["patients"]), _ends(point)
            if ends:
                parts.append(
                    f'<path class="whisker"{_pale(point)} d="M{x + aside:.1f} {down(ends[0]):.1f}'
                    f'V{down(ends[1]):.1f}"/>'
                )
            parts.append(_mark(number, x, down(point["mean"]), _pale(point)))
        said.append(f"{name}: " + ", ".join(f"{p['mean']:.3f} at {p['patients']}" for p in points))
    legend, height = _legend(lines, 296)
    return _svg(title, ". ".join(said), height, [*parts, *legend])


def _mark(number: int, x: float, y: float, style: str = "") -> str:
    """The mark of a line at a point; of nine kinds, so that with its dash each line is its own."""
    kind, shape = _MARKS[number % len(_MARKS)]
    return f'<path class="{kind}"{style} d="M{x:.1f} {y:.1f}{shape}"/>'


def _square(half: float) -> str:
    return f"m-{half} -{half}h{2 * half}v{2 * half}h-{2 * half}z"


_MARKS = (
    ("dot", "m-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0 -7 0z"),
    ("dot", _square(3.2)),
    ("dot", "m0 -4.5l4.5 8h-9z"),
    ("ring", "m-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0 -7 0z"),
    ("ring", _square(3.2)),
    ("ring", "m0 -4.5l4.5 8h-9z"),
    ("dot", "m0 -5l5 5l-5 5l-5 -5z"),
    ("ring", "m-4 -4l8 8m-8 0l8 -8"),
    ("ring", "m-5 0h10m-5 -5v10"),
)


def _legend(names: Iterable[str], top: float) -> tuple[list[str], float]:
    """Entries of the lines in rows, as long as their texts; and the lower end of the figure."""
    parts: list[str] = []
    x, y = 10.0, top
    for number, name in enumerate(_shortened(names, 2 * _LONGEST)):
        width = 34 + _LETTER * len(name)
        if x > 10 and x + width > _WIDTH:
            x, y = 10.0, y + 22
        parts.append(f'<path class="line line{number % _LINES}" d="M{x:.1f} {y - 4}h28"/>')
        parts += [_mark(number, x + 14, y - 4), _text(x + 34, y, name, "start")]
        x += width + 14
    return parts, y + 10


def _pale(point: Mapping[str, Any]) -> str:
    return ' opacity="0.4"' if point.get("foretold") else ""


def _ends(point: Mapping[str, Any]) -> tuple[float, ...]:
    return tuple(point["interval"] or ())


class _Scale:
    """A number of the axis -> pixels."""

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high if high > low else low + 1

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)


def _axis(low: float, high: float, top: float, bottom: float, name: str, below: float) -> list[str]:
    scale = _Scale(low, high)
    parts = [f'<path class="axis" d="M{_LEFT} {bottom}H{_WIDTH - _RIGHT}"/>']
    for tick in ticks(low, high):
        x = scale(tick)
        parts.append(f'<path class="grid" d="M{x:.1f} {top}V{bottom}"/>')
        parts.append(_text(x, bottom + 16, _number(tick), "middle"))
    return [*parts, _text((_LEFT + _WIDTH - _RIGHT) / 2, below, name, "middle")]


def _levels(values: Sequence[float], down: Callable[[float], float]) -> Iterable[str]:
    """Lines across a figure at some heights, with their numbers."""
    for value in values:
        y = down(value)
        yield f'<path class="grid" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>'
        yield _text(_LEFT - 10, y + 4, f"{value:.3g}", "end")


def ticks(low: float, high: float) -> list[float]:
    """Round numbers of an axis, 4 to 8 of them."""
    span = high - low if high > low else 1.0
    power = 10.0 ** np.floor(np.log10(span))
    step = next(s * power for s in (0.1, 0.2, 0.25, 0.5, 1.0, 2.0) if span / (s * power) <= 7)
    first, last = np.ceil(low / step - 1e-9), np.floor((low + span) / step + 1e-9)
    return [float(n * step) + 0.0 for n in np.arange(first, last + 1)]


def _number(value: float, sign: str = "") -> str:
    """A number of three digits, or of all of a large one: "-0.25", "12,500"."""
    return f"{value:{sign},.0f}" if abs(value) >= 1000 else f"{value:{sign}.3g}"


def _shortened(names: Iterable[str], most: int) -> list[str]:
    """Names of so many characters at most, without their middles; no two are the same."""
    found: list[str] = []
    for name in names:
        end = most // 2
        short = name if len(name) <= most else f"{name[: most - end - 1]}\u2026{name[-end:]}"
        number = 2
        while short in found:
            tail = f"\u2026 ({number})"
            short, number = name[: most - len(tail)] + tail, number + 1
        found.append(short)
    return found


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(title: str, said: str, height: float, parts: Sequence[str]) -> str:
    name = escape(f"{title}. {said}" if said else title)
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height:g}" role="img" aria-label="{name}">'
        f"{''.join(parts)}</svg>"
    )
