"""Batches: their prompts, what nobody annotated, and mixed images."""

from __future__ import annotations

import torch

from medsam_tune.training.batches import EARLIER, IGNORED, MixUp, prepare_batch


def test_prompts_reach_the_network_by_name() -> None:
    batch = {"image": torch.rand(2, 3, 8, 8), "masks": torch.ones(2, 3, 8, 8, dtype=torch.bool)}
    image, masks, args, kwargs = prepare_batch(batch, torch.device("cpu"))
    assert image is batch["image"]
    assert masks is batch["masks"]
    assert (args, kwargs) == ((), {"return_quality": True})
    asked = {
        "boxes": torch.rand(2, 3, 4),
        "points": torch.rand(2, 3, 8, 2),
        "point_labels": torch.ones(2, 3, 8, dtype=torch.int64),
        "classes": torch.zeros(2, 3, dtype=torch.int64),
    }
    *_, kwargs = prepare_batch(batch | asked | {"labels": torch.ones(2, 3)}, torch.device("cpu"))
    assert kwargs == {**asked, "return_quality": True}


def test_an_earlier_mask_is_a_prompt_where_there_is_one() -> None:
    earlier = torch.zeros(2, 3, 8, 8, dtype=torch.bool)
    earlier[0, 1, 2:4] = True
    batch = {
        "image": torch.rand(2, 3, 8, 8),
        "masks": torch.ones(2, 3, 8, 8, dtype=torch.bool),
        "earlier": earlier,
        "has_earlier": earlier.flatten(2).any(2),
    }
    *_, kwargs = prepare_batch(batch, torch.device("cpu"))
    assert torch.equal(kwargs["masks"][0, 1] == EARLIER, earlier[0, 1])
    assert torch.equal(kwargs["masks"][0, 1] == -EARLIER, ~earlier[0, 1])
    assert kwargs["masks"].isnan().flatten(2).all(2).sum() == 5
    batch["has_earlier"] = torch.zeros(2, 3, dtype=torch.bool)
    assert "masks" not in prepare_batch(batch, torch.device("cpu"))[3]


def test_mixed_images_keep_the_larger_share_and_their_own_masks() -> None:
    image = torch.arange(4.0)[:, None, None, None].expand(4, 3, 8, 8)
    batch = {"image": image, "masks": torch.rand(4, 2, 8, 8) > 0.5, "boxes": torch.rand(4, 2, 4)}
    torch.manual_seed(0)
    mixed, masks, _, asked = MixUp(alpha=1.0, prob=1.0)(batch, torch.device("cpu"))
    values = mixed[:, 0, 0, 0]
    assert torch.equal(mixed, values[:, None, None, None].expand_as(mixed))
    assert not torch.equal(values, torch.arange(4.0))
    assert (values - torch.arange(4.0)).abs().max() <= 1.5  # half of the way to any other
    assert masks is batch["masks"]
    assert asked["boxes"] is batch["boxes"]
    plain, *_ = MixUp(prob=0.0)(batch, torch.device("cpu"))
    assert torch.equal(plain, image)


def test_what_nobody_annotated_is_marked_in_every_mask() -> None:
    masks = torch.rand(2, 3, 8, 8) > 0.5
    ignored = torch.rand(2, 1, 8, 8) > 0.5
    batch = {"image": torch.rand(2, 3, 8, 8), "masks": masks, "ignored": ignored}
    for prepare in (prepare_batch, MixUp(prob=1.0)):
        _, marked, _, _ = prepare(batch, torch.device("cpu"))
        everywhere = ignored.expand_as(masks)
        assert (marked[everywhere] == IGNORED).all()
        assert torch.equal(marked[~everywhere] == 1, masks[~everywhere])
