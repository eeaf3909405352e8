"""Values of label maps and masks that are one label, from `split` to the slices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medsam_tune.cases.classes import Coding, coding_said
from medsam_tune.cases.datalist import read_datalist, write_datalist
from medsam_tune.cases.description import labels_typed
from medsam_tune.cases.folders import find_cases
from medsam_tune.cases.labels.open import open_label
from medsam_tune.cases.load import load_case
from medsam_tune.cases.splits import labels_of_patients, split_lines
from medsam_tune.errors import DataError
from medsam_tune.slices.intensity import Window
from medsam_tune.slices.rules import ScanRules
from medsam_tune.slices.store import SliceStore
from tests.scans import plain_folder


def test_label_maps(tmp_path: Path) -> None:
    folder = plain_folder(tmp_path / "scans", ["a", "b"])
    apart = find_cases(folder, modality="CT", labels=labels_typed("1=liver,2=spleen"))
    found = find_cases(folder, modality="CT", labels=labels_typed("2=organ,1=organ"))
    assert (found.labels, found.coding) == ({2: "organ"}, Coding(united={1: 2}))
    assert found.present == {"a": {2}, "b": {2}}
    assert "value 1 is read as 2 organ" in split_lines(tmp_path, found)

    write_datalist(found, tmp_path / "d.json")
    read = read_datalist(tmp_path / "d.json")
    assert (read.labels, read.coding) == (found.labels, found.coding)
    assert labels_of_patients(read) == {"a": {2}, "b": {2}}
    _, label = load_case(read.training[0], read.labels)
    _, plain = load_case(apart.training[0], apart.labels)
    assert label is not None
    assert plain is not None
    assert set(np.unique(plain)) == {0, 1, 2}
    np.testing.assert_array_equal(label, np.where(plain > 0, 2, 0))

    # Slices that were cut before are cut anew.
    rules = ScanRules(intensity=Window(100, 200))
    for data, ids in ((apart, {0, 1, 2}), (read, {0, 2})):
        store = SliceStore(tmp_path / "slices", rules, data.labels)
        (case,) = store.prepare(data.training[:1], progress=False)
        assert set(np.unique(case.label())) == ids


def test_masks_whose_white_is_one_of_the_values(tmp_path: Path) -> None:
    for number, values in enumerate(([0, 255], [0, 254, 255], [0, 254])):
        for place, array in (("images", np.arange(64) + number), ("masks", np.resize(values, 64))):
            (tmp_path / place).mkdir(exist_ok=True)
            picture = Image.fromarray(array.reshape(8, 8).astype(np.uint8))
            picture.save(tmp_path / place / f"{number}.png")
    found = find_cases(tmp_path, modality="MR", labels=labels_typed("254=gland,255=gland"))
    assert found.labels == {254: "gland"}
    for case in found.training:
        _, label = load_case(case, found.labels)
        assert label is not None
        assert set(np.unique(label)) == {0, 254}


def test_what_cannot_be_united(tmp_path: Path) -> None:
    folder = plain_folder(tmp_path / "scans", ["a"])
    with pytest.raises(DataError, match=r"values without a name: 2 \(case a\); expected only 1"):
        find_cases(folder, modality="CT", labels=labels_typed("1=organ,3=organ"))
    for text in ("1=a,2=a,2=b", "1=a,2=a,1=b", "1=a,0=a"):
        with pytest.raises(DataError, match=r"--labels"):
            labels_typed(text)
    organs = tmp_path / "organs"
    organs.mkdir()
    (folder / "labels" / "a.nii.gz").rename(organs / "liver.nii.gz")
    assert open_label(organs, Coding(united={1: 2})) == open_label(organs)  # names say it
    for said in ({"3": 9}, {"0": 2}, {"2": 2}, {"x": 2}, {"3": "2"}, [3]):
        with pytest.raises(DataError, match=r"d\.json: united is .*; expected the label"):
            coding_said({"united": said}, {2: "organ"}, Path("d.json"))
