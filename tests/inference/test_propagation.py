"""Objects are followed to where they end, and no further."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from medsam_tune.inference.canvas import Found
from medsam_tune.inference.inferers import VolumeInferer
from medsam_tune.inference.propagation import Propagation, around, ways
from medsam_tune.prompts import Prompts, SlicePrompts, boxes_from_masks
from medsam_tune.sam.model import Masks

SIDE = 64


class Finder:
    """A network that finds what is bright in the box, or what is bright around the point.

    Grey 255 is the object of class 0, grey 254 that of class 1.
    """

    image_size = SIDE
    pixel_mean = torch.zeros(1)
    base = SimpleNamespace(in_channels=1)

    def __init__(self, classes: int = 0) -> None:
        self.classes = classes
        self.encoded: list[int] = []  # grey of the first pixel
        self.asked: list[tuple[int, Prompts]] = []
        self.quality: dict[int, float] = {}
        self.presence: dict[int, float] = {}

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        self.encoded += self.numbers(image)
        return image

    def numbers(self, image: torch.Tensor) -> list[int]:
        """Slices: their numbers stand in the first pixel."""
        return (image[:, 0, 0, 0] * 255).round().int().tolist()  # type: ignore[no-any-return]

    def decode(self, embedding: torch.Tensor, prompts: Prompts) -> Masks:
        numbers = self.numbers(embedding)
        self.asked += [(z, prompts.rows(torch.tensor([r]))) for r, z in enumerate(numbers)]
        assert prompts.points is not None
        assert prompts.point_labels is not None
        n = torch.arange(SIDE) + 0.5
        low, high = prompts.points[:, 0, :1], prompts.points[:, 0, 1:2]
        inside = (n > low[..., :1]) & (n < high[..., :1])
        inside = inside[:, None] & ((n > low[..., 1:]) & (n < high[..., 1:]))[..., None]
        pointed = (prompts.point_labels[:, 0, :2] < 0).all(1)  # the box is padding
        wanted = inside | pointed[:, None, None, None]
        logits = torch.where((embedding > 0.9) & wanted, 9.0, -9.0)
        presence = torch.tensor([[self.presence.get(z, 1.0)] for z in numbers])
        return Masks(
            logits,
            torch.tensor([[self.quality.get(z, 1.0)] for z in numbers]),
            presence if self.classes else None,
        )


def discs(radii: list[float], centre: tuple[float, float] = (30.0, 34.0)) -> torch.Tensor:
    """(Z, SIDE, SIDE) bool, a disc on each slice."""
    n = torch.arange(SIDE) + 0.5
    far = (n - centre[0]).square() + (n - centre[1]).square()[:, None]
    return far < torch.tensor(radii)[:, None, None].square()


def shown(*masks: torch.Tensor) -> torch.Tensor:
    """(Z, 1, SIDE, SIDE) uint8: objects are 255, the first pixel is the slice's number."""
    image = torch.stack([m for m in masks]).any(0)[:, None] * torch.tensor(255, dtype=torch.uint8)
    image[..., 0, 0] = torch.arange(1, len(image) + 1, dtype=torch.uint8)[:, None]
    image[..., 0, 1] = 100
    return image


def on(
    masks: torch.Tensor,
    slices: list[int],
    known: tuple[int, int] | None = None,
    label: int = 1,
    number: int = 1,
) -> SlicePrompts:
    """Tight boxes on some slices of an object that is followed."""
    where = torch.tensor(slices)
    labels, objects = torch.full_like(where, label), torch.full_like(where, number)
    prompts = SlicePrompts.of_boxes(where, boxes_from_masks(masks[where]), labels, objects)
    return replace(prompts, spread={number: known})


def joined(*parts: SlicePrompts) -> SlicePrompts:
    rows = torch.cat([p.slices for p in parts]).argsort(stable=True)
    one = SlicePrompts.of_boxes(
        *(torch.cat([getattr(p, name) for p in parts]) for name in ("slices", "boxes", "labels")),
        objects=torch.cat([p.objects for p in parts]),
    ).rows(rows)
    return replace(one, spread={k: v for p in parts for k, v in p.spread.items()})


def follow(
    image: torch.Tensor, prompts: SlicePrompts, network: Finder | None = None, **rules: object
) -> torch.Tensor:
    inferer = VolumeInferer([1, 2], propagation=Propagation(**rules))  # type: ignore[arg-type]
    return inferer(image, network or Finder(), prompts)  # type: ignore[return-value]


BALL = discs([0, 0, 6, 8, 10, 11, 10, 8, 6, 0, 0])


