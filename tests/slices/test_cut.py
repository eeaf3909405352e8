"""Slices of every plane lie where the scan does, and lead back to it."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from medsam_tune.cases.datalist import Case
from medsam_tune.cases.load import load_case
from medsam_tune.errors import DataError
from medsam_tune.evaluation.cases import CaseDataset
from medsam_tune.inference.scans import LoadPromptedScan
from medsam_tune.slices.cut import cut, cut_label, grid_of
from medsam_tune.slices.frames import ModelFrame, slices_from_volume, with_neighbours
from medsam_tune.slices.intensity import Window, Windows
from medsam_tune.slices.rules import PLANES, ScanRules
from medsam_tune.slices.store import PreparedCase, SliceStore
from tests.scans import LABELS, load_turned, small_scan, write_nifti

ORIENTATIONS = [
    "".join(codes) for axes in permutations(("LR", "PA", "SI")) for codes in product(*axes)
]

WINDOW = Window(100, 200)


def placed(codes: str, spacing: tuple[float, float, float], degrees: float) -> np.ndarray:
    """An affine whose axes run along the codes before they are turned about x and y."""
    axes = nib.orientations.axcodes2ornt(tuple(codes))
    turn = np.zeros((3, 3))
    for file_axis, (axis, flip) in enumerate(axes):
        turn[int(axis), file_axis] = flip
    s, c = np.sin(np.radians(degrees)), np.cos(np.radians(degrees))
    about_x = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    about_y = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    affine = np.eye(4)
    affine[:3, :3] = (about_y @ about_x if degrees else np.eye(3)) @ turn @ np.diag(spacing)
    affine[:3, 3] = 12, -40, 77
    return affine


def drawn_in_world(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """An ellipsoid with a dent, fixed in world space about the grid's middle: no symmetry left."""
    voxels = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    middle = nib.affines.apply_affine(affine, np.array(shape) / 2)
    x, y, z = np.moveaxis(nib.affines.apply_affine(affine, voxels) - middle, -1, 0)
    inside = (x / 7) ** 2 + (y / 5) ** 2 + (z / 9) ** 2 < 1
    return (inside & ~((x > 1) & (y > 0) & (z > 2))).astype(np.uint8)


@pytest.mark.parametrize(
    ("spacing", "degrees"),
    [((1.0, 1.0, 1.0), 0), ((1.0, 1.0, 5.0), 30)],
    ids=["even", "1:5, turned by 30 degrees"],
)
@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_mask_in_world_space_comes_back_through_every_plane(
    tmp_path: Path, codes: str, spacing: tuple[float, float, float], degrees: float
) -> None:
    shape = (20, 18, 24) if spacing[2] == 1 else (20, 18, 6)
    affine = placed(codes, spacing, degrees)
    mask = drawn_in_world(affine, shape)
    assert 50 < mask.sum() < mask.size / 2
    path = write_nifti(tmp_path / "scan.nii", mask, affine)
    for plane in PLANES:
        image, label = load_case(Case(path, path, ""), {1: "it"})
        assert label is not None
        _, grid = cut(image, ScanRules(WINDOW, plane))
        slices = cut_label(label, grid)[0][:, None] > 0
        height, width = slices.shape[-2:]
        frame = ModelFrame((height, width), 4 * max(height, width))
        logits = frame.masks(slices).float() - 0.5
        back = (frame.logits(logits) > 0)[:, 0].to(torch.uint8)
        np.testing.assert_array_equal(grid.to_file(back), mask)


def test_slices_are_as_a_radiologist_sees_them(tmp_path: Path) -> None:
    """Patient's left on the right, front and head at the top; sagittal: front on the left."""
    world = np.zeros((5, 5, 5), np.float32)
    world[4, 2, 2], world[2, 4, 2], world[2, 2, 4] = 1, 2, 3  # RAS: right, anterior, superior
    world[0, 2, 2], world[2, 0, 2], world[2, 2, 0] = 4, 5, 6
    path = write_nifti(tmp_path / "a.nii", world, np.eye(4))
    seen = {}
    for plane in PLANES:
        image, _ = load_turned(Case(path, None, ""), {}, plane=plane)
        seen[plane] = slices_from_volume(image.as_tensor())[2, 0].numpy()
    left, right, front, back, head, foot = 4, 1, 2, 5, 3, 6
    for plane, (west, east, north, south) in {
        "axial": (right, left, front, back),
        "coronal": (right, left, head, foot),
        "sagittal": (front, back, head, foot),
    }.items():
        assert seen[plane][2, 0] == west
        assert seen[plane][2, 4] == east
        assert seen[plane][0, 2] == north
        assert seen[plane][4, 2] == south


