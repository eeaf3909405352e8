"""A folder with a file for each organ."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from medsam_tune.cases.datalist import Case
from medsam_tune.cases.folders import find_cases
from medsam_tune.cases.labels.organs import OrganFolder
from medsam_tune.cases.load import load_case
from medsam_tune.cases.splits import labels_of_patients
from medsam_tune.errors import DataError
from medsam_tune.formats.mending import Mending
from tests.scans import LABELS, SHAPE, load_turned, small_scan, write_nifti
from tests.segmentation import NAMES


def test_one_file_for_each_organ(tmp_path):
    image, label = small_scan()
    for name in ("a", "b"):
        write_nifti(tmp_path / "images" / f"{name}.nii.gz", image)
        for number, organ in NAMES.items():
            part = ((label == number) * (255 if organ == "liver" else 1)).astype(np.uint8)
            write_nifti(tmp_path / "labels" / name / f"{organ}.nii.gz", part)
    kidney = tmp_path / "labels" / "b" / "kidney.nii.gz"
    write_nifti(kidney, np.zeros(SHAPE, np.uint8))
    data = find_cases(tmp_path, modality="CT")
    assert data.labels == {1: "kidney", 2: "liver", 3: "spleen"}
    assert labels_of_patients(data) == {"a": {2, 3}, "b": {2, 3}}
    for case in data.training:
        _, merged = load_turned(case, data.labels)
        np.testing.assert_array_equal(
            np.flip(merged[0].numpy(), (0, 1)), np.where(label > 0, label + 1, 0)
        )
    with pytest.raises(DataError, match=r"kidney\.nii\.gz is of no label that the datalist names"):
        load_turned(data.training[1], NAMES)
    write_nifti(kidney, (label == 2).astype(np.uint8))
    twice = int((label == 2).sum())
    with pytest.raises(DataError, match=rf"{twice} voxels of .*spleen\.nii\.gz are in another"):
        load_turned(data.training[1], data.labels)
    write_nifti(kidney, np.zeros((10, 12, 5), np.uint8))
    with pytest.raises(DataError, match=r"label shape \(10, 12, 5\) differs from image shape"):
        load_turned(data.training[1], data.labels)


def test_folders_that_are_refused(tmp_path):
    folder = tmp_path / "organs"
    folder.mkdir()
    with pytest.raises(DataError, match=r"organs: no label map in it; expected a file for each"):
        OrganFolder(folder).names()
    for ending in (".nii", ".nii.gz"):
        write_nifti(folder / f"liver{ending}", small_scan()[1])
    with pytest.raises(DataError, match=r"organs: several files of liver; expected one file for"):
        OrganFolder(folder).names()


def test_mending_holds_for_every_organ(tmp_path):
    """A guess is refused where guesses are; of a 4-D file the volume is taken that is asked for."""
    image, label = small_scan()
    case = Case(write_nifti(tmp_path / "a.nii", np.stack([image] * 2, -1)), tmp_path / "a", "p")
    liver = np.stack([label == 2, label == 1], -1).astype(np.uint8)
    write_nifti(case.label / "liver.nii", liver)
    (case.label / "._liver.nii").write_bytes(bytes(100))
    _, found = load_case(case, LABELS, Mending(volume_index=1))
    np.testing.assert_array_equal(found[0].numpy(), label == 1)
    nib.save(nib.Nifti1Image(liver, None), case.label / "liver.nii")
    with pytest.raises(DataError, match=r"neither qform nor sform is set \(.*liver\.nii\)"):
        load_case(case, LABELS, Mending(volume_index=1, strict=True))
