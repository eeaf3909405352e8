"""Prompts in the world give the same mask in the world, however the scan is stored."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from medsam_tune.inference.inferers import EllipseInferer
from medsam_tune.inference.prompt_files import read_prompts
from medsam_tune.prompts import SlicePrompts
from medsam_tune.slices.frames import ScanGrid
from medsam_tune.slices.intensity import Window
from medsam_tune.slices.rules import ScanRules
from tests.scans import write_nifti
from tests.slices.test_frames import STRAIGHT, oblique

LABELS = {1: "box", 2: "points", 3: "thin box", 4: "region", 5: "line"}
SHAPE = (13, 11, 7)  # of the scan as LPS
SPACING = np.array([1.5, 2.0, 4.0])
CENTRE = np.array([6.0, 5.0, 3.0])  # a voxel
REACH = 5.0  # mm around a point that it fills


def first(degrees: float) -> NDArray[np.float64]:
    """Affine of the scan stored as LPS, or nearly so."""
    affine = oblique(degrees)
    turn = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    affine[:3, :3] = turn @ np.diag([-1, -1, 1]) * SPACING
    return affine


def stored(affine: NDArray[np.float64], codes: str) -> tuple[NDArray[np.float64], Any]:
    """Affine of the scan in a file of another orientation, and nibabel's turn to that file."""
    orientations = nib.orientations
    ours = orientations.axcodes2ornt(("L", "P", "S"))
    turn = orientations.ornt_transform(ours, orientations.axcodes2ornt(tuple(codes)))
    return affine @ orientations.inv_ornt_aff(turn, SHAPE), turn


def lps(affine: NDArray[np.float64], *voxel: float) -> list[float]:
    """Millimetres of a place in voxels, centres at whole numbers."""
    x, y, z = nib.affines.apply_affine(affine, voxel)
    return [-x, -y, z]


def worlds(
    affine: NDArray[np.float64], thin_box: bool = False, line: bool = False
) -> list[Mapping[str, Any]]:
    """Prompt files in the world with every form; those that lie on one axial slice if asked."""
    i, j, k = CENTRE
    box = [*lps(affine, i - 3.5, j - 2.5, k - 1.5), *lps(affine, i + 2.5, j + 1.5, k + 0.5)]
    points = [[*lps(affine, i + 1, j, k), 1], [*lps(affine, i - 1, j, k), 0]]
    ends = [lps(affine, 0, 0, k + 2), lps(affine, 4, 8, k - 1)]
    thin = [*lps(affine, i - 5.5, j + 1.5, k - 0.5), *lps(affine, i - 2.5, j + 4.5, k + 0.5)]
    objects = [
        {"label": 1, "box3d": box},
        {"label": 2, "points": points, "propagate": True, "range": ends},
    ]
    region = {
        "type": "ROI",
        "name": "region",
        "center": lps(affine, i - 0.5, j - 0.5, k - 0.5),
        "size": (SPACING * [6, 4, 2]).tolist(),
        "orientation": (affine[:3, :3] / SPACING * [[-1], [-1], [1]]).ravel().tolist(),
    }
    markups = [region]
    if thin_box:
        objects.append({"label": 3, "box3d": thin, "propagate": True, "range": ends})
    if line:
        along = [{"position": lps(affine, i - n, j - 2 * n, k)} for n in (-2, 2)]
        markups.append({"type": "Line", "name": "line", "controlPoints": along})
    return [{"space": "world", "objects": objects}, {"markups": markups}]


def segmented(prompts: SlicePrompts, grid: ScanGrid) -> NDArray[np.generic]:
    """What networks that fill boxes by their ellipse and points by a disc make, in the file."""
    x, y, z = grid.size
    filled = EllipseInferer()(torch.zeros(z, 1, y, x), None, prompts.rows(prompts.boxed))
    spacing = torch.tensor(grid.spacing[:2]) * torch.tensor(grid._whole[:2]) / torch.tensor([x, y])
    rows = [torch.arange(n) + 0.5 for n in (y, x)]
    pixels = torch.stack(torch.meshgrid(*rows, indexing="ij")[::-1], -1)  # (H, W, 2) XY
    for row in range(len(prompts)):
        discs = [
            ((pixels - point) * spacing).norm(dim=-1) < REACH
            for point in prompts.points[row][prompts.point_labels[row] == 1]
        ]
        for point in prompts.points[row][prompts.point_labels[row] == 0]:
            discs = [disc & (((pixels - point) * spacing).norm(dim=-1) > 2) for disc in discs]
        for disc in discs:
            filled[prompts.slices[row]][disc] = prompts.labels[row].int()
        known = prompts.spread.get(int(prompts.objects[row]))
        if known is not None:
            filled[known[0] : known[1]] = filled[prompts.slices[row]].clone()
    return grid.to_file(filled)