def test_resampled_slices_are_measured_in_the_scans_own_grid(tmp_path: Path) -> None:
    case = write_case(tmp_path)  # voxels of 2 x 3 x 4 mm
    rules = ScanRules(WINDOW, spacing=(1.0, 1.0, 0.0))
    (prepared,) = SliceStore(tmp_path / "s", rules, LABELS).prepare([case], False)
    assert prepared.shape == (6, 36, 20)
    assert prepared.label().shape == (6, 36, 20)
    own = slices_from_volume(torch.from_numpy(small_scan()[1])[None]).numpy()[:, 0, ::-1, ::-1]
    np.testing.assert_array_equal(prepared.truth(), own)
    np.testing.assert_array_equal(prepared.label(), own.repeat(3, 1).repeat(2, 2))
    item = CaseDataset([prepared], LABELS)[0]
    assert item["label"].shape == (6, 36, 20)
    assert item["truth"].shape == (6, 12, 10)
    image, _ = load_turned(case, LABELS)
    grid = grid_of(image, rules)
    np.testing.assert_array_equal(grid.to_file(torch.from_numpy(prepared.label())), small_scan()[1])
    prompts = {"objects": [{"label": 1, "box3d": [1, 2, 1, 5, 8, 5]}]}
    scan = LoadPromptedScan(rules, LABELS)({"scan": case.image, "prompts": prompts})
    assert scan.image.shape == (6, 1, 36, 20)
    ys, xs = np.nonzero(prepared.label()[1] == 1)
    assert scan.prompts is not None
    assert scan.prompts.boxes[0].tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
    torch.testing.assert_close(scan.image, torch.from_numpy(prepared.image()))


def write_case(folder: Path) -> Case:
    image, label = small_scan()
    return Case(
        write_nifti(folder / "image" / "a.nii.gz", image),
        write_nifti(folder / "label" / "a.nii.gz", label),
        "p",
    )


def test_neighbours_are_the_channels(tmp_path: Path) -> None:
    case = write_case(tmp_path)
    plain = prepare(tmp_path, case, ScanRules(WINDOW))
    beside = prepare(tmp_path, case, ScanRules(WINDOW, neighbours=True))
    assert plain.path == beside.path  # put together when read
    slices = plain.image()[:, 0]
    stacked = beside.image()
    assert stacked.shape == (6, 3, 12, 10)
    for k in range(6):
        expected = np.stack([slices[max(k - 1, 0)], slices[k], slices[min(k + 1, 5)]])
        np.testing.assert_array_equal(stacked[k], expected)
        np.testing.assert_array_equal(beside.image_slice(k), expected)
    loaded = LoadPromptedScan(ScanRules(WINDOW, neighbours=True), LABELS)(
        {"scan": case.image, "prompts": None}
    )
    np.testing.assert_array_equal(loaded.image.numpy(), stacked)
    assert with_neighbours(torch.zeros(1, 1, 4, 4)).shape == (1, 3, 4, 4)


def test_neighbours_of_many_small_slices(tmp_path: Path) -> None:
    values = np.random.default_rng(0).uniform(1, 200, (4, 5, 30)).astype(np.float32)
    case = Case(write_nifti(tmp_path / "a.nii.gz", values), None, "p")
    beside = prepare(tmp_path, case, ScanRules(WINDOW, neighbours=True))
    whole = beside.image()
    assert whole.shape == (30, 3, 5, 4)
    for k in range(30):
        np.testing.assert_array_equal(beside.image_slice(k), whole[k])


def prepare(folder: Path, case: Case, rules: ScanRules) -> PreparedCase:
    return SliceStore(folder / "store", rules, LABELS).prepare([case], False)[0]


def test_neighbours_of_several_windows_are_refused(tmp_path: Path) -> None:
    store = SliceStore(tmp_path / "s", ScanRules(Windows(), neighbours=True), LABELS)
    (case,) = store.prepare([write_case(tmp_path)], False)
    with pytest.raises(DataError, match=r"neighbours need one channel .* gives 3"):
        case.image()


@pytest.mark.parametrize(
    "other", [{"plane": "coronal"}, {"spacing": (1, 1, 1)}, {"squash": False, "plane": "sagittal"}]
)
def test_another_reading_is_another_entry(tmp_path: Path, other: dict[str, object]) -> None:
    case = write_case(tmp_path)
    first = prepare(tmp_path, case, ScanRules(WINDOW))
    assert prepare(tmp_path, case, ScanRules(WINDOW, **other)).path != first.path  # type: ignore[arg-type]
