"""Radiographs in DICOM with masks as PNG: bright is dense, and nothing says where they lie."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from medsam_tune.cases.folders import find_cases
from medsam_tune.cases.load import load_case
from medsam_tune.slices.cut import cut, cut_label
from medsam_tune.slices.intensity import for_modality
from medsam_tune.slices.rules import ScanRules
from tests.dicom_series import stored, write_series


def radiograph(folder, modality, photometric):
    def change(_, image):
        for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
            delattr(image, name)
        for name in ("SliceThickness", "FrameOfReferenceUID"):
            image.pop(name, None)
        image.PhotometricInterpretation = photometric

    series = write_series(folder / "series", change, modality, count=1)
    (folder / "images").mkdir()
    (folder / "masks").mkdir()
    next(series.iterdir()).rename(folder / "images" / "chest.dcm")
    rows, columns = stored(1)[0].shape
    mask = np.zeros((rows, columns), np.uint8)
    mask[1:3, 2:7] = 255
    Image.fromarray(mask).save(folder / "masks" / "chest.png")
    return mask


@pytest.mark.parametrize("modality", ["DX", "CR", "MG"])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_a_radiograph_and_its_mask(tmp_path, modality, photometric):
    mask = radiograph(tmp_path, modality, photometric)
    found = find_cases(tmp_path)
    assert found.modality == "XR"
    image, label = load_case(found.training[0], {1: "lung"})
    slices, grid = cut(image, ScanRules(for_modality("XR"), modality="XR"))
    assert slices.shape[-2:] == mask.shape
    raw = stored(1)[0].astype(float)
    like = np.corrcoef(slices[0, 0].numpy().ravel(), raw.ravel())[0, 1]
    assert like * (-1 if photometric == "MONOCHROME1" else 1) > 0.9
    np.testing.assert_array_equal(cut_label(label, grid)[0][0] == 1, mask > 0)