@pytest.mark.parametrize(
    ("rules", "degrees"),
    [
        pytest.param(ScanRules(Window(0, 1)), 0.0, id="axial"),
        pytest.param(ScanRules(Window(0, 1)), 20.0, id="axial-oblique"),
        pytest.param(ScanRules(Window(0, 1), "coronal"), 20.0, id="coronal-oblique"),
        pytest.param(ScanRules(Window(0, 1), spacing=(1.0, 1.0, 2.0)), 0.0, id="resampled"),
    ],
)
def test_one_mask_in_the_world(rules: ScanRules, degrees: float) -> None:
    affine = first(degrees)
    grid = rules.grid(SHAPE, affine)
    # a box, whose sides run along the world's axes, is thin on a grid along them alone
    for content in worlds(affine, thin_box=degrees == 0, line=rules.plane == "axial"):
        expected = segmented(read_prompts(content, grid, LABELS), grid)
        assert len(np.unique(expected)) == 1 + len(content.get("objects", content.get("markups")))
        for codes in STRAIGHT:
            there, turn = stored(affine, codes)
            shape = nib.orientations.apply_orientation(np.zeros(SHAPE, np.uint8), turn).shape
            other = rules.grid(shape, there)
            found = segmented(read_prompts(content, other, LABELS), other)
            turned = nib.orientations.apply_orientation(expected, turn)
            np.testing.assert_array_equal(found, turned, err_msg=codes)


def test_the_mask_is_where_the_prompt_is() -> None:
    """Millimetres of the voxels, by the affine alone."""
    affine = first(0.0)
    grid = ScanGrid(affine, SHAPE)
    voxels = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1)
    places = nib.affines.apply_affine(affine, voxels) * [-1, -1, 1]
    ours, markups = worlds(affine)
    box, points = ours["objects"]
    low, high = np.sort(np.reshape(box["box3d"], (2, 3)), axis=0)
    at = (places - (low + high) / 2) / ((high - low) / 2)
    ellipse = ((at[..., :2] ** 2).sum(-1) < 1) & (np.abs(at[..., 2]) < 1)
    for content, label in (({**ours, "objects": [box]}, 1), (markups, 4)):
        found = segmented(read_prompts(content, grid, LABELS), grid)
        np.testing.assert_array_equal(found == label, ellipse)
    inside, outside = np.array(points["points"])[:, :3]
    one, two = np.array(points["range"])[:, 2]
    near = np.linalg.norm((places - inside)[..., :2], axis=-1) < REACH
    near &= np.linalg.norm((places - outside)[..., :2], axis=-1) > 2
    near &= (places[..., 2] > min(one, two) - 2) & (places[..., 2] < max(one, two) + 2)
    found = segmented(read_prompts({**ours, "objects": [points]}, grid, LABELS), grid)
    np.testing.assert_array_equal(found == 2, near)


@pytest.mark.parametrize("degrees", [0.0, 20.0])
@pytest.mark.parametrize("kind", ["slices", "box3d", "scribbles"])
def test_one_mask_of_a_label_map(tmp_path: Path, degrees: float, kind: str) -> None:
    affine = first(degrees)
    label = np.zeros(SHAPE, np.uint8)
    label[3:9, 2:7, 1:5], label[9:12, 7:10, 3:6] = 1, 2
    path = write_nifti(tmp_path / "label.nii", label, affine)
    grid = ScanGrid(affine, SHAPE)
    expected = segmented(read_prompts(path, grid, LABELS, prompts_as=kind), grid)
    assert set(np.unique(expected)) == {0, 1, 2}
    for codes in list(STRAIGHT)[::7]:
        there, turn = stored(affine, codes)
        shape = nib.orientations.apply_orientation(label, turn).shape
        grid = ScanGrid(there, shape)
        found = segmented(read_prompts(path, grid, LABELS, prompts_as=kind), grid)
        turned = nib.orientations.apply_orientation(expected, turn)
        np.testing.assert_array_equal(found, turned, err_msg=codes)