@pytest.mark.parametrize("start", [3, 5, 7])
@pytest.mark.parametrize("use_mask", [True, False])
def test_an_object_is_followed_both_ways_to_its_ends(start: int, use_mask: bool) -> None:
    network = Finder()
    found = follow(shown(BALL), on(BALL, [start]), network, use_mask=use_mask, margin=0.5)
    assert torch.equal(found == 1, BALL)
    assert sorted(network.encoded) == list(range(2, 11))  # one beyond each end


def test_the_quality_of_an_object_is_the_mean_over_its_slices() -> None:
    network = Finder()
    network.quality = {n: 1 - n / 100 for n in range(12)} | {2: 9.0, 10: 9.0}  # beyond its ends
    asked = joined(on(BALL, [5]), replace(on(BALL, [4], label=2, number=7), spread={}))
    inferer = VolumeInferer([1, 2], detailed=True, probabilities=True)
    found = inferer(shown(BALL), network, asked)
    assert isinstance(found, Found)
    assert [(one.label, one.slices) for one in found.objects] == [(1, 7), (2, 1)]
    assert [one.quality for one in found.objects] == pytest.approx([0.94, 0.95])
    assert found.logits is not None
    assert torch.equal(found.logits.probabilities(1) > 0.5, BALL)
    both = inferer(shown(BALL), network, {"a": asked, "b": on(BALL, [5])})
    assert both["a"].objects == found.objects  # type: ignore[index,union-attr]


def test_an_object_of_one_point_is_followed() -> None:
    prompts = on(BALL, [5])
    nan = torch.full((1, 4), torch.nan)
    points = torch.tensor([[[30.5, 34.5]]])
    prompts = replace(prompts, boxes=nan, points=points, point_labels=torch.ones(1, 1).long())
    network = Finder()
    assert torch.equal(follow(shown(BALL), prompts, network) == 1, BALL)
    last = next(p for z, p in network.asked if z == 7)
    assert last.point_labels is not None
    assert last.point_labels.tolist() == [[[2, 3]]]  # a box from then on


def test_an_object_that_is_not_followed_stays_on_its_slices() -> None:
    prompts = replace(on(BALL, [4, 5]), spread={})
    found = follow(shown(BALL), prompts)
    assert found.flatten(1).any(1).nonzero().flatten().tolist() == [4, 5]


def test_objects_of_one_label_are_followed_each_by_itself() -> None:
    other = discs([0, 0, 0, 0, 0, 3, 3, 3, 3, 0, 0], centre=(8.0, 8.0))
    found = follow(shown(BALL, other), joined(on(BALL, [5]), on(other, [6], number=2)))
    assert torch.equal(found == 1, BALL | other)


@pytest.mark.parametrize(
    ("rules", "radii"),
    [
        ({"min_area": 0.3}, [0, 0, 0, 8, 10, 11, 10, 8, 0, 0, 0]),
        ({"min_area": 0.7}, [0, 0, 0, 0, 10, 11, 10, 0, 0, 0, 0]),
        ({"min_overlap": 0.7}, [0, 0, 0, 0, 10, 11, 10, 0, 0, 0, 0]),
        ({"min_overlap": 0.9}, [0, 0, 0, 0, 0, 11, 0, 0, 0, 0, 0]),
    ],
)
def test_small_masks_and_jumps_end_an_object(rules: dict[str, object], radii: list[float]) -> None:
    found = follow(shown(BALL), on(BALL, [5]), **({"min_overlap": 0, "min_area": 0} | rules))
    assert torch.equal(found == 1, discs(radii))


@pytest.mark.parametrize(
    ("lowest", "slices"), [(0.7, [5, 6]), (0.5, [5, 6, 7, 8]), (0, [2, 3, 4, 5, 6, 7, 8])]
)
def test_low_quality_ends_an_object(lowest: float, slices: list[int]) -> None:
    network = Finder()
    network.quality = {6: 0.8, 5: 0.3, 7: 0.6, 8: 0.5}  # slices 5, 4, 6 and 7
    found = follow(shown(BALL), on(BALL, [5]), network, min_quality=lowest)
    there = found.flatten(1).any(1).nonzero().flatten().tolist()
    assert there == slices


@pytest.mark.parametrize("stop_absent", [True, False])
def test_absence_ends_an_object(stop_absent: bool) -> None:
    network = Finder(classes=2)
    network.presence = {4: -0.1, 8: 0.0}  # slices 3 and 7
    found = follow(shown(BALL), on(BALL, [5], label=2), network, stop_absent=stop_absent)
    slices = found.flatten(1).any(1).nonzero().flatten().tolist()
    assert slices == ([4, 5, 6] if stop_absent else [2, 3, 4, 5, 6, 7, 8])
    assert all(int(p.classes) == 1 for _, p in network.asked if p.classes is not None)


