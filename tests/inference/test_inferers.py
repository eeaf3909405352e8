"""Inferers: every mask on its slice, every slice encoded once."""

from __future__ import annotations

import warnings
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from medsam_tune.errors import DataError
from medsam_tune.inference.canvas import Found
from medsam_tune.inference.inferers import EllipseInferer, VolumeInferer
from medsam_tune.prompts import Prompts, SlicePrompts, ellipses_in_boxes
from medsam_tune.sam.model import Masks, PromptableSam
from medsam_tune.slices.frames import ModelFrame
from tests.inference.made import THREE, BoxFiller, Build, drawn, prompts_of, volume

NOTHING = SlicePrompts.none()


def test_masks_lie_on_their_slices_with_their_labels() -> None:
    found = VolumeInferer()(volume(), BoxFiller(), THREE)
    assert found.dtype == torch.uint8
    assert torch.equal(found, drawn(THREE))


def test_a_slice_is_encoded_once_and_only_with_a_box() -> None:
    network = BoxFiller()
    rows = [(z, 1, [x, 0.0, x + 4.0, 4.0]) for z in (0, 2, 5) for x in (0.0, 8.0, 16.0)]
    VolumeInferer(slice_batch=2, prompt_batch=2)(volume(), network, prompts_of(*rows))
    assert network.encoded == [1, 3, 6]
    assert network.calls == 2


@pytest.mark.parametrize("batches", [(1, 1), (2, 3), (8, 64)])
def test_batch_sizes_do_not_matter(tiny_sam: Build, batches: tuple[int, int]) -> None:
    sam = tiny_sam().eval()
    image, prompts = noise(), noise_prompts()
    with torch.no_grad():
        found = VolumeInferer(slice_batch=batches[0], prompt_batch=batches[1])(image, sam, prompts)
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
        found = VolumeInferer(prompt_batch=prompt_batch)(volume(), BoxFiller(), prompts_of(*rows))
        assert (found[2, 9:15, 9:15] == 2).all()
        assert (found[2, :6, :24] == 1).all()
        assert (found[2] > 0).sum() == 24 * 20


def test_no_prompts_no_mask() -> None:
    none = SlicePrompts.none()
    network = BoxFiller()
    for inferer in (VolumeInferer(), EllipseInferer()):
        found = inferer(volume(), network, none)
        assert found.shape == (6, 24, 32)
        assert not found.any()
    assert network.encoded == []


def test_slices_of_one_value_stay_empty() -> None:
    image = volume()
    image[1] = 7
    network = BoxFiller()
    found = VolumeInferer()(image, network, THREE)
    assert network.encoded == [5]
    assert not found[1].any()
    assert torch.equal(found[4], drawn(THREE)[4])
    nothing = torch.zeros_like(image)
    assert not VolumeInferer()(nothing, network, THREE).any()
    assert not VolumeInferer([1, 2, 3])(nothing, Bars()).any()


def test_no_prompts_for_a_real_model(tiny_sam: Build) -> None:
    none = SlicePrompts.none()
    with torch.no_grad():
        assert not VolumeInferer()(noise(), tiny_sam(), none).any()


class Bars:
    """Stands for a model of three classes: each fills a quarter of the rows, some slices only."""

    image_size = 64
    classes = 3
    pixel_mean = torch.zeros(1)
    base = SimpleNamespace(in_channels=1)

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        return image[:, :1, 0, 0]  # the value of the slice

    def decode(self, embedding: torch.Tensor, prompts: Prompts) -> Masks:
        assert prompts.classes is not None
        k = prompts.classes[:, 0]
        row = torch.arange(16)
        inside = (row >= 4 * k[:, None]) & (row < 4 * k[:, None] + 5)  # overlaps the one before
        logits = torch.where(inside, 5.0 + k[:, None], -5.0)[:, None, :, None].repeat(1, 1, 1, 16)
        number = (embedding * 255).round()  # slices 0 .. 5
        presence = torch.cat([number - 1.5, 3.5 - number, torch.ones_like(number)], 1)
        return Masks(logits, torch.ones(len(k), 1), presence.gather(1, k[:, None]))


def bars_image() -> torch.Tensor:
    image = torch.arange(6, dtype=torch.uint8)[:, None, None, None].repeat(1, 1, 64, 64)
    image[..., -1, -1] = 255
    return image


@pytest.mark.parametrize("batches", [(1, 64), (4, 64), (4, 2)])
def test_classes_fill_the_slices_where_they_are_present(batches: tuple[int, int]) -> None:
    inferer = VolumeInferer([7, 2, 5], slice_batch=batches[0], prompt_batch=batches[1])
    labels = inferer(bars_image(), Bars())
    found = [set(labels[z].unique().tolist()) - {0} for z in range(6)]
    assert found == [{5, 7}, {5, 7}, {2, 5, 7}, {2, 5, 7}, {2, 7}, {2, 7}]
    assert labels[2, 19].unique().tolist() == [5]  # the higher logit wins the shared row
    assert labels[0, 8].unique().tolist() == [0]


