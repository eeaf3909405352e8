"""Batches: with boxes, without, and mixed."""

from __future__ import annotations

import torch

from medsam_tune.training.batches import IGNORED, MixUp, prepare_batch


def test_a_batch_with_boxes_and_one_without() -> None:
    batch = {"image": torch.rand(2, 3, 8, 8), "masks": torch.ones(2, 3, 8, 8, dtype=torch.bool)}
    image, masks, args, kwargs = prepare_batch(batch, torch.device("cpu"))
    assert image is batch["image"]
    assert masks is batch["masks"]
    assert (args, kwargs) == ((), {"return_quality": True})
    batch["boxes"] = torch.rand(2, 3, 4)
    *_, args, kwargs = prepare_batch(batch, torch.device("cpu"))
    assert args[0] is batch["boxes"]
    assert kwargs == {}


def test_mixed_images_keep_the_larger_share_and_their_own_masks() -> None:
    image = torch.arange(4.0)[:, None, None, None].expand(4, 3, 8, 8)
    batch = {"image": image, "masks": torch.rand(4, 2, 8, 8) > 0.5, "boxes": torch.rand(4, 2, 4)}
    torch.manual_seed(0)
    mixed, masks, args, _ = MixUp(alpha=1.0, prob=1.0)(batch, torch.device("cpu"))
    values = mixed[:, 0, 0, 0]
    assert torch.equal(mixed, values[:, None, None, None].expand_as(mixed))
    assert not torch.equal(values, torch.arange(4.0))
    assert (values - torch.arange(4.0)).abs().max() <= 1.5  # half of the way to any other
    assert masks is batch["masks"]
    assert args[0] is batch["boxes"]
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
