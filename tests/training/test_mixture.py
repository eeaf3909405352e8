"""Prompts of every kind, as users give them and as objects are followed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from medsam_tune.prompts import boxes_from_masks
from medsam_tune.training.mixture import KINDS, MixedPromptsd

LABELS = {3: "liver", 7: "spleen", 9: "aorta"}


def item() -> dict[str, Any]:
    """Two labels on a slice, another two on the slice before; label 7 is larger in 3-D."""
    label, before = torch.zeros(1, 40, 60), torch.zeros(1, 40, 60)
    label[0, 10:20, 8:28] = 3
    label[0, 25:33, 40:50] = 7
    before[0, 11:19, 10:26] = 3
    before[0, 4:8, 50:56] = 9
    extents = {
        "rectangle": {3: torch.zeros(4), 7: torch.tensor([0.5, 1.0, 0.25, 0.125])},
        "interpolated": {3: torch.tensor([0.1, 0.2, -0.1, -2.0])},
    }
    return {"label": label, "before": before, "extents": extents, "image": torch.rand(1, 40, 60)}


def drawn(mixture: dict[str, float], count: int = 200, **options: Any) -> dict[str, Any]:
    prompts = MixedPromptsd("label", LABELS, count, mixture=mixture, **options)
    return prompts.set_random_state(seed=0)(item())


def boxes(found: dict[str, Any]) -> torch.Tensor:
    assert (found["point_labels"][:, :2] == torch.tensor([2, 3])).all()
    return found["points"][:, :2].flatten(1)


def test_shapes_and_types() -> None:
    found = drawn(dict.fromkeys(KINDS, 1.0), count=5)
    shapes = {
        "masks": ((5, 40, 60), torch.bool),
        "labels": ((5,), torch.int64),
        "points": ((5, 8, 2), torch.float32),
        "point_labels": ((5, 8), torch.int64),
        "earlier": ((5, 40, 60), torch.bool),
        "has_earlier": ((5,), torch.bool),
        "classes": ((5,), torch.int64),
    }
    assert {k: (tuple(found[k].shape), found[k].dtype) for k in shapes} == shapes
    assert torch.equal(found["image"].shape[1:] and found["labels"], found["labels"])


def test_every_mask_is_of_its_label_and_class() -> None:
    found = drawn(dict.fromkeys(KINDS, 1.0))
    label = item()["label"][0]
    for mask, i, k in zip(found["masks"], found["labels"], found["classes"], strict=True):
        assert torch.equal(mask, label == i)
        assert [3, 7, 9][k] == i


def test_a_box_is_tight_and_jittered() -> None:
    tight = {3: [8.0, 10, 28, 20], 7: [40.0, 25, 50, 33]}
    found = drawn({"box": 1}, jitter=0.0)
    for box, label in zip(boxes(found), found["labels"].tolist(), strict=True):
        assert box.tolist() == tight[label]
    assert set(found["labels"].tolist()) == {3, 7}
    found = drawn({"box": 1}, count=4000, jitter=0.1)
    moved = boxes(found)[found["labels"] == 3] - torch.tensor(tight[3])
    assert torch.allclose(moved.std(0), torch.tensor([2.0, 1.0, 2.0, 1.0]), rtol=0.1)
    assert not found["has_earlier"].any()


def test_a_loose_box_is_moved_outwards() -> None:
    found = drawn({"loose": 1}, jitter=0.0)
    inside = boxes(found)[found["labels"] == 3] - torch.tensor([8.0, 10, 28, 20])
    outwards = inside * torch.tensor([-1.0, -1, 1, 1]) / torch.tensor([20.0, 10, 20, 10])
    assert (outwards >= 0).all()
    assert 0.3 < float(outwards.max()) < 0.34
    assert 0.1 < float(outwards.mean()) < 0.2


def test_the_rectangle_of_a_3d_box() -> None:
    found = drawn({"rectangle": 1}, jitter=0.0)
    expected = {3: [8.0, 10, 28, 20], 7: [35.0, 17, 52.5, 34]}  # cut off nowhere
    for box, label in zip(boxes(found), found["labels"].tolist(), strict=True):
        assert box.tolist() == pytest.approx(expected[label])


def test_a_box_between_two_others_may_miss_the_object() -> None:
    found = drawn({"interpolated": 1}, jitter=0.0)
    expected = {3: [6.0, 8, 26, 9], 7: [40.0, 25, 50, 33]}  # never less than a pixel
    for box, label in zip(boxes(found), found["labels"].tolist(), strict=True):
        assert box.tolist() == pytest.approx(expected[label])


def test_an_object_is_followed_from_the_slice_before() -> None:
    found = drawn({"followed": 1}, jitter=0.0)
    assert set(found["labels"].tolist()) == {3, 9}  # 9 has ended
    before = item()["before"][0]
    for row, label in enumerate(found["labels"].tolist()):
        source = before == label
        tight, box = boxes_from_masks(source), boxes(found)[row]
        assert (box[:2] <= tight[:2]).all()
        assert (box[2:] >= tight[2:]).all()
        assert bool(found["masks"][row].any()) is (label == 3)
        if found["has_earlier"][row]:
            assert torch.equal(found["earlier"][row], source)
        else:
            assert not found["earlier"][row].any()
    assert 60 < int(found["has_earlier"].sum()) < 140


def test_points_are_inside_and_around() -> None:
    found = drawn({"points": 1})
    inside, outside = found["point_labels"] == 1, found["point_labels"] == 0
    assert set(inside.sum(1).tolist()) == {1, 2, 3}
    assert set(outside.sum(1).tolist()) == {0, 1, 2, 3}
    assert (found["point_labels"][:, :2] == -1).all()
    for row in range(len(inside)):
        for kinds, value in ((inside[row], True), (outside[row], False)):
            x, y = found["points"][row][kinds].long().unbind(1)
            assert (found["masks"][row][y, x] == value).all()


def test_no_prompt_is_a_label_there_or_not() -> None:
    found = drawn({"none": 1})
    assert set(found["labels"].tolist()) == {3, 7, 9}
    assert (found["point_labels"] == -1).all()
    assert torch.equal(found["masks"].flatten(1).any(1), found["labels"] != 9)


def test_kinds_are_drawn_by_weight() -> None:
    found = drawn({"none": 3, "box": 1, "points": 0}, count=4000)
    boxed = (found["point_labels"][:, 0] == 2).float().mean()
    assert float(boxed) == pytest.approx(0.25, abs=0.03)


def test_without_classes_nothing_says_the_label() -> None:
    found = drawn({"box": 1, "followed": 1}, classes=False)
    assert "classes" not in found
    empty = {"label": torch.zeros(1, 9, 9)}
    found = MixedPromptsd("label", LABELS, 4, mixture={"box": 1}, classes=False)(empty)
    assert len(found["labels"]) == 0


@pytest.mark.parametrize("mixture", [{"box": 1}, {"rectangle": 1, "points": 1}, {"followed": 1}])
def test_a_slice_without_labels_is_asked_for_them(mixture: dict[str, float]) -> None:
    empty = {"label": torch.zeros(1, 9, 9)}
    found = MixedPromptsd("label", LABELS, 6, mixture=mixture)(empty)
    assert (found["point_labels"] == -1).all()
    assert not found["masks"].any()
    assert len(found["labels"]) == 6


def test_an_object_that_has_just_ended() -> None:
    ended = {**item(), "label": torch.zeros(1, 40, 60)}
    found = MixedPromptsd("label", LABELS, 50, mixture={"box": 1, "followed": 1})(ended)
    assert set(found["labels"].tolist()) == {3, 9}
    assert not found["masks"].any()
    assert (found["point_labels"][:, 0] == 2).all()


def test_the_seed_fixes_everything() -> None:
    mixture = dict.fromkeys(KINDS, 1.0)
    prompts = MixedPromptsd("label", LABELS, 9, mixture=mixture)
    first, again = (prompts.set_random_state(seed=5)(item()) for _ in range(2))
    other = prompts.set_random_state(seed=6)(item())
    assert torch.equal(first["points"], again["points"])
    assert torch.equal(first["earlier"], again["earlier"])
    assert not torch.equal(first["points"], other["points"])


@pytest.mark.parametrize(
    ("mixture", "classes", "said"),
    [
        ({"bax": 1}, True, "mixture has 'bax'; expected some of box, loose, rectangle"),
        ({"box": -1}, True, "mixture::box is -1; expected a weight, 0 or above"),
        ({"box": "much"}, True, "mixture::box is 'much'"),
        ({"box": True}, True, "mixture::box is True"),
        ({"box": float("nan")}, True, "mixture::box is nan"),
        ({"box": 0}, True, "expected a weight above 0"),
        ({"box": 1, "none": 1}, False, "mixture::none is above 0, but the model does not know"),
    ],
)
def test_impossible_mixtures_are_refused(mixture: dict[str, Any], classes: bool, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        MixedPromptsd("label", LABELS, 4, mixture=mixture, classes=classes)


def test_ids_that_float32_rounds() -> None:
    ids = [2**24 + 1, 2**24 + 4]
    label = torch.from_numpy(np.float32(ids))[None, :, None].expand(-1, -1, 4)
    found = MixedPromptsd("label", ids, 20, mixture={"box": 1})({"label": label})
    assert set(found["labels"].tolist()) == set(ids)
    assert set(found["classes"].tolist()) == {0, 1}


def pieces() -> torch.Tensor:
    """(2, H, W): label 1 in a large and a small piece, label 2 without a numbered object."""
    label = torch.zeros(2, 30, 40)
    label[0, 2:22, 2:22], label[1, 2:22, 2:22] = 1, 1
    label[0, 5:8, 30:33], label[1, 5:8, 30:33] = 1, 2
    label[0, 25:28, 25:28] = 2
    return label


def test_a_prompt_is_for_one_piece() -> None:
    """Larger ones come more often; a label whose pieces are too small is one object."""
    transform = MixedPromptsd("label", [1, 2], 400, 0.0, {"box": 1, "points": 1})
    transform.set_random_state(0)
    found = transform({"label": pieces()})
    counts = {}
    for label, mask in zip(found["labels"].tolist(), found["masks"], strict=True):
        counts[label, int(mask.sum())] = counts.get((label, int(mask.sum())), 0) + 1
    assert set(counts) == {(1, 400), (1, 9), (2, 9)}
    assert counts[1, 400] / counts[1, 9] == pytest.approx(400**0.5 / 9**0.5, rel=0.4)
    for k in range(400):
        where = found["masks"][k].nonzero().flip(1).float()
        own = found["point_labels"][k]
        corners, inside = found["points"][k][own >= 2], found["points"][k][own == 1]
        if len(corners):
            assert corners.tolist() == [where.amin(0).tolist(), (where.amax(0) + 1).tolist()]
        assert all(found["masks"][k][int(y), int(x)] for x, y in inside)


def test_without_a_prompt_the_whole_label_is_meant() -> None:
    found = MixedPromptsd("label", [1, 2], 20, 0.0, {"none": 1})({"label": pieces()})
    sizes = {*zip(found["labels"].tolist(), found["masks"].flatten(1).sum(1).tolist(), strict=True)}
    assert sizes == {(1, 409), (2, 9)}
