"""Planes of windows: each prompt in the windows that it needs, one mask without a seam."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from scipy import ndimage
from torch import Tensor

from medsam_tune.inference.planes import Answers, Asked, WholePlane
from medsam_tune.inference.windows import WindowedPlane
from medsam_tune.methods import apply_method
from medsam_tune.prompts import Prompts
from medsam_tune.sam.model import Masks, PromptableSam
from medsam_tune.sam.prompting import BOTTOM_RIGHT, INSIDE, OUTSIDE, PADDING, TOP_LEFT
from medsam_tune.slices.intensity import Window
from medsam_tune.slices.rules import ScanRules

Build = Callable[..., PromptableSam]
RULES = ScanRules(Window(40, 400), window=32)
SIZE = (80, 80)  # three windows a side, which begin at 0, 24 and 48
CORNERS = (TOP_LEFT, BOTTOM_RIGHT)


class Bright:
    """A network that finds bright pixels: those in a box, or connected with a point, or all."""

    image_size = 32
    pixel_mean = torch.zeros(1)
    base = SimpleNamespace(in_channels=1)

    def __init__(self, classes: int = 0) -> None:
        self.classes = classes
        self.encoded: list[Tensor] = []
        self.asked: list[Prompts] = []

    def encode(self, image: Tensor) -> Tensor:
        self.encoded.append(image)
        return image

    def decode(self, embedding: Tensor, prompts: Prompts) -> Masks:
        self.asked.append(prompts)
        found = [
            self._mask(one[0], prompts.rows(torch.tensor([n]))) for n, one in enumerate(embedding)
        ]
        logits = torch.stack(found)[:, None].float() * 10 - 5
        presence = (embedding.flatten(1).amax(1, keepdim=True) > 0.5) * 10.0 - 5
        return Masks(
            logits, embedding.flatten(1).amax(1)[:, None], presence if self.classes else None
        )

    def _mask(self, image: Tensor, prompts: Prompts) -> Tensor:
        mask = image > 0.5
        if prompts.points is None or prompts.point_labels is None:
            return mask
        points, kinds = prompts.points[0, 0], prompts.point_labels[0, 0]
        if (kinds == TOP_LEFT).any():
            (x0, y0), (x1, y1) = (points[kinds == k][0].tolist() for k in CORNERS)
            n = torch.arange(32) + 0.5
            return mask & (n >= x0) & (n < x1) & (n >= y0)[:, None] & (n < y1)[:, None]
        if (kinds == INSIDE).any():
            parts = torch.from_numpy(ndimage.label(mask.numpy())[0])
            at = [int(parts[int(y), int(x)]) for x, y in points[kinds == INSIDE].tolist()]
            return torch.isin(parts, torch.tensor([part for part in at if part]))
        return mask


def picture(*bright: tuple[int, int, int, int], size: tuple[int, int] = SIZE) -> Tensor:
    """(1, 1, H, W) uint8 with bright rectangles x0, y0, x1, y1."""
    image = torch.full((1, 1, *size), 20, dtype=torch.uint8)
    for x0, y0, x1, y1 in bright:
        image[..., y0:y1, x0:x1] = 250
    return image


def prompt(*rows: list[tuple[float, float, int]], classes: list[int] | None = None) -> Asked:
    """Rows of (x, y, label), filled up with padding."""
    longest = max(map(len, rows))
    full = torch.tensor([[*row, *[(0, 0, PADDING)] * (longest - len(row))] for row in rows])
    full = full.view(len(rows), longest, 3)
    ids = None if classes is None else torch.tensor(classes)
    return Asked(full[..., :2].float(), full[..., 2].long(), ids)


def box(x0: float, y0: float, x1: float, y1: float) -> list[tuple[float, float, int]]:
    return [(x0, y0, TOP_LEFT), (x1, y1, BOTTOM_RIGHT)]


def answer(network: Any, image: Tensor, asked: Asked, rules: ScanRules = RULES) -> Answers:
    plane = WindowedPlane(network, (image.shape[-2], image.shape[-1]), rules, overlap=0.25)
    return plane.decode(plane.encode(image), torch.zeros(len(asked.points)).long(), asked)


def asked_of(network: Bright) -> int:
    """Number of windows that were asked, for all prompts together."""
    return sum(len(next(iter(one.given.values()))) for one in network.asked)


# one window


ONE = {
    "boxes": [box(10, 12, 36, 50), box(0, 0, 40, 60)],
    "points": [[(30, 20, INSIDE), (9, 55, OUTSIDE)], [(38, 50, INSIDE)]],
    "both": [[*box(10, 12, 36, 50), (30, 20, INSIDE)], [*box(3, 4, 36, 40), (20.5, 9, OUTSIDE)]],
    "classes": [[], []],
}


@pytest.mark.parametrize(
    ("kind", "size", "squash"),
    [(kind, (60, 80), False) for kind in ONE]
    + [("both", size, True) for size in ((60, 80), (96, 96), (96, 40))],
)
def test_a_plane_that_fits_is_answered_as_a_whole(
    tiny_sam: Build, kind: str, size: tuple[int, int], squash: bool
) -> None:
    sam = apply_method(tiny_sam(), "decoder", num_classes=2).eval()
    sam.learned.present.data.normal_(generator=torch.Generator().manual_seed(0))
    rules = ScanRules(Window(40, 400), squash=squash, window=96)
    image = torch.randint(0, 256, (2, 1, *size), dtype=torch.uint8)
    asked = prompt(*ONE[kind], classes=[1, 0])
    if kind == "both":
        asked = asked._replace(masks=torch.randn(2, *size))
    whole = WholePlane(sam, size, rules.frame(size, 96))
    windows = WindowedPlane(sam, size, rules)
    with torch.no_grad():
        expected = whole.decode(whole.encode(image), torch.tensor([1, 0]), asked)
        found = windows.decode(windows.encode(image), torch.tensor([1, 0]), asked)
    assert windows.size == size
    assert windows.window == WindowedPlane(sam, size, ScanRules(Window(40, 400))).window == size
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


def test_a_side_within_the_window_is_whole(tiny_sam: Build) -> None:
    """The image of 40 x 96 pixels is the middle of a longer one, and nothing is beside it."""
    sam = tiny_sam().eval()
    rules = ScanRules(Window(40, 400), window=96)
    image = torch.full((1, 1, 40, 240), 9, dtype=torch.uint8)
    image[..., 72:168] = torch.randint(0, 256, (40, 96), dtype=torch.uint8)
    whole = WholePlane(sam, (40, 96), rules.frame((40, 96), 96))
    with torch.no_grad():
        asked = prompt(box(10, 5, 50, 30))
        expected = whole.decode(whole.encode(image[..., 72:168]), torch.tensor([0]), asked)
        found = answer(sam, image, prompt(box(82, 5, 122, 30)), rules)
    middle = found.logits[..., 72 + 24 : 168 - 24]  # seen by this window alone
    torch.testing.assert_close(middle, expected.logits[..., 24:-24], atol=1e-4, rtol=0)


# encode


@pytest.mark.parametrize("count", [1, 2])
def test_every_window_of_a_slice_is_encoded_once(count: int) -> None:
    network = Bright()
    images = torch.randint(0, 256, (count, 1, *SIZE), dtype=torch.uint8)
    found = WindowedPlane(network, SIZE, RULES, overlap=0.25).encode(images)
    assert found.shape == (count, 9, 1, 32, 32)
    assert max(len(one) for one in network.encoded) == count
    assert sum(len(one) for one in network.encoded) == 9 * count
    for number, (y, x) in enumerate((y, x) for y in (0, 24, 48) for x in (0, 24, 48)):
        expected = images[..., y : y + 32, x : x + 32] / 255
        assert torch.equal(found[:, number], expected)


def test_windows_overlap_by_half() -> None:
    images = torch.zeros(1, 1, *SIZE, dtype=torch.uint8)
    assert len(WindowedPlane(Bright(), SIZE, RULES).encode(images)[0]) == 4 * 4


# boxes


def test_a_box_is_asked_where_it_is_and_cut_to_the_window() -> None:
    network = Bright()
    asked = prompt(box(10, 20, 30, 28), box(2, 2, 5, 5))
    found = answer(network, picture((10, 20, 30, 28), (2, 2, 5, 5)), asked)
    asked_for = torch.cat([one.points[:, 0] for one in network.asked]).flatten(1).tolist()
    assert sorted(asked_for) == [
        [0, 0, 6, 4],  # below and to the right
        [0, 20, 6, 28],
        [2, 2, 5, 5],
        [10, 0, 30, 4],
        [10, 20, 30, 28],
    ]
    assert torch.equal(found.logits[0] > 0, picture((10, 20, 30, 28))[0, 0] > 100)
    assert torch.equal(found.logits[1] > 0, picture((2, 2, 5, 5))[0, 0] > 100)
    assert found.logits[1, :, 32:].unique().tolist() == [-16]  # never asked
    assert found.presence is None


def test_a_large_object_has_no_seam() -> None:
    large = (5, 7, 77, 70)
    found = answer(Bright(), picture(large, (0, 72, 80, 80)), prompt(box(*large)))
    assert torch.equal(found.logits[0] > 0, picture(large)[0, 0] > 100)
    assert found.logits[0, 7:70, 5:77].unique().sub(5).abs().max() < 1e-4


class Shy(Bright):
    """It sees nothing at a window's border."""

    def decode(self, embedding: Tensor, prompts: Prompts) -> Masks:
        found = super().decode(embedding, prompts)
        found.logits[..., [0, -1], :] = -5
        found.logits[..., :, [0, -1]] = -5
        return found