def test_a_known_range_ends_at_its_ends_only() -> None:
    gap = discs([0, 6, 6, 0, 0, 11, 0, 0, 6, 6, 6])
    network = Finder(classes=2)
    network.quality = dict.fromkeys(range(12), 0.0)
    network.presence = dict.fromkeys(range(5), -1.0)
    found = follow(shown(gap), on(gap, [5], (2, 10)), network, min_quality=0.5, min_overlap=0.9)
    expected = gap.clone()
    expected[[0, 1, 10]] = False
    assert torch.equal(found == 1, expected)
    boxes = {z - 1: p.points for z, p in network.asked if p.points is not None}
    assert torch.equal(boxes[4], boxes[3])  # slice 4 is empty: its box is tried again
    assert (around(gap[[5]], Propagation().margin)[0] == boxes[6][0, 0]).all()


@pytest.mark.parametrize("start", [0, 10])
def test_a_range_is_cut_off_at_the_volume(start: int) -> None:
    found = follow(shown(discs([4] * 11)), on(discs([4] * 11), [start], (-5, 99)))
    assert torch.equal(found == 1, discs([4] * 11))


def test_an_empty_mask_on_the_prompted_slice() -> None:
    ball = BALL.clone()
    prompts = on(ball, [5])
    ball[5] = False
    assert not follow(shown(ball), prompts).any()  # where would it lead to?
    known = replace(prompts, spread={1: (3, 8)})
    found = follow(shown(ball), known, margin=1)
    assert found.flatten(1).any(1).nonzero().flatten().tolist() == [3, 4, 6, 7]


def test_gaps_are_filled_from_both_ends() -> None:
    bent = torch.cat([discs([4] * 8, (10.0 + 3 * k, 32.0))[k : k + 1] for k in range(8)])
    network = Finder()
    prompts = on(bent, [1, 6], (1, 7))
    found = follow(shown(bent), prompts, network, min_overlap=1, margin=1)
    expected = bent.clone()
    expected[[0, 7]] = False
    assert torch.equal(found == 1, expected)
    came = [z - 1 for z, _ in network.asked]
    assert came == [1, 6, 2, 3, 5, 4]  # the prompted, up from 1, down from 6


def test_a_prompted_slice_keeps_its_own_mask() -> None:
    image = shown(BALL)
    prompts = on(BALL, [4, 6, 7])
    prompts.boxes[1] = torch.tensor([30.0, 24, 60, 44])  # half of the disc
    alone = follow(image, replace(prompts, spread={}))
    found = follow(image, prompts)
    assert torch.equal(found[[4, 6, 7]], alone[[4, 6, 7]])
    assert found[5].any()


@pytest.mark.parametrize("blank", [0, 200])
def test_slices_of_one_value_are_passed_over(blank: int) -> None:
    image = shown(BALL)
    image[6] = blank
    image[3] = blank
    network = Finder()
    found = follow(image, on(BALL, [5]), network, min_overlap=0)
    expected = BALL.clone()
    expected[[3, 6]] = False
    assert torch.equal(found == 1, expected)
    assert not {4, 7, blank} & {*network.encoded}


def test_objects_on_a_slice_are_asked_together() -> None:
    centres = [(10.0, 10.0), (10.0, 40.0), (40.0, 10.0), (40.0, 40.0)]
    columns = [discs([4] * 9, centre) for centre in centres]
    prompts = joined(*(on(one, [4], number=k) for k, one in enumerate(columns)))
    calls: list[int] = []

    class Counting(Finder):
        def decode(self, embedding: torch.Tensor, prompts: Prompts) -> Masks:
            calls.append(len(embedding))
            return super().decode(embedding, prompts)

    network = Counting()
    found = follow(shown(*columns), prompts, network)
    assert torch.equal(found == 1, torch.stack(columns).any(0))
    assert calls == [4] * 9
    assert sorted(network.encoded) == list(range(1, 10))
    calls.clear()
    few = VolumeInferer(prompt_batch=3)(shown(*columns), Counting(), prompts)
    assert torch.equal(few, found)
    assert calls == [3, 1] * 9


