from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medsam_tune.cases.description import Labels
from medsam_tune.cases.folders import find_cases
from medsam_tune.errors import DataError
from tests.scans import msd_folder, plain_folder, small_scan, write_nifti


def test_given_names_stand_above_dataset_json(tmp_path: Path) -> None:
    given = Labels({1: "big", 2: "small"})
    data = find_cases(msd_folder(tmp_path, ["a", "b"]), labels=given)
    assert data.labels == {1: "big", 2: "small"}
    assert data.present == {"a": {1, 2}, "b": {1, 2}}  # not read again for the split


def test_given_names_must_fit_the_label_maps(tmp_path: Path) -> None:
    folder = plain_folder(tmp_path, ["a", "b"])
    with pytest.raises(DataError, match=r"values without a name: 2 \(case a\); expected only 1\."):
        find_cases(folder, modality="CT", labels=Labels({1: "liver"}))
    with pytest.raises(DataError, match=r"no label has 3 \(kidney\); expected each name of --lab"):
        find_cases(folder, modality="CT", labels=Labels({1: "liver", 2: "spleen", 3: "kidney"}))
    data = find_cases(folder, modality="CT", labels=Labels({1: "liver"}, ignore=2))
    assert (data.labels, data.ignore) == ({1: "liver"}, 2)


def test_given_names_must_be_among_the_organs(tmp_path: Path) -> None:
    image, label = small_scan()
    write_nifti(tmp_path / "images" / "a.nii.gz", image)
    for number, organ in ((1, "liver"), (2, "spleen")):
        part = (label == number).astype(np.uint8)
        write_nifti(tmp_path / "labels" / "a" / f"{organ}.nii.gz", part)
    given = Labels({7: "liver", 8: "spleen"})
    assert find_cases(tmp_path, modality="CT", labels=given).labels == {7: "liver", 8: "spleen"}
    with pytest.raises(DataError, match=r"no label has 1 \(kidney\)"):
        find_cases(tmp_path, modality="CT", labels=Labels({1: "kidney"}))


def test_labels_json_may_be_nnunets(tmp_path: Path) -> None:
    plain_folder(tmp_path, ["a"])
    (tmp_path / "labels.json").write_text(json.dumps({"labels": {"liver": 1, "ignore": 2}}))
    data = find_cases(tmp_path, modality="CT")
    assert (data.labels, data.ignore) == ({1: "liver"}, 2)


def test_masks_of_numbers_of_objects_need_a_class_map(tmp_path: Path) -> None:
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    ids = np.arange(34, dtype=np.uint8).reshape(2, 17)  # 33 objects
    for name, values in (("images", 7 * ids), ("masks", ids)):
        Image.fromarray(values).save(tmp_path / name / "a.png")
    with pytest.raises(
        DataError,
        match=r"masks have 33 values without a name, from 1 to 33; expected at most 32\. .*"
        r'classes\.json in the folder: .*"instances": true.* or by --labels\.$',
    ):
        find_cases(tmp_path)
    (tmp_path / "classes.json").write_text('{"classes": [{"name": "object"}], "instances": true}')
    assert find_cases(tmp_path).labels == {1: "object"}
    (tmp_path / "classes.json").unlink()
    Image.fromarray(ids.clip(0, 32)).save(tmp_path / "masks" / "a.png")
    assert len(find_cases(tmp_path).labels) == 32
