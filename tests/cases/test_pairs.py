"""Pairs of image and label in folders, in folders of folders, and in tables."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medsam_tune.cases.audit import check_place
from medsam_tune.cases.datalist import read_datalist, write_datalist
from medsam_tune.cases.folders import find_cases
from medsam_tune.cases.load import load_case
from medsam_tune.cases.pairs import safe_name
from medsam_tune.cases.patients import patients_line
from medsam_tune.errors import DataError
from tests.images import CLASSES, PALETTE, image_and_ids, image_folder
from tests.scans import write_nifti


def pair(folder: Path, name: str, images: str = "images", masks: str = "masks") -> None:
    image, ids = image_and_ids(0)
    for place, array in ((images, image), (masks, ids * (ids < 3))):
        (folder / place / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(folder / place / f"{name}.png")


@pytest.mark.parametrize("masks", ["masks", "labels"])
def test_two_folders(tmp_path, masks):
    for name in ("a_1", "b_7"):
        pair(tmp_path, name, masks=masks)
    found = find_cases(tmp_path)
    assert (found.modality, found.labels) == ("RGB", {1: "label 1", 2: "label 2"})
    assert [(case.id, case.patient) for case in found.cases] == [("a_1", "a_1"), ("b_7", "b_7")]
    assert patients_line(found).startswith("groups: 2 for 2 images, guessed from the names")
    assert find_cases(tmp_path, modality="XR").modality == "XR"


def test_folders_of_a_data_set_are_groups(tmp_path):
    found = find_cases(image_folder(tmp_path, groups=2, each=2))
    assert {case.patient for case in found.cases} == {"tile 0", "tile 1"}
    assert [case.id for case in found.cases][::3] == ["tile_0-part_0", "tile_1-part_1"]
    assert (found.labels, found.ignore) == ({1: "road", 2: "house"}, 3)
    assert patients_line(found).startswith("groups: 2 for 4 images, by folders or a table; e.g.")


def test_folders_below_the_images_are_groups(tmp_path):
    for name in ("patient5/study1/a", "patient5/study1/b", "patient77/study1/a"):
        pair(tmp_path, name)
    found = find_cases(tmp_path)
    assert [(case.id, case.patient) for case in found.cases] == [
        ("patient5-study1-a", "patient5"),
        ("patient5-study1-b", "patient5"),
        ("patient77-study1-a", "patient77"),
    ]
    (tmp_path / "masks" / "patient77" / "study1" / "a.png").unlink()
    with pytest.raises(DataError, match=r"images without a label: patient77/study1/a\.png; lab"):
        find_cases(tmp_path)


def test_masks_in_one_folder_belong_to_images_in_several(tmp_path):
    for name in ("p5/a", "p5/b", "p77/c"):
        pair(tmp_path, name)
        mask = tmp_path / "masks" / f"{name}.png"
        mask.rename(tmp_path / "masks" / mask.name)
    for name in ("p5", "p77"):
        (tmp_path / "masks" / name).rmdir()
    found = find_cases(tmp_path)
    assert [(c.id, c.patient, c.label.name) for c in found.cases] == [
        ("p5-a", "p5", "a.png"),
        ("p5-b", "p5", "b.png"),
        ("p77-c", "p77", "c.png"),
    ]
    shutil.copy(tmp_path / "images" / "p5" / "a.png", tmp_path / "images" / "p77" / "a.png")
    with pytest.raises(DataError, match=r"p77/a\.png, .*; labels .*image: a\.png"):
        find_cases(tmp_path)


@pytest.mark.parametrize("place", ["images", "masks"])
def test_names_that_differ_in_the_ending_alone(tmp_path, place):
    pair(tmp_path, "a")
    with Image.open(tmp_path / place / "a.png") as opened:
        opened.convert("RGB").save(tmp_path / place / "a.bmp")
    with pytest.raises(
        DataError,
        match=rf"{place}: a\.bmp and a\.png differ in their endings alone; expected one f",
    ):
        find_cases(tmp_path)


def test_palettes_of_each_file_its_own(tmp_path):
    """Without a class map an index means a label, and a palette made anew numbers anew."""
    for name, order in (("a", [0, 1, 2]), ("b", [0, 2, 1])):
        pair(tmp_path, name)
        ids = np.asarray(Image.open(tmp_path / "masks" / f"{name}.png"))
        mask = Image.fromarray(np.argsort(order).astype(np.uint8)[ids]).convert("P")
        mask.putpalette(PALETTE[order].ravel().tolist())
        mask.save(tmp_path / "masks" / f"{name}.png")
    with pytest.raises(
        DataError,
        match=r"index 1 is #6EC1E4 in the palette of .*a\.png, and #3C1098 in that of .*b",
    ):
        find_cases(tmp_path)
    (tmp_path / "classes.json").write_text(json.dumps({"classes": CLASSES}))
    found = find_cases(tmp_path)
    labels = [load_case(case, found.labels_in_files)[1] for case in found.training]
    np.testing.assert_array_equal(labels[0].numpy(), labels[1].numpy())


def test_a_mask_may_be_a_folder(tmp_path):
    """A file for each class, beside images that lie in folders."""
    image, ids = image_and_ids(0)
    for place in ("images/g", "masks/g/a"):
        (tmp_path / place).mkdir(parents=True)
    Image.fromarray(image).save(tmp_path / "images/g/a.png")
    for number, name in ((1, "road"), (2, "house")):
        mask = (ids == number).astype(np.uint8) * 255
        Image.fromarray(mask).save(tmp_path / f"masks/g/a/{name}.png")
    found = find_cases(tmp_path)
    assert found.labels == {1: "house", 2: "road"}
    _, label = load_case(found.cases[0], found.labels)
    np.testing.assert_array_equal(label[0, ..., 0].T == 2, ids == 1)


@pytest.mark.parametrize("head", ["image,mask\n", ""])
def test_a_table_of_two_columns(tmp_path, head):
    for name in ("x/a", "y/a"):
        pair(tmp_path, name)
    rows = "images/x/a.png,masks/x/a.png\n\nimages/y/a.png,masks/y/a.png\n"
    (tmp_path / "pairs.csv").write_text(head + rows)
    found = find_cases(tmp_path / "pairs.csv")
    assert found.name == "pairs.csv"
    assert [case.id for case in found.cases] == ["images-x-a", "images-y-a"]
    write_datalist(found, tmp_path / "d.json")
    assert len(read_datalist(tmp_path / "d.json", with_leaks=True).training) == 2


def test_a_table_with_groups(tmp_path):
    for name in ("a", "b"):
        pair(tmp_path, name)
    table = tmp_path / "pairs.csv"
    table.write_text("images/a.png;masks/a.png;s1\nimages/b.png;masks/b.png;s1\n")
    assert [(c.id, c.patient) for c in find_cases(table).cases] == [("a", "s1"), ("b", "s1")]
    for text, said in (
        ("images/a.png,masks/a.png\nimages/b.png\n", "line 2 has 1 values; expected two, image,l"),
        ("images/a.png\n", "line 1 has 1 values"),
        ("images/a.png,masks/x.png\n", r"1 of 2 files are missing: .*x\.png"),
        ("", "no case in it"),
    ):
        table.write_text(text)
        with pytest.raises(DataError, match=said):
            find_cases(table)
    with pytest.raises(DataError, match=r"no\.csv: cannot be read|no such"):
        find_cases(tmp_path / "no.csv")


def test_the_class_map_is_in_the_datalist(tmp_path):
    """And a map that is given comes before the folder's."""
    folder = image_folder(tmp_path / "d", groups=1)
    found = find_cases(folder)
    write_datalist(found, tmp_path / "d.json")
    read = read_datalist(tmp_path / "d.json")
    assert read == found
    assert read.training[0].coding == found.coding
    assert json.loads((tmp_path / "d.json").read_text())["colours"]["#6EC1E4"] == 1
    image, label = load_case(read.training[0], read.labels_in_files)
    np.testing.assert_array_equal(label[0, ..., 0].T, image_and_ids(0)[1])
    assert image.shape[0] == 3
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"classes": [{**one, "name": f"{one['id']}"} for one in CLASSES]}))
    assert find_cases(folder, classes=other).labels == {1: "1", 2: "2"}


