"""Label maps that stand for prompts: of any kind, on the scan's grid alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medsam_tune.cases.datalist import Case
from medsam_tune.cases.load import load_case
from medsam_tune.errors import DataError
from medsam_tune.formats.open import write_array
from medsam_tune.inference.prompt_files import read_prompts
from medsam_tune.inference.prompt_files.label_maps import prompts_of_labels
from medsam_tune.inference.simulated import simulated_prompts
from medsam_tune.slices.cut import cut_label, grid_of
from medsam_tune.slices.frames import ScanGrid
from medsam_tune.slices.intensity import WINDOWS
from medsam_tune.slices.rules import ScanRules
from tests.dicom_series import write_series
from tests.inference.made import LABELS, LPS_GRID, RAS
from tests.scans import small_scan, write_nifti
from tests.segmentation import NAMES, masks, write_seg

GRID = ScanGrid(RAS, (10, 12, 6))
SLICES = cut_label(
    MetaTensor(torch.from_numpy(small_scan()[1])[None], affine=torch.from_numpy(RAS)), GRID
)[0]


@pytest.mark.parametrize("kind", ["slices", "box3d", "interpolated:3", "middle-range", "points"])
def test_a_label_map_is_read_as_any_kind(tmp_path: Path, kind: str) -> None:
    path = write_nifti(tmp_path / "label.nii.gz", small_scan()[1])
    found = read_prompts(path, GRID, LABELS, prompts_as=kind, jitter=0.2, seed=3)
    expected = simulated_prompts(SLICES, LABELS, kind, 0.2, 3)
    assert expected is not None
    for name in ("slices", "labels", "boxes", "points", "point_labels", "drawn", "objects"):
        one, two = getattr(found, name), getattr(expected, name)
        torch.testing.assert_close(one, two, rtol=0, atol=0, equal_nan=True)
    assert found.spread == expected.spread


@pytest.mark.parametrize("axes", ["LPS", "ASL", "IRP"])
@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_a_label_map_lies_by_its_place(tmp_path: Path, axes: str, ending: str) -> None:
    label = small_scan()[1]
    ornt = nib.orientations
    turn = ornt.ornt_transform(ornt.io_orientation(RAS), ornt.axcodes2ornt(tuple(axes)))
    affine = RAS @ ornt.inv_ornt_aff(turn, label.shape)
    turned = np.ascontiguousarray(ornt.apply_orientation(label, turn))
    path = tmp_path / f"label{ending}"
    write_array(path, turned, affine)
    found = read_prompts(path, GRID, LABELS)
    expected = simulated_prompts(SLICES, LABELS, "slices")
    assert expected is not None
    assert torch.equal(found.boxes, expected.boxes)
    assert torch.equal(found.slices, expected.slices)


def test_label_maps_that_do_not_fit(tmp_path: Path) -> None:
    label = small_scan()[1]
    path = tmp_path / "label.nii.gz"
    for array, affine, labels, message in (
        (
            label[1:],
            None,
            LABELS,
            r"label shape \(9, 12, 6\) differs from image shape .*label\.nii",
        ),
        (label, np.diag([2.0, 3, 5, 1]), LABELS, r"differs from image affine"),
        (label, None, {1: "liver"}, r"label has the values 2 \(.*label\.nii\.gz\); expected only"),
        (label + 0.5, None, LABELS, "values that are not integers"),
        (
            label * 0,
            None,
            LABELS,
            r"label\.nii\.gz: no label has a voxel; expected .* liver, spleen",
        ),
    ):
        write_nifti(path, array, affine)
        with pytest.raises(DataError, match=message):
            read_prompts(path, GRID, labels)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: no label map in it"):
        read_prompts(tmp_path / "empty", GRID, LABELS)


def test_kinds_that_a_label_map_cannot_give(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "label.nii.gz", small_scan()[1])
    for kind, jitter, message in (
        ("boxes", 0, "kind of prompts 'boxes' is unknown; known: slices, box3d"),
        ("scribble", 0, r"known: .*, points, scribbles \(N boxes.* Did you mean 'scribbles'"),
        ("none", 0, "'none' takes nothing of a label map; leave the map out"),
        ("scribbles", 0.1, "jitter is 0.1; expected 0 with scribbles"),
    ):
        with pytest.raises(ValueError, match=message):
            read_prompts(path, GRID, LABELS, prompts_as=kind, jitter=jitter)


def test_other_kinds_of_labels(tmp_path: Path) -> None:
    """A folder of organs, and a DICOM SEG, which belongs to its own frame of reference."""
    for label, name in LABELS.items():
        write_nifti(
            tmp_path / "organs" / f"{name}.nii.gz", (small_scan()[1] == label) * np.uint8(1)
        )
    expected = simulated_prompts(SLICES, LABELS, "slices")
    assert expected is not None
    assert torch.equal(read_prompts(tmp_path / "organs", GRID, LABELS).boxes, expected.boxes)
    series = write_series(tmp_path / "series")
    image, _ = load_case(Case(series, None, "p"), {})
    grid = grid_of(image, ScanRules(WINDOWS["abdomen"]))
    assert grid.series == image.meta["series_uid"]
    assert grid.frame == image.meta["frame_uid"]
    seg = write_seg(tmp_path / "seg.dcm", series, masks())
    found = read_prompts(seg, grid, NAMES)
    of_seg = simulated_prompts(torch.from_numpy(masks()), NAMES, "slices")
    assert of_seg is not None
    assert torch.equal(found.boxes, of_seg.boxes)
    with pytest.raises(DataError, match=r"the label's frame of reference is .*, the image's 9\.9"):
        read_prompts(seg, replace(grid, frame="9.9"), NAMES)


def test_scribbles_are_points_inside() -> None:
    truth = torch.zeros(6, 12, 10, dtype=torch.int32)
    truth[1, 2, 3:6] = 2
    truth[1, 8, 8] = truth[4, 8, 8] = 1
    truth[4, :, :5] = 2
    found = prompts_of_labels(truth, LABELS, "scribbles")
    assert found.slices.tolist() == [1, 1, 4, 4]
    assert found.labels.tolist() == [1, 2, 1, 2]
    assert found.points.shape == (4, 16, 2)
    assert found.points[1, :3].tolist() == [[3.5, 2.5], [4.5, 2.5], [5.5, 2.5]]
    assert (found.point_labels == 1).sum(1).tolist() == [1, 3, 1, 16]
    assert (found.point_labels[0, 1:] == -1).all()
    assert found.spread == {1: None, 2: None}
    assert not found.boxed.any()
    assert found.drawn.all()
    x, y = (found.points[3] - 0.5).long().unbind(1)
    assert (truth[4, y, x] == 2).all()
    gaps = torch.cdist(found.points[3], found.points[3]) + torch.eye(16) * 99
    assert gaps.min() > 1  # none of the 16 lies beside another
    again = prompts_of_labels(truth, LABELS, "scribbles")
    assert torch.equal(found.points, again.points)
    assert len(prompts_of_labels(truth * 0, LABELS, "scribbles")) == 0


def test_a_label_map_on_resampled_slices(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "label.nii.gz", small_scan()[1])
    found = read_prompts(path, replace(GRID, size=(20, 24, 3)), LABELS)
    assert found.slices.max() < 3
    assert found.boxes[0].tolist() == [10, 8, 18, 20]


def test_row_78_a_label_map_on_a_guessed_place(tmp_path: Path) -> None:
    """Voxels are laid on voxels, with a warning where the places differ."""
    path = write_nifti(tmp_path / "label.nii.gz", small_scan()[1], LPS_GRID.affine)
    with pytest.warns(UserWarning, match="the image's place is a guess"):
        found = read_prompts(path, replace(GRID, guess="no qform and no sform"), LABELS)
    expected = simulated_prompts(SLICES, LABELS, "slices")
    assert expected is not None
    assert torch.equal(found.boxes, expected.boxes)
