"""Learned tokens start behind closed gates, and each class has its own."""

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


def opened(sam: PromptableSam) -> PromptableSam:
    """The model with its gates open, as after some training."""
    with torch.no_grad():
        sam.learned.gates.fill_(0.5)  # type: ignore[union-attr]
    return sam


def test_tokens_start_apart_and_their_gates_closed(tiny_sam: Build) -> None:
    sam = tiny_sam()
    learned = learned_tokens(sam, 200)
    assert learned.tokens.shape == (1, 200, 16)
    kinds = torch.cat([kind.weight for kind in sam.prompt_encoder.point_embeddings])
    assert float(learned.tokens.detach().std()) == pytest.approx(
        float(kinds.detach().std()), rel=0.1
    )
    assert learned.gates.shape == (2, 2, 8)  # layers, kinds of attention, heads
    assert not learned.gates.any()


@pytest.mark.parametrize("kind", [0, 1], ids=["among tokens", "from image to tokens"])
@pytest.mark.parametrize("layer", [0, 1])
def test_each_gate_lets_tokens_in(tiny_sam: Build, layer: int, kind: int) -> None:
    sam = apply_method(tiny_sam(), "prompt")
    image, boxes = image_and_boxes()
    masks = sam(image, boxes)
    masks.square().mean().backward()
    assert sam.learned.gates.grad[layer, kind].abs().min() > 0  # open at the first step
    with torch.no_grad():
        sam.learned.gates[layer, kind, 3] = 0.5
        opened = sam(image, boxes)
        assert not torch.allclose(opened, masks, atol=1e-6)
        sam.learned.tokens += 1
        assert not torch.allclose(sam(image, boxes), opened, atol=1e-6)


def test_tokens_stand_before_points_that_fill_up_a_batch(tiny_sam: Build) -> None:
    sam = opened(apply_method(tiny_sam(), "prompt", tokens=3))
    points = torch.rand(1, 1, 4, 2) * 96
    labels = torch.tensor([[[1, -1, 0, -1]]])
    few = Prompts(points=points[:, :, [0, 2]], point_labels=labels[..., [0, 2]])
    with torch.no_grad():
        embedding = sam.encode(image_and_boxes(images=1)[0])
        found, *_ = sam.decode(embedding, Prompts(points=points, point_labels=labels))
        expected, *_ = sam.decode(embedding, few)
    assert torch.allclose(found, expected, atol=1e-5)


def test_each_class_has_its_tokens_and_its_presence(tiny_sam: Build) -> None:
    sam = opened(apply_method(tiny_sam(), "decoder", num_classes=3, class_tokens=2))
    assert not sam.learned.present.any()
    embedding = sam.encode(image_and_boxes()[0]).detach()
    with torch.no_grad():
        logits, quality, presence = sam.decode(embedding)
        assert not presence.any()
        sam.learned.tokens[1] += 1
        sam.learned.present[2, -1] = 5  # the bias
        after, again, presence = sam.decode(embedding)
    assert logits.shape == (2, 3, 24, 24)
    moved = (after != logits).flatten(2).any(2)
    assert moved.tolist() == [[False, True, False]] * 2
    assert torch.equal(again[:, [0, 2]], quality[:, [0, 2]])
    assert presence.tolist() == [[0, 0, 5]] * 2
    with torch.no_grad():  # the other D values weigh the quality token
        sam.learned.present[0, :-1] = torch.arange(16.0)
        together = sam.decode(embedding).presence
        alone = [sam.decode(one).presence for one in embedding.split(1)]
    assert together[:, 0].abs().min() > 0.1
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)


def test_a_class_alone_has_the_logits_of_a_classifier_of_the_embedding(tiny_sam: Build) -> None:
    sam = apply_method(tiny_sam(), "decoder", num_classes=3)
    assert not sam.learned.coarse.any()
    with torch.no_grad():
        embedding = sam.encode(image_and_boxes()[0])
        before = sam.decode(embedding).logits
        sam.learned.coarse[1, 2] = 4.0  # of one channel
        sam.learned.coarse[2, -1] = 7.0  # everywhere
        after = sam.decode(embedding).logits
    moved = after - before
    channel = torch.nn.functional.interpolate(embedding[:, 2:3], (24, 24), mode="bilinear")[:, 0]
    assert torch.equal(moved[:, 0], torch.zeros(2, 24, 24))
    assert torch.allclose(moved[:, 1], 4 * channel, atol=1e-5)
    assert torch.allclose(moved[:, 2], torch.full((2, 24, 24), 7.0), atol=1e-5)


