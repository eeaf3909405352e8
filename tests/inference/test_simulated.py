"""Simulated users: what they give for a known label map, kind by kind."""

from __future__ import annotations

import pytest
import torch

from medsam_tune.inference.simulated import Kind, interpolated, parse_kind, simulated_prompts
from medsam_tune.prompts import SlicePrompts
from medsam_tune.slices.objects import numbered

EVERY = ("slices", "box3d", "interpolated:3", "middle", "middle-range", "points")


def two_labels() -> torch.Tensor:
    """Label 1 on slices 1 to 3, widest on 2; label 2 on slices 3 and 4, one piece on each."""
    truth = torch.zeros(6, 12, 16, dtype=torch.long)
    truth[1:4, 2:5, 3:6] = 1
    truth[2, 2:7, 3:8] = 1
    truth[3:5, 8:11, 10:13] = 2
    truth[4, 9:12, 11:13] = 2
    return truth


def given(kind: str, **options: object) -> SlicePrompts:
    found = simulated_prompts(two_labels(), [2, 1, 7], kind, **options)  # type: ignore[arg-type]
    assert found is not None
    return found


def rows(prompts: SlicePrompts) -> list[tuple[int, int, list[float], bool]]:
    """Slice, label, box, and whether it was drawn."""
    columns = (prompts.slices, prompts.labels, prompts.boxes, prompts.drawn)
    return [*zip(*(column.tolist() for column in columns), strict=True)]


def test_slices() -> None:
    prompts = given("slices")
    assert rows(prompts) == [
        (1, 1, [3, 2, 6, 5], True),
        (2, 1, [3, 2, 8, 7], True),
        (3, 1, [3, 2, 6, 5], True),
        (3, 2, [10, 8, 13, 11], True),
        (4, 2, [10, 8, 13, 12], True),
    ]
    assert prompts.objects.tolist() == prompts.labels.tolist()
    assert prompts.spread == {}
    assert prompts.points.shape == (5, 0, 2)
    assert prompts.slices.dtype == prompts.labels.dtype == torch.int64


def test_box3d_lies_on_each_of_its_slices_where_nobody_drew() -> None:
    one, two = [3, 2, 8, 7], [10, 8, 13, 12]
    assert rows(given("box3d")) == [
        (1, 1, one, False),
        (2, 1, one, False),
        (3, 1, one, False),
        (3, 2, two, False),
        (4, 2, two, False),
    ]
    truth = two_labels()
    truth[:4][truth[:4] == 2] = 0
    flat = simulated_prompts(truth, [2], "box3d")
    assert flat is not None
    assert rows(flat) == [(4, 2, two, True)]  # its only slice is the one that was looked at


def test_jitter_of_box3d_moves_its_ends_and_keeps_one_box() -> None:
    truth = torch.zeros(60, 40, 40, dtype=torch.long)
    truth[20:40, 10:30, 10:30] = 1
    counts = set()
    for case in "abcdefgh":
        prompts = simulated_prompts(truth, [1], "box3d", jitter=0.1, case=case)
        assert prompts is not None
        counts.add(len(prompts))
        assert len(prompts.boxes.unique(dim=0)) == 1
        assert prompts.slices.diff().eq(1).all()
        assert (prompts.boxes[0] - torch.tensor([10, 10, 30, 30])).abs().max() > 0.1
    assert len(counts) > 2
    thin = simulated_prompts(truth[:21], [1], "box3d", jitter=0.9, case="c")
    assert thin is not None
    assert len(thin) >= 1
    assert int(thin.slices.max()) <= 20


def long_label() -> torch.Tensor:
    """Label 5 on slices 2 to 12 but for 5 and 6, growing to the right."""
    truth = torch.zeros(15, 8, 40, dtype=torch.long)
    for z in range(2, 13):
        truth[z, 2:6, z : 2 * z + 1] = 5
    truth[5:7] = 0
    return truth


