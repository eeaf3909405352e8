"""A scan in, a mask out: nothing is lost on the way."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.engines import SupervisedEvaluator

from medsam_tune.errors import DataError
from medsam_tune.formats.mending import Mending
from medsam_tune.inference.inferers import (
    VolumeInferer,
)
from medsam_tune.inference.output import WriteMask
from medsam_tune.inference.scans import LoadPromptedScan, prepare_scan
from medsam_tune.inference.segmenter import Segmenter
from medsam_tune.methods import apply_method
from medsam_tune.methods.tuned import save_tuned
from medsam_tune.runs import RunRecord, write_record, write_state
from medsam_tune.sam.build import build_sam
from medsam_tune.sam.model import PromptableSam
from medsam_tune.slices.intensity import Window
from medsam_tune.slices.rules import ScanRules
from tests.inference.made import GOOD, LABELS, SCANS, BoxFiller, Build, objects, scan
from tests.scans import write_nifti


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
    mask = item.grid.to_file(VolumeInferer()(item.image, BoxFiller(), item.prompts))
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
        inferer=VolumeInferer(),
        prepare_batch=prepare_scan,
        val_handlers=[WriteMask(tmp_path / "mask.nii")],
        decollate=False,
    )
    evaluator.run()
    expected = Segmenter(sam, ScanRules(window), LABELS, device="cpu")(path, content)
    np.testing.assert_array_equal(np.asarray(nib.load(tmp_path / "mask.nii").dataobj), expected)
    assert expected.any()


def write_run(folder: Path, rules: ScanRules, mending: Mending | None = None) -> PromptableSam:
    """A run folder as training leaves it, and its model."""
    sam = apply_method(build_sam("nano", image_size=64), "decoder")
    save_tuned(sam, folder / "tuned.safetensors", LABELS)
    mended = (mending or Mending()).describe()
    write_record(folder, RunRecord("d.json", "d.slices", None, rules.describe(), mended, 0.0, 0))
    write_state(folder, "finished")
    return sam


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
    found = Segmenter.from_run(tmp_path / "run", device="cpu")(path, content)
    np.testing.assert_array_equal(found, Segmenter(sam, rules, LABELS, device="cpu")(path, content))
    plain = Segmenter(sam, ScanRules(Window(100, 200)), LABELS, device="cpu")(path, content)
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
        Segmenter.from_run(tmp_path / "strict", device="cpu")(path, content)
    write_run(tmp_path / "mending", rules, Mending(fill_nan=0.0))
    assert Segmenter.from_run(tmp_path / "mending", device="cpu")(path, content).any()


def test_example_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, content = wide_scan(tmp_path)
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    write_run(tmp_path / "runs" / "lora", ScanRules(Window(100, 200)))
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(from medsam_tune import Segmenter.*?)```", readme, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    mask = nib.load(tmp_path / "mask.nii.gz")
    assert mask.shape == nib.load(path).shape
    assert set(np.unique(mask.dataobj)) == {0, 2}