def test_slices_that_are_sure_to_come_are_encoded_together() -> None:
    calls: list[int] = []

    class Counting(Finder):
        def encode(self, image: torch.Tensor) -> torch.Tensor:
            calls.append(len(image))
            return super().encode(image)

    column = discs([4] * 9)
    VolumeInferer(slice_batch=3)(shown(column), Counting(), on(column, [4], (0, 9)))
    assert calls == [1, 3, 1, 3, 1]
    calls.clear()
    VolumeInferer(slice_batch=3)(shown(column), Counting(), on(column, [4]))
    assert calls == [1] * 9  # no slice in vain


@pytest.mark.parametrize("use_mask", [True, False])
def test_the_model_sees_the_last_mask(use_mask: bool) -> None:
    network = Finder()
    follow(shown(BALL), on(BALL, [5]), network, use_mask=use_mask)
    seen = {z - 1: p.masks for z, p in network.asked}
    assert seen[5] is None
    if use_mask:
        side = torch.nn.functional.interpolate(BALL[None, [5]].float(), (256, 256))
        assert seen[6] is not None
        assert ((seen[6] > 0) == (side > 0)).float().mean() > 0.99
    else:
        assert seen[6] is None


def test_kinds_of_prompts_are_followed_together() -> None:
    network = Finder()
    kinds = {"a": on(BALL, [5]), "b": on(BALL, [4], (3, 7)), "c": replace(on(BALL, [2]), spread={})}
    found = VolumeInferer([1])(shown(BALL), network, kinds)
    for kind, prompts in kinds.items():
        assert torch.equal(found[kind], VolumeInferer([1])(shown(BALL), Finder(), prompts))
    assert sorted(network.encoded) == list(range(2, 11))


def test_the_better_mask_wins_wherever_an_object_comes_from() -> None:
    left, right = discs([9] * 5, (20.0, 32.0)), discs([9] * 5, (30.0, 32.0))

    class Sure(Finder):
        def decode(self, embedding: torch.Tensor, prompts: Prompts) -> Masks:
            found = super().decode(embedding, prompts)
            assert prompts.classes is not None
            return found._replace(logits=found.logits / (1 + prompts.classes[..., None, None]))

    for one, other in ((0, 4), (4, 0), (2, 2)):
        parts = on(left, [one], label=2), on(right, [other], label=1, number=2)
        found = follow(shown(left, right), joined(*parts), Sure(classes=2), margin=0)
        assert (found[:, 32, 25] == 1).all()
        assert (found[:, 32, 14] == 2).all()


@pytest.mark.parametrize(
    ("slices", "known", "expected"),
    [
        ([4], None, [(0, -1, 4, False), (0, 1, 5, False)]),
        ([0], None, [(0, 1, 9, False)]),
        ([9], None, [(0, -1, 9, False)]),
        ([4], (2, 6), [(0, -1, 2, True), (0, 1, 1, True)]),
        ([4], (4, 5), []),
        ([4], (-3, 20), [(0, -1, 4, True), (0, 1, 5, True)]),
        ([2, 3], (2, 4), []),
        ([2, 7], None, [(0, -1, 2, False), (0, 1, 2, True), (1, -1, 2, True), (1, 1, 2, False)]),
        ([2, 4, 8], (2, 9), [(0, 1, 1, True), (1, 1, 2, True), (2, -1, 1, True)]),
    ],
)
def test_ways_lead_to_every_slice_once(
    slices: list[int],
    known: tuple[int, int] | None,
    expected: list[tuple[int, int, int, bool]],
) -> None:
    found = list(ways(slices, known, 10))
    assert found == expected
    reached = [slices[i] + step * n for i, step, left, _ in found for n in range(1, left + 1)]
    first, end = known or (0, 10)
    assert sorted([*reached, *slices]) == list(range(max(first, 0), min(end, 10)))


def test_boxes_around_masks_have_a_margin_inside_the_slice() -> None:
    masks = torch.zeros(3, 40, 60, dtype=torch.bool)
    masks[0, 10:20, 20:40] = True
    masks[1, :, 50:] = True
    assert around(masks, 0.1).tolist() == [
        [[17, 8], [43, 22]],
        [[48, 0], [60, 40]],
        [[0, 0], [0, 0]],
    ]


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("margin", -0.1, "a number from 0 to 1"),
        ("min_overlap", "half", "a number from 0 to 1"),
        ("min_area", 1.1, "a number from 0 to 1"),
        ("min_quality", True, "a number from 0 to 1"),
        ("use_mask", 1, "true or false"),
        ("stop_absent", None, "true or false"),
    ],
)
def test_settings_out_of_range_are_refused(name: str, value: object, expected: str) -> None:
    with pytest.raises(
        ValueError, match=rf"^propagation::{name} is {value!r}; expected {expected}"
    ):
        Propagation(**{name: value})  # type: ignore[arg-type]