@pytest.mark.parametrize("shift", [0, 12])
def test_what_windows_miss_at_their_borders_does_not_show(shift: int) -> None:
    """Neither where they are, nor where they are after half a stride."""
    large = (9, 7, 71, 70)
    image = torch.nn.functional.pad(picture(large), (shift, 0, shift, 0))
    asked = prompt(box(*large), [(40.5, 40.5, INSIDE)], [], classes=[0, 0, 0])
    found = answer(Shy(classes=1), image, asked._replace(points=asked.points + shift))
    for logits in found.logits:
        assert torch.equal(logits[shift:, shift:] > 0, picture(large)[0, 0] > 100)


def test_windows_that_disagree_fade_into_each_other() -> None:
    """The left window says 5, the right one -5: a slope between them, and no line."""

    class Sides(Bright):
        def _mask(self, image: Tensor, prompts: Prompts) -> Tensor:
            return torch.full((32, 32), bool(image[0, 0] > 0.5))

    found = answer(Sides(), picture((0, 0, 8, 32), size=(32, 56)), prompt([]))
    row = found.logits[0, 16]
    assert row[:24].sub(5).abs().max() < 1e-4
    assert row[32:].add(5).abs().max() < 1e-4
    steps = row.diff()
    assert steps.max() < 1e-4
    assert steps.min() > -5  # of 10
    assert steps[23].abs() < 0.1  # where the right window begins
    assert steps[31].abs() < 0.1  # where the left one ends
    torch.testing.assert_close(row[24:32], -row[24:32].flip(0), atol=1e-4, rtol=0)


