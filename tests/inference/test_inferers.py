"""A scan in, a mask out: nothing is lost on the way, and what is not usable is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.engines import SupervisedEvaluator

from medsam_tune.errors import DataError
from medsam_tune.inference.inferers import (
    ClassSliceInferer,
    EllipseInferer,
    PromptedSliceInferer,
    to_channels,
    volume_inferer,
)
from medsam_tune.inference.output import WriteMask, write_mask
from medsam_tune.inference.prompt_files import read_prompts
from medsam_tune.inference.scans import LoadPromptedScan, prepare_scan
from medsam_tune.inference.segmenter import Segmenter
from medsam_tune.methods import apply_method
from medsam_tune.prompts import SlicePrompts, ellipses_in_boxes
from medsam_tune.sam.model import PromptableSam
from medsam_tune.slices.frames import ModelFrame, ScanGrid
from medsam_tune.slices.intensity import Window
from medsam_tune.slices.rules import ScanRules
from tests.scans import write_nifti

Build = Callable[..., PromptableSam]
LABELS = {1: "liver", 2: "spleen"}
RAS = np.diag([2.0, 3.0, 4.0, 1.0])
SAGITTAL = np.array([[0, 0, 4.0, 5], [-2, 0, 0, 60], [0, -3, 0, 90], [0, 0, 0, 1]])  # P, I, R


class BoxFiller:
    """A network whose masks are its boxes; the smaller the box, the higher the logit."""

    image_size = 128

    def __init__(self) -> None:
        self.pixel_mean = torch.zeros(3, 1, 1)
        self.base = SimpleNamespace(in_channels=3)
        self.encoded: list[int] = []  # the slices' grey value, call by call
        self.calls = 0

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        assert image.shape[1:] == (3, 128, 128)
        values = (image[:, 0, 0, 0] * 255).round()
        self.encoded += values.int().tolist()
        self.calls += 1
        return values

    def decode(
        self, embedding: torch.Tensor, boxes: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert boxes.shape == (len(embedding), 1, 4)
        x0, y0, x1, y1 = (boxes / 4).unsqueeze(-1).unsqueeze(-1).unbind(2)  # (N, 1, 1, 1)
        n = torch.arange(32) + 0.5
        inside = (n >= x0) & (n < x1) & (n[:, None] >= y0) & (n[:, None] < y1)
        height = 100 / ((x1 - x0) * (y1 - y0)).sqrt()
        return torch.where(inside, height, -height), torch.ones(len(boxes), 1)


def volume(slices: int = 6) -> torch.Tensor:
    """(Z, 1, 24, 32) uint8, slice z is grey of value z + 1; 4 model pixels are one pixel."""
    grey = torch.arange(1, slices + 1, dtype=torch.uint8).view(-1, 1, 1, 1).repeat(1, 1, 24, 32)
    grey[..., -1, -1] = 0  # slices of one value would not be looked at
    return grey


def prompts_of(*rows: tuple[int, int, list[float]]) -> SlicePrompts:
    """From (slice, label, box)."""
    slices, labels, boxes = zip(*rows, strict=True)
    return SlicePrompts(torch.tensor(slices), torch.tensor(boxes).float(), torch.tensor(labels))


THREE = prompts_of((1, 1, [2, 3, 12, 9]), (1, 2, [20, 10, 30, 24]), (4, 2, [0, 0, 8, 5]))


def drawn(prompts: SlicePrompts, shape: tuple[int, ...] = (6, 24, 32)) -> torch.Tensor:
    labels = torch.zeros(shape, dtype=torch.int16)
    for z, box, label in zip(prompts.slices, prompts.boxes, prompts.labels, strict=True):
        x0, y0, x1, y1 = box.int().tolist()
        labels[z, y0:y1, x0:x1] = label
    return labels


# PromptedSliceInferer


def test_masks_lie_on_their_slices_with_their_labels() -> None:
    found = PromptedSliceInferer()(volume(), BoxFiller(), THREE)
    assert found.dtype == torch.int16
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
        mask, _ = sam.decode(sam.encode(model_image), frame.boxes(box)[None, None])
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
    none = SlicePrompts(torch.empty(0).long(), torch.empty(0, 4), torch.empty(0).long())
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
    none = SlicePrompts(torch.empty(0).long(), torch.empty(0, 4), torch.empty(0).long())
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

    def decode(self, embedding: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = torch.full((len(embedding), 3, 16, 16), -5.0)
        for k in range(3):
            logits[:, k, 4 * k : 4 * k + 5] = 5.0 + k  # overlaps the one before by a row
        number = (embedding * 255).round()  # slices 0 .. 5
        return logits, torch.cat([number - 1.5, 3.5 - number, torch.ones_like(number)], 1)


def test_classes_fill_the_slices_where_they_are_present() -> None:
    image = torch.arange(6, dtype=torch.uint8)[:, None, None, None].repeat(1, 1, 64, 64)
    image[..., -1, -1] = 255
    found = {}
    for batch in (1, 4):
        labels = ClassSliceInferer([2, 5, 7], slice_batch=batch)(image, Bars())
        found[batch] = [set(labels[z].unique().tolist()) - {0} for z in range(6)]
        assert labels.dtype == torch.int16
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

LPS_GRID = ScanGrid(np.diag([-2.0, -3.0, 4.0, 1.0]), (10, 12, 6))


def objects(*items: object, **content: object) -> dict[str, Any]:
    return {"objects": list(items), **content}


def test_box_in_voxels() -> None:
    found = read_prompts(
        objects(
            {"label": 2, "box3d": [1, 2, 3, 5, 8, 5]}, {"label": 1, "box3d": [0, 0, 4, 4, 4, 6]}
        ),
        LPS_GRID,
        LABELS,
    )
    assert found.slices.tolist() == [3, 4, 4, 5]
    assert found.labels.tolist() == [2, 1, 2, 1]
    assert found.boxes.tolist() == [[1, 2, 5, 8], [0, 0, 4, 4], [1, 2, 5, 8], [0, 0, 4, 4]]
    assert found.boxes.dtype == torch.float32
    assert found.slices.dtype == found.labels.dtype == torch.int64


def test_box_of_a_turned_file() -> None:
    ras = ScanGrid(RAS, (10, 12, 6))
    found = read_prompts(objects({"label": 1, "box3d": [1, 2, 3, 5, 8, 5]}), ras, LABELS)
    assert found.slices.tolist() == [3, 4]
    assert found.boxes[0].tolist() == [5, 4, 9, 10]
    sagittal = ScanGrid(SAGITTAL, (12, 6, 10))  # stored P, I, R
    found = read_prompts(objects({"label": 1, "box3d": [2, 1, 1, 8, 3, 5]}), sagittal, LABELS)
    assert found.slices.tolist() == [3, 4]
    assert found.boxes[0].tolist() == [5, 2, 9, 8]


def test_box_in_the_world() -> None:
    # voxel (1, 2, 3) to (5, 8, 5) of the file: LPS millimetres, half a voxel before the centre
    world = [1.0, 4.5, 10.0, 9.0, 22.5, 18.0]
    voxel = read_prompts(objects({"label": 1, "box3d": [1, 2, 3, 5, 8, 5]}), LPS_GRID, LABELS)
    for corners in (world, world[3:] + world[:3]):
        item = {"label": 1, "box3d": corners}
        found = read_prompts(objects(item, space="world"), LPS_GRID, LABELS)
        assert torch.allclose(found.boxes, voxel.boxes, atol=1e-4)
        assert torch.equal(found.slices, voxel.slices)


@pytest.mark.parametrize(
    ("low", "high", "slices"),
    [
        pytest.param(2.0, 4.0, [2, 3], id="whole"),
        pytest.param(1.6, 4.4, [2, 3], id="centres"),
        pytest.param(1.4, 4.6, [1, 2, 3, 4], id="over-the-centres"),
        pytest.param(2.6, 2.9, [2], id="thin-above-the-centre"),
        pytest.param(2.1, 2.4, [2], id="thin-below-the-centre"),
        pytest.param(5.7, 9.0, [5], id="thin-at-the-end"),
        pytest.param(0.5, 2.5, [0, 1], id="two-thick"),
    ],
)
def test_box_reaches_slices_by_their_centres(low: float, high: float, slices: list[int]) -> None:
    item = {"label": 1, "box3d": [0, 0, low, 5, 5, high]}
    assert read_prompts(objects(item), LPS_GRID, LABELS).slices.tolist() == slices


def test_boxes_of_single_slices(tmp_path: Path) -> None:
    path = tmp_path / "prompts.json"
    boxes = {"4": {"box": [1, 2, 5, 8]}, "2": {"box": [0, 0, 3.5, 4]}}
    path.write_text(json.dumps(objects({"label": 1, "slices": boxes}, space="voxel")))
    found = read_prompts(path, LPS_GRID, LABELS)
    assert found.slices.tolist() == [2, 4]
    assert found.boxes.tolist() == [[0, 0, 3.5, 4], [1, 2, 5, 8]]
    flipped = ScanGrid(np.diag([2.0, 3.0, -4.0, 1.0]), (10, 12, 6))
    found = read_prompts(path, flipped, LABELS)
    assert found.slices.tolist() == [1, 3]
    assert found.boxes.tolist() == [[5, 4, 9, 10], [6.5, 8, 10, 12]]


GOOD = [1, 2, 3, 5, 8, 5]
REFUSED = [
    pytest.param(
        objects({"label": 1, "box3d": GOOD}, space="mm"),
        "space is 'mm'; expected 'voxel' or 'world'",
        id="space",
    ),
    pytest.param({}, "no objects; expected a list 'objects'", id="nothing"),
    pytest.param({"objects": {"label": 1}}, "no objects; expected a list", id="no-list"),
    pytest.param(
        objects({"label": 1, "box3d": GOOD}, {"label": 3, "box3d": GOOD}),
        r"object 1: label 3 is not there; known: 1 \(liver\), 2 \(spleen\)",
        id="label",
    ),
    pytest.param(objects({"box3d": GOOD}), "object 0: label None is not there", id="no-label"),
    pytest.param(
        objects({"label": [1], "box3d": GOOD}), r"label \[1\] is not there", id="label-list"
    ),
    pytest.param(objects([1, 2]), "object 0: label None is not there", id="no-object"),
    pytest.param(
        objects({"label": 1}), "object 0: neither 'box3d' nor 'slices' in it", id="no-box"
    ),
    pytest.param(
        objects({"label": 1, "slices": {}}), "neither 'box3d' nor 'slices'", id="no-slices"
    ),
    pytest.param(objects({"label": 1, "slices": {}, "box3d": GOOD}), "has both 'box3d'", id="both"),
    pytest.param(objects({"label": True, "box3d": GOOD}), "label True is not there", id="true"),
    pytest.param(
        objects({"label": 1, "box3d": [*GOOD[:5], 10**400]}), "expected 6 finite", id="huge"
    ),
    pytest.param(objects({"label": 1, "box3d": "all"}), "is 'all'; expected 6", id="text"),
    pytest.param(
        objects({"label": 1, "box3d": [-9, 2, 1, 0, 8, 3]}), "lies outside", id="outside-low"
    ),
    pytest.param(
        objects({"label": 1, "slices": {"top": {"box": [1, 2, 5, 8]}}}),
        "slice 'top' is no index; expected 0, 1, 2",
        id="slice-key",
    ),
    pytest.param(
        objects({"label": 1, "slices": {"-1": {"box": [1, 2, 5, 8]}}}),
        "slice '-1' is no index",
        id="slice-negative",
    ),
    pytest.param(
        objects({"label": 1, "slices": {"²": {"box": [1, 2, 5, 8]}}}),
        "slice '²' is no index",
        id="slice-superscript",
    ),
    pytest.param(
        objects({"label": 1, "slices": {"9": {"box": [1, 2, 5, 8]}}}),
        "lies outside the scan",
        id="slice-outside",
    ),
    pytest.param(
        objects({"label": 1, "slices": {"3": [1, 2, 5, 8]}}),
        r"slice 3: expected \{'box': \[i0, j0, i1, j1\]\}",
        id="slice-content",
    ),
    pytest.param(
        objects({"label": 1, "slices": {"3": {"box": GOOD}}}),
        "slice 3: box is .*; expected 4 finite numbers",
        id="slice-length",
    ),
    pytest.param(
        objects({"label": 1, "slices": {"3": {"box": [1, 2, 5, 8]}}}, space="world"),
        "stacked along axis 3 in voxels; give a 'box3d'",
        id="slice-world",
    ),
]


@pytest.mark.parametrize(("content", "message"), REFUSED)
def test_refused_prompts(content: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_prompts(content, LPS_GRID, LABELS)


def test_slices_of_another_axis_are_refused() -> None:
    content = objects({"label": 1, "slices": {"3": {"box": [1, 2, 5, 8]}}})
    with pytest.raises(DataError, match=r"along the third axis .* stacked along axis 2; give a"):
        read_prompts(content, ScanGrid(SAGITTAL, (12, 6, 10)), LABELS)


def test_refused_prompt_files(tmp_path: Path) -> None:
    path = tmp_path / "prompts.json"
    with pytest.raises(DataError, match=r"prompts\.json: no such prompt file; expected JSON"):
        read_prompts(path, LPS_GRID, LABELS)
    for content, message in (
        (b"{'space': ", "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b"[1, 2]", "holds a JSON list; expected an object"),
        (b"{}", "no objects"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"prompts\.json: {message}"):
            read_prompts(path, LPS_GRID, LABELS)


# write_mask

GRIDS = [
    pytest.param(RAS, (10, 12, 6), id="RAS"),
    pytest.param(SAGITTAL, (12, 6, 10), id="PIR"),
]


@pytest.mark.parametrize(("affine", "shape"), GRIDS)
@pytest.mark.parametrize(("label", "dtype"), [(2, np.uint8), (255, np.uint8), (300, np.int16)])
def test_mask_has_the_scans_grid(
    tmp_path: Path, affine: np.ndarray, shape: tuple[int, ...], label: int, dtype: type
) -> None:
    labels = torch.zeros(6, 12, 10, dtype=torch.int16)
    labels[3, 2:8, 5:9] = label
    grid = ScanGrid(affine, shape)  # type: ignore[arg-type]
    path = write_mask(labels, grid, tmp_path / "new" / "mask.nii.gz")
    found = nib.load(path)
    assert found.shape == shape
    assert found.get_data_dtype() == dtype
    np.testing.assert_allclose(found.affine, affine)
    np.testing.assert_array_equal(np.asarray(found.dataobj), grid.to_file(labels))
    assert np.asarray(found.dataobj).sum() == 24 * label


def test_mask_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"mask\.mha: expected a name that ends in \.nii or"):
        write_mask(torch.zeros(6, 12, 10), LPS_GRID, tmp_path / "mask.mha")
    assert list(tmp_path.iterdir()) == []


def test_failing_write_leaves_the_old_mask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_mask(torch.zeros(6, 12, 10, dtype=torch.int16), LPS_GRID, tmp_path / "mask.nii")
    before = path.read_bytes()

    def fail(image: nib.Nifti1Image, file: Path) -> None:
        file.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(nib, "save", fail)
    with pytest.raises(OSError, match="No space left"):
        write_mask(torch.ones(6, 12, 10, dtype=torch.int16), LPS_GRID, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["mask.nii"]


# Segmenter


def scan(folder: Path, affine: np.ndarray, shape: tuple[int, ...]) -> Path:
    array = np.random.default_rng(0).uniform(0, 200, shape).astype(np.float32)
    return write_nifti(folder / "scan.nii.gz", array, affine)


# file, box in its voxels, the axis and range of slices that the box takes
SCANS = [
    pytest.param(RAS, (10, 12, 6), [2, 3, 1, 8, 9, 4], (2, 1, 4), id="RAS"),
    pytest.param(SAGITTAL, (12, 6, 10), [3, 2, 2, 9, 5, 8], (1, 2, 5), id="PIR"),
]


@pytest.mark.parametrize(("affine", "shape", "box", "slices"), SCANS)
def test_segmenter_writes_into_the_scans_grid(
    tiny_sam: Build,
    tmp_path: Path,
    affine: np.ndarray,
    shape: tuple[int, ...],
    box: list[int],
    slices: tuple[int, int, int],
) -> None:
    segmenter = Segmenter(tiny_sam(), ScanRules(Window(100, 200)), LABELS, device="cpu")
    path, content = scan(tmp_path, affine, shape), objects({"label": 2, "box3d": box})
    written = nib.load(segmenter.predict(path, content, tmp_path / "mask.nii.gz"))
    mask = np.asarray(written.dataobj)
    assert mask.shape == shape
    np.testing.assert_allclose(written.affine, affine)
    assert set(np.unique(mask)) == {0, 2}
    axis, first, last = slices
    assert set(np.nonzero(mask)[axis]) == set(range(first, last))
    np.testing.assert_array_equal(mask, segmenter(path, content))


@pytest.mark.parametrize(("affine", "shape", "box", "slices"), SCANS)
def test_boxes_come_back_through_file_slices_and_model(
    tmp_path: Path,
    affine: np.ndarray,
    shape: tuple[int, ...],
    box: list[int],
    slices: tuple[int, int, int],
) -> None:
    item = LoadPromptedScan(ScanRules(Window(100, 200)), LABELS)(
        {"scan": scan(tmp_path, affine, shape), "prompts": objects({"label": 1, "box3d": box})}
    )
    assert (item.case, item.image.shape, item.image.dtype) == ("scan", (6, 1, 12, 10), torch.uint8)
    mask = item.grid.to_file(PromptedSliceInferer()(item.image, BoxFiller(), item.prompts))
    where = np.nonzero(mask)
    found = [int(n.min()) for n in where] + [int(n.max()) + 1 for n in where]
    assert np.abs(np.array(found) - box).max() <= 1  # 12 pixels do not divide 32 cells
    axis = slices[0]
    assert (found[axis], found[axis + 3]) == slices[1:]


def test_missing_scan_is_named(tiny_sam: Build, tmp_path: Path) -> None:
    segmenter = Segmenter(tiny_sam(), ScanRules(Window(100, 200)), LABELS, device="cpu")
    with pytest.raises(DataError, match=r"no such file: .*gone\.nii"):
        segmenter(tmp_path / "gone.nii", objects({"label": 1, "box3d": GOOD}))


def test_evaluator_writes_the_same_mask(tiny_sam: Build, tmp_path: Path) -> None:
    affine, shape, box, _ = SCANS[0].values
    path, content = scan(tmp_path, affine, shape), objects({"label": 1, "box3d": box})
    sam, window = tiny_sam(), Window(100, 200)
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=[
            LoadPromptedScan(ScanRules(window), LABELS)({"scan": path, "prompts": content})
        ],
        network=sam,
        inferer=PromptedSliceInferer(),
        prepare_batch=prepare_scan,
        val_handlers=[WriteMask(tmp_path / "mask.nii")],
        decollate=False,
    )
    evaluator.run()
    expected = Segmenter(sam, ScanRules(window), LABELS, device="cpu")(path, content)
    np.testing.assert_array_equal(np.asarray(nib.load(tmp_path / "mask.nii").dataobj), expected)
    assert expected.any()