def test_a_prompt_has_the_class_of_its_label() -> None:
    prompts = prompts_of((2, 5, [0.0, 0, 9, 9]), (2, 7, [0.0, 0, 9, 9]))
    labels = VolumeInferer([2, 5, 7])(bars_image(), Bars(), prompts)
    assert labels.unique().tolist() == [0, 5, 7]
    assert labels[2, 20].unique().tolist() == [5]
    assert labels[2, 40].unique().tolist() == [7]


def test_a_prompt_that_nobody_drew_gives_way_to_the_models_word() -> None:
    image, box = bars_image(), torch.tensor([[0.0, 0, 9, 9]]).repeat(6, 1)
    rows = torch.arange(6), box, torch.full((6,), 2)

    def slices(drawn: bool, **options: bool) -> list[int]:
        prompts = SlicePrompts.of_boxes(*rows, drawn=drawn)
        labels = VolumeInferer([2, 5, 7], **options)(image, Bars(), prompts)
        return labels.flatten(1).any(1).nonzero().flatten().tolist()

    assert slices(drawn=True) == [0, 1, 2, 3, 4, 5]
    assert slices(drawn=False) == [2, 3, 4, 5]
    assert slices(drawn=False, drop_absent=False) == [0, 1, 2, 3, 4, 5]
    alone = VolumeInferer([2, 5, 7], drop_absent=False)(image, Bars())  # the label is all it has
    assert torch.equal(alone, VolumeInferer([2, 5, 7])(image, Bars()))


def test_probabilities_are_near_0_where_a_label_is_absent() -> None:
    inferer = VolumeInferer([2, 5, 7], detailed=True, probabilities=True)
    found = inferer(bars_image(), Bars())
    assert isinstance(found, Found)
    assert found.logits is not None
    for label in (2, 5, 7):
        probability = found.logits.probabilities(label)
        there = (found.labels == label).flatten(1).any(1)  # type: ignore[attr-defined]
        assert torch.equal((probability > 0.5).flatten(1).any(1), there)
        assert not (probability[~there] > 1e-6).any()
    assert [(one.label, one.slices) for one in found.objects] == [(2, 4), (5, 4), (7, 6)]


def test_several_kinds_of_prompts_share_the_embeddings() -> None:
    network, image = BoxFiller(), volume()
    kinds = {"slices": THREE, "middle": THREE.rows(torch.tensor([0])), "none of it": NOTHING}
    found = VolumeInferer()(image, network, kinds)
    assert sorted(network.encoded) == [2, 5]
    assert list(found) == [*kinds]
    for kind, prompts in kinds.items():
        assert torch.equal(found[kind], VolumeInferer()(image, BoxFiller(), prompts))
    both = VolumeInferer([2, 5, 7])(
        bars_image(), Bars(), {"none": None, "box": prompts_of((0, 2, [0.0, 0, 9, 9]))}
    )
    assert torch.equal(both["none"], VolumeInferer([2, 5, 7])(bars_image(), Bars()))
    assert both["box"].unique().tolist() == [0, 2]


def test_separate_masks_may_overlap() -> None:
    found = VolumeInferer([2, 5, 7], separate=True)(bars_image(), Bars())
    assert list(found) == [2, 5, 7]
    assert all(mask.dtype == torch.bool for mask in found.values())
    assert (found[2][2] & found[5][2]).any()
    prompts = prompts_of((1, 7, [0.0, 0, 9, 9]))
    asked = VolumeInferer([2, 5, 7], separate=True)(bars_image(), Bars(), prompts)
    assert list(asked) == [7]
    assert asked[7][1].any()
    kinds = VolumeInferer([2, 5, 7], separate=True)(bars_image(), Bars(), {"a": prompts})
    assert torch.equal(kinds["a"][7], asked[7])


def test_a_network_without_classes_needs_prompts(tiny_sam: Build) -> None:
    message = r"segments what is prompted; give it a prompt file"
    empty = prompts_of((0, 1, [torch.nan] * 4))
    for prompts in (None, {"none": None}, empty):
        with pytest.raises(DataError, match=message):
            VolumeInferer([1])(volume(), tiny_sam(), prompts)


def test_other_classes_than_the_networks_are_refused() -> None:
    with pytest.raises(
        DataError, match=r"^the model has 3 classes, but 2 labels are given \(1, 2\); expected"
    ):
        VolumeInferer([2, 1])(volume(), Bars())
    with pytest.raises(
        DataError, match=r"^prompts are for the labels 1, and the model knows 2, 5, 7\. Leave"
    ):
        VolumeInferer([2, 5, 7])(volume(), Bars(), THREE)


