"""Slices go into the network's frame, and masks come back from it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from medsam_tune.inference.planes import Asked, WholePlane, to_channels
from medsam_tune.methods import apply_method
from medsam_tune.prompts import Prompts
from medsam_tune.sam.model import Masks
from medsam_tune.slices.frames import ModelFrame
from tests.inference.made import Build

SIZE = (40, 60)
SLICES = torch.randint(
    0, 256, (2, 1, *SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
BOXES = torch.tensor([[[5.0, 4], [40, 30]], [[20, 10], [58, 39]], [[1, 2], [9, 30]]])
CORNERS = torch.tensor([[2, 3]]).repeat(3, 1)
WHERE = torch.tensor([0, 1, 1])


@pytest.mark.parametrize("squash", [False, True])
def test_answers_are_the_networks_in_the_slice_frame(tiny_sam: Build, squash: bool) -> None:
    sam = tiny_sam().eval()
    frame = ModelFrame(SIZE, 96, squash)
    plane = WholePlane(sam, SIZE, frame)
    with torch.no_grad():
        embeddings = plane.encode(SLICES)
        image = frame.image(SLICES.repeat(1, 3, 1, 1).float() / 255)
        torch.testing.assert_close(embeddings, sam.encode(image))
        found = plane.decode(embeddings, WHERE, Asked(BOXES, CORNERS))
        boxes = frame.boxes(BOXES.flatten(1))[:, None]
        expected = sam.decode(embeddings[WHERE], Prompts(boxes=boxes))
    torch.testing.assert_close(found.logits, frame.logits(expected.logits)[:, 0])
    torch.testing.assert_close(found.quality, expected.quality[:, 0])
    assert found.logits.shape == (3, *SIZE)
    assert found.presence is None


def test_a_class_may_be_all_that_is_asked(tiny_sam: Build) -> None:
    sam = apply_method(tiny_sam(), "decoder", num_classes=3).eval()
    plane = WholePlane(sam, SIZE, ModelFrame(SIZE, 96))
    with torch.no_grad():
        sam.learned.present.normal_()
        embeddings = plane.encode(SLICES)
        expected = sam.decode(embeddings)
        classes = torch.arange(3).repeat(2)
        for count in (0, 2):  # no points, or padding alone
            points, kinds = torch.zeros(6, count, 2), torch.full((6, count), -1)
            asked = Asked(points, kinds, classes)
            found = plane.decode(embeddings, torch.tensor([0, 0, 0, 1, 1, 1]), asked)
            assert found.presence is not None
            torch.testing.assert_close(found.presence, expected.presence.flatten())
            torch.testing.assert_close(found.quality, expected.quality.flatten())
    with pytest.raises(ValueError, match="give the class of each prompt"):
        plane.decode(embeddings, WHERE, Asked(BOXES, CORNERS))


class Mirror:
    """A network whose answer is the mask that it is asked by."""

    image_size = 64
    classes = 0
    pixel_mean = torch.zeros(1)
    base = SimpleNamespace(in_channels=1)

    def decode(self, embedding: torch.Tensor, prompts: Prompts) -> Masks:
        assert prompts.masks is not None
        assert prompts.masks.shape == (2, 1, 64, 64)
        return Masks(prompts.masks, torch.ones(2, 1))


def test_an_earlier_mask_is_asked_by_in_its_place() -> None:
    logits = torch.full((2, 32, 64), -3.0)
    logits[0, 4:12, 20:40] = 5.0
    logits[1, 25:32, 50:64] = 2.0
    plane = WholePlane(Mirror(), (32, 64), ModelFrame((32, 64), 64))
    asked = Asked(torch.zeros(2, 0, 2), torch.zeros(2, 0), masks=logits)
    torch.testing.assert_close(
        plane.decode(torch.zeros(1, 1, 16, 16), torch.tensor([0, 0]), asked).logits, logits
    )
    padding = Mirror().decode  # what the network sees beside the slice

    def seen(embedding: torch.Tensor, prompts: Prompts) -> Masks:
        assert prompts.masks is not None
        assert (prompts.masks[:, :, 33:] < -10).all()
        return padding(embedding, prompts)

    plane.network.decode = seen
    plane.decode(torch.zeros(1, 1, 16, 16), torch.tensor([0, 0]), asked)


def test_rows_of_what_is_asked() -> None:
    asked = Asked(BOXES, CORNERS, torch.arange(3), None)
    some = asked.rows(torch.tensor([2, 0]))
    assert torch.equal(some.points, BOXES[[2, 0]])
    assert some.classes is not None
    assert some.classes.tolist() == [2, 0]
    assert some.masks is None


def test_channels() -> None:
    image = torch.rand(2, 1, 4, 4)
    assert torch.equal(to_channels(image, 3), image.repeat(1, 3, 1, 1))
    assert to_channels(image, 1) is image
    with pytest.raises(ValueError, match="image has 2 channels, the model takes 3"):
        to_channels(torch.rand(1, 2, 4, 4), 3)
