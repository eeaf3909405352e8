"""Objects of a scene: layers of implicit shapes, nested, touching, hiding each other.

Coordinates run from -1 to 1 along both sides. A shape is a function that is positive inside. All
shapes belong to one family, so that a layer of a whole batch is drawn at once: from ellipse to
rectangle, stretched, turned, bent, roughened by a random field, hollowed out to a ring, or with a
bite taken out. Long thin shapes are tubes and roads, bent ones crescents.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from medsam_tune.synthetic.scenes.draw import Draw
from medsam_tune.synthetic.scenes.fields import smooth_field

# Kind of scene -> its probability.
KINDS = {"body": 0.5, "crop": 0.2, "cells": 0.1, "aerial": 0.12, "page": 0.08}
_BODY, _CROP, _CELLS, _AERIAL, _PAGE = range(5)
LAYERS = 16
CELLS = 6  # number of cells of a lattice that can be prompted for
_LATTICE = 24  # most cells along a side
_ROUGH = {3: 1.0, 5: 0.9, 8: 0.6, 14: 0.35, 24: 0.2}  # cells along a side: shift of borders
_OFF = 100.0  # so far out that there is no ring or bite


@dataclass
class Layers:
    """The shapes of B scenes; index 0 along K + 1 is the background.

    Attributes:
        kind: (B,) int64, index into `KINDS`.
        anchor: (B, K + 1) int64, layer that this one was placed in or beside.
        parent: (B, K + 1) int64, layer that this one is a part of; 0 for none.
        active: (B, K + 1) bool, True for layers that are drawn.
        x, y, a, b, angle: (B, K + 1) float, centre, half axes and rotation (radians).
        square: (B, K + 1) float, 0 for an ellipse, 1 for a rectangle.
        bend, rough, ring: (B, K + 1) float, strength of bending and roughness, width of the ring.
        bite: (B, K + 1, 3) float, place along both axes and size of the bite.
        texture: (B, K + 1) int64, index of the field that roughens the border.
    """

    kind: Tensor
    anchor: Tensor
    parent: Tensor
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
        """(B,) bool, True for scenes of a kind."""
        return self.kind == list(KINDS).index(name)


def plan_layers(draw: Draw, count: int) -> Layers:
    """Choose the shapes of `count` scenes."""
    edges = torch.tensor(list(KINDS.values())).cumsum(0)[:-1].to(draw.device)
    kind = torch.bucketize(draw.uniform(count), edges)
    tube = draw.chance(count, LAYERS + 1, p=0.18) & (kind != _PAGE)[:, None]
    layers = _outlines(draw, kind, tube)
    clones = draw.chance(count, p=0.25)  # objects of one size
    one_size = draw.log_uniform(count, low=0.025, high=0.25)
    one_size = torch.where(clones, one_size, torch.nan)
    for i in range(1, LAYERS + 1):
        _place(draw, layers, i, tube[:, i], one_size)
        if i == 1:
            _make_trunk(draw, layers)
    return layers


def _outlines(draw: Draw, kind: Tensor, tube: Tensor) -> Layers:
    """Shapes of the layers, without place and size."""
    b, k = tube.shape
    page = (kind == _PAGE)[:, None]
    made = (kind == _AERIAL)[:, None] | page
    turn = draw.uniform(b, k, high=math.pi)
    quarter = draw.uniform(b, 1, high=math.pi) + draw.integer(b, k, high=2) * (math.pi / 2)
    turn = torch.where(made, quarter + 0.02 * draw.normal(b, k), turn)
    square = draw.uniform(b, k) ** 2 * 0.8
    texture = draw.integer(b, k, high=len(_ROUGH))
    rough = draw.log_uniform(b, k, low=0.02, high=0.35) * ~made
    rough = rough * torch.tensor(list(_ROUGH.values()), device=draw.device)[texture]
    hollow = draw.chance(b, k, p=0.1) & ~page & ~tube
    bitten = draw.chance(b, k, p=0.25) & ~page & ~tube
    place = draw.uniform(b, k, 2, low=-1.1, high=1.1)
    nothing, zeros = torch.zeros(b, k, dtype=torch.long, device=draw.device), tube.float() * 0
    return Layers(
        kind=kind,
        anchor=nothing,
        parent=nothing.clone(),
        active=torch.arange(k, device=draw.device) <= draw.uniform(b, 1, low=8, high=k + 4),
        x=zeros,
        y=zeros.clone(),
        a=zeros + 1,
        b=zeros + 1,
        angle=torch.where(page, 0.0, turn),
        square=torch.where(made, 1 - 0.1 * draw.uniform(b, k), square),
        bend=draw.normal(b, k) * 0.35 * draw.chance(b, k, p=0.4) * ~page,
        rough=torch.where(tube, 0.5 * rough, rough),
        ring=torch.where(hollow, draw.log_uniform(b, k, low=0.1, high=0.5), _OFF),
        bite=torch.cat(
            [
                torch.where(bitten[..., None], place, _OFF),
                draw.uniform(b, k, 1, low=0.3, high=0.9),
            ],
            -1,
        ),
        texture=texture,
    )


def _place(draw: Draw, layers: Layers, i: int, tube: Tensor, one_size: Tensor) -> None:
    """Put layer i in or beside an earlier layer, its anchor; 0 is the whole image.

    Args:
        draw: source of randomness.
        layers: layers, filled up to i - 1, changed in place.
        i: index of the layer.
        tube: (B,) bool, True for long and thin shapes.
        one_size: (B,) float, common size of all objects of a scene; NaN for different sizes.
    """
    b = len(tube)
    rows = torch.arange(b, device=draw.device)
    page = layers.kind == _PAGE
    made = page | (layers.kind == _AERIAL)
    anchor = (draw.uniform(b) ** 1.3 * i).long()  # an earlier layer, the first more often
    anchor = torch.where(made, 0, anchor)
    organ = (layers.kind == _BODY) & (anchor < 2) & draw.chance(b, p=0.9)  # within the trunk
    organ = organ & (i > 1)
    anchor = torch.where(organ, 1, anchor)
    free = anchor == 0
    inside = draw.chance(b, p=0.65) | free | organ
    reach = (layers.a[rows, anchor] * layers.b[rows, anchor]).sqrt()
    part = reach * draw.log_uniform(b, low=0.04, high=0.65)
    neighbour = reach * draw.log_uniform(b, low=0.3, high=1.4)
    size = torch.where(inside, part, neighbour)
    size = torch.where(free, draw.log_uniform(b, low=0.03, high=0.7), size)
    alike = one_size * draw.log_uniform(b, low=0.8, high=1.25)
    size = torch.where(alike.isnan(), size, alike).clamp(0.02, 1.0)
    direction = draw.uniform(b, high=2 * math.pi)
    depth = torch.where(organ, 0.85, 0.55) * reach * draw.uniform(b).sqrt()
    away = torch.where(inside, depth, reach + 0.8 * size)
    for name, step in (("x", direction.cos()), ("y", direction.sin())):
        place = getattr(layers, name)
        near = place[rows, anchor] + away * step
        place[:, i] = torch.where(free, draw.uniform(b, low=-0.95, high=0.95), near)
    stretch = draw.log_uniform(b, low=1, high=3).sqrt()
    thin = torch.minimum(draw.log_uniform(b, low=0.02, high=0.12), size * 0.5)
    length = torch.where(made, 2.5, (size * 3).clamp(max=2.5))
    block = draw.log_uniform(b, low=0.1, high=0.9), draw.log_uniform(b, low=0.025, high=0.5)
    layers.a[:, i] = torch.where(page, block[0], torch.where(tube, length, size * stretch))
    layers.b[:, i] = torch.where(page, block[1], torch.where(tube, thin, size / stretch))
    layers.anchor[:, i] = anchor
    layers.parent[:, i] = torch.where(inside, anchor, layers.parent[rows, anchor])


def _make_trunk(draw: Draw, layers: Layers) -> None:
    """The first layer of a body: large, upright, whole."""
    trunk = layers.kind == _BODY
    b = len(trunk)
    for name, value in (
        ("x", 0.1 * draw.normal(b)),
        ("y", 0.1 * draw.normal(b)),
        ("a", draw.uniform(b, low=0.6, high=1.0)),
        ("b", draw.uniform(b, low=0.5, high=0.9)),
        ("angle", 0.0),
        ("rough", 0.3 * layers.rough[:, 1]),
        ("ring", _OFF),
        ("bend", 0.0),
    ):
        of_layer = getattr(layers, name)
        of_layer[:, 1] = torch.where(trunk, value, of_layer[:, 1])
    layers.bite[:, 1] = torch.where(trunk[:, None], _OFF, layers.bite[:, 1])


def paint(draw: Draw, layers: Layers, size: int) -> tuple[Tensor, Tensor]:
    """Draw the layers over each other.

    Args:
        draw: source of randomness.
        layers: layers of B scenes.
        size: S, pixels.

    Returns:
        ids: (B, S, S) int64, uppermost layer: 0 background, 1 to K layers, K + 1 cells that cannot
            be prompted for, K + 2 onwards those that can.
        inside: (B, K + 1, S, S) float, positive in each whole layer, hidden parts too; about 1 in
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
    cells = (layers.kind == _CELLS).nonzero()[:, 0]
    if len(cells):
        ids[cells] = _paint_cells(draw, ids[cells], x[cells], y[cells], k)
    return ids, inside


