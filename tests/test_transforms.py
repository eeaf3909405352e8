"""The public transforms in plain MONAI pipelines, and the page that shows them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.data import MetaTensor
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    Invertd,
    LoadImaged,
    Orientationd,
    RandFlipd,
    Spacingd,
    SqueezeDimd,
)

import medsam_tune.transforms
from medsam_tune.transforms import (
    BoxPromptsd,
    ModelFramed,
    Percentilesd,
    PointPromptsd,
    SimpleITKReader,
    Windowd,
)
from tests.dicom_series import stored, write_series
from tests.scans import small_scan, write_nifti

PAGE = Path(__file__).parents[1] / "docs" / "transforms.md"


def loader(keys: list[str]) -> LoadImaged:
    load = LoadImaged(keys)
    load.register(SimpleITKReader())
    return load


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """A small NIfTI scan with its label."""
    image, label = small_scan()
    return {
        "image": write_nifti(tmp_path / "image.nii.gz", image),
        "label": write_nifti(tmp_path / "label.nii.gz", label),
    }


@pytest.fixture
def series(tmp_path: Path) -> dict[str, Path]:
    """A DICOM series, and a label of it as NRRD on the same grid."""
    folder = write_series(tmp_path / "series")
    label = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
    values = np.zeros_like(sitk.GetArrayFromImage(label))
    values[2:6, 3:9, 4:11] = 1  # slices, rows, columns
    mask = sitk.GetImageFromArray(values.astype(np.uint8))
    mask.CopyInformation(label)
    sitk.WriteImage(mask, str(tmp_path / "label.nrrd"))
    return {"image": folder, "label": tmp_path / "label.nrrd"}


def whole(keys: list[str], *more: Any) -> Compose:
    return Compose(
        [
            loader(keys),
            EnsureChannelFirstd(keys),
            Orientationd(keys, axcodes="PLS", labels=None),
            *more,
        ]
    )


def test_the_page_runs(files: dict[str, Path]) -> None:
    names: dict[str, Any] = {"scan": files["image"], "label": files["label"]}
    for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
        exec(code, names)  # the page is ours
    sample = names["batch"][0]
    assert (sample["image"].shape, sample["image"].dtype) == ((3, 256, 256), torch.float32)
    assert (sample["masks"].shape, sample["boxes"].shape) == ((3, 256, 256), (3, 4))
    assert 0 <= sample["image"].min() < sample["image"].max() <= 1
    for mask, (x0, y0, x1, y1) in zip(sample["masks"], sample["boxes"].tolist(), strict=True):
        rows, columns = mask.nonzero().unbind(1)
        middle = (float(columns.float().mean()), float(rows.float().mean()))
        assert x0 < middle[0] < x1
        assert y0 < middle[1] < y1
    assert names["logits"].shape == (1, 3, 128, 128)
    mask, (image, _) = names["mask"], small_scan()
    assert mask.shape == (1, *image.shape)
    expected = np.rint(np.clip((image + 160) / 400, 0, 1) * 255) > 150
    assert (mask[0].numpy() != expected).mean() < 0.02  # of values near 150
    np.testing.assert_allclose(mask.affine, np.diag([2.0, 3, 4, 1]), atol=1e-6)


def test_the_page_names_every_transform() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name in medsam_tune.transforms.__all__:
        assert f"`{name}`" in text or name == "Intensityd", name


@pytest.mark.parametrize("source", ["files", "series"])
def test_mask_of_the_model_frame_comes_back_to_the_file(
    source: str, request: pytest.FixtureRequest
) -> None:
    """NIfTI and DICOM through MONAI's own transforms, ours, and `Invertd`."""
    paths = request.getfixturevalue(source)
    frame = ModelFramed(["image", "label"], 64, mode=["bilinear", "nearest"])
    chain = whole(["image", "label"], Windowd("image", 100, 400), frame)
    item = chain(paths)
    assert item["image"].shape[:3] == item["label"].shape[:3] == (1, 64, 64)
    assert isinstance(item["image"], MetaTensor)
    item["found"] = item["label"].clone()
    back = Invertd("found", chain, orig_keys="label")(item)["found"]
    raw = Compose([loader(["label"]), EnsureChannelFirstd("label")])(paths)["label"]
    assert back.shape == raw.shape
    assert raw.max() >= 1
    torch.testing.assert_close(back.as_tensor().float(), raw.as_tensor().float())
    torch.testing.assert_close(back.affine, raw.affine, atol=1e-5, rtol=0)


def test_resampled_by_monai_and_back(files: dict[str, Path]) -> None:
    spacing = Spacingd(["image", "label"], (1.5, 1.0, 4.0), mode=["bilinear", "nearest"])
    frame = ModelFramed(["image", "label"], 96, mode=["bilinear", "nearest"])
    chain = whole(["image", "label"], spacing, frame)
    item = chain(files)
    assert item["label"].shape == (1, 96, 96, 6)
    back = Invertd("label", chain, orig_keys="label")(item)["label"]
    truth = small_scan()[1]
    assert (back[0].numpy() != truth).mean() < 0.03


def test_dicom_is_in_hounsfield_units_before_the_window(series: dict[str, Path]) -> None:
    plain = whole(["image"])(series)["image"]
    windowed = whole(["image"], Windowd("image", 100, 4000))(series)["image"]
    assert windowed.dtype == torch.uint8
    expected = ((plain.as_tensor() - (100 - 2000)) / 4000 * 255).round().clamp(0, 255)
    torch.testing.assert_close(windowed.as_tensor().float(), expected)
    assert plain.unique().numel() == stored().size
    torch.testing.assert_close(windowed.affine, plain.affine)


def test_slices_with_prompts_beside_monais_augmentation(files: dict[str, Path]) -> None:
    """The object's box, its points and its mask go through the frame together."""
    keys = ["image", "label"]
    frame = ModelFramed(["image", "masks"], 60, mode=["bilinear", "nearest"])
    chain = Compose(
        [
            whole(keys, Percentilesd("image")),
            _Slice(keys, 2),
            SqueezeDimd(keys, dim=-1),
            RandFlipd(keys, prob=1.0, spatial_axis=1),
            BoxPromptsd("label", jitter=0),
            PointPromptsd("label", inside=2, outside=2),
            frame,
        ]
    ).set_random_state(seed=3)
    item = chain(files)
    assert item["labels"].tolist() == [1, 2]
    for n in range(2):
        mask, (x0, y0, x1, y1) = item["masks"][n].as_tensor(), item["boxes"][n].tolist()
        rows, columns = mask.nonzero().unbind(1)
        assert [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] == [x0, y0, x1, y1]
        inside = [bool(mask[int(y), int(x)]) for x, y in item["points"][n].tolist()]
        assert inside == [kind == 1 for kind in item["point_labels"][n].tolist()]
    back = Invertd("masks", frame)(item)["masks"]
    truth = np.flip(small_scan()[1][..., 2], (0, 1)).T[:, ::-1]  # rows, columns; mirrored
    for mask, label in zip(back, (1, 2), strict=True):
        np.testing.assert_array_equal(mask.numpy(), truth == label)


def test_two_seeds_and_one(files: dict[str, Path]) -> None:
    chain = whole(["image", "label"], BoxPromptsd("label", count=5, jitter=0.2))
    first, again, other = (chain.set_random_state(seed=seed)(files)["boxes"] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


class _Slice:
    """Slice k of volumes (C, H, W, D), as (C, H, W, 1)."""

    def __init__(self, keys: list[str], k: int) -> None:
        self.keys, self.k = keys, k

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        return {**data, **{key: data[key][..., self.k : self.k + 1] for key in self.keys}}
