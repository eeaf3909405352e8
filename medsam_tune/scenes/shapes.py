"""Where the objects of a scene lie: layers of implicit shapes, nested, touching, hiding each other.

Coordinates run from -1 to 1 along both sides. A shape is a function that is positive inside; all
shapes are members of one family, so that a layer of a whole batch is drawn at once: an ellipse or
rectangle or what lies between, stretched, turned, bent, roughened by a random field, hollowed out
to a ring and bitten into. Long thin ones are tubes and roads, bent ones crescents.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from medsam_tune.scenes.draw import Draw
from medsam_tune.scenes.fields import smooth_field

# Kinds of scenes and how often each is drawn.
KINDS = {"body": 0.5, "crop": 0.2, "cells": 0.1, "aerial": 0.12, "page": 0.08}
LAYERS = 16
CELLS = 6  # of a lattice of cells, those that can be asked for
_LATTICE = 12  # most cells along a side
_ROUGH = {3: 1.0, 5: 0.9, 8: 0.6, 14: 0.35, 24: 0.2}  # cells along a side: how far borders move
_OFF = 100.0  # a ring or a bite so far out that there is none


@dataclass
class Layers:
    """The shapes of B scenes; index 0 along K + 1 is the background.

    Attributes:
        kind: (B,) int64 index into `KINDS`.
        anchor: (B, K + 1) int64 the layer that one was placed in or beside.
        parent: (B, K + 1) int64 the layer that one is a part of; 0 for none.
        inside: (B, K + 1) bool, placed in its anchor rather than beside it.
        active: (B, K + 1) bool.
        x, y, a, b, angle: (B, K + 1) float centre, half axes and turn.
        square: (B, K + 1) float 0 for an ellipse, 1 for a rectangle.
        bend, rough, ring: (B, K + 1) float.
        bite: (B, K + 1, 3) float place along both axes and size of what is bitten out.
        texture: (B, K + 1) int64 the field that roughens the border.
    """

    kind: Tensor
    anchor: Tensor
    parent: Tensor
    inside: Tensor
    active: Tensor
    x: Tensor
    y: Tensor
    a: Tensor
    b: Tensor
    angle: Tensor
    square: Tensor
    bend: Tensor
    rough: Tensor
    ring: Tensor
    bite: Tensor
    texture: Tensor

    def at(self, index: int) -> dict[str, Tensor]:
        """The numbers (B, 1, 1) of one layer."""
        names = ("x", "y", "a", "b", "angle", "square", "bend", "rough", "ring", "active")
        return {name: getattr(self, name)[:, index, None, None] for name in names}

    def is_kind(self, name: str) -> Tensor:
        """(B,) bool."""
        return self.kind == list(KINDS).index(name)


def plan_layers(draw: Draw, count: int) -> Layers:
    """Choose the shapes of `count` scenes."""
    b, k = count, LAYERS + 1
    edges = torch.tensor(list(KINDS.values())).cumsum(0)[:-1].to(draw.device)
    kind = torch.bucketize(draw.uniform(b), edges)
    made = (kind == 3) | (kind == 4)  # man-made
    page = kind == 4
    man, sheet = made[:, None], page[:, None]
    aspect = draw.log_uniform(b, k, low=1, high=3)
    tube = draw.chance(b, k, p=0.18) & ~sheet
    clones = draw.chance(b, p=0.25)[:, None]  # many of one size
    one_size = draw.log_uniform(b, 1, low=0.05, high=0.25)
    turn = draw.uniform(b, k, high=math.pi)
    quarter = draw.uniform(b, 1, high=math.pi) + draw.integer(b, k, high=2) * (math.pi / 2)
    turn = torch.where(man, quarter + 0.02 * draw.normal(b, k), turn)
    turn = torch.where(sheet, 0.0, turn)
    square = draw.uniform(b, k) ** 2 * 0.8
    square = torch.where(man, 1 - 0.1 * draw.uniform(b, k), square)
    texture = draw.integer(b, k, high=len(_ROUGH))
    rough = draw.log_uniform(b, k, low=0.02, high=0.35) * ~man
    rough = rough * torch.tensor(list(_ROUGH.values()), device=draw.device)[texture]
    ring = torch.where(
        draw.chance(b, k, p=0.1) & ~sheet, draw.log_uniform(b, k, low=0.1, high=0.5), _OFF
    )
    bitten = draw.chance(b, k, p=0.25) & ~sheet
    place = draw.uniform(b, k, 2, low=-1.1, high=1.1)
    bite = torch.stack(
        [
            *torch.where(bitten[..., None], place, _OFF).unbind(-1),
            draw.uniform(b, k, low=0.3, high=0.9),
        ],
        -1,
    )
    layers = Layers(
        kind=kind,
        anchor=torch.zeros(b, k, dtype=torch.long, device=draw.device),
        parent=torch.zeros(b, k, dtype=torch.long, device=draw.device),
        inside=torch.ones(b, k, dtype=torch.bool, device=draw.device),
        active=torch.arange(k, device=draw.device) <= draw.uniform(b, 1, low=6, high=k + 2),
        x=torch.zeros(b, k, device=draw.device),
        y=torch.zeros(b, k, device=draw.device),
        a=torch.ones(b, k, device=draw.device),
        b=torch.ones(b, k, device=draw.device),
        angle=turn,
        square=square,
        bend=draw.normal(b, k) * 0.35 * draw.chance(b, k, p=0.4) * ~sheet,
        rough=rough,
        ring=ring,
        bite=bite,
        texture=texture,
    )
    rows = torch.arange(b, device=draw.device)
    for i in range(1, k):
        j = (draw.uniform(b) ** 1.3 * i).long()  # an earlier layer, the large ones more often
        j = torch.where(made, 0, j)
        inside = draw.chance(b, p=0.65) | (j == 0)
        other = (layers.a[rows, j] * layers.b[rows, j]).sqrt()
        size = other * draw.log_uniform(b, low=0.1, high=0.65)
        size = torch.where(inside, size, other * draw.log_uniform(b, low=0.4, high=1.4))
        size = torch.where(j == 0, draw.log_uniform(b, low=0.06, high=0.7), size)
        size = torch.where(
            clones[:, 0], one_size[:, 0] * draw.log_uniform(b, low=0.8, high=1.25), size
        )
        size = size.clamp(0.035, 1.0)
        direction = draw.uniform(b, high=2 * math.pi)
        away = torch.where(inside, 0.55 * other * draw.uniform(b).sqrt(), other + 0.8 * size)
        x = layers.x[rows, j] + away * direction.cos()
        y = layers.y[rows, j] + away * direction.sin()
        free = j == 0
        x = torch.where(free, draw.uniform(b, low=-0.95, high=0.95), x)
        y = torch.where(free, draw.uniform(b, low=-0.95, high=0.95), y)
        stretch = aspect[:, i].sqrt()
        a, c = size * stretch, size / stretch
        thin = torch.minimum(draw.log_uniform(b, low=0.02, high=0.12), size * 0.5)
        a = torch.where(tube[:, i], (size * 3).clamp(max=2.5), a)
        a = torch.where(tube[:, i] & made, 2.5, a)
        c = torch.where(tube[:, i], thin, c)
        a = torch.where(page, draw.log_uniform(b, low=0.1, high=0.9), a)
        c = torch.where(page, draw.log_uniform(b, low=0.025, high=0.5), c)
        if i == 1:
            trunk = kind == 0
            x, y = (torch.where(trunk, 0.1 * draw.normal(b), v) for v in (x, y))
            a = torch.where(trunk, draw.uniform(b, low=0.6, high=1.0), a)
            c = torch.where(trunk, draw.uniform(b, low=0.5, high=0.9), c)
            layers.angle[:, 1] *= ~trunk
            layers.rough[:, 1] = torch.where(trunk, 0.3 * rough[:, 1], rough[:, 1])
            for value, off in ((layers.ring, _OFF), (layers.bite, _OFF), (layers.bend, 0.0)):
                value[:, 1] = torch.where(
                    trunk.view(-1, *(1,) * (value.ndim - 2)), off, value[:, 1]
                )
        layers.x[:, i], layers.y[:, i], layers.a[:, i], layers.b[:, i] = x, y, a, c
        layers.anchor[:, i] = j
        layers.inside[:, i] = inside
        layers.parent[:, i] = torch.where(inside, j, layers.parent[rows, j])
    # A tube is wide in no place, so its border is roughened less and it is not hollow.
    layers.rough[tube] *= 0.5
    layers.ring[tube] = _OFF
    layers.bite[tube] = _OFF
    return layers


def paint(draw: Draw, layers: Layers, size: int) -> tuple[Tensor, Tensor]:
    """Draw the layers over each other.

    Args:
        draw: source of randomness.
        layers: of B scenes.
        size: S, pixels.

    Returns:
        ids: (B, S, S) int64 the uppermost layer: 0 background, 1 to K layers, K + 1 cells that
            cannot be asked for, K + 2 onwards those that can.
        inside: (B, K + 1, S, S) float, positive in each layer as if nothing hid it, about 1 in
            its middle.
    """
    b, k = layers.x.shape
    axis = (torch.arange(size, device=draw.device) + 0.5) / size * 2 - 1
    bent = torch.tensor([0.05, 0.05, 0.12, 0.0, 0.0], device=draw.device)[layers.kind]  # by kind
    warp = smooth_field(draw, b, 2, 3, size) * bent[:, None, None, None]
    x, y = axis + warp[:, 0], axis[:, None] + warp[:, 1]
    rough = torch.cat([smooth_field(draw, b, 1, n, size) for n in _ROUGH], 1)
    rows = torch.arange(b, device=draw.device)
    inside = x.new_full((b, k, size, size), _OFF)
    ids = torch.zeros((b, size, size), dtype=torch.long, device=draw.device)
    for i in range(1, k):
        one = layers.at(i)
        dx, dy = x - one["x"], y - one["y"]
        cos, sin = one["angle"].cos(), one["angle"].sin()
        u = (cos * dx + sin * dy) / one["a"]
        v = (cos * dy - sin * dx) / one["b"] + one["bend"] * (u * u - 0.3) * one["a"] / one["b"]
        square = one["square"]
        f = 1 - _norm(u, v, square) - one["rough"] * rough[rows, layers.texture[:, i]]
        bite = layers.bite[:, i, :, None, None]
        if bool((layers.bite[:, i, 0] < _OFF).any()):
            gap = _norm((u - bite[:, 0]) / bite[:, 2], (v - bite[:, 1]) / bite[:, 2], square) - 1
            f = torch.minimum(f, gap)
        f = torch.minimum(f, one["ring"] - f)
        f = torch.minimum(f, inside[rows, layers.parent[:, i]])
        f = torch.where(one["active"], f, -1.0)
        inside[:, i] = f
        ids = torch.where(f > 0, i, ids)
    cells = layers.is_kind("cells").nonzero()[:, 0]
    if len(cells):
        ids[cells] = _paint_cells(draw, ids[cells], x[cells], y[cells], k)
    return ids, inside


def _norm(u: Tensor, v: Tensor, square: Tensor) -> Tensor:
    """1 on the border of the unit circle (square 0), the unit square (1), or between."""
    u, v = u.abs(), v.abs()
    return torch.lerp((u * u + v * v).sqrt(), torch.maximum(u, v), square)


def _paint_cells(draw: Draw, ids: Tensor, x: Tensor, y: Tensor, first: int) -> Tensor:
    """A lattice of blobs, each at its own place in its own square; `CELLS` of them by name."""
    b = len(ids)
    side = draw.uniform(b, low=3, high=_LATTICE).floor()[:, None, None]
    turn = draw.normal(b, 1, 1) * 0.3
    x, y = turn.cos() * x + turn.sin() * y, turn.cos() * y - turn.sin() * x
    u, v = (x + 1.4) / 2.8 * side, (y + 1.4) / 2.8 * side
    column = u.floor().clamp(0, _LATTICE - 1).long()
    row = v.floor().clamp(0, _LATTICE - 1).long()
    cell = (row * _LATTICE + column).flatten(1)

    def of_cell(table: Tensor) -> Tensor:
        return table.gather(1, cell).view_as(u)

    every = (b, _LATTICE * _LATTICE)
    radius = draw.uniform(b, 1, low=0.25, high=0.5) * draw.uniform(*every, low=0.7, high=1)
    middle = [0.5 + draw.uniform(*every, low=-0.5, high=0.5) * (1 - 2 * radius).abs() for _ in "xy"]
    angle, stretch = draw.uniform(*every, high=math.pi), draw.uniform(*every, low=1, high=1.6)
    du, dv = u - column - of_cell(middle[0]), v - row - of_cell(middle[1])
    cos, sin = of_cell(angle).cos(), of_cell(angle).sin()
    p, q = cos * du + sin * dv, (cos * dv - sin * du) * of_cell(stretch)
    there = (p * p + q * q).sqrt() < of_cell(radius)
    # Numbers of the cells that can be asked for, at random among the first of the lattice's square.
    names = torch.full(every, first, device=ids.device)
    inner = side[:, 0, 0].long()
    for i in range(CELLS):
        place = [(draw.uniform(b) * inner).long().clamp(max=_LATTICE - 1) for _ in "xy"]
        names[torch.arange(b, device=ids.device), place[0] * _LATTICE + place[1]] = first + 1 + i
    return torch.where(there, of_cell(names), ids)


def descendants(layers: Layers) -> Tensor:
    """(B, N, N) bool, N = K + 2 + `CELLS`: whether id n is the object m or a part of it."""
    b, k = layers.parent.shape
    n = k + 1 + CELLS
    tree = torch.eye(n, dtype=torch.bool, device=layers.parent.device).repeat(b, 1, 1)
    rows = torch.arange(b, device=tree.device)
    for i in range(1, k):
        tree[:, :, i] |= tree[rows, :, layers.parent[:, i]]
    tree[:, 0] = False
    return tree
