"""2-D images in the slice store, with the objects that masks tell apart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from medsam_tune.cases.classes import Coding
from medsam_tune.cases.datalist import Case, with_copies
from medsam_tune.cases.folders import find_cases
from medsam_tune.errors import DataError
from medsam_tune.evaluation.cases import CaseDataset
from medsam_tune.slices.intensity import for_modality
from medsam_tune.slices.rules import ScanRules
from medsam_tune.slices.store import SliceStore
from medsam_tune.slices.transforms import LoadSliced
from medsam_tune.training.deformation import Deformation
from tests.images import image_and_ids, image_folder

RULES = ScanRules(for_modality("RGB"), modality="RGB", components=4)


def nuclei(folder: Path, instances: bool = True) -> Case:
    """Two touching objects and a far one, as numbers of objects."""
    numbers = np.zeros((20, 30), np.uint16)
    numbers[2:8, 2:8], numbers[2:8, 8:15], numbers[12:18, 20:28] = 300, 7, 40
    photo = np.random.default_rng(0).integers(0, 255, (20, 30, 3)).astype(np.uint8)
    Image.fromarray(photo).save(folder / "a.png")
    Image.fromarray(numbers).save(folder / "m.png")
    return Case(folder / "a.png", folder / "m.png", "p", coding=Coding({}, instances))


def test_objects_are_kept_and_numbered(tmp_path):
    case = nuclei(tmp_path)
    (found,) = SliceStore(tmp_path / "s", RULES, {1: "nucleus"}).prepare([case], False)
    assert found.has_objects
    assert sorted(np.bincount(found.objects()[0].ravel())[1:].tolist()) == [36, 42, 48]
    assert found.label_slice(0).max() == 1
    item = CaseDataset([found], {1: "nucleus"}, kinds=["slices"])[0]
    boxes = sorted(item["prompts"]["slices"].boxes.int().tolist())
    assert boxes == [[2, 2, 8, 8], [8, 2, 15, 8], [20, 12, 28, 18]]
    (again,) = SliceStore(tmp_path / "s", RULES, {1: "nucleus"}).prepare([case], False)
    assert again.has_objects
    plain = replace(RULES, components=None)
    (one,) = SliceStore(tmp_path / "s", plain, {1: "nucleus"}).prepare([case], False)
    assert one.path == found.path  # what is stored does not depend on it
    assert one.objects() is None


def test_a_sample_has_ids_and_objects(tmp_path):
    case = nuclei(tmp_path)
    (found,) = SliceStore(tmp_path / "s", RULES, {1: "nucleus"}).prepare([case], False)
    sample = LoadSliced()({"case": found, "slice": 0})
    assert sample["label"].shape == (2, 20, 30)
    assert sample["label"][1].unique().tolist() == [0, 1, 2, 3]
    assert sample["image"].shape == (3, 20, 30)
    assert not sample["before"].any()


def test_the_coding_is_part_of_an_entrys_name(tmp_path):
    store = SliceStore(tmp_path / "s", RULES, {1: "nucleus", 7: "b", 40: "c", 300: "d"})
    found = store.prepare([nuclei(tmp_path), nuclei(tmp_path, instances=False)], False)
    assert found[0].path != found[1].path
    assert not found[1].has_objects


def test_deformed_copies_of_images_keep_their_labels(tmp_path):
    """The field has no part across the only slice."""
    data = find_cases(image_folder(tmp_path / "d", groups=1))
    rules = replace(RULES, components=64)
    store = SliceStore(tmp_path / "s", rules, data.labels_in_files, deformation=Deformation())
    own, copy = store.prepare(with_copies(data.training, 1), False)
    before, after = own.label_slice(0), copy.label_slice(0)
    assert not np.array_equal(before, after)
    for label in (1, 2):
        assert (after == label).sum() == pytest.approx((before == label).sum(), rel=0.4)
    assert copy.image().shape == own.image().shape


def test_pieces_are_prompted_and_what_nobody_annotated_is_not(tmp_path):
    data = find_cases(image_folder(tmp_path / "d", groups=1))
    (found,) = SliceStore(tmp_path / "s", RULES, data.labels_in_files).prepare(data.training, False)
    item = CaseDataset([found], data.labels, kinds=["slices"])[0]
    assert item["prompts"]["slices"].labels.tolist() == [1, 2, 2, 2]
    assert (item["label"] == 3).any()
    torch.testing.assert_close(item["label"][0].byte(), torch.from_numpy(image_and_ids(0)[1]))


def test_colours_for_a_rule_of_one_channel(tmp_path):
    data = find_cases(image_folder(tmp_path / "d", groups=1), modality="XR")
    store = SliceStore(
        tmp_path / "s", ScanRules(for_modality("XR"), modality="XR"), data.labels_in_files
    )
    with pytest.raises(DataError, match=r"tile_0-part_0: an image of 3 channels; the rule of inte"):
        store.prepare(data.training, False)


@pytest.mark.parametrize("value", [0, -1, True, 2.0, "4"])
def test_components_are_pixels(value):
    with pytest.raises(DataError, match=r"components is .*; expected null for one object of each"):
        replace(RULES, components=value)
