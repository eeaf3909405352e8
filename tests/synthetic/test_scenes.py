"""Synthetic scenes: seeded, whole, varied, and their objects where the images show them."""

from __future__ import annotations

import pytest
import torch

from medsam_tune.synthetic.scenes import draw_scenes
from medsam_tune.synthetic.scenes.artefacts import degrade
from medsam_tune.synthetic.scenes.draw import Draw
from medsam_tune.synthetic.scenes.fields import gaussian_blur, smooth_field
from medsam_tune.synthetic.scenes.shapes import (
    CELLS,
    KINDS,
    LAYERS,
    descendants,
    paint,
    plan_layers,
)


def test_same_seed_same_bytes_other_seed_other_scenes() -> None:
    one, again, other = draw_scenes(7, 4, 64), draw_scenes(7, 4, 64), draw_scenes(8, 4, 64)
    for key, value in one.items():
        assert torch.equal(value, again[key])
        assert not torch.equal(value, other[key])


def test_global_randomness_is_neither_used_nor_moved() -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    one = draw_scenes(3, 2, 64)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    assert torch.equal(draw_scenes(3, 2, 64)["image"], one["image"])


@pytest.mark.parametrize("size", [64, 128, 200])
def test_shapes_and_ranges(size: int) -> None:
    for seed in range(6):
        scenes = draw_scenes(seed, 8, size, 5)
        image, masks = scenes["image"], scenes["masks"]
        assert image.shape == (8, 3, size, size)
        assert image.dtype == torch.float32
        assert float(image.min()) >= 0
        assert float(image.max()) <= 1
        assert torch.equal(image, (image * 255).round() / 255)
        assert masks.shape == (8, 5, size, size)
        assert masks.dtype == torch.bool
        assert masks.flatten(2).any(2).all()
        assert scenes["everything"].shape == (8, 1, size, size)


def test_outside_the_field_of_view_is_nothing() -> None:
    cut = 0
    for seed in range(10):
        scenes = draw_scenes(seed, 8, 64)
        dark = (scenes["image"] == 0).all(1)  # (8, 64, 64)
        beyond = dark & (dark.all(1, keepdim=True) | dark.all(2, keepdim=True))
        ends = beyond[:, -1].all(1) | beyond[:, :, -1].all(1)
        cut += int(ends.sum())
        columns = dark.all(1).flip(1).cumprod(1).flip(1).bool()  # black up to the right edge
        rows = dark.all(2).flip(1).cumprod(1).flip(1).bool()
        whole = dark.flatten(1).all(1)[:, None, None]
        outside = (columns[:, None] | rows[..., None]) & ~whole
        shown = scenes["masks"].any(1) & outside
        assert float(shown.float().mean()) < 0.02  # a black object at the edge may be one
    assert 10 < cut < 60


def test_objects_can_be_seen() -> None:
    """Inside differs from around: the mean over scenes is far from what masks elsewhere give."""
    differences, elsewhere = [], []
    for seed in range(12):
        scenes = draw_scenes(seed, 8, 64, 4)
        image, masks = scenes["image"].mean(1, keepdim=True), scenes["masks"].float()
        wide = gaussian_blur(masks, torch.full((8,), 2.5)) > 0.05
        for kept, shift in ((differences, 0), (elsewhere, 1)):
            shown = image.roll(shift, 0)
            ring = (wide & (masks == 0)).float()
            inside = (shown * masks).sum((2, 3)) / masks.sum((2, 3))
            around = (shown * ring).sum((2, 3)) / ring.sum((2, 3)).clamp(min=1)
            kept.append((inside - around).abs().mean())
    assert sum(differences) > 1.5 * sum(elsewhere)


def test_every_kind_is_drawn_about_as_often_as_it_says() -> None:
    kinds = plan_layers(Draw(0), 4000).kind.bincount(minlength=len(KINDS)) / 4000
    assert torch.allclose(kinds, torch.tensor(list(KINDS.values())), atol=0.03)


def test_an_object_holds_its_parts() -> None:
    """A part lies in its parent's mask, and shows what it is a part of as a tree does."""
    draw = Draw(5)
    layers = plan_layers(draw, 16)
    ids, inside = paint(draw, layers, 64)
    tree = descendants(layers)
    assert tree.shape == (16, LAYERS + 2 + CELLS, LAYERS + 2 + CELLS)
    parts = 0
    for b in range(16):
        for k in range(1, LAYERS + 1):
            parent = int(layers.parent[b, k])
            assert parent < k
            if parent:
                parts += 1
                assert tree[b, parent, k]
                assert not ((inside[b, k] > 0) & (inside[b, parent] <= 0)).any()
                seen = tree[b, parent][ids[b]]
                assert seen[ids[b] == k].all()
    assert parts > 20
    assert not tree[:, 0].any()


def test_a_field_has_mean_zero_and_deviation_one() -> None:
    for cells in (2, 5, 14, 40):
        field = smooth_field(Draw(0), 64, 1, cells, 96)
        assert abs(float(field.mean())) < 0.3
        assert float(field.std()) == pytest.approx(1, abs=0.15)
        step = (field[..., 1:] - field[..., :-1]).std() / field.std()
        assert float(step) < 2.5 * cells / 96


def test_blur_is_each_image_s_own_and_keeps_its_mean() -> None:
    point = torch.zeros(2, 1, 31, 31)
    point[:, :, 15, 15] = 1
    blurred = gaussian_blur(point, torch.tensor([0.0, 2.0]))
    assert torch.allclose(blurred[0], point[0], atol=1e-6)
    assert float(blurred[1].sum()) == pytest.approx(1, abs=1e-4)
    spread = (blurred[1, 0].sum(0) * (torch.arange(31) - 15.0) ** 2).sum()
    assert float(spread) == pytest.approx(4, rel=0.05)


@pytest.mark.parametrize("coarse", [16, 40, 64])
def test_artefacts_leave_an_image(coarse: int) -> None:
    image = torch.zeros(4, 3, 64, 64)
    image[:, :, 20:44, 20:44] = 0.8
    degraded = degrade(Draw(1), image, coarse)
    assert degraded.shape == image.shape
    assert degraded.isfinite().all()
    contrast = degraded[:, :, 28:36, 28:36].mean((1, 2, 3)) - degraded[:, :, :8].mean((1, 2, 3))
    assert (contrast.abs() > 0.1).all()