def _norm(u: Tensor, v: Tensor, square: Tensor) -> Tensor:
    """Norm, 1 on the border of the unit circle (square 0), the unit square (1), or between."""
    u, v = u.abs(), v.abs()
    return torch.lerp((u * u + v * v).sqrt(), torch.maximum(u, v), square)


def _paint_cells(draw: Draw, ids: Tensor, x: Tensor, y: Tensor, first: int) -> Tensor:
    """Paint a lattice of blobs, one at a random place in each square; `CELLS` get an id."""
    b = len(ids)
    side = draw.log_uniform(b, low=3, high=_LATTICE).floor()[:, None, None]
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
    # Ids of the cells that can be prompted for, at random places of the lattice.
    names = torch.full(every, first, device=ids.device)
    inner = side[:, 0, 0].long()
    for i in range(CELLS):
        place = [(draw.uniform(b) * inner).long().clamp(max=_LATTICE - 1) for _ in "xy"]
        names[torch.arange(b, device=ids.device), place[0] * _LATTICE + place[1]] = first + 1 + i
    return torch.where(there, of_cell(names), ids)


def descendants(layers: Layers) -> Tensor:
    """(B, N, N) bool, N = K + 2 + `CELLS`: True if id n is the object m or a part of it."""
    b, k = layers.parent.shape
    n = k + 1 + CELLS
    tree = torch.eye(n, dtype=torch.bool, device=layers.parent.device).repeat(b, 1, 1)
    rows = torch.arange(b, device=tree.device)
    for i in range(1, k):
        tree[:, :, i] |= tree[rows, :, layers.parent[:, i]]
    tree[:, 0] = False
    return tree
