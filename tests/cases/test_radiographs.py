"""Radiographs in DICOM with masks as PNG: bright is dense, and nothing says where they lie."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from medsam_tune.cases.folders import find_cases
from medsam_tune.cases.load import load_case
from medsam_tune.slices.cut import cut, cut_label
from medsam_tune.slices.intensity import for_modality
from medsam_tune.slices.rules import ScanRules
from tests.dicom_series import stored, write_series

SMALL = ["--image-size", "64", "--set", "epochs=1", "--set", "epoch_slices=1"]


def radiograph(folder, modality, photometric, pixels, mask, name="chest"):
    """A radiograph of pixels (rows, columns) in images/, its mask in masks/."""

    def change(_, image):
        for tag in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
            delattr(image, tag)
        for tag in ("SliceThickness", "FrameOfReferenceUID"):
            image.pop(tag, None)
        image.PhotometricInterpretation = photometric
        image.PatientID = name
        image.Rows, image.Columns = pixels.shape
        image.PixelData = pixels.astype(np.int16).tobytes()

    series = write_series(folder / name, change, modality, count=1)
    for place in ("images", "masks"):
        (folder / place).mkdir(exist_ok=True)
    next(series.iterdir()).rename(folder / "images" / f"{name}.dcm")
    series.rmdir()
    Image.fromarray(mask).save(folder / "masks" / f"{name}.png")


@pytest.mark.parametrize("modality", ["DX", "CR", "MG"])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_a_radiograph_and_its_mask(tmp_path, modality, photometric):
    raw = stored(1)[0].astype(float)
    mask = np.zeros(raw.shape, np.uint8)
    mask[1:3, 2:7] = 255
    radiograph(tmp_path, modality, photometric, raw, mask)
    found = find_cases(tmp_path)
    assert found.modality == "XR"
    image, label = load_case(found.training[0], {1: "lung"})
    slices, grid = cut(image, ScanRules(for_modality("XR"), modality="XR"))
    assert slices.shape[-2:] == mask.shape
    like = np.corrcoef(slices[0, 0].numpy().ravel(), raw.ravel())[0, 1]
    assert like * (-1 if photometric == "MONOCHROME1" else 1) > 0.9
    np.testing.assert_array_equal(cut_label(label, grid)[0][0] == 1, mask > 0)


def test_from_split_to_a_mask(tune, tmp_path):
    """By the command line and xray.yaml, of MONOCHROME1 files."""
    rng = np.random.default_rng(0)
    folder, masks = tmp_path / "d", {}
    folder.mkdir()
    for k in range(3):
        mask = np.zeros((60, 50), np.uint8)
        mask[12 + k : 40 + k, 10:38] = 255
        masks[f"p{k}"] = mask
        pixels = 3000 - 8 * mask.astype(float) + rng.normal(0, 30, mask.shape)
        radiograph(folder, "DX", "MONOCHROME1", pixels, mask, f"p{k}")
    datalist, run = tmp_path / "d.json", tmp_path / "run"
    thirds = ("--fractions", 0.34, 0.33, 0.33)
    files = ("--datalist", datalist, "--output", run, "--bundle", "image")
    for words in (
        ("split", folder, "--labels", "1=lung", "--out", datalist, *thirds),
        ("train", "decoder", "--overlay", "xray", *files, *SMALL),
    ):
        code, _, err = tune(*words)
        assert code == 0, err
    record = json.loads((run / "run.json").read_text())
    assert (record["rules"]["modality"], record["rules"]["components"]) == ("XR", None)
    assert record["labels"] == {"1": "lung"}
    (case,) = json.loads(datalist.read_text())["test"]
    words = ("predict", tmp_path / case["image"], "--run", run, "--output", tmp_path / "m.png")
    code, _, err = tune(*words, "--prompts", tmp_path / case["label"])
    assert code == 0, err
    found = np.asarray(Image.open(tmp_path / "m.png")) == 1
    expected = masks[case["image"].split("/")[-1].removesuffix(".dcm")] > 0
    assert 2 * (found & expected).sum() / (found.sum() + expected.sum()) > 0.8
