"""A scan in, a mask out: nothing is lost on the way."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.engines import SupervisedEvaluator

from medsam_tune.errors import DataError
from medsam_tune.inference.inferers import (
    PromptedSliceInferer,
)
from medsam_tune.inference.output import WriteMask
from medsam_tune.inference.scans import LoadPromptedScan, prepare_scan
from medsam_tune.inference.segmenter import Segmenter
from medsam_tune.slices.intensity import Window
from medsam_tune.slices.rules import ScanRules
from tests.inference.made import GOOD, LABELS, SCANS, BoxFiller, Build, objects, scan


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
