"""Learned tokens start around SAM's "not a point", and each class has its own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from medsam_tune.methods import apply_method
from medsam_tune.methods.prompt import learned_tokens
from medsam_tune.prompts import Prompts
from medsam_tune.sam.model import PromptableSam
from tests.conftest import image_and_boxes

Build = Callable[..., PromptableSam]


def test_tokens_start_a_little_apart_around_not_a_point(tiny_sam: Build) -> None:
    sam = tiny_sam()
    tokens = learned_tokens(sam, 200).tokens.detach()
    assert tokens.shape == (1, 200, 16)
    apart = tokens - sam.prompt_encoder.not_a_point_embed.weight[0].detach()
    assert float(apart.std()) == pytest.approx(0.02, rel=0.1)
    assert abs(float(apart.mean())) < 0.002
    assert learned_tokens(sam, 1).tokens.shape == (1, 1, 16)


def test_tokens_stand_before_points_that_fill_up_a_batch(tiny_sam: Build) -> None:
    sam = apply_method(tiny_sam(), "prompt", tokens=3)
    points = torch.rand(1, 1, 4, 2) * 96
    labels = torch.tensor([[[1, -1, 0, -1]]])
    few = Prompts(points=points[:, :, [0, 2]], point_labels=labels[..., [0, 2]])
    with torch.no_grad():
        embedding = sam.encode(image_and_boxes(images=1)[0])
        found, _ = sam.decode(embedding, Prompts(points=points, point_labels=labels))
        expected, _ = sam.decode(embedding, few)
    assert torch.allclose(found, expected, atol=1e-5)


def test_each_class_has_its_tokens_and_its_presence(tiny_sam: Build) -> None:
    sam = apply_method(tiny_sam(), "decoder", num_classes=3, class_tokens=2)
    assert not sam.learned.present.any()
    embedding = sam.encode(image_and_boxes()[0]).detach()
    with torch.no_grad():
        logits, quality = sam.decode(embedding)
        sam.learned.tokens[1] += 1
        sam.learned.present[2, -1] = 5  # the bias
        after, presence = sam.decode(embedding)
    assert logits.shape == (2, 3, 24, 24)
    moved = (after != logits).flatten(2).any(2)
    assert moved.tolist() == [[False, True, False]] * 2
    assert torch.equal(presence[:, 0], quality[:, 0])
    assert torch.allclose(presence[:, 2], quality[:, 2] + 5)
    with torch.no_grad():  # the other D values weigh the quality token
        sam.learned.present[0, :-1] = torch.arange(16.0)
        together = sam.decode(embedding)[1]
        alone = [sam.decode(one)[1] for one in embedding.split(1)]
    assert (together[:, 0] - quality[:, 0]).abs().min() > 0.1
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)


def test_prompts_beside_classes_are_one_for_each(tiny_sam: Build) -> None:
    sam = apply_method(tiny_sam(), "decoder", num_classes=3)
    image, boxes = image_and_boxes(prompts=2)
    said = "2 prompts per image for a model of 3 classes; give it none, or one for each class"
    with pytest.raises(ValueError, match=said):
        sam(image, boxes)
    assert sam(*image_and_boxes(prompts=3)).shape == (2, 3, 24, 24)