def test_a_class_map_without_masks(tmp_path):
    write_nifti(tmp_path / "scans" / "a.nii.gz", np.zeros((3, 3, 3), np.uint8))
    with pytest.raises(DataError, match=r"c\.json: class maps are of masks of images"):
        find_cases(tmp_path / "scans", classes=tmp_path / "c.json")


@pytest.mark.parametrize("text", ["a/b.png", "ä/ö", "-/x", "x" * 90, "tile 1/a b"])
def test_names_of_cases_are_safe(text):
    assert safe_name(text) == safe_name(text)
    assert len(safe_name(text)) <= 64
    assert safe_name(text)[0].isalnum()


def test_long_names_stay_apart():
    assert safe_name("x" * 90 + "a") != safe_name("x" * 90 + "b")
    assert len(PALETTE) == len(CLASSES) + 1


def test_images_beside_scans_are_previews(tmp_path):
    """As TotalSegmentator writes them; neither cases, nor labels, nor scans of their own."""
    pair(tmp_path, "preview", masks="labels")
    for name in ("images/a", "labels/a/liver"):
        write_nifti(tmp_path / f"{name}.nii.gz", np.ones((3, 3, 3), np.uint8))
    (tmp_path / "labels" / "preview.png").rename(tmp_path / "labels" / "a" / "preview.png")
    found = find_cases(tmp_path, modality="CT")
    assert [case.id for case in found.cases] == ["a"]
    assert found.labels == {1: "liver"}
    report = check_place(tmp_path / "images", progress=False)
    assert [one.case for one in report.findings] == ["a"]
    (tmp_path / "images" / "a.nii.gz").unlink()
    report = check_place(tmp_path / "images", progress=False)
    assert [one.case for one in report.findings] == ["preview"]
    assert "preview: 56 x 48 pixels" in report.lines()[0]