def test_interpolated_boxes_are_linear_between_those_drawn() -> None:
    prompts = simulated_prompts(long_label(), [5], "interpolated:3")
    assert prompts is not None
    assert prompts.slices.tolist() == list(range(2, 13))  # 5 and 6 as well: nobody looked there
    assert prompts.slices[prompts.drawn].tolist() == [2, 8, 12]
    assert prompts.boxes[:, 0].tolist() == list(range(2, 13))
    assert prompts.boxes[:, 2].tolist() == [2 * z + 1 for z in range(2, 13)]
    two = simulated_prompts(long_label(), [5], "interpolated:2")
    every = simulated_prompts(long_label(), [5], "interpolated:99")
    assert two is not None
    assert every is not None
    assert two.slices[two.drawn].tolist() == [2, 12]
    assert every.slices[~every.drawn].tolist() == [5, 6]
    assert given("interpolated:2").drawn.tolist() == [True, False, True, True, True]


def test_interpolated_keeps_what_is_given() -> None:
    boxes = torch.tensor([[0.0, 1.1, 5, 6], [4, 1.1, 9, 6.5]])
    slices, found = interpolated(torch.tensor([3, 7]), boxes)
    assert slices.tolist() == [3, 4, 5, 6, 7]
    assert found.dtype == torch.float32
    assert torch.equal(found[[0, 4]], boxes)
    assert torch.allclose(found[1], torch.tensor([1, 1.1, 6, 6.125]))
    alone, same = interpolated(torch.tensor([3]), boxes[:1])
    assert (alone.tolist(), same.tolist()) == ([3], boxes[:1].tolist())


@pytest.mark.parametrize(
    ("kind", "spread"),
    [("middle", {1: None, 2: None}), ("middle-range", {1: (1, 4), 2: (3, 5)})],
)
def test_middle(kind: str, spread: dict[int, tuple[int, int] | None]) -> None:
    prompts = given(kind)
    assert rows(prompts) == [(2, 1, [3, 2, 8, 7], True), (4, 2, [10, 8, 13, 12], True)]
    assert prompts.spread == spread


def test_middle_of_equal_areas_is_the_middle_one() -> None:
    truth = torch.zeros(9, 8, 8, dtype=torch.long)
    truth[2:7, 2:5, 2:5] = 1
    middle = simulated_prompts(truth, [1], "middle")
    assert middle is not None
    assert middle.slices.tolist() == [4]


def test_points_lie_deepest_inside() -> None:
    prompts = given("points")
    assert prompts.slices.tolist() == [2, 4]
    assert prompts.points[0].tolist() == [[5.5, 4.5]]  # the middle of 3..7 and 2..6
    assert not prompts.boxed.any()
    assert prompts.point_labels.tolist() == [[1], [1]]
    assert prompts.drawn.all()
    assert prompts.spread == {1: None, 2: None}
    corner = torch.zeros(1, 9, 9, dtype=torch.long)
    corner[0, :5, :5] = 1  # the border of the slice is one of the label's, too
    found = simulated_prompts(corner, [1], "points")
    assert found is not None
    assert found.points.tolist() == [[[2.5, 2.5]]]


def test_jittered_points_stay_inside() -> None:
    ring = torch.zeros(1, 20, 20, dtype=torch.long)
    ring[0, 2:18, 2:18] = 1
    ring[0, 5:15, 5:15] = 0
    seen = set()
    for case in range(20):
        prompts = simulated_prompts(ring, [1], "points", jitter=0.3, case=str(case))
        assert prompts is not None
        x, y = prompts.points[0, 0].tolist()
        assert ring[0, int(y), int(x)] == 1
        seen.add((x, y))
    assert len(seen) > 10


@pytest.mark.parametrize("kind", EVERY)
def test_seed_and_case_fix_the_jitter(kind: str) -> None:
    def places(seed: int, case: str) -> torch.Tensor:
        prompts = given(kind, jitter=0.3, seed=seed, case=case)
        return torch.cat([prompts.boxes.nan_to_num().flatten(), prompts.points.flatten()])

    def equal(one: torch.Tensor, two: torch.Tensor) -> bool:
        return one.shape == two.shape and torch.equal(one, two)

    first = places(0, "a")
    torch.manual_seed(99)
    assert equal(first, places(0, "a"))
    assert not all(equal(first, places(0, case)) for case in "bcdef")
    assert not all(equal(first, places(seed, "a")) for seed in range(1, 6))


