"""Spatial blocks: what lies side by side on the ground stays in one subset.

Neighbouring places look alike and share houses and roads, so that a random split of them leaks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from medsam_tune.cases.datalist import Case, Datalist
from medsam_tune.cases.pairs import safe_name
from medsam_tune.cases.patients import with_cases
from medsam_tune.errors import DataError, about, warn
from medsam_tune.formats import vectors
from medsam_tune.formats.open import is_flat, read_grid
from medsam_tune.formats.volume import Grid

_SIDE = re.compile(r"(\d+(?:\.\d+)?) ?(m|px)")
_CUT_FROM = 1.5  # blocks: a side of an image from which on it is cut


@dataclass(frozen=True)
class Side:
    """Side of a block.

    Attributes:
        length: number of metres or pixels.
        metres: whether it is metres.
    """

    length: float
    metres: bool

    def pixels(self, case: Case, grid: Grid) -> float:
        """Pixels of an image.

        Raises:
            DataError: metres, and the size of the image's pixels is unknown.
        """
        if not self.metres:
            return self.length
        if not grid.spacing_known:
            raise DataError(
                f"the size of a pixel is unknown ({case.image}), and --blocks is {self.length:g}m; "
                "expected pixels, such as --blocks 512px."
            )
        return 1000 * self.length / float(np.linalg.norm(grid.affine[:3, 0]))


def side_from(text: str) -> Side:
    """The side of a block as it is typed: "120m" or "512px".

    Raises:
        ValueError: another text, or no length.
    """
    found = _SIDE.fullmatch(text.strip())
    if found is None or not float(found[1]):
        raise ValueError(
            f"--blocks is {text!r}; expected the side of a block in metres or pixels, such as 120m "
            "or 512px."
        )
    return Side(float(found[1]), found[2] == "m")


def in_blocks(datalist: Datalist, side: Side) -> Datalist:
    """The datalist with blocks as its groups ("patients").

    An image that is larger than a block is cut into blocks of about this side, each a case. Smaller
    images are chips of a scene: those whose centres lie in one block are a group.

    Args:
        datalist: datalist before the split.
        side: side of a block.

    Raises:
        DataError: an image that is no 2-D image, or a chip without a place on the ground; a mask of
            another size than its image; metres of an image whose pixels have no known size.
    """
    parts: dict[str, list[Case]] = {}
    chips: list[tuple[Case, Grid]] = []
    for case in datalist.cases:
        with about(f"case {case.id}"):
            if not is_flat(case.image):
                raise DataError(f"{case.image} is no 2-D image; leave --blocks out.")
            grid = read_grid(case.image)
            pixels = side.pixels(case, grid)
            if max(grid.shape[:2]) > _CUT_FROM * pixels:
                parts[case.id] = _cut(case, grid, pixels)
            elif grid.georeference is None:
                raise DataError(
                    f"{case.image} is smaller than a block, and has no place on the ground to "
                    "group it by. Leave --blocks out, and say the groups: --patient-regex or "
                    "--patients."
                )
            else:
                chips.append((case, grid))
                parts[case.id] = [_grouped(case, grid, pixels)]
    _warn_of_overlaps([(parts[case.id][0], grid) for case, grid in chips])
    cut = tuple(part for case in datalist.cases for part in parts[case.id])
    whole = with_cases(datalist, lambda case: case)
    return replace(whole, training=cut, validation=(), test=(), present={})


def _cut(case: Case, grid: Grid, pixels: float) -> list[Case]:
    """The blocks of an image, row by row."""
    if case.label is not None and is_flat(case.label):
        found = read_grid(case.label).shape
        if found != grid.shape:
            raise DataError(
                f"the mask has {found[0]} x {found[1]} pixels, the image {grid.shape[0]} x "
                f"{grid.shape[1]} ({case.label}, {case.image}); expected the same size."
            )
    if case.label is not None and vectors.is_vector(case.label) and grid.georeference is not None:
        vectors.read(case.label, grid.georeference, (grid.shape[0], grid.shape[1]))
    edges = [
        np.linspace(0, length, max(1, round(length / pixels)) + 1).round().astype(int).tolist()
        for length in grid.shape[:2]
    ]
    blocks = []
    for row, (y0, y1) in enumerate(zip(edges[1], edges[1][1:], strict=False)):
        for column, (x0, x1) in enumerate(zip(edges[0], edges[0][1:], strict=False)):
            name = safe_name(f"{case.id}_r{row:02}_c{column:02}")
            region = (x0, y0, x1, y1)
            blocks.append(replace(case, patient=name, name=name, region=region, guessed=False))
    return blocks


def _grouped(case: Case, grid: Grid, pixels: float) -> Case:
    """A chip in the group of the block that its centre lies in."""
    reference = grid.georeference
    assert reference is not None
    side = pixels * np.hypot(*reference.steps[0])
    x, y = reference.at(grid.shape[0] / 2, grid.shape[1] / 2)
    return replace(case, patient=f"block_{int(x // side)}_{int(y // side)}", guessed=False)


def _warn_of_overlaps(chips: Iterable[tuple[Case, Grid]]) -> None:
    """Say which chips of different blocks have ground in common."""
    groups: list[str] = []
    bounds: list[Any] = []
    names: list[str] = []
    for case, grid in chips:
        reference = grid.georeference
        assert reference is not None
        corners = [reference.at(x, y) for x in (0, grid.shape[0]) for y in (0, grid.shape[1])]
        bounds.append([*np.min(corners, 0), *np.max(corners, 0)])
        groups.append(case.patient)
        names.append(case.id)
    if len(groups) < 2:
        return
    box, group = np.array(bounds), np.array(groups)
    near = 1e-6 * (box[:, 2:] - box[:, :2]).min()
    for n, own in enumerate(box):
        other = (np.minimum(box[:, 2:], own[2:]) - np.maximum(box[:, :2], own[:2]) > near).all(1)
        other &= group != group[n]
        if other.any():
            warn(
                f"{names[n]} and {names[int(np.flatnonzero(other)[0])]} overlap and lie in "
                "different blocks, so that subsets may share ground. Cut chips without an overlap, "
                "or take larger blocks."
            )
            return
