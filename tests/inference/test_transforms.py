"""Scans as MONAI dictionaries: what the model sees, and the way back."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch
from monai.transforms import Compose, Invertd, Orientation

from medsam_tune.errors import DataError
from medsam_tune.formats.itk import write as write_itk
from medsam_tune.formats.mending import Mending
from medsam_tune.formats.open import load_image
from medsam_tune.formats.reader import scan_loader
from medsam_tune.inference.aftercare import Aftercare
from medsam_tune.inference.inferers import BatchInferer, VolumeInferer
from medsam_tune.inference.output import on_grid
from medsam_tune.inference.transforms import Aftercared, PromptMapd, ScanRulesd
from medsam_tune.slices.cut import cut, cut_label, grid_of
from medsam_tune.slices.frames import volume_from_slices
from medsam_tune.slices.intensity import Window
from medsam_tune.slices.rules import ScanRules
from tests.inference.made import RAS, SAGITTAL, Build, scan
from tests.scans import small_scan, write_nifti

RULES = [
    pytest.param(ScanRules(Window(100, 200)), id="plain"),
    pytest.param(
        ScanRules(Window(100, 200), "coronal", (4, 3, 5), neighbours=True), id="resampled"
    ),
]
SCANS = [pytest.param(RAS, (10, 12, 6), id="RAS"), pytest.param(SAGITTAL, (12, 6, 10), id="PIR")]


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize(("affine", "shape"), SCANS)
def test_a_scan_becomes_what_the_model_sees(
    tmp_path: Path, affine: np.ndarray, shape: tuple[int, ...], rules: ScanRules
) -> None:
    path = scan(tmp_path, affine, shape)
    steps = Compose([scan_loader("image"), ScanRulesd("image", rules)])
    found = steps({"image": str(path)})["image"]
    slices, grid = cut(load_image(path), rules)
    assert torch.equal(found.as_tensor(), volume_from_slices(slices))
    assert found.dtype == torch.uint8
    turned = Orientation(grid.axes, labels=None)(load_image(path))
    first, low = (one.affine.numpy() @ [-0.5, -0.5, -0.5, 1] for one in (found, turned))
    last = found.affine.numpy() @ [*np.array(grid.size) - 0.5, 1]
    high = turned.affine.numpy() @ [*np.array(turned.shape[1:]) - 0.5, 1]
    np.testing.assert_allclose(first, low, atol=1e-6)  # corners of the scan, in millimetres
    np.testing.assert_allclose(last, high, atol=1e-6)


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize(("affine", "shape"), SCANS)
def test_labels_come_back_to_the_scan(
    tmp_path: Path, affine: np.ndarray, shape: tuple[int, ...], rules: ScanRules
) -> None:
    steps = Compose([scan_loader("image"), ScanRulesd("image", rules)])
    back = Invertd("pred", steps, orig_keys="image")
    loader = DataLoader(Dataset([{"image": str(scan(tmp_path, affine, shape))}], steps))
    (batch,) = loader
    batch["pred"] = batch["image"][:, :1] // 100
    (item,) = decollate_batch(batch)
    found = back(item)["pred"]
    grid = grid_of(load_image(tmp_path / "scan.nii.gz"), rules)
    slices = batch["pred"].as_tensor()[0].permute(3, 0, 2, 1)[:, 0]
    np.testing.assert_array_equal(found[0].numpy(), grid.to_file(slices))
    assert (tuple(found.shape[1:]), found.dtype) == (shape, torch.uint8)
    np.testing.assert_allclose(found.affine, affine)
    assert not found.applied_operations


def test_scans_without_nifti_codes_make_batches(tmp_path: Path) -> None:
    """MONAI collates metadata, but not None."""
    write_itk(tmp_path / "scan.nrrd", np.ones((4, 5, 6), np.uint8), RAS)
    write_itk(tmp_path / "scan.mha", np.ones((4, 5, 6), np.uint8), RAS)
    files = [{"image": str(tmp_path / name)} for name in ("scan.nrrd", "scan.mha")]
    (batch,) = DataLoader(Dataset(files, scan_loader("image")), batch_size=2)
    assert tuple(batch["image"].shape) == (2, 4, 5, 6)


def test_scans_in_memory_are_checked_and_mended_as_files() -> None:
    image, _ = small_scan()
    place = torch.from_numpy(RAS)
    volume = MetaTensor(torch.from_numpy(image), affine=place)  # without a channel, as from Deploy
    two = MetaTensor(torch.stack([volume.as_tensor() * 0, volume.as_tensor()]), affine=place)
    rules = ScanRules(Window(100, 200))
    wanted = ScanRulesd("image", rules)({"image": volume})["image"]
    with pytest.raises(DataError, match="2 volumes"):
        ScanRulesd("image", rules)({"image": two})
    second = ScanRulesd("image", rules, Mending(volume_index=1))
    assert torch.equal(second({"image": two})["image"].as_tensor(), wanted.as_tensor())
    with pytest.raises(DataError, match="no volume 2"):
        ScanRulesd("image", rules, Mending(volume_index=2))({"image": two})
    with pytest.raises(ValueError, match="affine is missing"):
        ScanRulesd("image", rules)({"image": torch.from_numpy(image)})
    assert ScanRulesd("image", rules, allow_missing_keys=True)({}) == {}


def test_aftercare_in_a_pipeline() -> None:
    rules = ScanRules(Window(100, 200), "coronal")
    mask = torch.zeros(10, 12, 6, dtype=torch.uint8)
    mask[1:4, 1:4, 1:4], mask[6, 6, :] = 1, 2
    aftercare = Aftercare(smooth_slices=1.0, min_volume_ml=0.1)
    item = {"pred": MetaTensor(mask[None], affine=torch.from_numpy(RAS), meta={"a": 1})}
    found = Aftercared("pred", rules, aftercare)(item)["pred"]
    grid = rules.grid(mask.shape, RAS)
    slices = mask.permute(1, 2, 0).flip(0, 1, 2)  # coronal: P, I, L of the file's R, A, S
    np.testing.assert_array_equal(grid.to_file(slices), mask)
    np.testing.assert_array_equal(found[0].numpy(), on_grid(slices, grid, aftercare))
    assert 0 < int((found > 0).sum()) < int((mask > 0).sum())
    assert (found.dtype, found.meta["a"]) == (torch.uint8, 1)


def test_batches_are_segmented_volume_by_volume(tiny_sam: Build) -> None:
    from medsam_tune.methods import apply_method

    model = apply_method(tiny_sam(), "decoder", num_classes=2)
    with torch.no_grad():
        model.learned.present[:, -1] = 1
    slices = torch.randint(0, 256, (2, 3, 1, 20, 24), dtype=torch.uint8)
    batch = MetaTensor(torch.stack([volume_from_slices(one) for one in slices]), meta={"a": 1})
    inferer = VolumeInferer([3, 5])
    with torch.inference_mode():
        found = BatchInferer(inferer)(batch, model, prompts=None)
        for one, labels in zip(slices, found, strict=True):
            wanted = inferer(one, model)
            assert torch.equal(labels.as_tensor(), volume_from_slices(wanted[:, None]))
    assert (found.dtype, found.meta["a"]) == (torch.uint8, 1)
    assert set(found.unique().tolist()) > {0}
    assert tuple(found.shape) == (2, 1, 24, 20, 3)


@pytest.mark.parametrize(
    ("amp", "dtype"), [(True, torch.bfloat16), (False, torch.float32), (None, torch.float32)]
)
def test_batches_in_bfloat16_where_it_is_asked_for(
    tiny_sam: Build, monkeypatch: pytest.MonkeyPatch, amp: bool | None, dtype: torch.dtype
) -> None:
    from medsam_tune.methods import apply_method

    monkeypatch.setattr("medsam_tune.engines.has_bfloat16", lambda: True)
    model, seen = apply_method(tiny_sam(), "decoder", num_classes=2), set()
    model.image_encoder.blocks[0].mlp.lin1.register_forward_hook(
        lambda _, __, made: seen.add(made.dtype)
    )
    volumes = torch.randint(0, 256, (1, 1, 24, 20, 2), dtype=torch.uint8)
    with torch.inference_mode():
        BatchInferer(VolumeInferer([3, 5]), amp=amp)(volumes, model, None)
    assert seen == {dtype}


@pytest.mark.parametrize("rules", RULES)
def test_label_maps_lie_on_the_slices_whatever_their_orientation(
    tmp_path: Path, rules: ScanRules
) -> None:
    path = scan(tmp_path, SAGITTAL, (12, 6, 10))
    ids = np.random.default_rng(1).integers(0, 3, (12, 6, 10)).astype(np.uint8)
    turned = nib.as_closest_canonical(nib.Nifti1Image(ids, SAGITTAL))
    nib.save(turned, tmp_path / "label.nii.gz")
    steps = Compose([scan_loader(["image", "prompts"]), PromptMapd("prompts", rules, [1, 2])])
    files = {"image": str(path), "prompts": str(tmp_path / "label.nii.gz")}
    found = steps(files)["prompts"]
    grid = grid_of(load_image(path), rules)
    image = MetaTensor(torch.from_numpy(ids)[None], affine=torch.from_numpy(SAGITTAL))
    wanted, _ = cut_label(image, grid)
    assert torch.equal(found.as_tensor(), volume_from_slices(wanted[:, None]).int())
    np.testing.assert_allclose(found.affine, grid.affine_of_slices)
    load = scan_loader(["image", "prompts"])
    with pytest.raises(DataError, match=r"values 2 \(.*label\.nii\.gz\); expected only 0, 1"):
        PromptMapd("prompts", rules, [1])(load(files))
    write_nifti(tmp_path / "label.nii.gz", ids, RAS)
    with pytest.raises(DataError, match="differs from"):
        PromptMapd("prompts", rules, [1, 2])(load(files))