@pytest.mark.parametrize("kind", ["boxes", "points", "corners", "masks"])
def test_a_prompt_that_says_where_has_no_coarse_logits(tiny_sam: Build, kind: str) -> None:
    """One prompt says where, by each kind; the other two are a class alone, and -1."""
    sam = apply_method(tiny_sam(), "decoder", num_classes=3)
    image, boxes = image_and_boxes(images=1, prompts=3)
    labels = torch.full((1, 3, 2), -1)
    earlier = torch.full((1, 3, 24, 24), float("nan"))
    if kind == "masks":
        earlier[:, 0] = 1.0
    elif kind != "boxes":
        labels[:, 0] = torch.tensor([1, 0] if kind == "points" else [2, 3])
    asked = Prompts(
        boxes=boxes if kind == "boxes" else None,
        points=boxes.view(1, 3, 2, 2),
        point_labels=labels,
        masks=earlier,
        classes=torch.tensor([[1, 1, -1]]),
    )
    with torch.no_grad():
        embedding = sam.encode(image)
        before = sam.decode(embedding, asked).logits
        sam.learned.coarse[:, -1] = 5.0
        moved = (sam.decode(embedding, asked).logits - before).amax((-1, -2))
    expected = [0.0, 0.0, 0.0] if kind == "boxes" else [0.0, 5.0, 0.0]
    assert moved[0].tolist() == pytest.approx(expected, abs=1e-5)


def test_a_prompt_names_its_class(tiny_sam: Build) -> None:
    sam = opened(apply_method(tiny_sam(), "decoder", num_classes=3, class_tokens=2))
    image, boxes = image_and_boxes(prompts=4)
    boxes = boxes[:, :1].expand(-1, 4, -1)
    classes = torch.tensor([[0, 2, -1, 0], [-1, 1, 1, 0]])
    with torch.no_grad():
        sam.learned.tokens += torch.tensor([0.0, 1, 2])[:, None, None]
        sam.learned.present[:, -1] = torch.tensor([3.0, 4, 5])
        found = sam(image, boxes, classes=classes, return_quality=True)
        learned, sam.learned = sam.learned, None
        plain = sam(image, boxes[:, :1])
        sam.learned = learned
        alone = sam(image[:1], boxes[:1, :1], classes=torch.tensor([[2]]))
    assert found.presence.tolist() == [[3, 5, 0, 3], [0, 4, 4, 3]]
    assert torch.allclose(found.logits[0, 2], plain[0, 0], atol=1e-5)  # SAM's own prompting
    assert torch.allclose(found.logits[1, 0], plain[1, 0], atol=1e-5)
    assert torch.allclose(found.logits[0, 1], alone[0, 0], atol=1e-5)
    assert torch.equal(found.logits[0, 0], found.logits[0, 3])
    assert not torch.allclose(found.logits[0, 0], found.logits[0, 1], atol=1e-3)


def test_no_prompt_is_a_prompt_of_padding(tiny_sam: Build) -> None:
    sam = opened(apply_method(tiny_sam(), "decoder", num_classes=3))
    padding = torch.full((2, 3, 2), -1)
    asked = Prompts(
        points=torch.rand(2, 3, 2, 2),
        point_labels=padding,
        classes=torch.arange(3).expand(2, -1),
    )
    with torch.no_grad():
        embedding = sam.encode(image_and_boxes()[0])
        found, expected = sam.decode(embedding, asked), sam.decode(embedding)
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        (None, "the model knows 3 classes; give the class of each prompt"),
        ([[0, 3]], "classes are from 0 to 3; expected 0 to 2, or -1"),
        ([[-2, 0]], "classes are from -2 to 0"),
    ],
)
def test_a_class_is_given_and_known(
    tiny_sam: Build, classes: list[list[int]] | None, said: str
) -> None:
    sam = apply_method(tiny_sam(), "decoder", num_classes=3)
    image, boxes = image_and_boxes(images=1, prompts=2)
    with pytest.raises(ValueError, match=said):
        sam(image, boxes, classes=None if classes is None else torch.tensor(classes))
    with pytest.raises(ValueError, match="has no learned class tokens"):
        tiny_sam()(image, boxes, classes=torch.zeros(1, 2, dtype=torch.int64))
