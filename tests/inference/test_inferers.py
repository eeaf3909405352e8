"""Inferers: every mask on its slice, every slice encoded once."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from medsam_tune.errors import DataError
from medsam_tune.inference.inferers import (
    ClassSliceInferer,
    EllipseInferer,
    PromptedSliceInferer,
    to_channels,
    volume_inferer,
)
from medsam_tune.inference.segmenter import Segmenter
from medsam_tune.methods import apply_method
from medsam_tune.prompts import Prompts, SlicePrompts, ellipses_in_boxes
from medsam_tune.sam.model import Masks, PromptableSam
from medsam_tune.slices.frames import ModelFrame
from medsam_tune.slices.intensity import Window
from medsam_tune.slices.rules import ScanRules
from tests.inference.made import THREE, BoxFiller, Build, drawn, prompts_of, scan, volume


def test_masks_lie_on_their_slices_with_their_labels() -> None:
    found = PromptedSliceInferer()(volume(), BoxFiller(), THREE)
    assert found.dtype == torch.int32
    assert torch.equal(found, drawn(THREE))


def test_a_slice_is_encoded_once_and_only_with_a_box() -> None:
    network = BoxFiller()
    rows = [(z, 1, [x, 0.0, x + 4.0, 4.0]) for z in (0, 2, 5) for x in (0.0, 8.0, 16.0)]
    PromptedSliceInferer(slice_batch=2, prompt_batch=2)(volume(), network, prompts_of(*rows))
    assert network.encoded == [1, 3, 6]
    assert network.calls == 2


@pytest.mark.parametrize("batches", [(1, 1), (2, 3), (8, 64)])
def test_batch_sizes_do_not_matter(tiny_sam: Build, batches: tuple[int, int]) -> None:
    sam = tiny_sam().eval()
    image, prompts = noise(), noise_prompts()
    with torch.no_grad():
        found = PromptedSliceInferer(*batches)(image, sam, prompts)
        expected = loop(image, sam, prompts)
    assert (found != expected).float().mean() < 1e-3  # sums in another order, near the threshold
    assert set(found.unique().tolist()) == {0, 1, 2}
    assert not found[3].any()


def noise() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (5, 1, 40, 60), dtype=torch.uint8, generator=generator)


def noise_prompts() -> SlicePrompts:
    box = [5.0, 5.0, 40.0, 30.0]
    other = [20.0, 10.0, 58.0, 39.0]
    return prompts_of(
        (0, 1, box), (0, 2, other), (1, 2, box), (2, 1, other), (2, 2, box), (4, 1, box)
    )


def loop(image: torch.Tensor, sam: PromptableSam, prompts: SlicePrompts) -> torch.Tensor:
    """One box at a time, nothing kept."""
    frame = ModelFrame((40, 60), 96)
    logits = torch.zeros(3, *image[:, 0].shape)  # label, slice, row, column; background is 0
    for z, box, label in zip(prompts.slices, prompts.boxes, prompts.labels, strict=True):
        model_image = frame.image(image[z][None].repeat(1, 3, 1, 1).float() / 255)
        mask, *_ = sam.decode(sam.encode(model_image), Prompts(frame.boxes(box)[None, None]))
        logits[label, z] = frame.logits(mask)[0, 0]
    return logits.argmax(0).short()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_where_masks_overlap_the_higher_logit_wins(order: tuple[int, int]) -> None:
    large, small = [0.0, 0.0, 24.0, 20.0], [8.0, 8.0, 16.0, 16.0]
    rows = [
        (2, 1 + order[0], [large, small][order[0]]),
        (2, 1 + order[1], [large, small][order[1]]),
    ]
    for prompt_batch in (1, 64):
        found = PromptedSliceInferer(prompt_batch=prompt_batch)(
            volume(), BoxFiller(), prompts_of(*rows)
        )
        assert (found[2, 9:15, 9:15] == 2).all()
        assert (found[2, :6, :24] == 1).all()
        assert (found[2] > 0).sum() == 24 * 20


def test_no_prompts_no_mask() -> None:
    none = SlicePrompts.none()
    network = BoxFiller()
    for inferer in (PromptedSliceInferer(), EllipseInferer()):
        found = inferer(volume(), network, none)
        assert found.shape == (6, 24, 32)
        assert not found.any()
    assert network.encoded == []


def test_slices_of_one_value_stay_empty() -> None:
    image = volume()
    image[1] = 7
    network = BoxFiller()
    found = PromptedSliceInferer()(image, network, THREE)
    assert network.encoded == [5]
    assert not found[1].any()
    assert torch.equal(found[4], drawn(THREE)[4])
    nothing = torch.zeros_like(image)
    assert not PromptedSliceInferer()(nothing, network, THREE).any()
    assert not ClassSliceInferer([1, 2, 3])(nothing, Bars()).any()


def test_no_prompts_for_a_real_model(tiny_sam: Build) -> None:
    none = SlicePrompts.none()
    with torch.no_grad():
        assert not PromptedSliceInferer()(noise(), tiny_sam(), none).any()


class Bars:
    """Stands for a model of three classes: each fills a quarter of the rows, some slices only."""

    image_size = 64
    classes = 3
    pixel_mean = torch.zeros(1)
    base = SimpleNamespace(in_channels=1)

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        return image[:, :1, 0, 0]  # the value of the slice

    def decode(self, embedding: torch.Tensor) -> Masks:
        logits = torch.full((len(embedding), 3, 16, 16), -5.0)
        for k in range(3):
            logits[:, k, 4 * k : 4 * k + 5] = 5.0 + k  # overlaps the one before by a row
        number = (embedding * 255).round()  # slices 0 .. 5
        presence = torch.cat([number - 1.5, 3.5 - number, torch.ones_like(number)], 1)
        return Masks(logits, torch.ones_like(presence), presence)


def test_classes_fill_the_slices_where_they_are_present() -> None:
    image = torch.arange(6, dtype=torch.uint8)[:, None, None, None].repeat(1, 1, 64, 64)
    image[..., -1, -1] = 255
    found = {}
    for batch in (1, 4):
        labels = ClassSliceInferer([2, 5, 7], slice_batch=batch)(image, Bars())
        found[batch] = [set(labels[z].unique().tolist()) - {0} for z in range(6)]
        assert labels.dtype == torch.int32
        assert labels[2, 19].unique().tolist() == [5]  # the higher logit wins the shared row
        assert labels[0, 8].unique().tolist() == [0]
    assert found[1] == found[4] == [{5, 7}, {5, 7}, {2, 5, 7}, {2, 5, 7}, {2, 7}, {2, 7}]


def test_a_model_of_classes_segments_without_prompts(tiny_sam: Build, tmp_path: Path) -> None:
    sam = apply_method(tiny_sam(), "decoder", num_classes=2).eval()
    with torch.no_grad():
        sam.learned.present[:, -1] = torch.tensor([100.0, -100.0])  # one is there, one is not
    file = scan(tmp_path, np.diag([2.0, 2.0, 3.0, 1.0]), (20, 24, 4))
    segmenter = Segmenter(sam, ScanRules(Window(40, 400)), {3: "liver", 9: "spleen"})
    mask = segmenter(file)
    assert mask.shape == (20, 24, 4)
    assert set(np.unique(mask)) <= {0, 3}


def test_volume_inferer_is_the_models(tiny_sam: Build) -> None:
    prompted = volume_inferer(tiny_sam(), [1])
    assert isinstance(prompted, PromptedSliceInferer)
    with pytest.raises(DataError, match=r"segments what is prompted; give it a prompt file"):
        prompted(volume(), tiny_sam(), None)
    classes = apply_method(tiny_sam(), "decoder", num_classes=2)
    inferer = volume_inferer(classes, {7: "b", 2: "a"})
    assert isinstance(inferer, ClassSliceInferer)
    assert inferer.labels.tolist() == [2, 7]
    with pytest.raises(
        DataError, match=r"the model has 2 classes, but 3 labels are given \(1, 2, 3\)"
    ):
        volume_inferer(classes, [1, 2, 3])


def test_ellipse_inferer_fills_boxes_with_ellipses() -> None:
    found = EllipseInferer()(volume(), None, THREE)
    for z, box, label in zip(THREE.slices, THREE.boxes, THREE.labels, strict=True):
        assert torch.equal(found[z] == label, ellipses_in_boxes(box, (24, 32)) > 0)
    assert not found[[0, 2, 3, 5]].any()


def test_channels() -> None:
    image = torch.rand(2, 1, 4, 4)
    assert torch.equal(to_channels(image, 3), image.repeat(1, 3, 1, 1))
    assert to_channels(image, 1) is image
    with pytest.raises(ValueError, match="image has 2 channels, the model takes 3"):
        to_channels(torch.rand(1, 2, 4, 4), 3)


# read_prompts


@pytest.mark.parametrize("label", [40_000, 2**31 - 1])
def test_row_76_label_ids_of_any_size(label: int) -> None:
    prompts = SlicePrompts.of_boxes(
        slices=torch.tensor([1]), boxes=torch.tensor([[2.0, 2, 9, 9]]), labels=torch.tensor([label])
    )
    found = EllipseInferer()(torch.zeros(3, 1, 12, 12, dtype=torch.uint8), None, prompts)
    assert found.unique().tolist() == [0, label]