class LittleMemory(BoxFiller):
    """A network on a GPU that holds two slices and three prompts."""

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        if len(image) > 2:
            raise torch.cuda.OutOfMemoryError
        return super().encode(image)

    def decode(self, embedding: torch.Tensor, prompts: Prompts) -> Masks:
        if len(embedding) > 3:
            raise torch.cuda.OutOfMemoryError
        return super().decode(embedding, prompts)


def test_batches_are_halved_where_the_memory_of_the_gpu_runs_out() -> None:
    rows = [(z, 1, [x, 0.0, x + 4.0, 4.0]) for z in range(6) for x in (0.0, 8.0, 16.0)]
    expected = VolumeInferer()(volume(), BoxFiller(), prompts_of(*rows))
    inferer, network = VolumeInferer(slice_batch=6, prompt_batch=12), LittleMemory()
    with pytest.warns(UserWarning, match="the GPU's memory does not hold") as told:
        found = inferer(volume(), network, prompts_of(*rows))
    assert [str(one.message).partition("hold ")[2] for one in told] == [
        "6 slices at once; going on with 3.",
        "3 slices at once; going on with 1.",
        "12 prompts at once; going on with 6.",
        "6 prompts at once; going on with 3.",
    ]
    assert torch.equal(found, expected)
    assert network.encoded == [1, 2, 3, 4, 5, 6]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the next scan starts with what fits
        assert torch.equal(inferer(volume(), network, prompts_of(*rows)), expected)


def test_memory_that_does_not_hold_one_slice_is_an_error() -> None:
    class None_(BoxFiller):
        def encode(self, image: torch.Tensor) -> torch.Tensor:
            raise torch.cuda.OutOfMemoryError

    with pytest.warns(UserWarning, match="1\\.$"), pytest.raises(torch.cuda.OutOfMemoryError):
        VolumeInferer(slice_batch=2)(volume(), None_(), THREE)


def test_ellipse_inferer_fills_boxes_with_ellipses() -> None:
    found = EllipseInferer()(volume(), None, THREE)
    for z, box, label in zip(THREE.slices, THREE.boxes, THREE.labels, strict=True):
        assert torch.equal(found[z] == label, ellipses_in_boxes(box, (24, 32)) > 0)
    assert not found[[0, 2, 3, 5]].any()


@pytest.mark.parametrize("label", [40_000, 2**31 - 1])
def test_row_76_label_ids_of_any_size(label: int) -> None:
    prompts = SlicePrompts.of_boxes(
        slices=torch.tensor([1]), boxes=torch.tensor([[2.0, 2, 9, 9]]), labels=torch.tensor([label])
    )
    found = EllipseInferer()(torch.zeros(3, 1, 12, 12, dtype=torch.uint8), None, prompts)
    assert found.unique().tolist() == [0, label]


@pytest.mark.parametrize("size", [1, 64])
def test_numbers_are_of_the_object_whose_logit_is_highest(tiny_sam: Build, size: int) -> None:
    boxes = [[5.0, 5.0, 40.0, 30.0], [20.0, 10.0, 58.0, 39.0], [10.0, 2.0, 30.0, 38.0]]
    prompts = prompts_of(*((0, label, box) for label, box in zip((1, 2, 2), boxes, strict=True)))
    prompts = replace(prompts, objects=torch.tensor([7, 3, 5]))
    inferer = VolumeInferer(prompt_batch=size, detailed=True, instances=True)
    with torch.no_grad():
        found = inferer(noise()[:1], tiny_sam().eval(), prompts)
    assert isinstance(found, Found)
    assert found.numbers is not None
    assert [one.label for one in found.objects] == [2, 2, 1]  # of the objects 3, 5, 7
    assert set(found.numbers.unique().tolist()) == {0, 1, 2, 3}
    owner = torch.tensor([0, *(one.label for one in found.objects)])
    assert torch.equal(owner[found.numbers.long()], found.labels.long())


def test_an_empty_mask_takes_no_number_of_another() -> None:
    boxes = [[0.0, 0.0, 0.2, 0.2], [2.0, 2.0, 8.0, 8.0], [10.0, 2.0, 16.0, 8.0]]
    inferer = VolumeInferer(detailed=True, instances=True)
    prompts = replace(prompts_of(*((0, 1, box) for box in boxes)), objects=torch.tensor([0, 1, 2]))
    found = inferer(volume(1), BoxFiller(), prompts)
    assert isinstance(found, Found)
    assert found.numbers is not None
    assert found.numbers[0, 4, [0, 4, 12]].tolist() == [0, 2, 3]


def test_without_prompts_there_are_no_numbers() -> None:
    found = VolumeInferer([7, 2, 5], detailed=True, instances=True)(bars_image(), Bars())
    assert isinstance(found, Found)
    assert found.numbers is None
