"""A scan in, a mask out: nothing is lost on the way."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.engines import SupervisedEvaluator
from monai.transforms import SaveImage

from medsam_tune.errors import DataError
from medsam_tune.formats.mending import Mending
from medsam_tune.inference.aftercare import Aftercare
from medsam_tune.inference.inferers import VolumeInferer
from medsam_tune.inference.records import end_record
from medsam_tune.inference.scans import LoadPromptedScan, prepare_scan
from medsam_tune.inference.segmenter import Segmenter
from medsam_tune.methods import apply_method
from medsam_tune.sam.model import PromptableSam
from medsam_tune.slices.intensity import Window
from medsam_tune.slices.rules import ScanRules
from tests.inference.made import (
    GOOD,
    LABELS,
    SCANS,
    BoxFiller,
    Build,
    objects,
    scan,
    write_run,
)
from tests.scans import write_nifti


@pytest.mark.parametrize(
    ("amp", "dtype"), [(True, torch.bfloat16), (False, torch.float32), (None, torch.float32)]
)
def test_bfloat16_on_a_cpu_where_it_is_asked_for(
    tiny_sam: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, amp: bool | None, dtype: Any
) -> None:
    monkeypatch.setattr("medsam_tune.engines.has_bfloat16", lambda: True)
    sam, seen = tiny_sam(), set()
    sam.image_encoder.blocks[0].mlp.lin1.register_forward_hook(
        lambda _, __, made: seen.add(made.dtype)
    )
    rules = ScanRules(Window(100, 200))
    affine, shape, box, _ = SCANS[0].values
    path, content = scan(tmp_path, affine, shape), objects({"label": 2, "box3d": box})
    half = Segmenter(sam, rules, LABELS, device="cpu", amp=amp).segment(path, content)
    assert seen == {dtype}
    expected = Segmenter(sam, rules, LABELS, device="cpu").segment(path, content)
    assert (half.as_tensor() != expected.as_tensor()).float().mean() < (0.02 if amp else 1e-9)
    monkeypatch.setattr("medsam_tune.engines.has_bfloat16", lambda: False)
    if amp:
        with pytest.raises(ValueError, match="this processor has no bfloat16"):
            Segmenter(sam, rules, LABELS, device="cpu", amp=amp)


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
    (file,) = segmenter.predict(path, content, tmp_path / "mask.nii.gz")
    written = nib.load(file)
    mask = np.asarray(written.dataobj)
    assert mask.shape == shape
    np.testing.assert_allclose(written.affine, affine)
    assert set(np.unique(mask)) == {0, 2}
    axis, first, last = slices
    assert set(np.nonzero(mask)[axis]) == set(range(first, last))
    found = segmenter.segment(path, content)
    np.testing.assert_array_equal(mask, found[0])
    assert (found.shape, found.dtype) == ((1, *shape), torch.uint8)
    np.testing.assert_allclose(found.affine, affine)
    named = found.clone()
    named.meta["filename_or_obj"] = "a"
    SaveImage(tmp_path, output_postfix="saved", print_log=False)(named)
    saved = nib.load(tmp_path / "a" / "a_saved.nii.gz")
    np.testing.assert_array_equal(mask, saved.dataobj)
    np.testing.assert_allclose(saved.affine, affine)
    values = np.asarray(nib.load(path).dataobj)
    assert torch.equal(segmenter.segment(values, content, affine), found)


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
    mask = item.grid.to_file(VolumeInferer()(item.image, BoxFiller(), item.prompts))
    where = np.nonzero(mask)
    found = [int(n.min()) for n in where] + [int(n.max()) + 1 for n in where]
    assert np.abs(np.array(found) - box).max() <= 1  # 12 pixels do not divide 32 cells
    axis = slices[0]
    assert (found[axis], found[axis + 3]) == slices[1:]


def test_missing_scan_is_named(tiny_sam: Build, tmp_path: Path) -> None:
    segmenter = Segmenter(tiny_sam(), ScanRules(Window(100, 200)), LABELS, device="cpu")
    with pytest.raises(DataError, match=r"no such file: .*gone\.nii"):
        segmenter.segment(tmp_path / "gone.nii", objects({"label": 1, "box3d": GOOD}))


def test_an_evaluator_finds_the_same_mask(tiny_sam: Build, tmp_path: Path) -> None:
    affine, shape, box, _ = SCANS[0].values
    path, content = scan(tmp_path, affine, shape), objects({"label": 1, "box3d": box})
    sam, window = tiny_sam(), Window(100, 200)
    item = LoadPromptedScan(ScanRules(window), LABELS)({"scan": path, "prompts": content})
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=[item],
        network=sam,
        inferer=VolumeInferer(),
        prepare_batch=prepare_scan,
        decollate=False,
    )
    evaluator.run()
    expected = mask_of(Segmenter(sam, ScanRules(window), LABELS, device="cpu"), path, content)
    np.testing.assert_array_equal(item.grid.to_file(evaluator.state.output["pred"]), expected)
    assert expected.any()


def mask_of(segmenter: Segmenter, path: Path, content: dict[str, Any] | None) -> np.ndarray:
    return segmenter.segment(path, content)[0].numpy()  # type: ignore[no-any-return]


def wide_scan(folder: Path) -> tuple[Path, dict[str, Any]]:
    """A scan of slices of 48 x 24 with a bright block, and a box around it."""
    values = np.random.default_rng(0).uniform(0, 60, (48, 24, 3)).astype(np.float32)
    values[10:30, 6:16] += 120
    box = {"label": 2, "box3d": [9, 5, 0, 31, 17, 3]}
    return write_nifti(folder / "scan.nii.gz", values), objects(box)


@pytest.mark.parametrize("other", [{"squash": True}, {"plane": "coronal"}])
def test_a_run_is_used_with_its_own_rules(tmp_path: Path, other: dict[str, Any]) -> None:
    path, content = wide_scan(tmp_path)
    rules = ScanRules(Window(100, 200), **other)
    sam = write_run(tmp_path / "run", rules)
    found = mask_of(Segmenter.from_run(tmp_path / "run", device="cpu"), path, content)
    same = mask_of(Segmenter(sam, rules, LABELS, device="cpu"), path, content)
    np.testing.assert_array_equal(found, same)
    other = Segmenter(sam, ScanRules(Window(100, 200)), LABELS, device="cpu")
    plain = mask_of(other, path, content)
    assert found.any()
    assert (found != plain).any()


def test_a_run_is_used_with_its_own_mending(tmp_path: Path) -> None:
    path, content = wide_scan(tmp_path)
    values = np.asarray(nib.load(path).dataobj)
    values[0, 0, 0] = np.nan
    write_nifti(path, values)
    rules = ScanRules(Window(100, 200))
    write_run(tmp_path / "strict", rules)
    with pytest.raises(DataError, match="1 NaN or infinite voxels"):
        Segmenter.from_run(tmp_path / "strict", device="cpu").segment(path, content)
    write_run(tmp_path / "mending", rules, Mending(fill_nan=0.0))
    assert Segmenter.from_run(tmp_path / "mending", device="cpu").segment(path, content).any()


def test_a_model_of_classes_segments_without_prompts(tiny_sam: Build, tmp_path: Path) -> None:
    sam = apply_method(tiny_sam(), "decoder", num_classes=2).eval()
    with torch.no_grad():
        sam.learned.present[:, -1] = torch.tensor([100.0, -100.0])  # one is there, one is not
    affine, shape, box, _ = SCANS[0].values
    path = scan(tmp_path, affine, shape)
    labels = {3: "liver", 9: "spleen"}
    found = Segmenter(sam, ScanRules(Window(40, 400)), labels).segment(path)
    assert set(found.unique().tolist()) <= {0, 3}
    content = objects({"label": 9, "slices": {"2": {"box": [2, 3, 8, 9]}}})
    drawn = Segmenter(sam, ScanRules(Window(40, 400)), labels).segment(path, content)
    assert set(drawn.unique().tolist()) <= {0, 9}
    content = objects({"label": 9, "box3d": box})
    assert not Segmenter(sam, ScanRules(Window(40, 400)), labels).segment(path, content).any()


def test_prompts_that_a_run_does_not_take_are_refused(tiny_sam: Build, tmp_path: Path) -> None:
    unprompted = apply_method(tiny_sam(), "decoder", num_classes=2)
    rules, content = ScanRules(Window(100, 200)), objects({"label": 1, "box3d": GOOD})
    path = scan(tmp_path, SCANS[0].values[0], (10, 12, 6))
    segmenter = Segmenter(unprompted, rules, LABELS, device="cpu", prompted=False)
    session = segmenter.open(path)
    for refused in (lambda: segmenter.segment(path, content), lambda: session.segment(content)):
        with pytest.raises(DataError, match="the model was trained without prompts"):
            refused()
    agnostic = Segmenter(tiny_sam(), rules, LABELS, device="cpu", prompted=None)
    session = agnostic.open(path)
    gone = tmp_path / "gone.nii"  # not looked for
    for refused in (lambda: agnostic.segment(gone), session.segment):
        with pytest.raises(DataError, match="segments what is prompted; give it a prompt file"):
            refused()


@pytest.mark.parametrize("mixture", [{"none": 1}, {"box": 1}])
def test_a_run_takes_the_prompts_that_it_was_trained_with(
    tmp_path: Path, mixture: dict[str, int]
) -> None:
    path, content = wide_scan(tmp_path)
    write_run(tmp_path / "run", ScanRules(Window(100, 200)), classes=2, mixture=mixture)
    segmenter = Segmenter.from_run(tmp_path / "run", device="cpu")
    taken, refused = (None, content) if "none" in mixture else (content, None)
    assert segmenter.segment(path, taken).shape == (1, 48, 24, 3)
    with pytest.raises(DataError, match="prompt"):
        segmenter.segment(path, refused)


def test_an_object_that_is_followed_needs_each_slice_once(tiny_sam: Build, tmp_path: Path) -> None:
    sam = tiny_sam()
    calls = counted(sam)
    segmenter = Segmenter(sam, ScanRules(Window(100, 200)), LABELS, "cpu")
    path = scan(tmp_path, SCANS[0].values[0], (10, 12, 6))
    ends = {str(z): {"box": [1, 2, 8, 9]} for z in (0, 5)}
    one = {"label": 1, "slices": ends, "propagate": True}
    found = segmenter.segment(path, objects(one, {**one, "label": 2}))
    assert found.any()
    assert sum(calls) == 6


def test_separate_masks_and_care(tiny_sam: Build, tmp_path: Path) -> None:
    path = scan(tmp_path, SCANS[0].values[0], (10, 12, 6))
    content = objects(
        {"label": 1, "slices": {"1": {"box": [0, 0, 9, 9]}, "4": {"box": [0, 0, 9, 9]}}},
        {"label": 2, "slices": {"4": {"box": [3, 3, 9, 9]}}},
    )
    segmenter = Segmenter(
        tiny_sam(),
        ScanRules(Window(100, 200)),
        LABELS,
        "cpu",
        aftercare=Aftercare(largest_component=True),
    )
    files = segmenter.predict(path, content, tmp_path / "mask.nii", separate=True)
    assert [file.name for file in files] == ["mask_1_liver.nii", "mask_2_spleen.nii"]
    first, second = (np.asarray(nib.load(file).dataobj) for file in files)
    assert (first & second).any()
    for mask in (first, second, mask_of(segmenter, path, content) == 1):
        assert len(set(np.nonzero(mask)[2])) == 1  # one piece


def test_a_segmenter_replaces_only_what_it_may(tiny_sam: Build, tmp_path: Path) -> None:
    segmenter = Segmenter(tiny_sam(), ScanRules(Window(100, 200)), LABELS, device="cpu")
    path = scan(tmp_path, SCANS[0].values[0], (10, 12, 6))
    before, mask = path.read_bytes(), tmp_path / "mask.nii"
    content = objects({"label": 2, "box3d": [1, 2, 1, 6, 8, 4]})
    prompts = tmp_path / "mask_1_liver.nii"
    with pytest.raises(DataError, match="is an input; choose another"):
        segmenter.predict(path, content, path, overwrite=True)
    segmenter.predict(path, content, mask)
    record, written = tmp_path / "mask.prediction.json", mask.read_bytes()
    mask.write_text("by hand")
    with pytest.raises(
        DataError, match=r"mask\.nii: is there already; .* or say overwrite=True\.$"
    ):
        segmenter.predict(path, content, mask)
    assert mask.read_text() == "by hand"
    prompts.touch()
    end_record(record, {}, [mask, prompts])
    with pytest.raises(DataError, match="is the record of mask"):
        segmenter.predict(path, content, tmp_path / "mask.nrrd")
    with pytest.raises(DataError, match=r"mask_1_liver\.nii: is an input"):
        segmenter.predict(path, prompts, mask, overwrite=True)
    segmenter.predict(path, content, mask, overwrite=True)
    assert (mask.read_bytes(), path.read_bytes()) == (written, before)
    assert not record.exists()
    assert not prompts.exists()  # with the record that lists it


def counted(sam: PromptableSam) -> list[int]:
    """The number of slices in each call of a network's encoder from now on."""
    calls: list[int] = []
    encode = sam.encode

    def counting(image: torch.Tensor) -> torch.Tensor:
        calls.append(len(image))
        return encode(image)

    sam.encode = counting  # type: ignore[method-assign]
    return calls


