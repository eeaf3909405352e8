from __future__ import annotations

import hashlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from medsam_tune.cases.folders import find_cases
from medsam_tune.prompts import boxes_from_masks, ellipses_in_boxes
from medsam_tune.synthetic.phantom import LABELS, write_phantoms
from tests.scans import load_turned


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory) -> Path:
    return write_phantoms(tmp_path_factory.mktemp("phantoms"), count=4, seed=3)


def digests(folder: Path) -> dict[str, str]:
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*.*"))
        if file.is_file()
    }


def test_same_seed_same_bytes(phantoms, tmp_path):
    assert digests(write_phantoms(tmp_path, count=4, seed=3)) == digests(phantoms)


def test_another_seed_is_another_patient(phantoms, tmp_path):
    other = digests(write_phantoms(tmp_path, count=1, seed=4))
    name = "imagesTr/phantom_000.nii.gz"
    assert other[name] != digests(phantoms)[name]


def test_is_a_sound_decathlon_folder(phantoms):
    data = find_cases(phantoms)
    assert (data.modality, data.labels, len(data.training)) == ("CT", LABELS, 4)
    for case in data.training:
        image, label = load_turned(case, data.labels)
        assert image.shape == label.shape == (1, 96, 80, 24)


def test_units_and_contrast(phantoms):
    image, label = load_turned(find_cases(phantoms).training[0], LABELS)
    image, label = image.as_tensor(), label.as_tensor()
    assert abs(image[0, :3, :3].mean() + 1000) < 15
    assert 95 < image[label == 1].mean() < 120
    assert image[label == 3].mean() > image[label == 2].mean() > image[label == 1].mean()
    assert image.max() > 300


def test_liver_lies_on_the_patients_right_whatever_the_storage(phantoms):
    codes = set()
    for case in find_cases(phantoms).training:
        codes.add(nib.aff2axcodes(nib.load(case.image).affine))
        _, label = load_turned(case, LABELS)
        x = {i: (label[0] == i).nonzero()[:, 0].float().mean() for i in (1, 2, 3, 4)}
        assert x[1] < x[2]  # LPS: x grows to the left
        assert x[3] < x[4]
    assert codes == {("R", "A", "S"), ("L", "P", "S")}


def test_stored_as_int16_with_anisotropic_voxels(phantoms):
    nifti = nib.load(find_cases(phantoms).training[0].image)
    assert nifti.get_data_dtype() == np.int16
    np.testing.assert_allclose(nifti.header.get_zooms(), (3.6, 3.2, 5.0), atol=1e-5)
    assert np.abs(nifti.affine[:3, 3]).max() > 100


@pytest.mark.parametrize("organ", [1, 2, 3, 4])
def test_a_box_is_not_already_the_answer(phantoms, organ):
    overlaps = []
    for case in find_cases(phantoms).training:
        _, label = load_turned(case, LABELS)
        masks = torch.stack([plane == organ for plane in label[0].as_tensor().unbind(-1)])
        masks = masks[masks.flatten(1).any(1)]
        ellipses = ellipses_in_boxes(boxes_from_masks(masks), tuple(masks.shape[1:])) > 0
        overlaps.append(float(2 * (ellipses & masks).sum() / (ellipses.sum() + masks.sum())))
    assert np.mean(overlaps) < 0.85


def test_other_shapes(tmp_path):
    folder = write_phantoms(tmp_path, count=1, shape=(40, 36, 10), spacing=(8.0, 7.0, 12.0))
    _, label = load_turned(find_cases(folder).training[0], LABELS)
    assert {1, 2, 3, 4} <= set(label.as_tensor().unique().tolist())