@pytest.mark.parametrize("kind", EVERY)
def test_no_label_no_prompts(kind: str) -> None:
    for truth in (two_labels() * 0, two_labels()[:0]):
        prompts = simulated_prompts(truth, [1, 2], kind, jitter=0.1)
        assert prompts is not None
        assert len(prompts) == 0
        assert prompts.boxes.shape == (0, 4)


def test_none_is_no_prompt() -> None:
    assert simulated_prompts(two_labels(), [1, 2], "none") is None


def test_kinds_are_read_and_written() -> None:
    assert parse_kind("interpolated:5") == Kind("interpolated", 5)
    for text in (*EVERY, "none"):
        assert str(parse_kind(text)) == text
    assert parse_kind("interpolated:5").file_name == "interpolated-5"
    boxed = [text for text in (*EVERY, "none") if parse_kind(text).boxed]
    assert boxed == ["slices", "box3d", "interpolated:3"]


def test_kinds_are_said() -> None:
    words = {kind: (parse_kind(kind).words(), parse_kind(kind).words(flat=True)) for kind in EVERY}
    assert words["slices"] == ("by a box on every slice", "by a box around each object")
    assert words["points"] == ("by one point", "by a point in each object")
    assert words["interpolated:3"][0] == "by boxes on 3 slices"
    assert len({flat for _, flat in words.values()}) == len(EVERY)  # columns of a picture
    assert parse_kind("none").words(flat=True) == parse_kind("none").words() == "without prompts"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "boxes3d",
            r"kind of prompts 'boxes3d' is unknown; known: slices, box3d, interpolated:N, middle, "
            r"middle-range, points, none \(N boxes, .*\)\. Did you mean 'box3d'\?",
        ),
        ("interpolated:N", "'interpolated:N' is unknown"),
        ("interpolated:", "is unknown; .* Did you mean 'interpolated:N'"),
        ("interpolated:1", "'interpolated:1': N is 1; expected 2 boxes or more"),
        ("interpolated:" + "9" * 5000, "is unknown"),
        ("", "kind of prompts '' is unknown"),
    ],
)
def test_other_kinds_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_kind(text)


PIECES = torch.zeros(1, 20, 30, dtype=torch.int64)
PIECES[0, 2:6, 3:8], PIECES[0, 10:19, 4:9], PIECES[0, 4:12, 20:28], PIECES[0, 0, 0] = 1, 1, 2, 2


def test_each_piece_has_its_own_box() -> None:
    """Boxes of one label are several objects; too small pieces have none."""
    objects = torch.from_numpy(numbered(PIECES.numpy(), 4))
    for kind in ("slices", "box3d", "interpolated:5", "middle", "middle-range"):
        found = simulated_prompts(PIECES, [1, 2], kind, objects=objects)
        assert found is not None
        assert found.labels.tolist() == [1, 1, 2]
        assert found.objects.tolist() == [1, 2, 3]
        assert found.boxes.tolist() == [[3, 2, 8, 6], [4, 10, 9, 19], [20, 4, 28, 12]]
        assert set(found.spread) == ({1, 2, 3} if kind.startswith("middle") else set())
    assert simulated_prompts(PIECES, [1], "none", objects=objects) is None


def test_a_point_lies_deep_in_each_piece() -> None:
    objects = torch.from_numpy(numbered(PIECES.numpy(), 4))
    found = simulated_prompts(PIECES, [1], "points", objects=objects)
    assert found is not None
    assert found.labels.tolist() == [1, 1]
    assert found.points[:, 0].floor().tolist() == [[4, 3], [6, 12]]


def test_pieces_have_jitter_of_their_own() -> None:
    objects = torch.from_numpy(numbered(PIECES.numpy(), 4))
    one, two = (
        simulated_prompts(PIECES, [1, 2], "slices", 0.1, seed, "a", objects) for seed in (0, 1)
    )
    assert one is not None
    assert two is not None
    assert not torch.equal(one.boxes, two.boxes)
    assert len(one) == 3
    nothing = simulated_prompts(PIECES, [3], "slices", objects=objects)
    assert nothing is not None
    assert len(nothing) == 0