def interactions() -> list[dict[str, Any]]:
    """What several users ask of a scan of 6 slices."""
    boxed: list[dict[str, Any]] = [
        {"label": 1 + z % 2, "slices": {str(z): {"box": [1 + z % 3, 2, 8, 9]}}} for z in range(6)
    ]
    pointed = {"label": 1, "points": [[4, 5, 3, 1]], "propagate": True}
    return [
        *(objects(one) for one in boxed),
        objects(*boxed),
        objects(pointed),
        objects({"label": 2, "box3d": [1, 2, 0, 9, 10, 6]}, pointed),
    ]


def test_a_session_answers_from_what_it_encoded_before(tiny_sam: Build, tmp_path: Path) -> None:
    sam = tiny_sam()
    calls = counted(sam)
    segmenter = Segmenter(sam, ScanRules(Window(100, 200)), LABELS, "cpu")
    path = scan(tmp_path, SCANS[0].values[0], (10, 12, 6))
    session = segmenter.open(path)
    assert calls == []
    for number, content in enumerate(interactions()[:6], start=1):
        found = session.segment(content)
        assert sum(calls) == number
        assert len(set(found.nonzero()[:, 3].tolist())) <= 1
    again = [session.segment(content) for content in interactions()]
    assert sum(calls) == 6
    assert torch.equal(again[5], found)
    for content, mask in zip(interactions(), again, strict=True):
        alone = segmenter.segment(path, content)
        assert (mask != alone).float().mean() < 0.01  # sums in another order