def test_a_box_thinner_than_a_pixel_is_asked_and_a_sliver_of_a_box_is_not() -> None:
    network = Bright()
    answer(network, picture(), prompt(box(31.2, 3, 31.5, 9), box(10, 3, 24.5, 9)))
    assert asked_of(network) == 2 + 1


# points


BAR = (4, 10, 76, 14)


def test_a_point_finds_the_whole_of_a_long_object() -> None:
    network = Bright()
    found = answer(network, picture(BAR), prompt([(6.5, 12.5, INSIDE)]))
    assert torch.equal(found.logits[0] > 0, picture(BAR)[0, 0] > 100)
    assert asked_of(network) == 3  # not the rows below


def test_an_object_that_ends_in_its_window_is_not_followed() -> None:
    network = Bright()
    small = (4, 4, 30, 30)  # it is in four windows, and reaches the border of none
    found = answer(network, picture(small), prompt([(6.5, 6.5, INSIDE)]))
    assert asked_of(network) == 1
    assert torch.equal(found.logits[0] > 0, picture(small)[0, 0] > 100)


def test_objects_are_followed_one_by_one_and_boxes_are_not() -> None:
    network = Bright()
    bars = [BAR, (4, 60, 76, 62)]
    asked = prompt(
        [(6.5, 12.5, INSIDE)],
        [(70.5, 61.5, INSIDE), (70.5, 70.5, OUTSIDE)],
        [*box(0, 0, 31, 23), (9.5, 12.5, INSIDE)],
    )
    found = answer(network, picture(*bars), asked)
    for row, bar in enumerate(bars):
        assert torch.equal(found.logits[row] > 0, picture(bar)[0, 0] > 100)
    assert not (found.logits[2, :, 31:] > 0).any()
    outside = torch.cat([one.points[one.point_labels == OUTSIDE] for one in network.asked])
    assert outside.tolist() == [[70.5 - 48, 70.5 - 48]]  # in its window alone


