"""Prompt embeddings are the stock encoder's, point by point, in float32."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from medsam_tune.prompts import Prompts
from medsam_tune.sam.model import PromptableSam
from medsam_tune.sam.prompting import embed_prompts
from tests.conftest import image_and_boxes

Build = Callable[..., PromptableSam]


def points_of(*labels: int) -> Prompts:
    """One object's points with these labels; N is 1."""
    places = torch.rand(1, len(labels), 2, generator=torch.Generator().manual_seed(0)) * 96
    return Prompts(points=places, point_labels=torch.tensor([labels]))


def test_points_keep_their_place_under_autocast(tiny_sam: Build) -> None:
    sam = tiny_sam()
    points = torch.rand(1, 3, 4, 2) * 96
    labels = torch.ones(1, 3, 4)
    flat = Prompts(points=points, point_labels=labels).flattened()
    exact, *_ = embed_prompts(sam.prompt_encoder, 3, flat)
    with torch.autocast("cpu", torch.bfloat16):
        found, *_ = embed_prompts(sam.prompt_encoder, 3, flat)
        logits = sam(torch.rand(1, 3, 96, 96), points=points, point_labels=labels)
    assert torch.equal(found, exact)
    assert logits.isfinite().all()


@pytest.mark.parametrize("box", [False, True])
@pytest.mark.parametrize("mask", [False, True])
@torch.no_grad()
def test_tokens_are_stocks(tiny_sam: Build, box: bool, mask: bool) -> None:
    encoder = tiny_sam().prompt_encoder
    prompts = points_of(1, 0, 1)._replace(
        boxes=image_and_boxes()[1][0, :1] if box else None,
        masks=torch.randn(1, 24, 24) if mask else None,
    )
    masks = None if prompts.masks is None else prompts.masks[:, None]
    expected = encoder((prompts.points, prompts.point_labels), prompts.boxes, masks)
    sparse, dense, absent = embed_prompts(encoder, 1, prompts)
    assert torch.allclose(sparse, expected[0], atol=1e-5)
    assert torch.allclose(dense.expand_as(expected[1]), expected[1], atol=1e-5)
    assert absent is not None
    assert not absent.any()


def test_what_is_absent(tiny_sam: Build) -> None:
    encoder = tiny_sam().prompt_encoder
    _, _, absent = embed_prompts(encoder, 1, points_of(1, -1, 0))
    assert absent is not None
    assert absent.tolist() == [[False, True, False, False]]  # the last is SAM's "not a point"
    _, _, absent = embed_prompts(encoder, 1, points_of(2, 3, -1))
    assert absent is not None
    assert absent.tolist() == [[False, False, True, True]]  # corners are a box: no such token
    sparse, dense, absent = embed_prompts(encoder, 5, Prompts())
    assert sparse.shape == (5, 0, 16)
    assert dense.shape == (1, 16, 6, 6)
    assert absent is None
    assert embed_prompts(encoder, 1, Prompts(boxes=torch.rand(1, 4)))[2] is None


def test_corners_among_the_points_are_a_box(tiny_sam: Build) -> None:
    encoder = tiny_sam().prompt_encoder
    box = image_and_boxes()[1][0, :1]  # (1, 4)
    corners = Prompts(points=box.view(1, 2, 2), point_labels=torch.tensor([[2, 3]]))
    by_box, *_ = embed_prompts(encoder, 1, Prompts(boxes=box))
    by_points, _, absent = embed_prompts(encoder, 1, corners)
    assert absent is not None
    assert torch.equal(by_points[~absent], by_box[0])