def test_threads_share_a_session(tiny_sam: Build, tmp_path: Path) -> None:
    sam = tiny_sam()
    rules = ScanRules(Window(100, 200))
    one_by_one = VolumeInferer(LABELS, rules, slice_batch=1, embedding_budget=5000)
    segmenter = Segmenter(sam, rules, LABELS, "cpu", one_by_one)
    path = scan(tmp_path, SCANS[0].values[0], (10, 12, 6))
    asked = interactions() * 4
    expected = [segmenter.open(path).segment(content) for content in interactions()] * 4
    session, calls = segmenter.open(path), counted(sam)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(session.segment, asked))
    assert calls == [1] * 6
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert len(session._volume.spool) == 6  # nothing but embeddings is left


def test_example_of_the_docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).uniform(0, 200, (82, 62, 32)).astype(np.float32)
    path = write_nifti(tmp_path / "scan.nii.gz", values)
    content = objects({"label": 2, "box3d": [9, 5, 0, 31, 17, 3]})
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    write_run(tmp_path / "runs" / "lora", ScanRules(Window(100, 200)), classes=2)
    page = (Path(__file__).parents[2] / "docs" / "prediction.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(from medsam_tune import Segmenter.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    mask = nib.load(tmp_path / "mask.nii.gz")
    assert mask.shape == nib.load(path).shape
    assert set(np.unique(mask.dataobj)) == {0, 2}