def test_a_mask_that_leaves_its_box_is_not_followed() -> None:
    class Spilling(Bright):
        def _mask(self, image: Tensor, prompts: Prompts) -> Tensor:
            return image > 0.5

    network = Spilling()
    asked = prompt([*box(4, 10, 20, 14), (9.5, 12.5, INSIDE)])
    found = answer(network, picture(BAR), asked)
    assert asked_of(network) == 1
    assert not (found.logits[0, :, 32:] > 0).any()


def test_a_point_on_the_edge_of_windows_is_in_all_of_them() -> None:
    network = Bright()
    answer(network, picture((0, 0, 80, 80)), prompt([(80.0, 80.0, OUTSIDE), (28.0, 3.0, INSIDE)]))
    first = network.asked[0]
    assert first.points.shape[:2] == (1, 1)
    assert asked_of(network) >= 2


# classes


def test_windows_without_the_class_have_no_say() -> None:
    network = Bright(classes=2)
    found = answer(network, picture((4, 4, 20, 20)), prompt([], [], classes=[1, 0]))
    assert asked_of(network) == 18
    assert found.presence.tolist() == [5, 5]
    assert torch.equal(found.logits[0] > 0, picture((4, 4, 20, 20))[0, 0] > 100)
    assert found.logits[0, :, 32:].unique().tolist() == [-16]
    nothing = answer(network, picture(), prompt([], classes=[1]))
    assert nothing.presence.tolist() == [-5]
    assert nothing.logits.add(5).abs().max() < 1e-4  # as the network says


def test_every_window_gets_its_class_and_its_part_of_the_mask() -> None:
    network = Bright(classes=2)
    earlier = torch.arange(80.0 * 80).view(1, 80, 80)
    asked = prompt(box(10, 20, 20, 23), classes=[1])._replace(masks=earlier)
    answer(network, picture(), asked)
    (first,) = network.asked
    assert first.classes.tolist() == [[1]]
    window = WholePlane(network, (32, 32), RULES.frame((32, 32), 32))
    asked = asked._replace(masks=earlier[:, :32, :32])
    window.decode(torch.zeros(1, 1, 32, 32), torch.tensor([0]), asked)
    assert torch.equal(first.masks, network.asked[-1].masks)


def test_quality_is_weighted_by_area() -> None:
    image = picture((4, 4, 28, 8))  # in the first window alone
    image[..., 24:56, 0:32][image[..., 24:56, 0:32] == 20] = 100
    found = answer(Bright(), image, prompt(box(4, 4, 28, 40)))
    torch.testing.assert_close(found.quality, torch.tensor([250 / 255]))
    dark = answer(Bright(), picture(), prompt(box(4, 4, 28, 40)))
    torch.testing.assert_close(dark.quality, torch.tensor([20 / 255]))
