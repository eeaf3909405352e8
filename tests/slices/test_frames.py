"""Every map there and back: file voxels, world, LPS slices, the model's square."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.data import MetaTensor

from medsam_tune.cases.datalist import Case
from medsam_tune.prompts import boxes_from_masks, ellipses_in_boxes
from medsam_tune.slices.cut import grid_of
from medsam_tune.slices.frames import (
    ModelFrame,
    ScanGrid,
    resized,
    slices_from_volume,
    volume_from_slices,
)
from medsam_tune.slices.intensity import WINDOWS
from medsam_tune.slices.rules import ScanRules
from tests.scans import load_turned, write_nifti

SHAPE = (5, 6, 7)
SPACING = (0.7, 1.5, 4.0)
STRUCTURE = np.array([1, 0, 3, 3, 2, 7])  # no symmetry, touches two borders


def signed_axes(axes: tuple[int, ...], signs: tuple[int, ...]) -> np.ndarray:
    """Affine whose file axis n runs along world axis `axes[n]`, forwards or backwards."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for n, (axis, sign) in enumerate(zip(axes, signs, strict=True)):
        affine[axis, n] = sign * SPACING[n]
    affine[:3, 3] = -20, 35, 110
    return affine


def oblique(degrees: float) -> np.ndarray:
    """Turned about the x and then the z axis of the world."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    about_x = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    about_z = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_x @ np.diag(SPACING)
    affine[:3, 3] = -20, 35, 110
    return affine


STRAIGHT = {
    "".join(nib.aff2axcodes(affine)): affine
    for axes in permutations(range(3))
    for signs in product((1, -1), repeat=3)
    for affine in [signed_axes(axes, signs)]
}
OBLIQUE = {f"oblique-{degrees}": oblique(degrees) for degrees in (30, 45, -120)}
every_grid = pytest.mark.parametrize(
    "affine", [pytest.param(a, id=name) for name, a in (STRAIGHT | OBLIQUE).items()]
)


def load(folder: Path, affine: np.ndarray) -> tuple[np.ndarray, MetaTensor, ScanGrid]:
    """A label map of distinct values, as stored and as MONAI turns it to LPS."""
    array = np.arange(np.prod(SHAPE), dtype=np.uint8).reshape(SHAPE)
    path = write_nifti(folder / "scan.nii", array, affine)
    image, label = load_turned(Case(path, path, ""), {i: str(i) for i in range(256)})
    assert label is not None
    return array, label, grid_of(image, ScanRules(WINDOWS["abdomen"]))


def structure(array: np.ndarray) -> np.ndarray:
    i0, j0, k0, i1, j1, k1 = STRUCTURE
    return array[i0:i1, j0:j1, k0:k1].ravel()


def test_all_orientations_are_there() -> None:
    assert len(STRAIGHT) == 48


@every_grid
def test_slices_come_back_to_the_file_bit_for_bit(tmp_path: Path, affine: np.ndarray) -> None:
    array, label, grid = load(tmp_path, affine)
    slices = slices_from_volume(label.as_tensor())[:, 0]
    back = grid.to_file(slices.to(torch.uint8))
    assert grid.shape == SHAPE
    np.testing.assert_allclose(grid.affine, affine, atol=1e-5)
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)
    assert slices.shape[0] == SHAPE[grid.slice_axis]


@every_grid
def test_box_of_file_voxels_is_tight_in_slices(tmp_path: Path, affine: np.ndarray) -> None:
    array, label, grid = load(tmp_path, affine)
    slices = slices_from_volume(label.as_tensor())[:, 0]
    inside = torch.isin(slices, torch.from_numpy(structure(array)))
    x0, y0, z0, x1, y1, z1 = grid.box_to_slices(STRUCTURE.astype(float)).tolist()
    assert boxes_from_masks(inside.any(0)).tolist() == [x0, y0, x1, y1]
    there = inside.flatten(1).any(1).nonzero().flatten().tolist()
    assert there == list(range(int(z0), int(z1)))


@every_grid
def test_world_box_surrounds_the_structure(tmp_path: Path, affine: np.ndarray) -> None:
    array, label, grid = load(tmp_path, affine)
    # the corners' world positions by the affine of MONAI's LPS volume, not by ours
    inside = torch.isin(label.as_tensor()[0], torch.from_numpy(structure(array)))
    x, y, z = (inside.movedim(a, 0).flatten(1).any(1).nonzero().flatten() for a in range(3))
    edges = [(float(n[0]) - 0.5, float(n[-1]) + 0.5) for n in (x, y, z)]
    corners = nib.affines.apply_affine(np.asarray(label.affine), list(product(*edges)))
    lps = corners * [-1, -1, 1]
    found = grid.box_from_world(np.concatenate([lps.min(0), lps.max(0)]))
    assert (found[:3] <= STRUCTURE[:3] + 1e-4).all()
    assert (found[3:] >= STRUCTURE[3:] - 1e-4).all()
    if np.count_nonzero(affine[:3, :3]) == 3:
        np.testing.assert_allclose(found, STRUCTURE, atol=1e-4)


@every_grid
def test_points_of_file_voxels_lie_in_their_pixel(tmp_path: Path, affine: np.ndarray) -> None:
    array, label, grid = load(tmp_path, affine)
    slices = slices_from_volume(label.as_tensor())[:, 0].numpy()
    voxels = np.argwhere(array >= 0)[::7]
    found = grid.points_to_slices(voxels + 0.5)
    x, y, z = np.floor(found).astype(int).T
    np.testing.assert_array_equal(slices[z, y, x], array[tuple(voxels.T)])
    np.testing.assert_allclose(found % 1, 0.5)
    np.testing.assert_allclose(grid.points_from_slices(found), voxels + 0.5)
    lps = nib.affines.apply_affine(affine, voxels) * [-1, -1, 1]
    np.testing.assert_allclose(grid.points_from_world(lps), voxels + 0.5, atol=1e-6)


@every_grid
def test_boxes_and_points_go_to_resampled_slices_and_back(affine: np.ndarray) -> None:
    grid = replace(ScanGrid(affine, SHAPE), size=(8, 3, 21))
    box = STRUCTURE.astype(float)
    there = grid.box_to_slices(box)
    assert (there[:3] < there[3:]).all()
    np.testing.assert_allclose(grid.box_from_slices(there), box)
    corners = grid.points_to_slices(box.reshape(2, 3))
    np.testing.assert_allclose(corners.min(0), there[:3])
    np.testing.assert_allclose(grid.points_from_slices(corners), box.reshape(2, 3))


def test_world_box_may_name_any_two_opposite_corners() -> None:
    grid = ScanGrid(STRAIGHT["LPS"], SHAPE)
    box = grid.box_from_world(np.array([20.0, -35, 110, 21.4, -32, 118]))
    np.testing.assert_allclose(box, [0.5, 0.5, 0.5, 2.5, 2.5, 2.5])
    turned = grid.box_from_world(np.array([21.4, -32, 118, 20.0, -35, 110]))
    np.testing.assert_allclose(turned, box)


@pytest.mark.parametrize("codes", STRAIGHT)
def test_slice_axis_is_the_one_from_feet_to_head(codes: str) -> None:
    grid = ScanGrid(STRAIGHT[codes], SHAPE)
    assert codes[grid.slice_axis] in "SI"


def test_rows_are_y_and_columns_are_x() -> None:
    volume = torch.arange(2 * 3 * 4 * 5).view(2, 3, 4, 5)  # (C, X, Y, Z)
    slices = slices_from_volume(volume)
    assert slices.shape == (5, 2, 4, 3)
    assert slices[4, 1, 3, 2] == volume[1, 2, 3, 4]
    assert torch.equal(volume_from_slices(slices), volume)


# slice (H, W) -> side S of the model's input
SIZES = [
    pytest.param((30, 50), 96, id="wide-enlarged"),
    pytest.param((50, 30), 96, id="high-enlarged"),
    pytest.param((120, 200), 96, id="wide-reduced"),
    pytest.param((200, 120), 96, id="high-reduced"),
    pytest.param((64, 64), 64, id="as-it-is"),
    pytest.param((37, 91), 64, id="odd"),
]
every_size = pytest.mark.parametrize(("size", "side"), SIZES)


def disc(size: tuple[int, int]) -> torch.Tensor:
    h, w = size
    box = torch.tensor([0.2 * w, 0.3 * h, 0.2 * w + 0.5 * min(size), 0.3 * h + 0.5 * min(size)])
    return ellipses_in_boxes(box.round(), size) > 0


@every_size
def test_frame_fits_the_longest_side(size: tuple[int, int], side: int) -> None:
    frame = ModelFrame(size, side)
    assert max(frame.inner) == side
    assert frame.inner[0] / frame.inner[1] == pytest.approx(size[0] / size[1], abs=0.03)


@every_size
def test_masks_and_boxes_take_the_same_way(size: tuple[int, int], side: int) -> None:
    frame = ModelFrame(size, side)
    h, w = size
    masks = torch.zeros(1, 4, h, w, dtype=torch.bool)
    masks[0, 0] = disc(size)
    masks[0, 1, : h // 3, : w // 4] = True
    masks[0, 2, h // 2 :, w // 3 :] = True
    masks[0, 3] = True
    moved = frame.masks(masks)
    assert moved.shape == (1, 4, side, side)
    assert moved.dtype == torch.bool
    expected = frame.boxes(boxes_from_masks(masks))
    # nearest neighbour: a border moves by half a pixel of the coarser grid at most
    tolerance = 0.5 * max(1.0, side / max(size)) + 1e-3
    assert (boxes_from_masks(moved) - expected).abs().max() <= tolerance
    assert boxes_from_masks(moved)[0, 3].tolist() == [0, 0, frame.inner[1], frame.inner[0]]


@every_size
def test_boxes_scale_with_the_slice(size: tuple[int, int], side: int) -> None:
    frame = ModelFrame(size, side)
    h, w = size
    whole = frame.boxes(torch.tensor([0.0, 0.0, w, h]))
    assert whole.tolist() == pytest.approx([0, 0, frame.inner[1], frame.inner[0]])


@every_size
def test_image_is_zero_where_the_slice_does_not_reach(size: tuple[int, int], side: int) -> None:
    frame = ModelFrame(size, side)
    image = frame.image(torch.full((2, 3, *size), 0.7))
    h, w = frame.inner
    assert image.shape == (2, 3, side, side)
    assert torch.allclose(image[..., :h, :w], torch.tensor(0.7))
    assert image[..., h:, :].abs().sum() == image[..., w:].abs().sum() == 0


@every_size
def test_image_lies_under_its_masks(size: tuple[int, int], side: int) -> None:
    frame = ModelFrame(size, side)
    mask = disc(size)[None, None]
    bright = frame.image(mask.float()) > 0.5
    masks = frame.masks(mask)
    dice = 2 * (bright & masks).sum() / (bright.sum() + masks.sum())
    assert dice > 0.97


@pytest.mark.parametrize(
    ("size", "side"),
    [
        pytest.param((150, 250), 512, id="wide-enlarged"),
        pytest.param((250, 150), 512, id="high-enlarged"),
        pytest.param((360, 600), 512, id="wide-reduced"),
        pytest.param((600, 360), 512, id="high-reduced"),
        pytest.param((256, 256), 256, id="as-it-is"),
    ],
)
def test_logits_lie_back_on_the_pixels(size: tuple[int, int], side: int) -> None:
    frame = ModelFrame(size, side)
    mask = disc(size)[None, None]
    quarter = torch.nn.functional.avg_pool2d(frame.masks(mask).float(), 4)
    back = frame.logits(quarter - 0.5) > 0
    assert back.shape == mask.shape
    assert 2 * (back & mask).sum() / (back.sum() + mask.sum()) > 0.97
    # no drift to one side either
    centre = [m.nonzero().float().mean(0) for m in (back, mask)]
    assert torch.allclose(*centre, atol=0.25)


@pytest.mark.parametrize("size", [(1, 1000), (1000, 1)])
def test_a_sliver_keeps_a_pixel(size: tuple[int, int]) -> None:
    frame = ModelFrame(size, 64)
    assert sorted(frame.inner) == [1, 64]
    assert frame.image(torch.ones(1, 1, *size)).sum() == pytest.approx(64)
    assert frame.logits(torch.ones(1, 1, 16, 16)).shape == (1, 1, *size)


def test_a_mask_too_small_for_the_frame_keeps_its_pixel() -> None:
    frame = ModelFrame((64, 32), 8)
    masks = torch.zeros(1, 3, 64, 32, dtype=torch.bool)
    masks[0, 0, 17, 30] = True
    masks[0, 2, :, :16] = True
    found = frame.masks(masks)
    assert found[0, 0].nonzero().tolist() == [[2, 3]]
    assert not found[0, 1].any()
    assert found[0, 2].nonzero()[:, 1].max() == 1
    assert not found[..., 4:].any()
    assert frame.masks(masks[:, :0]).shape == (1, 0, 8, 8)


def test_the_longer_side_alone_is_antialiased_when_squashed() -> None:
    image = torch.rand(1, 1, 80, 20, generator=torch.Generator().manual_seed(0))
    for turned in (image, image.mT):
        frame = ModelFrame((turned.shape[2], turned.shape[3]), 40, squash=True)
        expected = F.interpolate(turned, (40, 40), mode="bilinear", antialias=True)
        assert torch.equal(frame.image(turned), expected)
        back = F.interpolate(expected, turned.shape[2:], mode="bilinear", antialias=True)
        assert torch.equal(frame.back(expected), back)


def test_logits_are_bilinear() -> None:
    logits = torch.randn(1, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    full = F.interpolate(logits, (64, 64), mode="bilinear")
    expected = F.interpolate(full, (100, 100), mode="bilinear")
    assert torch.equal(ModelFrame((100, 100), 64).logits(logits), expected)


@every_grid
def test_spacing_is_along_the_slices_axes(affine: np.ndarray) -> None:
    grid = ScanGrid(affine, SHAPE)
    turned = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(affine), nib.orientations.axcodes2ornt("LPS")
    )
    expected = np.empty(3)
    expected[turned[:, 0].astype(int)] = nib.affines.voxel_sizes(affine)
    assert grid.spacing == pytest.approx(tuple(expected))
    assert sorted(grid.size) == sorted(SHAPE)


@pytest.mark.parametrize("size", [(4, 3, 5), (16, 12, 20), (7, 6, 11), (8, 6, 10), (1, 13, 3)])
def test_the_nearest_voxel_of_any_id(size: tuple[int, int, int]) -> None:
    ids = torch.randint(2**31, (1, 8, 6, 10), generator=torch.Generator().manual_seed(0))
    found = resized(ids.int(), size, nearest=True)
    expected = F.interpolate(ids[None].double(), size, mode="nearest-exact")
    assert found.dtype == torch.int32
    assert torch.equal(found, expected[0].int())
